"""Reads attestations, whoever wrote them: Statements, DSSE envelopes and Sigstore bundles, one or a line each.

DSSE: https://github.com/secure-systems-lab/dsse · bundle: https://docs.sigstore.dev/about/bundle
Signatures are not verified here: whose they may be is for the reader to say, with `gh attestation verify` or cosign.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bot.attestation.statement import STATEMENT
from bot.report_document import Json
from bot.untrusted import strict_json

LARGEST = 64 << 20  # bytes; actions/attest takes predicates of 16 MB
PAYLOAD = re.compile(r"application/vnd\.in-toto(\.[\w.-]+)?\+json")
SHA256 = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True, kw_only=True)
class Attestation:
    """One statement. `files`: (name, lowercase hex sha256) of its subjects, the name "" where it has none; subjects without
    a sha256 are left out. `signed`: it came in an envelope with a signature, which nobody here has looked at."""

    kind: str
    predicate: Json
    files: tuple[tuple[str, str], ...]
    signed: bool


def read_attestations(path: Path) -> list[Attestation]:
    """The statements of a file. Raises ValueError, with the reason, where it holds anything else."""
    if not path.is_file():
        raise ValueError("there is no such file")
    if path.stat().st_size > LARGEST:
        raise ValueError("it is too large for an attestation")
    attestations = [_attestation(value) for value in _values(path.read_bytes())]
    if not attestations:
        raise ValueError("it is empty")
    return attestations


def _values(text: bytes) -> Iterator[Any]:
    """One JSON value, or one a line."""
    try:
        yield strict_json.loads(text)
        return
    except ValueError:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) == 1:
            raise
    for line in lines:
        yield strict_json.loads(line)


def _attestation(value: Any) -> Attestation:
    """A statement, out of its envelope and bundle where it is in one."""
    if not isinstance(value, dict):
        raise ValueError("a line of it is no JSON object")
    envelope = value.get("dsseEnvelope", value)
    if isinstance(envelope, dict) and "payload" in envelope:
        return _of_statement(_payload(envelope), signed=True)
    if "mediaType" in value:
        raise ValueError("it is a bundle without a statement: it signs a file, and says nothing of it")
    return _of_statement(value, signed=False)


def _payload(envelope: Json) -> Any:
    kind = envelope.get("payloadType")
    if not isinstance(kind, str) or not PAYLOAD.fullmatch(kind):
        raise ValueError(f"its envelope holds {str(kind)[:60]!r}, which is no in-toto statement")
    try:
        return strict_json.loads(base64.b64decode(envelope["payload"], validate=True))
    except (TypeError, ValueError) as error:
        raise ValueError("its envelope's payload is not JSON in base64") from error


def _of_statement(value: Any, *, signed: bool) -> Attestation:
    if not isinstance(value, dict) or value.get("_type") != STATEMENT:
        raise ValueError("it is no in-toto Statement v1")
    kind, predicate, subjects = (value.get(name) for name in ("predicateType", "predicate", "subject"))
    if not isinstance(kind, str) or not kind:
        raise ValueError("its statement has no predicateType")
    if not isinstance(subjects, list) or not all(_is_subject(subject) for subject in subjects):
        raise ValueError("its statement's subjects are not as in-toto has them")
    if not isinstance(predicate, dict | None):
        raise ValueError("its statement's predicate is not an object")
    pairs = ((subject.get("name") or "", subject["digest"].get("sha256")) for subject in subjects)
    files = tuple((name, sha256.lower()) for name, sha256 in pairs if isinstance(sha256, str))
    return Attestation(kind=kind, predicate=predicate or {}, files=files, signed=signed)


def _is_subject(subject: Any) -> bool:
    if not isinstance(subject, dict) or not isinstance(subject.get("name", ""), str | None):
        return False
    digest = subject.get("digest")
    if not isinstance(digest, dict) or not digest:
        return False
    sha256 = digest.get("sha256", "0" * 64)
    return isinstance(sha256, str) and bool(SHA256.fullmatch(sha256))
