"""Merged weights that are stored quantised: what the exact merge becomes in that form, and what that costs.

For each weight the exact merge is made again in float64, rounded once to float32, and given to the library that defines the
form: every part must be what that gives. Then the stored one is dequantised and held to the exact merge. One weight at a time, and
of a form whose slabs do not depend on each other one slab; it takes some ten bytes of memory for each of its numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from bot.checks.elementwise.exact_weight import exact_weight
from bot.checks.elementwise.quantised_slabs import SlabRule, compare_slabs
from bot.checks.elementwise.stored_bytes import count, equal, equals_stored
from bot.checks.elementwise.stored_rounding import ANY, STORED
from bot.checks.expected.adapter_claims import adapter_claims
from bot.checks.expected.changes import Expected
from bot.checks.finding import counted, finding, graded
from bot.checks.reading.checkpoint import FLOATS, PackedWeight, TensorRef, quantization_of, read_input
from bot.checks.reading.packed import Form, read_component
from bot.checks.reading.quantised import FORMS
from bot.checks.reading.simulated import converted
from bot.errors import Refused
from bot.events import StepProgress
from bot.records import Finding, Json

if TYPE_CHECKING:
    from bot.checks.case import Case

SAME = "same"
# What a serving engine scales its cache of keys and values by: it may stand in the module of a plain weight.
OF_A_CACHE = {f"{side}_{what}" for side in "kv" for what in ("scale", "zero_point")} | {"q_scale", "prob_output_scale"}
WHAT = "Comparing quantised weights"

Rule = Callable[[Tensor, PackedWeight], dict[str, Tensor]]  # (exact, how it is stored) → the parts


@dataclass(frozen=True, kw_only=True)
class QuantisedResult:
    """`faults`: a sentence for each weight that is not stored as it must be. `shares`: ‖W − W_q‖ ÷ ‖D‖ by key, where
    the adapter changes the weight: its rounding, against what the adapter changes. `keeps`: as a Tally's, of all of them."""

    count: int
    kept: int = 0  # of them: the base's own, byte for byte
    faults: tuple[str, ...] = ()
    shares: Mapping[str, float] = field(default_factory=dict)
    keeps: frozenset[str] = frozenset()

    @property
    def worst(self) -> list[tuple[str, float]]:
        """The largest first."""
        return sorted(self.shares.items(), key=lambda pair: (-pair[1], pair[0]))

    @property
    def median(self) -> float | None:
        """Of the shares; None where there is none."""
        shares = sorted(self.shares.values())
        return shares[len(shares) // 2] if shares else None


def compare_quantised(case: Case) -> QuantisedResult:
    """Every weight that is stored quantised, and those that should be."""
    quantization = quantization_of(case.merged_config or {}) or {}
    form = next((form for form in FORMS if form.recognises(quantization)), None)
    if case.unreadable or form is None:
        what = case.unreadable or "config.json names no form that a merge is written in."
        return QuantisedResult(count=0, faults=(what,))
    merged = {key: ref for key, ref in case.model.tensors.items() if ref.packed is not None}
    faults = _other_weights(case, form, quantization, set(merged))
    shares: dict[str, float] = {}
    left = 0
    keeps: set[str] = set()
    done, total = 0, sum(ref.elements for ref in merged.values())
    case.emit(_moved(done, total))
    for key, ref in sorted(merged.items()):
        done += ref.elements
        wanted = case.once(adapter_claims).expected.get(key)
        if wanted is None or ref.packed is None or wanted.shape != ref.stored.shape:
            continue  # the checks of keys and shapes say so
        if (kept := _kept(case, wanted)) is not None:
            faults += _bytes_of(key, kept, ref.packed)
            left += 1
            continue
        compared = _compare_weight(wanted, ref.packed, form, case.subject.quantize)
        if compared.share is not None and STORED not in keeps:
            keeps |= compared.keeps()
        faults += [f"{key}: {problem}." for problem in compared.faults]
        if compared.share is not None:
            shares[key] = compared.share
        case.emit(_moved(done, total))
    case.emit(_moved(total, total))
    case.slabs.clear()
    return QuantisedResult(count=len(merged), kept=left, faults=tuple(faults), shares=shares, keeps=frozenset(keeps))


def _moved(done: int, total: int) -> StepProgress:
    return StepProgress(stage="verify", done=done, total=total, what=WHAT, unit="numbers")


def quantised(case: Case) -> Finding:
    """Every quantised weight is what its library makes of the exact merge, bit for bit."""
    if case.unread is not None:
        return _unread(case, case.unread)
    result = case.once(compare_quantised)
    allowed = "bit for bit"
    if result.faults:
        return graded("quantised", allowed, ("", ""), fails=result.faults)
    why = _how_stored(result, case.subject.quantize)
    worst = [f"{key}: ‖W − Wq‖ is {share:.3g} × ‖D‖" for key, share in result.worst]
    measured = counted(result.count, "weight")
    if result.median is not None:
        most = result.worst[0][1]
        why += (
            f" Against what the adapter changes, its rounding is {result.median:.3g} × (median), {most:.3g} × at most."
        )
    return finding("quantised", "pass", measured, allowed, why, worst)


def _unread(case: Case, why: str) -> Finding:
    """Of a form that is not read: whatever the adapter changes is plain numbers, so that it never has to be. That all else is the
    base's, byte for byte, the checks of the weights say."""
    tensors, changes = case.base.tensors, case.once(adapter_claims).changes
    parts: dict[str, set[str]] = {}
    for key in tensors:
        module, _, name = key.rpartition(".")
        parts.setdefault(module, set()).add(name)
    fails = [f"{key} is changed, and is not plain numbers alone: {why}" for key in sorted(changes)
             if not _is_plain(key, tensors.get(key), parts)]  # fmt: skip
    kept = len(tensors.keys() - set(changes))
    right = (
        counted(kept, "tensor"),
        "What the adapter does not change is stored as in the base, in a form that is not read.",
    )
    return graded("quantised", "as the base stores it", right, fails=fails)


def _is_plain(key: str, ref: TensorRef | None, parts: Mapping[str, set[str]]) -> bool:
    """Whether a tensor is a weight by itself: floats, with nothing stored beside it that could say what they mean."""
    module, _, name = key.rpartition(".")
    others = parts.get(module, set()) - {name, "weight", "bias"} - OF_A_CACHE
    if name not in ("weight", "bias"):
        others = {other for other in others if other.startswith(f"{name}_")} - {f"{name}_bias"}
    return ref is not None and ref.stored.dtype in FLOATS and not others and key not in parts


def _how_stored(result: QuantisedResult, name: str) -> str:
    if not result.kept:
        return f"Each is what its library makes of the exact merge in {name}."
    others = "" if result.kept == result.count else " Each of the others is what its library makes of the exact merge."
    are = "is" if result.kept == 1 else "are"
    return f"{counted(result.kept, 'weight')} {are} the base's, byte for byte.{others}"


def _kept(case: Case, wanted: Expected) -> PackedWeight | None:
    """The base's own form of a weight that the merge leaves alone, where that is written again."""
    own = wanted.base.packed if wanted.base else None
    return own if case.subject.quantize == SAME and own is not None and not wanted.touched else None


def _bytes_of(key: str, before: PackedWeight, after: PackedWeight) -> list[str]:
    other = [
        role
        for role in sorted(before.components.keys() | after.components.keys())
        if not _same_part(role, before, after)
    ]
    return [f"{key}: its {other[0]} is not the base's, and the adapter does not change it."] if other else []


def _same_part(role: str, before: PackedWeight, after: PackedWeight) -> bool:
    own, other = before.components.get(role), after.components.get(role)
    return own is not None and other is not None and equal(read_component(own), read_component(other))


def _other_weights(case: Case, form: Form, quantization: Json, stored: set[str]) -> list[str]:
    """Which weights are quantised: those that the form's own loader will take for it, or those of the base."""
    if case.subject.quantize == SAME:
        wanted = {key for key, ref in case.base.tensors.items() if ref.packed is not None}
    else:
        modules = partial(form.modules, quantization=quantization)
        try:
            wanted = set(converted(case.model, case.subject.folder, modules))
        except Refused as refused:
            return [refused.what]
    faults = _beside(case, form)
    faults += [f"{key} is stored quantised, and its loader takes it for plain." for key in sorted(stored - wanted)]
    return faults + [
        f"{key} is stored plain, and its loader takes it for quantised." for key in sorted(wanted - stored)
    ]


def _beside(case: Case, form: Form) -> list[str]:
    """Scales of activations and caches: none of a new form, and all of the base's with its own, byte for byte."""
    stored = form.extras(case.merged.tensors.keys())
    if case.subject.quantize != SAME:
        return [f"{key} is no part of a weight." for key in sorted(stored)]
    before = read_input(case.subject.base, "base").tensors
    wanted = form.extras(before.keys())
    faults = [f"{key} is missing, and the base has it." for key in sorted(wanted - stored)]
    faults += [f"{key} is no part of a weight, and the base has it not." for key in sorted(stored - wanted)]
    both = sorted(wanted & stored)
    return faults + [f"{key} is not the base's." for key in both
                   if not equal(read_component(before[key]), read_component(case.merged.tensors[key]))]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ComparedWeight:
    """`faults`: in words. `share`: ‖W − W_q‖ ÷ ‖D‖; None where nothing was compared, or D is zero. `keeps`: as a Tally's."""

    faults: Sequence[str]
    share: float | None = None
    keeps: Callable[[], set[str]] = set


def _compare_weight(wanted: Expected, packed: PackedWeight, form: Form, name: str) -> ComparedWeight:
    if form.name_of(packed) != name and name != SAME:
        return ComparedWeight(faults=[f"it is stored as {form.name_of(packed) or form.NAME}, not as {name}"])
    if wanted.source.stored.dtype not in FLOATS:
        return ComparedWeight(faults=["it is no floating-point weight"])
    own = wanted.base.packed if wanted.base is not None and name == SAME else None
    if own is not None and (other := _other_settings(own, packed)):
        return ComparedWeight(faults=[f"its {other} is not that of the base's weight"])
    slab_rule: SlabRule | None = getattr(form, "slab_written_again", None)
    try:
        if own is not None and slab_rule is not None:
            slabs = compare_slabs(wanted, packed, own, slab_rule, form.NAME)
            keeps = {STORED} if slabs.alters else {ANY}
            return ComparedWeight(faults=slabs.faults, share=slabs.share, keeps=lambda: keeps)
        return _compare_whole(wanted, packed, form, name)
    except ValueError as error:
        return ComparedWeight(faults=[str(error)])


def _compare_whole(wanted: Expected, packed: PackedWeight, form: Form, name: str) -> ComparedWeight:
    exact, rule = exact_weight(wanted, packed), _rule(form, name)
    right = rule(exact.numbers.reshape(packed.shape), packed)
    faults = [f"its {role} is not what {form.NAME} makes of the exact merge{count(value, packed.components.get(role))}"
              for role, value in right.items() if not equals_stored(value, packed.components.get(role))]  # fmt: skip
    extra = sorted(packed.components.keys() - right.keys())
    faults += [f"its {role} is not a part of {name}" for role in extra]
    share = (exact.off / exact.power) ** 0.5 if exact.power else None
    return ComparedWeight(faults=faults, share=share, keeps=lambda: _keeps(wanted, packed, rule))


def _other_settings(own: PackedWeight, packed: PackedWeight) -> str:
    """What of a weight's form is not the base's, where it should be: a field of its settings (the mean of double quantisation
    is the weight's own), or a part; "" where nothing is."""
    for name in sorted((own.settings.keys() | packed.settings.keys()) - {"dtype", "nested_offset"}):
        if own.settings.get(name) != packed.settings.get(name):
            return name
    return min((own.components.keys() ^ packed.components.keys()) - {"weight_format", "quant_map"}, default="")


def _rule(form: Form, name: str) -> Rule:
    """What a form makes of the exact numbers; compressed-tensors writes a base's own form by another rule than a new one."""
    rule: Rule = getattr(form, "written_again", form.quantise) if name == SAME else form.quantise
    return rule


def _keeps(wanted: Expected, packed: PackedWeight, quantise: Rule) -> set[str]:
    """Whether what is stored of a weight whose delta is not zero is other than what the base alone would be."""
    sources = wanted, replace(wanted, steps=())
    try:
        sides = [quantise(exact_weight(each, packed).numbers.reshape(packed.shape), packed) for each in sources]
    except ValueError:
        return {STORED}  # that it cannot be stored is told elsewhere
    same = sides[0].keys() == sides[1].keys() and all(equal(value, sides[1][role]) for role, value in sides[0].items())
    return {ANY} if same else {STORED}
