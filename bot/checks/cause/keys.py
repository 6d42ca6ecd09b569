"""What the names and shapes of the tensors say: renamed, lost, or of another size."""

from __future__ import annotations

from collections.abc import Iterable

from bot.checks.cause.evidence import Evidence
from bot.checks.cause.hypothesis import Cause, Hypothesis
from bot.checks.cause.names import listed
from bot.checks.elementwise.weights import HEADS
from bot.checks.finding import counted

HEAD_NAMES = ("lm_head", "embed_out", "score", "classifier", "qa_outputs")
WRAPPER = ".base_layer."


def _other_keys(evidence: Evidence) -> Iterable[Cause]:
    if not evidence.failed("keys"):
        return
    expected, merged = set(evidence.expected or evidence.case.base.tensors), set(evidence.case.model.tensors)
    missing, extra = sorted(expected - merged), sorted(merged - expected)
    renamed = {key: name for key in extra if (name := _plain(key, missing))}
    if renamed:
        yield _renamed(renamed)
    missing = [key for key in missing if key not in renamed.values()]
    extra = [key for key in extra if key not in renamed]
    heads = [key for key in missing if key.removesuffix(".weight").endswith(HEAD_NAMES)]
    whole = [key for key in missing if key in evidence.expected and evidence.expected[key].uses]
    if whole:
        what = f"What the adapter brings whole (modules_to_save) is missing: {listed(whole)}."
        yield Cause(
            kind="saved-modules-forgotten", sentence=what, tensors=tuple(whole), figures={"missing": len(whole)}
        )
    if heads and not whole:
        what = f"The head was lost: {listed(heads)} is not in the folder."
        yield Cause(kind="head-lost", sentence=what, tensors=tuple(heads), figures={"missing": len(heads)})
    lost = [key for key in missing if key not in heads and key not in whole]
    if lost:
        what = f"{counted(len(lost), 'tensor')} were lost: {listed(lost)}.".replace("1 tensor were", "1 tensor was")
        yield Cause(kind="tensors-lost", sentence=what, tensors=tuple(lost), figures={"missing": len(lost)})
    if extra and not renamed and not missing:
        what = f"{counted(len(extra), 'tensor')} should not be there: {listed(extra)}."
        yield Cause(kind="tensors-added", sentence=what, tensors=tuple(extra), figures={"added": len(extra)})


def _plain(key: str, missing: list[str]) -> str | None:
    """The missing key that this one is, behind a prefix or around a wrapper's part."""
    plain = key.replace(WRAPPER, ".")
    return next(
        (name for name in missing if plain == name or plain.endswith(f".{name}") or name.endswith(f".{plain}")), None
    )


def _renamed(renamed: dict[str, str]) -> Cause:
    key, name = next(iter(renamed.items()))
    what = f"{counted(len(renamed), 'tensor')} have names that no loader looks for: {key} in place of {name}."
    what = what.replace("1 tensor have names", "1 tensor has a name")
    return Cause(kind="renamed-keys", sentence=what, tensors=tuple(renamed), figures={"renamed": len(renamed)})


def _other_shapes(evidence: Evidence) -> Iterable[Cause]:
    if not evidence.failed("shapes"):
        return
    merged = evidence.case.model.tensors
    others = {key: (merged[key].stored.shape, wanted.shape) for key, wanted in evidence.expected.items()
              if key in merged and merged[key].stored.shape != wanted.shape}  # fmt: skip
    rows = {key: (now, right) for key, (now, right) in others.items() if now[1:] == right[1:] and now[:1] != right[:1]}
    names = ("embed", "wte", "word_embeddings", "shared", *(head.removesuffix(".weight") for head in HEADS))
    vocabulary = {key: shapes for key, shapes in rows.items() if any(name in key for name in names)}
    if vocabulary:
        key, (now, right) = next(iter(vocabulary.items()))
        what = f"The vocabulary has another size: {key} has {now[0]:,} rows, and must have {right[0]:,}."
        yield Cause(kind="vocabulary-size", sentence=what, tensors=tuple(vocabulary),
                    figures={"rows": now[0], "right": right[0]})  # fmt: skip
    rest = [key for key in others if key not in vocabulary]
    if rest:
        now, right = others[rest[0]]
        swapped = now == right[::-1]
        what = f"{counted(len(rest), 'tensor')} with other shapes: {rest[0]} is {now}, and must be {right}"
        what += ", the other way round." if swapped else "."
        yield Cause(kind="other-shapes", sentence=what, tensors=tuple(rest), figures={"tensors": len(rest)})


def _other_dtypes(evidence: Evidence) -> Iterable[Cause]:
    if evidence.failed("dtypes"):
        finding = evidence.findings["dtypes"]
        what = f"Weights are stored in another dtype: {finding.why}"
        yield Cause(kind="other-dtype", sentence=what, figures={"remarks": 1 + len(finding.worst)})


def _read(evidence: Evidence) -> Iterable[Cause]:
    yield from _other_shapes(evidence)
    yield from _other_keys(evidence)
    yield from _other_dtypes(evidence)


KEYS = Hypothesis(name="keys and shapes", read=_read)
