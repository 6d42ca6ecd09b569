"""What was checked, what was not and why, and how to get the same bytes again."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from bot.options import Options, options_of
from bot.project import REPOSITORY
from bot.records import Json, Source
from bot.untrusted.markdown import cell, fenced

MARKS = {"pass": "pass", "warn": "remark", "fail": "**FAIL**", "skip": "not run"}
WEIGHTS = re.compile(r".*\.safetensors(\.index\.json)?")


def section(document: Json) -> str:
    """The table of checks, a word on those that did not simply pass, and what was not run."""
    checks = document.get("checks", [])
    proof = "Every merged weight was computed again from base and adapter, and compared: it is `round(W + s·BA)`, "
    if any(check.get("id") == "quantised" and check.get("status") == "pass" for check in checks):
        proof = "Every merged weight was computed again from base and adapter, and quantised by the library that defines its "
        proof += "form: every stored byte is that. What is not quantised is "
    lines = [
        (proof + "rounded once. " if recomputed(document) else "") + "`verification.json` has the whole report.",
        "",
        "| check | measured | allowed | result |",
        "| --- | --- | --- | --- |",
        *(_row(check) for check in checks),
    ]
    remarks = [check for check in checks if check.get("status") != "pass" and check.get("why")]
    if remarks:
        lines += ["", *(f"- {cell(str(check.get('id')))}: {cell(str(check['why']))}" for check in remarks)]
    not_run = document.get("not_run") or []
    if not_run:
        lines += ["", "Not run:", "", *(f"- {cell(str(n.get('id')))}: {cell(str(n.get('reason')))}" for n in not_run)]
    return "\n".join(lines)


def recomputed(document: Json) -> bool:
    """Whether the weights themselves were proven, and not only the files around them."""
    return any(check.get("id") == "touched" and check.get("status") == "pass" for check in document.get("checks", []))


def without_effect(document: Json) -> str:
    """What the check `effect` found where it did not pass: that the merge is the base, and why; else ""."""
    found = (check for check in document.get("checks", []) if check.get("id") == "effect")
    return next((cell(str(check.get("why"))) for check in found if check.get("status") in ("warn", "fail")), "")


def _row(check: Json) -> str:
    status = str(check.get("status"))
    cells = [cell(str(check.get(key) or "")) for key in ("id", "measured", "allowed")]
    return f"| {' | '.join(cells)} | {MARKS.get(status, cell(status))} |"


def reproduce(document: Json, merge: Json, target: str, base: Source, adapters: Sequence[Source]) -> str:
    """The commands, and the sha256 that each weight file must have."""
    given = [_ref(one, place if len(adapters) > 1 else 0) for place, one in enumerate(adapters, 1)]
    options = [*_combination(document), *_options(merge)]
    command = ["adapter-merge merge", *given, f"--base {_ref(base)}", *options, "--output merged"]
    lines = [
        "The same inputs give the same bytes on any machine:",
        "",
        fenced(f"{' '.join(command)}\nadapter-merge verify {target}", "bash"),
        "",
        *_versions(document),
    ]
    files = (document.get("subject") or {}).get("files") or {}
    weights = {name: sha256 for name, sha256 in sorted(files.items()) if WEIGHTS.fullmatch(name)}
    if weights:
        sums = "\n".join(f"{sha256}  {name}" for name, sha256 in weights.items())
        lines += ["<details><summary>sha256 of each weight file</summary>", "", fenced(sums, ""), "", "</details>"]
    return "\n".join(lines).rstrip()


def _ref(source: Source, place: int = 0) -> str:
    """`place`: which of several adapters it is, from 1 on."""
    return f"{source.called}@{source.sha}" if source.repo else f"./{source.role}{place or ''}"


def _combination(document: Json) -> Iterator[str]:
    """The options that combine several adapters as the report names it."""
    how = (document.get("inputs") or {}).get("combination") or {}
    if how:
        yield f"--combine {how['kind']} --weights {','.join(map(str, how['weights']))}"
    for name in ("density", "seed", "rank", "majority_sign"):
        if name in how:
            yield f"--{name.replace('_', '-')} {how[name]}"


def _options(merge: Json) -> Iterator[str]:
    """The options that differ from their defaults."""
    options = merge.get("options") or {}
    for each in options_of(Options):
        value = str(options.get(each.field, each.default))
        if each.decides and each.choices and value != each.default and re.fullmatch(r"[a-z0-9-]+", value):
            yield f"--{each.name} {value}"


def _versions(document: Json) -> Iterator[str]:
    found = document.get("environment") or {}
    tool = f"[adapter-merge]({REPOSITORY})" + (
        f" {cell(str(found['adapter-merge']))}" if found.get("adapter-merge") else ""
    )
    shown = [cell(f"{name} {found[name]}") for name in ("torch", "transformers", "peft") if found.get(name)]
    yield f"Made and checked with {', '.join([tool, *shown])}."
    yield ""


def retention(document: Json, merge: Json) -> float | None:
    """How much of the delta survived rounding, 1.0 being all of it; None where it was not measured."""
    value = merge.get("retention")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    for check in document.get("checks", []):
        if check.get("id") == "retention":
            found = re.match(r"\s*(-?\d+(?:\.\d+)?(?:e-?\d+)?)", str(check.get("measured", "")))
            return float(found[1]) if found else None
    return None
