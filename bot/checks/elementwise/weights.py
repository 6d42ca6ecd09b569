"""The weights: the right keys, shapes and dtypes; every adapter tensor used once; every element what it must be."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from bot.checks.case import Case
from bot.checks.elementwise.drift import lean
from bot.checks.expected.adapter_claims import adapter_claims
from bot.checks.expected.changes import AddProduct
from bot.checks.finding import counted, finding, graded
from bot.checks.reading.checkpoint import FLOATS, STORED_AS
from bot.checks.reading.digests import FileDigest, Waiting
from bot.records import Finding

if TYPE_CHECKING:
    from bot.checks.elementwise.sweep import Sweep
    from bot.checks.elementwise.tally import Swept, Tally

KEPT_ENOUGH = 0.9  # below this share of the delta, the reader should consider a wider dtype
HEADS = ("lm_head.weight", "embed_out.weight", "cls.predictions.decoder.weight")


def sweep_all(case: Case) -> Swept:
    """Every byte of the merged weights, compared; what is not hashed yet, of them and of the base, is hashed of the same reads."""
    work = sweep_of(case, None)
    folder, hashed = case.subject.folder, case.hashed
    unhashed = {header.file: folder / header.file for header in case.merged.headers if header.file not in hashed}
    of_base = {name: case.subject.base / name for name in case.subject.unhashed}
    together = Waiting()
    digests = {path: FileDigest(path, together) for path in (*unhashed.values(), *of_base.values())}
    work.go(case.emit, digests=digests)
    case.slabs.clear()
    for name, path in unhashed.items():
        case.note_sha256(name, digests[path].finish())
    case.base_hashed |= {name: digests[path].finish() for name, path in of_base.items()}
    return work.swept


def sweep_of(case: Case, only: frozenset[str] | None) -> Sweep:
    """The comparison of these tensors, None: of all, that is still to be gone through."""
    from bot.checks.elementwise.sweep import Sweep

    claims, subject = case.once(adapter_claims), case.subject
    return Sweep(case.model, claims, subject.clamps, foreign=not subject.ours, only=only)


def keys(case: Case) -> Finding:
    """The merged checkpoint holds exactly the base's keys, but for those that the merge adds or drops."""
    merged, base = case.model.tensors, case.base.tensors
    # Of an adapter that is not understood: at least nothing was added to the base and nothing lost.
    expected = case.once(adapter_claims).expected.keys() or base.keys()
    sentences = {key: f"{key} is missing." for key in expected if key not in merged}
    sentences |= {key: _extra(key, case) for key in merged if key not in expected}
    # Whether a tied head is stored or not is all the same to a loader; others may have saved it differently.
    free = not case.subject.ours and _tied(case.merged_config or {})
    fails = [sentence for key, sentence in sentences.items() if not (free and key.endswith(HEADS))]
    warns, lost = _ignored_heads(case)
    warns += [sentence for sentence in sentences.values() if sentence not in fails]
    new, dropped = len(expected - base.keys()), len(base.keys() - expected)
    changes = ", ".join(
        f"{counted(count, 'key')} {how}" for count, how in ((new, "new"), (dropped, "dropped")) if count
    )
    why = f"The keys are the base's; {changes}, as declared." if changes else "The keys are the base's."
    if blocks := case.once(adapter_claims).per_depth:
        why += (f" {counted(len(blocks), 'new key')} of a block that the base stores once, for its other depths: a reader that "
                "shares it by construction does not see them.")  # fmt: skip
    return graded("keys", "as declared" if changes else "the base's", (counted(len(merged), "key"), why), fails=fails + lost,
                  warns=warns)  # fmt: skip


def _extra(key: str, case: Case) -> str:
    if key in case.once(adapter_claims).dropped:
        return f"{key} belongs to a head that the merged model has not."
    if key in case.base.tensors:
        return f"{key} should not be there."
    return f"{key} is not a key of the base."


