"""--quantize: which of the output's tensors are stored quantised, by which writer, as which tensors."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from bot import formats
from bot.records import Json, Op, Options, PeftMerge, Quantize, Refusal, Stored
from bot.weights.places import Names


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """The ops, some of them wrapped, and what config.json says of it."""

    ops: tuple[Op, ...]
    edits: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = ()


def quantize(ops: tuple[Op, ...], options: Options, config: Json, names: Names) -> Quantised:
    """Wrap the ops of the weights that the writer of this name stores: those of Linear layers, but not the head."""
    if options.quantize == "none":
        return Quantised(ops=ops)
    from bot.formats import simulated

    writer = formats.writer_of(options.quantize, config)
    if isinstance(writer, Refusal):
        return Quantised(ops=ops, refusals=(writer,))
    wanted = simulated.linear_weights({op.target.key: op.target for op in ops}, config, names.head)
    made: list[Op] = []
    for op in ops:
        if op.target.key not in wanted or not writer.applies(op.target.key, op.target.shape):
            made.append(op)
        elif isinstance(op, PeftMerge):
            reason = f"{options.quantize} is written by the streaming engine, and PEFT merges this adapter."
            remedy = "Merge without --quantize first, then quantise the result."
            return Quantised(ops=ops, refusals=(Refusal(code="quantize-engine", reason=reason, remedy=remedy),))
        else:
            made.append(_wrapped(op, options.quantize, writer))
    count = sum(isinstance(op, Quantize) for op in made)
    if not count:
        reason = f"The model has no weight that {options.quantize} could hold."
        refusal = Refusal(code="quantize-nothing", reason=reason, remedy="Leave --quantize at none.")
        return Quantised(ops=ops, refusals=(refusal,))
    edits = {"quantization_config": writer.quantization_config(config)}
    return Quantised(ops=tuple(made), edits=edits, notes=(f"{count} weights are stored as {options.quantize}.",))


def _wrapped(op: Any, name: str, writer: Any) -> Quantize:
    target: Stored = replace(op.target, dtype="F32")
    parts = tuple(
        Stored(key=key, file=target.file, dtype=dtype, shape=shape, start=0, stop=0)
        for key, dtype, shape in writer.parts(target.key, target.shape)
    )
    return Quantize(make=replace(op, target=target), target=target, writer=name, parts=parts)
