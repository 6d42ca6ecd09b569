"""Write bot/metadata/hub_lists.json: the license ids, tasks and languages that the Hub lists for a card's metadata.

    python -m tools.make_hub_lists HUB_DOCS HUGGINGFACE_JS

with clones of github.com/huggingface/hub-docs and github.com/huggingface/huggingface.js. Ids and names only are taken.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

OUT = Path(__file__).parents[1] / "bot" / "metadata" / "hub_lists.json"


def licenses(docs: Path) -> dict[str, str]:
    """id → full name, of the table in docs/hub/repositories-licenses.md."""
    text = (docs / "docs/hub/repositories-licenses.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) +\| `([^`]+)` +\|", text, re.MULTILINE)
    return {name: full.replace("\\", "") for full, name in rows}


def tasks(js: Path) -> list[str]:
    """The ids of packages/tasks/src/pipelines.ts, in its order."""
    text = (js / "packages/tasks/src/pipelines.ts").read_text(encoding="utf-8")
    return re.findall(r'^\t"?([a-z0-9-]+)"?: \{$', text[text.index("PIPELINE_DATA =") :], re.MULTILINE)


def languages(js: Path, part: str) -> dict[str, str]:
    """code → English name."""
    text = (js / f"packages/languages/src/languages_iso_639_{part}.ts").read_text(encoding="utf-8")
    return dict(re.findall(r'code: "(\w+)",\s+name: "([^"]+)"', text))


def main() -> None:
    docs, js = map(Path, sys.argv[1:3])
    listed = {
        "generator": "tools/make_hub_lists.py",
        "licenses": licenses(docs),
        "tasks": " ".join(tasks(js)),
        "languages": languages(js, "1"),
        "more_languages": " ".join(sorted(languages(js, "3"))),
    }
    OUT.write_text(json.dumps(listed, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