def _ignored_heads(case: Case) -> tuple[list[str], list[str]]:
    """A head in a checkpoint whose config ties it to the embeddings is ignored; a merged one would be lost."""
    if not _tied(case.merged_config or {}):
        return [], []
    heads = [key for key in case.merged.tensors if key.endswith(HEADS)]
    expected = case.once(adapter_claims).expected if heads else {}
    # A head that follows its embedding says the same in either place; one with changes of its own would be lost.
    tied = {wanted.steps for key, wanted in expected.items() if not key.endswith(HEADS)}
    lost = [f"{key} carries the adapter's change, and a loader ignores it: config.json ties it to the embeddings."
            for key in heads if key in expected and expected[key].touched and expected[key].steps not in tied]  # fmt: skip
    return [f"{key} is ignored: config.json ties it to the embeddings." for key in heads if key not in lost], lost


def _tied(config: dict[str, object]) -> bool:
    nested = config.get("text_config")
    inner = nested.get("tie_word_embeddings") if isinstance(nested, dict) else None
    return bool(config.get("tie_word_embeddings", inner))


def shapes(case: Case) -> Finding:
    """Every tensor has the base's shape, or the one that the adapter gives it."""
    expected, merged = case.once(adapter_claims).expected, case.model.tensors
    fails = [
        f"{key} is {merged[key].stored.shape}, not {wanted.shape}."
        for key, wanted in expected.items()
        if key in merged and merged[key].stored.shape != wanted.shape
    ]
    changed = sum(1 for want in expected.values() if want.base and want.base.stored.shape != want.shape)
    why = "The shapes are the base's" + (f", but for {counted(changed, 'resized tensor')}." if changed else ".")
    return graded(
        "shapes", "as declared" if changed else "the base's", (counted(len(merged), "shape"), why), fails=fails
    )


def dtypes(case: Case) -> Finding:
    """Every tensor is stored in the base's dtype, or in the one asked for where the base has its main dtype.

    A few tensors that a base keeps in another dtype (float32 routers beside bfloat16) were kept so on purpose.
    """
    expected, wanted = case.once(adapter_claims).expected, case.subject.dtype
    merged = {key: ref for key, ref in case.model.tensors.items() if ref.packed is None}
    main = case.base.main
    fails: list[str] = []
    warns: list[str] = []
    for key in sorted(merged.keys() & expected.keys()):
        was, stored = expected[key].dtype, merged[key].stored.dtype
        right = STORED_AS[wanted] if wanted != "auto" and was == main else was
        if stored != right:
            # Nobody told us which dtype a foreign merge was asked for: another float is its author's choice.
            chosen = not case.subject.ours and wanted == "auto" and {was, stored} <= FLOATS
            (warns if chosen else fails).append(f"{key} is stored as {stored}, not {right}.")
    names = ", ".join(sorted({ref.stored.dtype for ref in merged.values()}))
    allowed = "the base's" if wanted == "auto" else wanted
    return graded("dtypes", allowed, (names, "As declared."), fails=fails, warns=warns)


def method(case: Case) -> Finding:
    """This verifier understands the adapter: each of its tensors, and which weight it changes."""
    claims = case.once(adapter_claims)
    right = (f"{claims.method}, {counted(claims.tensors, 'tensor')}", "Every adapter tensor is known.")
    return graded("method", "all understood", right, fails=claims.problems)


def touched(case: Case) -> Finding:
    """Every element of every touched tensor equals the float64 re-derivation, correctly rounded."""
    swept, changes = case.once(sweep_all), case.once(adapter_claims).changes
    tallies = swept.touched
    wrong = _worst(tallies)
    count, undecided = sum(t.elements for t in tallies), sum(t.undecided for t in tallies)
    measured = f"{sum(t.wrong for t in wrong):,} of {count:,} differ"
    unread = [f"{key} could not be compared." for key in swept.skipped if key in changes]
    if wrong or unread:
        return _not_exact(case, measured, wrong, unread)
    why = "Each is base plus adapter, rounded once."
    if undecided:
        why += f" {counted(undecided, 'element')} too close to call."
    return finding("touched", "pass", measured, "0 differ", why)


