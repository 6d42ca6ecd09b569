"""Attestations that came with a folder: whether what they say is of this folder, these inputs, and good.

What they say is held against what was read and proven here; whose signature they bear is not looked at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from bot.attestation import BUILD_TYPE, PROVENANCE, TEST_RESULT, Attestation, read_attestations
from bot.attestation.statement import HUB, inputs_of
from bot.checks.case import Case
from bot.checks.finding import counted, finding, graded
from bot.checks.folder.hashing import hash_files, name_inputs
from bot.checks.reading.checkpoint import weight_files
from bot.records import Finding, Json
from bot.report_document import NAME as REPORT
from bot.report_document import is_vouched, short_sha

WORDS = {PROVENANCE: "provenance", TEST_RESULT: "test result"}
GOOD = ("PASSED", "WARNED")
LONGEST = 80  # characters of somebody's words that are shown


def attestation(case: Case) -> Finding:
    """The given in-toto statements are of this folder's files, name these inputs, and no test result among them is a bad one."""
    fails: list[str] = []
    warns: list[str] = []
    read: list[tuple[Path, Attestation]] = []
    for path in case.subject.attestations:
        try:
            statements = read_attestations(path)
        except ValueError as error:
            fails.append(f"{path.name} is no attestation: {error}.")
            continue
        read += [(path, each) for each in statements]
        if not any(each.kind in WORDS for each in statements):
            fails.append(f"{path.name} holds neither a provenance nor a test result, but {_kinds(statements)}.")
        else:
            warns += [f"{path.name} holds {_kinds([each])} too, which was not looked at." for each in statements
                      if each.kind not in WORDS]  # fmt: skip
    files = _files(case)
    known = [(path, each) for path, each in read if each.kind in WORDS]
    for path, each in known:
        faults, remarks = _subjects(each, files)
        claims = _provenance(each, case) if each.kind == PROVENANCE else _test_result(each, case)
        fails += [f"The {WORDS[each.kind]} in {path.name} {fault}." for fault in (*faults, *claims)]
        warns += [f"The {WORDS[each.kind]} in {path.name} {remark}." for remark in remarks]
    if not fails:
        fails += _uncovered([each for _, each in known], files, weight_files(case.subject.folder, case.merged.index))
    if fails or warns:
        return graded("attestation", "fits", ("", ""), fails=fails, warns=warns)
    return finding("attestation", "pass", counted(len(known), "statement"), "fits", _signatures(known))


def _signatures(read: list[tuple[Path, Attestation]]) -> str:
    """What a pass does not say."""
    sentence = "They are of these files and these inputs."
    if any(each.signed for _, each in read):
        return f"{sentence} Their signatures were not verified here: `gh attestation verify` does that."
    return f"{sentence} They bear no signature."


def _kinds(statements: Iterable[Attestation]) -> str:
    return ", ".join(sorted({each.kind[:LONGEST] for each in statements}))


def _files(case: Case) -> dict[str, str]:
    """{name: sha256} of what a statement may be about: all that the report vouches for, and the report."""
    report = case.subject.folder / REPORT
    own = {REPORT: hashlib.sha256(report.read_bytes()).hexdigest()} if report.is_file() else {}
    return case.once(hash_files) | own


def _subjects(statement: Attestation, files: dict[str, str]) -> tuple[list[str], list[str]]:
    """(faults, remarks) about the files that a statement names. A subject is matched by its digest; its name tells which file
    it was to be."""
    here = set(files.values())
    if not here & {sha256 for _, sha256 in statement.files}:
        return ["is about no file of this folder"], []
    strangers = [
        name for name, sha256 in statement.files if sha256 not in here and (name == REPORT or is_vouched(name))
    ]
    faults = [f"is about another {name[:LONGEST]}" for name in strangers if name in files]
    missing = [name[:LONGEST] or "a file without a name" for name in strangers if name not in files]
    remarks = [f"names {missing[0]}, which the folder does not have"] if missing else []
    return faults, remarks


def _uncovered(statements: list[Attestation], files: dict[str, str], weights: Iterable[str]) -> Iterator[str]:
    """Weight files that no statement of a kind is about: one statement may be about a part of the model only."""
    for kind, words in WORDS.items():
        about = {sha256 for each in statements if each.kind == kind for _, sha256 in each.files}
        if about:
            yield from (
                f"No {words} is about {name}." for name in weights if name in files and files[name] not in about
            )


def _provenance(statement: Attestation, case: Case) -> Iterator[str]:
    """Where a provenance of ours names another merge. Of another builder's only the subjects can be compared."""
    definition = _object(statement.predicate, "buildDefinition")
    if definition.get("buildType") != BUILD_TYPE:
        return
    yield from _inputs(definition.get("resolvedDependencies"), case, all_named=True)
    stated, own = _object(definition, "internalParameters").get("fingerprint"), case.subject.merge.fingerprint
    if own is not None and stated != own:
        yield f"is of the merge {str(stated)[:12]}, and the folder's report of {own[:12]}"


def _test_result(statement: Attestation, case: Case) -> Iterator[str]:
    result, failed = statement.predicate.get("result"), statement.predicate.get("failedTests")
    if result not in GOOD:
        named = f" ({', '.join(map(str, failed))[:LONGEST]})" if isinstance(failed, list) and failed else ""
        yield f"is {str(result)[:LONGEST]}{named}"
    yield from _inputs(statement.predicate.get("configuration"), case, all_named=False)


def _inputs(descriptors: object, case: Case, *, all_named: bool) -> Iterator[str]:
    """Where base and adapters are named with other digests. Two ways to name one input (a commit, and a folder's hash)
    cannot be compared; the pins check says of those what there is to say."""
    listed = descriptors if isinstance(descriptors, list) else []
    named = {str(each.get("name")): _object(each, "digest") for each in listed if isinstance(each, dict)}
    for own in inputs_of(case.once(name_inputs), HUB):
        role, digest = own["name"], own["digest"]
        if role not in named:
            if all_named:
                yield f"does not name the {role}"
            continue
        for algorithm in digest.keys() & named[role].keys():
            stated = str(named[role][algorithm])
            if stated != digest[algorithm]:
                yield f"names the {role} {short_sha(stated)}; it was verified against {short_sha(digest[algorithm])}"


def _object(value: Json, name: str) -> Json:
    inner = value.get(name)
    return inner if isinstance(inner, dict) else {}
