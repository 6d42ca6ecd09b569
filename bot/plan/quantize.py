"""--quantize: which of the output's tensors are stored quantised, by which writer, as which tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from bot import formats
from bot.records import AddDelta, Cast, Copy, Json, Op, Options, PeftMerge, PlainOp, Quantize, Refusal, SetRows, Stored
from bot.weights.shards import FLOATS, torch_name

QUANTIZATION = "quantization_config"


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """The ops, some of them wrapped, and what config.json says of it."""

    ops: tuple[Op, ...]
    edits: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = ()


def quantize(ops: tuple[Op, ...], options: Options, config: Json) -> Quantised:
    """Wrap the ops of the weights that the writer of this name stores: those of Linear layers, but not the head."""
    if options.quantize == "none":
        return Quantised(ops=ops)
    if any(isinstance(op, PeftMerge) for op in ops):
        reason = f"{options.quantize} is written by the streaming engine, and PEFT merges this adapter."
        remedy = "Merge without --quantize first; the result can then be quantised."
        return Quantised(ops=ops, refusals=(Refusal(code="quantize-engine", reason=reason, remedy=remedy),))
    if options.quantize == "same":
        return _same(ops, config)
    return _in_form(ops, options.quantize, config)


def _in_form(ops: tuple[Op, ...], name: str, config: Json) -> Quantised:
    """The weights that bitsandbytes would convert, whichever the form; a reader expects it of all that are not named."""
    linears = formats.linears.find({op.target.key: op.target.shape for op in ops}, config)
    if not linears.known:
        reason = f"Which weights of {config.get('model_type') or 'this model'} are Linear layers' is not known."
        refusal = Refusal(code="quantize-unknown", reason=reason, remedy="Leave --quantize at none.")
        return Quantised(ops=ops, refusals=(refusal,))
    made = [_stored_as(op, name, linears.keys[op.target.key]) if op.target.key in linears.keys else op for op in ops]
    done = [op.target.key for op in made if isinstance(op, Quantize)]
    return _checked(
        made, ops, name, {QUANTIZATION: formats.WRITERS[name].quantization_config(config, linears.left(done))}
    )


def _stored_as(op: Op, name: str, turned: bool) -> Op:
    """The op, wrapped where the writer takes such weights."""
    writer_name = formats.adapted(name, torch_name(op.target.dtype), turned)
    if writer_name is None or isinstance(op, Quantize | PeftMerge) or op.target.dtype not in FLOATS:
        return op
    writer = formats.writer_named(writer_name)
    return _wrapped(op, writer_name, writer) if writer.applies(op.target.key, op.target.shape) else op


def _same(ops: tuple[Op, ...], config: Json) -> Quantised:
    """The base's own form: what is merged is stored so again, what is not keeps its bytes."""
    made = [one for op in ops for one in _as_the_base(op)]
    quantised = formats.quantization_of(config)
    nested = config.get("text_config")
    inside = isinstance(nested, dict) and nested.get(QUANTIZATION) is quantised and quantised is not None
    path = f"text_config.{QUANTIZATION}" if inside else QUANTIZATION
    found = _checked(made, ops, "same", {path: quantised})
    plain = [op.target.key for op in made if not isinstance(op, Quantize) and op.source and op.source.packed]
    if plain and not found.refusals:
        reason = f"The base's own form cannot be written again for {len(plain)} weights, e.g. {plain[0]}."
        remedy = f"Choose one of {', '.join(sorted(formats.WRITERS))} for --quantize, or none."
        return Quantised(ops=ops, refusals=(Refusal(code="quantize-same", reason=reason, remedy=remedy),))
    return found


def _as_the_base(op: Op) -> Iterator[Op]:
    source = op.source
    if source is None or source.packed is None or op.target.key != source.key or isinstance(op, Quantize | PeftMerge):
        yield op
    elif isinstance(op, Cast):
        yield from (Copy(source=part, target=replace(part, start=0, stop=0)) for _, part in source.packed.parts)
    elif isinstance(op, AddDelta | SetRows) and formats.fp8_own.writes(source):
        wrapped = _wrapped(op, "same", formats.fp8_own.OwnFp8(tensor=source))
        yield wrapped
        written = {part.key for part in wrapped.parts}
        others = [part for _, part in source.packed.parts if part.key not in written]
        yield from (Copy(source=part, target=replace(part, start=0, stop=0)) for part in others)
    else:
        yield op


def _checked(made: list[Op], ops: tuple[Op, ...], name: str, edits: dict[str, Any]) -> Quantised:
    count = sum(isinstance(op, Quantize) for op in made)
    if not count:
        reason = f"The merge has no weight that could be stored as {name}."
        refusal = Refusal(code="quantize-nothing", reason=reason, remedy="Leave --quantize at none.")
        return Quantised(ops=ops, refusals=(refusal,))
    return Quantised(ops=tuple(made), edits=edits, notes=(f"quantize: {count} merged weights are stored as {name}.",))


def _wrapped(op: PlainOp, name: str, writer: formats.Writer) -> Quantize:
    target: Stored = replace(op.target, dtype="F32")
    parts = tuple(
        Stored(key=key, file=target.file, dtype=dtype, shape=shape, start=0, stop=0)
        for key, dtype, shape in writer.parts(target.key, target.shape)
    )
    return Quantize(make=_in_float32(op, target), target=target, writer=name, parts=parts)


def _in_float32(op: PlainOp, target: Stored) -> PlainOp:
    """The same op with another target; a copy of 16-bit numbers becomes a cast."""
    return Cast(source=op.source, target=target) if isinstance(op, Copy) else replace(op, target=target)