def _not_exact(case: Case, measured: str, wrong: list[Tally], unread: list[str]) -> Finding:
    from bot.checks.elementwise.arithmetic import NONE_FITS, name_of

    worst = [*unread, *(_describe(t) for t in wrong)]
    loosest = max((t.arithmetic for t in wrong), default=NONE_FITS)
    if not case.subject.ours and not unread and loosest < NONE_FITS:
        leaning = _leaning(case.once(sweep_all).touched)
        if leaning:
            why = f"Within the error of {name_of(loosest)}, and yet {leaning[0]}: a rounding has no bias."
            return finding("touched", "fail", measured, "no bias", why, [*leaning[1:], *worst])
        why = f"Not exact, and within the error of this arithmetic: {name_of(loosest)}."
        return finding("touched", "warn", measured, name_of(loosest), why, worst)
    hint = f" It looks like this arithmetic: {name_of(loosest)}." if loosest < NONE_FITS else ""
    why = f"{counted(len(wrong) + len(unread), 'tensor')} is not base plus adapter, rounded once.{hint}"
    why = why.replace("tensors is", "tensors are")
    return finding("touched", "fail", measured, "0 differ", why, worst)


def _leaning(tallies: list[Tally]) -> list[str]:
    """A sentence for all of a foreign merge, and one for each tensor, whose deviations from the exact one lean to a side."""
    measured = [tally for tally in tallies if tally.drifts]
    questions, scalings = 2 * (len(measured) + 1), set[float]()
    sentences = []
    for tally in measured:
        own = {step.scaling for step in tally.wanted.steps if isinstance(step, AddProduct)}
        if leans := lean([tally.drifts], questions, sorted(own), tally.stored):
            sentences.append(f"{tally.key}: {leans}")
        scalings |= own
    drifts = [tally.drifts for tally in measured]
    if drifts and (leans := lean(drifts, questions, sorted(scalings), measured[0].stored)):
        sentences.insert(0, f"over all {len(measured)} tensors: {leans}")
    return sentences


def _describe(tally: Tally) -> str:
    share = f", {tally.retention:.3g}× the delta" if tally.retention is not None else ""
    return f"{tally.key}: {tally.wrong:,} of {tally.elements:,} differ{share}; {tally.example}"


def untouched(case: Case) -> Finding:
    """Every other tensor is the base's, byte for byte (or correctly rounded, where the dtype changes)."""
    swept, changes = case.once(sweep_all), case.once(adapter_claims).changes
    tallies = swept.untouched
    fails = [f"{t.key}: {t.wrong:,} of {t.elements:,} elements are not the base's." for t in _worst(tallies)]
    fails += [f"{key} could not be compared." for key in swept.skipped if key not in changes]
    right = (f"0 of {sum(t.elements for t in tallies):,} differ", "Every other tensor is the base's.")
    return graded("untouched", "0 differ", right, fails=fails)


def coverage(case: Case) -> Finding:
    """The tensors that changed are those that the adapter changes, and every adapter tensor was used once."""
    claims, swept = case.once(adapter_claims), case.once(sweep_all)
    changes = claims.changes
    unmerged = [t for t in swept.touched if t.wrong and t.wanted.base is not None and _same_as_before(t)]
    fails = [f"{t.key} is still the base's: it was not merged." for t in unmerged]
    fails += [f"{t.key} changed, and the adapter does not change it." for t in swept.untouched if t.changed]
    fails += [f"{key} is missing, and the adapter changes it." for key in changes if key not in swept.tallies
              and key not in swept.packed]  # fmt: skip
    if not changes:
        fails.append("The adapter changes nothing.")
    lost = sum(1 for t in swept.touched if not t.changed and not t.wrong and t.wanted.steps)
    measured = f"{len(changes):,} of {len(changes):,} tensors"
    why = f"{claims.tensors} adapter tensors, each once" + (f"; {lost} too small to show." if lost else ".")
    return graded("coverage", "as planned", (measured, why), fails=fails)


