"""The step's outputs: always all of them, also when the run failed; an empty one is one that does not apply.

Of a phase that was killed or cancelled, bot/launch.sh tells the status alone.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path

from bot.action.state import ATTESTATION, CHECKSUMS, Failure, MergeJob, StateStore
from bot.attestation import paths_beside
from bot.errors import NotVerified, Refused
from bot.report_document import NAME, PAGE
from bot.untrusted.redact import redact

OUTPUTS = (
    "status", "verified", "repo", "revision", "tag", "pr-url", "pr-number", "base-sha", "adapter-sha", "fingerprint",
    "folder", "report-path", "page-path", "checksums-path", "attestation-path", "provenance-path", "test-result-path",
)  # fmt: skip
FAILED = "failed"
STATUS_OF = {Refused.exit_code: "refused", NotVerified.exit_code: "not-verified"}


def outputs_of(store: StateStore) -> dict[str, str]:
    """Every output by name: of one merge as it is, of several as a JSON list in the adapters' order."""
    merges = [_of(index, job, store) for index, job in enumerate(store.state.jobs)]
    if not merges:  # it ended before anybody knew how many there are
        return dict.fromkeys(OUTPUTS, "") | {"status": _status(store.state.failure), "verified": "false"}
    if len(merges) == 1:
        return merges[0]
    return {name: json.dumps([outputs[name] for outputs in merges], ensure_ascii=False) for name in OUTPUTS}


def _of(index: int, job: MergeJob, store: StateStore) -> dict[str, str]:
    """One merge's outputs. Where another one failed and this one had no end yet, it failed with it."""
    failure = store.state.failure
    failed = failure is not None and (index == store.state.current or not job.status)
    outputs = dict.fromkeys(OUTPUTS, "")
    outputs |= {
        "status": _status(failure if index == store.state.current else None) if failed else job.status,
        "verified": "true" if job.verified else "false",
        "base-sha": job.base.sha or "",
        "adapter-sha": _shas(job),
        "fingerprint": job.fingerprint,
        "folder": job.folder if job.verified and job.folder and Path(job.folder).is_dir() else "",
    }
    if job.publication and not failed:
        names = {"repo": "repo", "revision": "revision", "tag": "tag", "pr-url": "pr_url", "pr-number": "pr_number"}
        outputs |= {name: str(getattr(job.publication, key) or "") for name, key in names.items()}
    paths = _paths(store.report_dir(job), merged=job.folder is not None)
    return outputs | {name: str(path) if path.exists() else "" for name, path in paths.items()}


def _paths(folder: Path, *, merged: bool) -> dict[str, Path]:
    """The outputs that are files, in a job's folder of reports. Without a merge in this run, there may be an earlier one's."""
    paths = {"report-path": folder / NAME, "page-path": folder / PAGE, "checksums-path": folder / CHECKSUMS}
    if not merged:
        return paths
    beside = paths_beside(folder / ATTESTATION)
    return paths | {
        "attestation-path": beside.attestation,
        "provenance-path": beside.provenance,
        "test-result-path": beside.result,
    }


def _status(failure: Failure | None) -> str:
    return STATUS_OF.get(failure.exit_code, FAILED) if failure is not None else FAILED


def _shas(job: MergeJob) -> str:
    """The adapter's commit; of several that became one, a JSON list."""
    shas = [str(source.sha or "") for source in job.sources]
    return json.dumps(shas) if len(shas) > 1 else "".join(shas)


def write_outputs(path: Path, values: Mapping[str, str]) -> None:
    """Append to GITHUB_OUTPUT. The delimiter is random, so that no value can end its own block and add another."""
    lines = []
    for name, value in values.items():
        end = f"end_{secrets.token_hex(16)}"
        lines += [f"{name}<<{end}", redact(value), end]
    with path.open("a", encoding="utf-8") as opened:
        opened.write("\n".join(lines) + "\n")
