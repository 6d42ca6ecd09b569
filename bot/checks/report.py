"""verification.json: what was verified, against what, with which versions, and what came of it."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from bot import __version__
from bot.checks.subject import Subject
from bot.records import Finding, Json
from bot.untrusted.redact import redact

SCHEMA = 1
PACKAGES = ("torch", "transformers", "peft", "safetensors", "bitsandbytes", "compressed-tensors")
DIGITS = 6  # significant digits of every float: more would differ from machine to machine


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """What was measured of the models as they run. `comparison`: one entry for each way to use a quantised base or result."""

    noise_floor: Json | None
    comparison: list[Json] | None = None


def document(
    subject: Subject,
    files: dict[str, str],
    findings: Iterable[Finding],
    measured: Measurements,
    verdict: str,
) -> Json:
    """The report as the folder's verification.json; no host names, no paths, no user names."""
    compared = {} if measured.comparison is None else {"comparison": measured.comparison}
    return {
        "schema": SCHEMA,
        "subject": {"files": files},
        "inputs": subject.inputs,
        "environment": environment(),
        "merge": subject.merge,
        "checks": [{**vars(finding), "worst": list(finding.worst)} for finding in findings],
        "noise_floor": measured.noise_floor,
        **compared,
        "not_run": [{"id": id, "reason": reason} for id, reason in subject.not_run],
        "verdict": verdict,
    }


def environment() -> Json:
    """Versions that can change a result, read without importing anything."""
    packages = {name: _version(name) for name in PACKAGES}
    system = f"{platform.system()}-{platform.machine()}"
    return {"adapter-merge": __version__, "python": platform.python_version(), "platform": system, **packages}


def canonical(document: Json) -> bytes:
    """Sorted keys, two spaces, UTF-8, floats of six significant digits, one newline. Raises ValueError for NaN."""
    text = json.dumps(_stable(document), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return redact(f"{text}\n").encode(errors="backslashreplace")  # a lone surrogate out of somebody's config


def _stable(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {str(key): _stable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_stable(inner) for inner in value]
    return value


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