def _same_as_before(tally: Tally) -> bool:
    """Nothing of what should have changed did."""
    return not tally.changed or (tally.retention is not None and abs(tally.retention) < 0.01)


def bypassed(case: Case) -> Finding:
    """No adapted weight is one that the model reads itself, past PEFT's layer: there the unmerged model has no adapter."""
    tallies = case.once(sweep_all).tallies
    names = sorted(key for key in case.once(adapter_claims).bypassed if key in tallies and tallies[key].power > 0)
    if not names:
        why = "PEFT's layers stand before every weight that the adapter changes."
        return finding("bypassed", "pass", "0 weights", "0 weights", why)
    why = (
        "The model reads weights itself, past PEFT's layers, so that the unmerged model does not have what the adapter "
        "holds for them, and a merge would. Train without these modules (exclude_modules), or keep the adapter separate."
    )
    return finding("bypassed", "fail", counted(len(names), "weight"), "0 weights", why, names)


def finite(case: Case) -> Finding:
    """No NaN in any merged weight, and no infinity that the base has not in the same place; where that took clamping, how often."""
    tallies = list(case.once(sweep_all).tallies.values())
    fails = [f"{t.key} has {counted(t.bad, 'value')} that are NaN or infinite." for t in tallies if t.bad]
    fails += [
        f"{t.key} has {counted(t.unnumbered, 'value')} that are NaN, as the base has." for t in tallies if t.unnumbered
    ]
    own = [
        f"{t.key} has {counted(t.inherited, 'value')} that are infinite, as the base has."
        for t in tallies
        if t.inherited
    ]
    clamped = [(t.key, t.clamped) for t in tallies if t.clamped]
    if clamped and not fails:
        total = counted(sum(count for _, count in clamped), "value")
        why = f"{total} too large for the dtype, stored as its largest number, as asked."
        worst = [*(f"{key}: {count:,}" for key, count in clamped), *own]
        return finding("finite", "warn", f"{total} clamped", "none clamped", why, worst)
    right = ("0 non-finite", "Every weight is a finite number.")
    return graded("finite", "0 non-finite" if not own else "those of the base", right, fails=fails, warns=own)


def retention(case: Case) -> Finding:
    """How much of the delta survived rounding: <W'−W, D> / <D, D>. For the reader; never a reason to fail."""
    tallies = [t for t in case.once(sweep_all).touched if t.retention is not None]
    power = sum(t.power for t in tallies)
    if not power and case.once(sweep_all).packed:
        why = "What the adapter changes is stored quantised."
        return finding("retention", "pass", "not plain", f"≥ {KEPT_ENOUGH}", why)
    if not power:
        return finding("retention", "pass", "no delta", f"≥ {KEPT_ENOUGH}", "The adapter's delta is zero everywhere.")
    share = sum(t.kept for t in tallies) / power
    weak = sorted((t.retention or 0.0, t.key) for t in tallies if (t.retention or 0.0) < KEPT_ENOUGH)
    worst = [f"{key} keeps {kept:.3f}" for kept, key in weak]
    if share < KEPT_ENOUGH:
        why = "Rounding to the storage dtype loses part of the tune; a wider --dtype would keep more."
        return finding("retention", "warn", f"{share:.3f}", f"≥ {KEPT_ENOUGH}", why, worst)
    return finding("retention", "pass", f"{share:.3f}", f"≥ {KEPT_ENOUGH}", "The delta survived rounding.", worst)


def _worst(tallies: Iterable[Tally]) -> list[Tally]:
    """Those with wrong elements, the largest share first."""
    return sorted((t for t in tallies if t.wrong), key=lambda t: (-t.wrong / t.elements, t.key))
