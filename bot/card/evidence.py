"""What was checked, what was not and why, what quantisation costs, and how to get the same bytes again."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from bot.options import Options, options_of
from bot.project import REPOSITORY
from bot.records import Json, Source
from bot.report_document import Document, MergeFacts
from bot.report_markdown import checks_table, idle, remarks
from bot.report_text import comparison_cells
from bot.untrusted.markdown import cell, fenced

HEAD = ("way to use it", "KL ratio", "perplexity", "top-1 agreement", "size")
WORDS = (
    "KL ratio: the distance from the model as trained, as a share of what the adapter moves; 0 is the same, and at 1 the tune "
    "is gone. Top-1 agreement: with the model as trained."
)
WEIGHTS = re.compile(r".*\.safetensors(\.index\.json)?")


def section(document: Document) -> str:
    """How it was proven, the table of checks, a word on those that did not simply pass, and what was not run."""
    proof = "Every merged weight was computed again from base and adapter, and compared: it is `round(W + s·BA)`, "
    if any(check.id == "quantised" and check.status == "pass" for check in document.checks):
        proof = "Every merged weight was computed again from base and adapter, and quantised by the library that defines its "
        proof += "form: every stored byte is that. What is not quantised is "
    parts = [
        (proof + "rounded once. " if recomputed(document) else "") + "`verification.json` has the whole report.",
        checks_table(document),
        "\n".join(remarks(document)),
        idle(document),
    ]
    return "\n\n".join(filter(None, parts))


def recomputed(document: Document) -> bool:
    """Whether the weights themselves were proven, and not only the files around them."""
    return any(check.id == "touched" and check.status == "pass" for check in document.checks)


def reproduce(document: Document, target: str, base: Source, adapters: Sequence[Source]) -> str:
    """The commands, and the sha256 that each weight file must have."""
    refs = [_ref(adapter, number if len(adapters) > 1 else 0) for number, adapter in enumerate(adapters, 1)]
    options = [*_combination(document), *_options(document.merge)]
    command = ["adapter-merge merge", *refs, f"--base {_ref(base)}", *options, "--output merged"]
    lines = [
        "The same inputs give the same bytes on any machine:",
        "",
        fenced(f"{' '.join(command)}\nadapter-merge verify {target}", "bash"),
        "",
        *_versions(document),
    ]
    files = sorted((document.files or {}).items())
    weights = {name: sha256 for name, sha256 in files if WEIGHTS.fullmatch(name)}
    if weights:
        sums = "\n".join(f"{sha256}  {name}" for name, sha256 in weights.items())
        lines += ["<details><summary>sha256 of each weight file</summary>", "", fenced(sums, ""), "", "</details>"]
    return "\n".join(lines).rstrip()


def _ref(source: Source, number: int = 0) -> str:
    """`number`: which of several adapters it is, from 1 on."""
    return f"{source.called}@{source.sha}" if source.repo else f"./{source.role}{number or ''}"


def _combination(document: Document) -> Iterator[str]:
    """The options that combine several adapters as the report names it."""
    how = document.inputs.combination or {}
    if how:
        yield f"--combine {how['kind']} --weights {','.join(map(str, how['weights']))}"
    for name in ("density", "seed", "rank", "majority_sign"):
        if name in how:
            yield f"--{name.replace('_', '-')} {how[name]}"


def _options(merge: MergeFacts) -> Iterator[str]:
    """The options that differ from their defaults. (`auto` of `--quantize` is decided, and `none` says something only where
    the base is quantised.)"""
    for each in options_of(Options):
        value = str(merge.option(each.field, each.default))
        if each.field == "quantize" and value == "none" and "dequantised" not in merge.tensors:
            continue
        if each.decides and each.choices and value != each.default and re.fullmatch(r"[a-z0-9-]+", value):
            yield f"--{each.name} {value}"


def _versions(document: Document) -> Iterator[str]:
    versions = document.environment
    ours = f" {cell(str(versions['adapter-merge']))}" if versions.get("adapter-merge") else ""
    tool = f"[adapter-merge]({REPOSITORY}){ours}"
    shown = [cell(f"{name} {versions[name]}") for name in ("torch", "transformers", "peft") if versions.get(name)]
    yield f"Made and checked with {', '.join([tool, *shown])}."
    yield ""


def comparison(document: Document, heading: str = "##") -> str:
    """What quantisation costs, as a small table with its heading: the ways to use base and adapter, measured on the same texts.
    "" where nothing is quantised, or nothing was measured."""
    rows = document.comparison
    if not rows:
        return ""
    lines = [f"| {' | '.join(HEAD)} |", "| --- | ---: | ---: | ---: | ---: |"]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    lost = [
        f"- {cell(str(row.get('what')))}: not run, {cell(str(row['not_run']))}." for row in rows if row.get("not_run")
    ]
    return "\n".join(
        [f"{heading} What quantisation costs", "", *lines, "", WORDS, *(["", *lost] if lost else []), "", ""]
    )


def _cells(row: Json) -> list[str]:
    what = cell(str(row.get("what")))
    return [f"**{what} (this model)**" if row.get("published") else what, *comparison_cells(row)]
