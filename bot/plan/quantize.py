"""--quantize: which of the output's tensors are stored quantised, by which writer, as which tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bot import formats
from bot.checkpoint.shards import FLOATS, torch_name
from bot.formats.base import Writer
from bot.records import Cast, Copy, Json, Op, Options, PeftMerge, PlainOp, Quantize, Refusal, Stored, WriterChoice

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
    if options.quantize in ("auto", "none"):
        return Quantised(ops=ops)
    if options.quantize == "same":
        return _same(ops, config)
    if any(isinstance(op, PeftMerge) for op in ops):
        return _refused(ops, _by_peft(options.quantize))
    return _in_form(ops, options.quantize, config)


def _by_peft(name: str) -> Refusal:
    reason = f"{name} is written by the streaming engine, and PEFT merges this adapter."
    remedy = "Merge without --quantize first; the result can then be quantised."
    return Refusal(code="quantize-engine", reason=reason, remedy=remedy)


def _in_form(ops: tuple[Op, ...], name: str, config: Json) -> Quantised:
    """The weights that bitsandbytes would convert, whichever the form; a reader expects it of all that are not named."""
    linears = formats.linears.find({op.target.key: op.target.shape for op in ops}, config)
    if not linears.known:
        reason = f"Which weights of {config.get('model_type') or 'this model'} are Linear layers' is not known."
        refusal = Refusal(code="quantize-unknown", reason=reason, remedy="Leave --quantize at none.")
        return _refused(ops, refusal)
    made = [_stored_as(op, name, linears.keys[op.target.key]) if op.target.key in linears.keys else op for op in ops]
    done = [op.target.key for op in made if isinstance(op, Quantize)]
    return _checked(
        made, ops, name, {QUANTIZATION: formats.WRITERS[name].quantization_config(config, linears.left(done))}
    )


def _stored_as(op: Op, name: str, transposed: bool) -> Op:
    """The op, wrapped where the writer takes such weights."""
    if isinstance(op, Quantize | PeftMerge) or op.target.dtype not in FLOATS:
        return op
    choice = WriterChoice(name=name, dtype=torch_name(op.target.dtype), transposed=transposed)
    writer = formats.writer_for(choice)
    return _wrapped(op, choice, writer) if writer and writer.applies(op.target.key, op.target.shape) else op


def _same(ops: tuple[Op, ...], config: Json) -> Quantised:
    """The base's own form: what is merged is stored so again, what is not keeps its bytes, and config.json what it says."""
    packed = [op for op in ops if op.source is not None and op.source.packed is not None]
    if formats.quantization_of(config) is None:
        reason = "The base is stored as plain numbers, so that there is no other form to keep."
        return _refused(ops, Refusal(code="quantize-same", reason=reason, remedy="Leave --quantize at none."))
    if any(isinstance(op, PeftMerge) for op in packed):
        return _refused(ops, _by_peft("same"))
    made = [new for op in ops for new in _as_the_base(op)]
    plain = [op for op in made if not isinstance(op, Quantize) and op.source and op.source.packed]
    if plain:
        return _refused(ops, _why_not(plain))
    written = sum(isinstance(op, Quantize) for op in made)
    notes = [f"quantize: {written} merged weights are stored as same."] if written else []
    if len(packed) > written:
        notes.append(f"quantize: {len(packed) - written} weights keep the base's own form, byte for byte.")
    return Quantised(ops=_in_file_order(made), edits=_quantization_configs(config), notes=tuple(notes))


def _quantization_configs(config: Json, prefix: str = "") -> dict[str, Any]:
    """Every quantization_config by its dotted path: as the base has it."""
    configs: dict[str, Any] = {}
    for name, value in config.items():
        if name == QUANTIZATION:
            configs[prefix + name] = value
        elif isinstance(value, dict):
            configs |= _quantization_configs(value, f"{prefix}{name}.")
    return configs


