"""The in-toto Statement, and how files and inputs are named in it.

Statement v1 and ResourceDescriptor: https://github.com/in-toto/attestation/tree/main/spec/v1
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from bot.project import REPOSITORY
from bot.report_document import InputPins, Json, Pin

STATEMENT = "https://in-toto.io/Statement/v1"
PROVENANCE = "https://slsa.dev/provenance/v1"
TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
PAGE = f"{REPOSITORY}/blob/main/docs/provenance.md"
BUILD_TYPE = f"{PAGE}#merge-v1"
HUB = "https://huggingface.co"
COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def statement(subjects: list[Json], kind: str, predicate: Json) -> Json:
    """What `predicate`, of the type `kind`, says of the subjects."""
    return {"_type": STATEMENT, "subject": subjects, "predicateType": kind, "predicate": predicate}


def subjects_of(files: dict[str, str]) -> list[Json]:
    """{name: hex sha256} as subjects, by name."""
    return [{"name": name, "digest": {"sha256": sha256}} for name, sha256 in sorted(files.items())]


def inputs_of(inputs: InputPins, address: str) -> list[Json]:
    """Base and adapters as ResourceDescriptors called `base` and `adapter` (several: `adapter-1` …). `address`: the Hub's."""
    names = ["adapter"] if len(inputs.adapters) == 1 else [f"adapter-{n}" for n in range(1, len(inputs.adapters) + 1)]
    pairs = [("base", inputs.base), *zip(names, inputs.adapters, strict=True)]
    return [_input(name, pin, address) for name, pin in pairs if digest_of(pin.sha)]


def digest_of(sha: Any) -> dict[str, str]:
    """The digest set of a pinned input: a commit of the Hub, or the sha256 over a folder's list of names and hashes.

    {} where a report names neither.
    """
    kind, _, digits = sha.rpartition(":") if isinstance(sha, str) else ("", "", "")
    if not COMMIT.fullmatch(digits) or kind not in ("", "sha256"):
        return {}
    return {kind or "gitCommit": digits}


def asked_for(pin: Pin) -> str:
    """An input as it was asked for, `owner/name/folder@revision`; a folder has no name that says anything elsewhere."""
    if pin.repo is None:
        return "a folder"
    return pin.name("") + (f"@{pin.revision}" if pin.revision else "")


def without_empty(fields: Iterable[tuple[str, Any]]) -> Json:
    """The fields that say something: in-toto takes an empty one, null and a missing one for the same."""
    return {name: value for name, value in fields if value not in (None, "", [], {})}


def _input(name: str, pin: Pin, address: str) -> Json:
    uri = None if pin.repo is None else package_url(pin, address)
    return without_empty([("name", name), ("uri", uri), ("digest", digest_of(pin.sha))])


def package_url(pin: Pin, address: str) -> str:
    """`pkg:huggingface/owner/name@commit#folder`; of another Hub with its address.

    https://github.com/package-url/purl-spec/blob/main/types/huggingface-definition.json
    """
    other = f"?repository_url={quote(address, safe=':/')}" if address.rstrip("/") != HUB else ""
    folder = f"#{quote(pin.subfolder)}" if pin.subfolder else ""
    return f"pkg:huggingface/{quote(str(pin.repo))}@{pin.sha}{other}{folder}"
