"""Which weights of the base are merged into: as its files hold them, or as bitsandbytes would have held them.

A base that is stored quantised is seen through its format's reader: every weight under its plain key, in float32, rounded
once to the dtype that config.json names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from bot import formats
from bot.assets import REMOVED, read_json
from bot.checkpoint.header import STORED_NAMES
from bot.checkpoint.shards import main_dtype
from bot.records import Header, Json, Options, Refusal, Source, Stored

QUANTIZATION = "quantization_config"


@dataclass(frozen=True, kw_only=True)
class EffectiveBase:
    """The base as a merge sees it. `headers` name the model's own tensors; `main`: the dtype of most of the output.

    `how`: stored or simulate-nf4; `why`: that in words, with the reason; `edits`: what config.json must say otherwise.
    `packed`: W is what a quantised base holds, or would hold. `unread`: why its packed weights cannot be read; then every
    tensor is seen as it is stored, which is of use where no packed one is touched, and a refusal otherwise.
    """

    headers: tuple[Header, ...]
    stored: dict[str, Stored]
    main: str
    how: Literal["stored", "simulate-nf4"]
    why: str
    edits: dict[str, Any] = field(default_factory=dict)
    refusals: tuple[Refusal, ...] = ()
    packed: bool = False
    unread: tuple[Refusal, ...] = ()


def effective_base(base: Source, options: Options) -> EffectiveBase:
    """What `--base-weights` makes of a base. Refusals for forms that cannot be read, and for choices that make no sense."""
    config = read_json(base, "config.json")
    plain = {tensor.key: tensor for header in base.headers for tensor in header.tensors}
    quantised = formats.quantization_of(config) is not None
    asked = options.base_weights
    if quantised:
        return _quantised(base, config, plain, options)
    if asked == "simulate-nf4":
        return _simulated(base, config, plain, options)
    why = "stored, because the base is not quantised"
    if asked == "original":
        why = "original: the 16-bit weights, and not what a quantised copy of them holds"
    return EffectiveBase(headers=base.headers, stored=plain, main=main_dtype(base.headers), how="stored", why=why)


def may_keep_form(options: Options) -> bool:
    """Whether the base's form may stay: nobody asked for plain numbers, or for another dtype."""
    by_default = options.quantize == "auto" and options.base_weights == "auto"
    return options.dtype == "auto" and (by_default or options.quantize == "same")


def _quantised(base: Source, config: Json, plain: dict[str, Stored], options: Options) -> EffectiveBase:
    asked = options.base_weights
    unpacked = formats.unpack(plain, config, base.small, base.card)
    rotated = formats.is_rotated(formats.quantization_of(config) or {})
    unread = unpacked.refusals if may_keep_form(options) and not rotated else ()
    refusals = [] if unread else list(unpacked.refusals)
    if asked == "simulate-nf4":
        reason = "The base is quantised already, so that nothing can be simulated on it."
        refusals.append(Refusal(code="simulate-nf4", reason=reason, remedy="Name its 16-bit parent with --base."))
    dtype = formats.dtype_of(config)
    edits: dict[str, Any] = dict.fromkeys(_paths(config, QUANTIZATION), REMOVED)
    if "dtype" not in config and "torch_dtype" not in config:
        edits["dtype"] = dtype
    method = str((formats.quantization_of(config) or {}).get("quant_method", "an unnamed method"))
    why = f"stored, because the base is quantised ({method}) and its adapter was trained on that"
    if asked == "stored":
        why = f"stored, as asked: the base is quantised ({method}), and its weights are what that means"
    return EffectiveBase(
        headers=base.headers if unread else _seen(base.headers, unpacked.tensors),
        stored=plain if unread else dict(unpacked.tensors),
        main=STORED_NAMES[dtype],
        how="stored",
        why=why,
        edits=edits,
        refusals=tuple(refusals),
        packed=True,
        unread=unread,
    )


def _simulated(base: Source, config: Json, plain: dict[str, Stored], options: Options) -> EffectiveBase:
    from bot.formats.bitsandbytes import simulated

    settings = simulated.settings_of(dict(options.quantization))
    seen = simulated.unpack(plain, config, settings)
    count = sum(tensor.packed is not None for tensor in seen.tensors.values())
    why = f"simulate-nf4: {count} weights are rounded as {settings.words()} would have held them"
    return EffectiveBase(
        headers=_seen(base.headers, seen.tensors),
        stored=dict(seen.tensors),
        main=main_dtype(base.headers),
        how="simulate-nf4",
        why=why,
        refusals=tuple(seen.refusals),
        packed=True,
    )


def _seen(headers: tuple[Header, ...], tensors: Mapping[str, Stored]) -> tuple[Header, ...]:
    """The headers with the model's tensors in place of what the files hold."""
    by_file: dict[str, list[Stored]] = {header.file: [] for header in headers}
    for tensor in tensors.values():
        by_file[tensor.file].append(tensor)
    return tuple(replace(header, tensors=tuple(by_file[header.file])) for header in headers)


def _paths(config: Json, name: str, prefix: str = "") -> list[str]:
    """Dotted paths of every field of this name, nested configs included."""
    paths = [prefix + name] if name in config else []
    for key, value in config.items():
        if isinstance(value, dict) and key != name:
            paths += _paths(value, name, f"{prefix}{key}.")
    return paths
