"""What this tool is called where others read of it, and where it lives; pyproject.toml and README name the same."""

from __future__ import annotations

NAME = "adapter-merge"
HIDDEN_MARK = f"<!-- {NAME}:"  # how every mark begins by which we know a comment of ours again
REPOSITORY = "https://github.com/adapter-merge/adapter-merge"