def _why_not(plain: Sequence[Op]) -> Refusal:
    """Weights that are not left as they are, and that no writer stores in the base's form."""
    remedy = f"Choose one of {', '.join(sorted(formats.WRITERS))} for --quantize, or none."
    for op in plain:
        if op.source is not None and op.source.key != op.target.key:
            reason = f"{op.target.key} is made of {op.source.key}, whose form the base keeps under that name only."
            return Refusal(code="quantize-same", reason=reason, remedy=remedy)
    reason = f"The base's own form cannot be written again for {len(plain)} weights, e.g. {plain[0].target.key}."
    return Refusal(code="quantize-same", reason=reason, remedy=remedy)


def _as_the_base(op: Op) -> Iterator[Op]:
    source = op.source
    if source is None or source.packed is None or op.target.key != source.key or isinstance(op, Quantize | PeftMerge):
        yield op
    elif isinstance(op, Cast):
        yield from (Copy(source=part, target=replace(part, start=0, stop=0)) for _, part in source.packed.parts)
    elif not isinstance(op, Copy) and (own := _own_writer(op, source)):
        wrapped = _wrapped(op, WriterChoice(name="same", dtype=torch_name(op.target.dtype)), own)
        yield wrapped
        written = {part.key for part in wrapped.parts}
        others = [part for _, part in source.packed.parts if part.key not in written]
        yield from (Copy(source=part, target=replace(part, start=0, stop=0)) for part in others)
    else:
        yield op


def _own_writer(op: Op, source: Stored) -> Writer | None:
    """Who writes the form that the base's weight has; the merged one must be as large."""
    own = formats.same_writer(source, torch_name(op.target.dtype))
    fits = own is not None and op.target.shape == source.shape and own.applies(op.target.key, op.target.shape)
    return own if fits else None


def _in_file_order(made: list[Op]) -> tuple[Op, ...]:
    """The ops as their tensors lie in the base's files: a weight's parts may be anywhere in any of them."""
    last: dict[str, int] = {}
    placed = []
    for op in made:
        own = op.source.packed.parts[0][1] if op.source is not None and op.source.packed else op.source
        if own is not None and own.role == "base" and own.file == op.target.file and own.key in _keys(op):
            last[own.file] = own.start
        placed.append((last.get(op.target.file, 0), op))  # a tensor that the base has not follows the one before it
    return tuple(op for _, op in sorted(placed, key=lambda entry: entry[0]))


def _keys(op: Op) -> tuple[str, ...]:
    return tuple(part.key for part in op.parts) if isinstance(op, Quantize) else (op.target.key,)


def _checked(made: list[Op], ops: tuple[Op, ...], name: str, edits: dict[str, Any]) -> Quantised:
    count = sum(isinstance(op, Quantize) for op in made)
    if not count:
        return _nothing(ops, name)
    return Quantised(ops=tuple(made), edits=edits, notes=(f"quantize: {count} merged weights are stored as {name}.",))


def _nothing(ops: tuple[Op, ...], name: str) -> Quantised:
    reason = f"The merge has no weight that could be stored as {name}."
    return _refused(ops, Refusal(code="quantize-nothing", reason=reason, remedy="Leave --quantize at none."))


def _refused(ops: tuple[Op, ...], refusal: Refusal) -> Quantised:
    return Quantised(ops=ops, refusals=(refusal,))


def _wrapped(op: PlainOp, choice: WriterChoice, writer: Writer) -> Quantize:
    target: Stored = replace(op.target, dtype="F32")
    parts = tuple(
        Stored(key=key, file=target.file, dtype=dtype, shape=shape, start=0, stop=0)
        for key, dtype, shape in writer.parts(target.key, target.shape)
    )
    return Quantize(make=_in_float32(op, target), target=target, writer=choice, parts=parts)


def _in_float32(op: PlainOp, target: Stored) -> PlainOp:
    """The same op with another target; a copy of 16-bit numbers becomes a cast."""
    return Cast(source=op.source, target=target) if isinstance(op, Copy) else replace(op, target=target)
