"""Writes a merge's attestations, and beside them the parts of them that other tools take."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bot.attestation.invocation import Invocation
from bot.attestation.predicates import Times, provenance, test_result
from bot.attestation.statement import PROVENANCE, TEST_RESULT, statement, subjects_of
from bot.errors import Usage
from bot.records import Report
from bot.report_document import NAME, Json
from bot.untrusted.redact import redact

SUFFIXES = (".intoto.jsonl", ".jsonl", ".json")


@dataclass(frozen=True, kw_only=True)
class Paths:
    """`attestation`: all statements, a line each; `provenance`, `result`: a predicate alone, as `actions/attest` and
    `cosign attest-blob` take it; `checksums`: the subjects, as sha256sum writes them."""

    attestation: Path
    provenance: Path
    result: Path
    checksums: Path


def paths_beside(attestation: Path) -> Paths:
    """Where the parts of an attestation lie: `x.intoto.jsonl` has `x.provenance.json`, `x.test-result.json`, `x.sha256`."""
    suffix = next((end for end in SUFFIXES if attestation.name.endswith(end) and attestation.name != end), "")
    stem = attestation.name.removesuffix(suffix)
    return Paths(
        attestation=attestation,
        provenance=attestation.with_name(f"{stem}.provenance.json"),
        result=attestation.with_name(f"{stem}.test-result.json"),
        checksums=attestation.with_name(f"{stem}.sha256"),
    )


def require_writable(attestation: Path | None, model: Path | None) -> None:
    """Raise Usage where the attestation cannot be written, before the work is done. `model`: the folder that it is about."""
    if attestation is None:
        return
    if not attestation.absolute().parent.is_dir():
        raise Usage(f"There is no folder for the attestation {attestation}.", remedy="Make it first, or name another.")
    if model is not None and model.resolve() in attestation.resolve().parents:
        raise Usage(
            f"The attestation {attestation} would lie in the model's own folder.",
            remedy="Name a file beside it: a statement about files cannot be one of them.",
        )


def utc_now() -> str:
    """Now, to the second, as RFC 3339 writes it in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def attest(attestation: Path, folder: Path, report: Report, address: str, started: str | None = None) -> Paths:
    """Write what is known of the model in `folder`. `address`: the Hub's.

    `started`: when its merge began. Without it, or where the merge is not proven, only the test result is written: whoever
    proves somebody else's merge was not there when it was made, and what is not proven is no result to have a provenance.
    """
    by, paths = Invocation.of(os.environ), paths_beside(attestation)
    own = _sha256(folder / NAME)
    files = dict(report.document.files or {}) | ({NAME: own} if own else {})
    subjects = subjects_of(files)
    predicates = {}
    if started is not None and report.verdict == "verified":
        times = Times(started=started, finished=utc_now())
        predicates[PROVENANCE] = provenance(report.document, address, times, by)
    predicates[TEST_RESULT] = test_result(report, address, own, by)
    for kind, path in ((PROVENANCE, paths.provenance), (TEST_RESULT, paths.result)):
        if kind in predicates:
            _write(path, f"{_json(predicates[kind], indent=2)}\n")
        else:
            path.unlink(missing_ok=True)  # an earlier merge's
    _write(paths.checksums, "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(files.items())))
    statements = [statement(subjects, kind, predicate) for kind, predicate in predicates.items()]
    _write(attestation, "".join(f"{_json(each)}\n" for each in statements))
    return paths


def _sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _json(value: Json, indent: int | None = None) -> str:
    return json.dumps(value, sort_keys=True, indent=indent, ensure_ascii=False, allow_nan=False)


def _write(path: Path, text: str) -> None:
    """The file, whole or not at all."""
    fresh = path.with_name(f".{path.name}.tmp")
    fresh.write_bytes(redact(text).encode(errors="backslashreplace"))
    fresh.replace(path)
