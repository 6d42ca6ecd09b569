"""The step's outputs: always all of them, also when the run failed; an empty one is one that does not apply."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path

from bot.action.state import CHECKSUMS, REPORT, Book
from bot.errors import MachineTooSmall, NotVerified, Refused
from bot.redact import redact

OUTPUTS = (
    "status",
    "verified",
    "repo",
    "revision",
    "tag",
    "pr-url",
    "pr-number",
    "base-sha",
    "adapter-sha",
    "fingerprint",
    "report-path",
    "checksums-path",
)
STATUS_OF = {
    Refused.exit_code: "refused",
    MachineTooSmall.exit_code: "refused",  # this machine refuses it
    NotVerified.exit_code: "not-verified",
}


def outputs_of(book: Book) -> dict[str, str]:
    """Every output by name, of the job that failed or else of the last one."""
    job, failure = book.job, book.state.failure
    found = dict.fromkeys(OUTPUTS, "") | {"verified": "false"}
    if failure is not None:
        found["status"] = STATUS_OF.get(failure.exit_code, "")
    if job is None:
        return found
    found |= {
        "status": found["status"] if failure else job.status,
        "verified": "true" if job.verified else "false",
        "base-sha": job.base.get("sha") or "",
        "adapter-sha": job.source.get("sha") or "",
        "fingerprint": job.fingerprint,
    }
    if job.publication and failure is None:
        names = {"repo": "repo", "revision": "revision", "tag": "tag", "pr-url": "pr_url", "pr-number": "pr_number"}
        found |= {name: str(job.publication.get(key) or "") for name, key in names.items()}
    for name, file in (("report-path", REPORT), ("checksums-path", CHECKSUMS)):
        path = book.papers(job) / file
        found[name] = str(path) if path.exists() else ""
    return found


def write_outputs(path: Path, values: Mapping[str, str]) -> None:
    """Append to GITHUB_OUTPUT. The delimiter is random, so that no value can end its own block and add another."""
    lines = []
    for name, value in values.items():
        end = f"end_{secrets.token_hex(16)}"
        lines += [f"{name}<<{end}", redact(value), end]
    with path.open("a", encoding="utf-8") as opened:
        opened.write("\n".join(lines) + "\n")
