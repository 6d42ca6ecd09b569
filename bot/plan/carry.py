"""What no op touches stays as it is stored: whether the result keeps the form of a quantised base.

It does where the adapter changes nothing that is packed, in whatever form: then nothing packed has to be read. It is what
`--quantize same` comes to there, and what `auto` means by default. A request by name for plain numbers stays one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from bot.checkpoint.shards import FLOATS
from bot.plan.adapter_plan import AdapterPlan
from bot.plan.base_weights import EffectiveBase, may_keep_form
from bot.plan.outputs import Outputs, is_change
from bot.records import Cast, Op, Options, Refusal

LAYER = {"weight", "bias"}
# Of the cache of keys and values: they stand beside a weight and say nothing of it.
CACHE = {"k_scale", "v_scale", "q_scale", "prob_output_scale", "k_zero_point", "v_zero_point"}
NOT_RUN = "the base's packed weights are in a form that is not read here"


@dataclass(frozen=True, kw_only=True)
class KeptForm:
    """What is decided. `options`: with `quantize` as it comes to; `why`, `edits`: of the effective base, in its place."""

    options: Options
    why: str
    edits: dict[str, Any]
    refusals: tuple[Refusal, ...] = ()
    notes: tuple[str, ...] = ()


def decide(base: EffectiveBase, outputs: Outputs, adapter: AdapterPlan, options: Options) -> KeptForm:
    """Whether the form of a quantised base is carried, and what `--quantize auto` comes to."""
    asked = options.quantize
    plain = replace(options, quantize="none" if asked == "auto" else asked)
    same = replace(options, quantize="same")
    if not base.packed or base.how != "stored" or not may_keep_form(options):
        edits = base.edits if asked != "same" else {}
        return KeptForm(options=plain, why=base.why, edits=edits)
    reason = _touched_as_stored(base, outputs, adapter) if base.unread else _touched(base, outputs)
    if reason is None:
        why = f"{base.why}; the adapter changes nothing that is packed, so that all else stays as it is stored"
        return KeptForm(options=same, why=why, edits={})
    if base.unread:
        return KeptForm(options=plain, why=base.why, edits=base.edits, refusals=base.unread)
    if asked == "same":
        return KeptForm(options=same, why=base.why, edits={})
    note = f"quantize: none, because {reason}; --quantize same would keep the base's form, where it can be written."
    return KeptForm(options=plain, why=base.why, edits=base.edits, notes=(note,))


def _touched(base: EffectiveBase, outputs: Outputs) -> str | None:
    """Of a form that is read: the packed weight that does not simply stay, in words; None where each does."""
    for op in outputs.ops:
        source = base.stored.get(op.target.key) if op.source is None or op.source.role != "base" else op.source
        stays = isinstance(op, Cast) and source is not None and op.target.key == source.key
        if source is not None and source.packed is not None and not stays:
            return f"{op.target.key} is packed, and changes"
    return _other_keys(base, outputs)


def _touched_as_stored(base: EffectiveBase, outputs: Outputs, adapter: AdapterPlan) -> str | None:
    """Of a form that nobody reads: what in the plan may not be a plain weight.

    A weight counts as plain where it is floating-point numbers, and its module has nothing beside weight, bias and the scales of a
    cache.
    """
    if adapter.refusals or adapter.engine == "none":
        return "its weights are not found as plain ones"
    modules: dict[str, set[str]] = {}
    for key in base.stored:
        module, _, name = key.rpartition(".")
        modules.setdefault(module, set()).add(name)
    for op in outputs.ops:
        if is_change(op) and not _is_plain(op, modules):
            return f"{op.target.key} is packed, and changes"
    return _other_keys(base, outputs)


def _is_plain(op: Op, modules: dict[str, set[str]]) -> bool:
    module, _, name = op.target.key.rpartition(".")
    beside = modules.get(module, set())
    others = beside - LAYER - CACHE - {name}
    if name not in LAYER:  # a parameter of its own, as stacks of experts are
        others = {other for other in others if other.startswith(f"{name}_")} - {f"{name}_bias"}
    return not others and op.target.key not in modules and op.source is not None and op.source.dtype in FLOATS


def _other_keys(base: EffectiveBase, outputs: Outputs) -> str | None:
    """A tensor that the base has not, or the result has not: what the base's quantization_config says names the base's."""
    if outputs.drops:
        return f"{outputs.drops[0].source.key} is left out"
    return next((f"{key} is new" for key in _targets(outputs.ops) if key not in base.stored), None)


def _targets(ops: Iterable[Op]) -> Iterable[str]:
    return (op.target.key for op in ops)
