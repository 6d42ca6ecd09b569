"""LoRA and its kin as their adapter's own files describe them: ΔW = scaling · B·A, DoRA's magnitudes, and what comes along.

Sources: Hu et al. 2021 (arXiv 2106.09685): scaling = α/r; Kalajdzievski 2023 (arXiv 2312.03732): α/√r for rsLoRA;
Liu et al. 2024 (arXiv 2402.09353): DoRA. Which rank and α a module has follows PEFT: the first pattern that matches the end
of the module's name wins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from bot.checks.expected.adapter_files import names_in, read_key, unknown_settings
from bot.checks.expected.changes import AdapterReading, Change, LowRank, Shift
from bot.checks.expected.saved_tensors import SavedTensors
from bot.checks.reading.checkpoint import TensorRef
from bot.records import Json
from bot.untrusted.patterns import BadPattern, first

# Settings that do not change what a trained A and B mean.
HARMLESS = frozenset({
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "use_rslora",
    "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "megatron_config", "megatron_core",
    "loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size", "runtime_config",
    "init_lora_weights", "bias", "ensure_weight_tying",
})  # fmt: skip
# Settings that do, and that are read below or by what stands behind this module.
READ = frozenset({
    "use_dora", "lora_bias", "modules_to_save", "target_parameters", "trainable_token_indices", "layer_replication",
})  # fmt: skip
# Initialisations that also change the base: A and B are then relative to a base that is not this one.
# (MiCA's B starts from the base too, but A from zero: the base stays.)
CHANGES_THE_BASE = ("pissa", "olora", "corda", "lora_ga", "kasa", "loftq")

Parameters = Callable[[str], tuple[str, ...]]  # a module's own parameters, in the order of registration


def read(config: Json, tensors: dict[str, TensorRef], parameters: Parameters) -> AdapterReading:
    """Every A with its B, bias and magnitude, and whatever else the file holds; anything unknown is a problem."""
    problems = _unknown_settings(config)
    layers: dict[tuple[str, int], dict[str, TensorRef]] = {}
    saved_tensors = SavedTensors(config=config, indices=config.get("trainable_token_indices"))
    names = names_in(list(tensors))
    for key, tensor in tensors.items():
        named = read_key(key, names)
        if named is not None and named.part in ("A", "B", "B-bias", "embedding-A", "embedding-B", "magnitude"):
            parts = layers.setdefault((named.module, named.depth), {})
            if named.part in parts:
                problems.append(f"{named.module} has two tensors for {named.part}.")
            parts[named.part] = tensor
        elif problem := saved_tensors.take(named, tensor):
            problems.append(problem)
    changes = list(_layers(layers, config, parameters))
    return saved_tensors.reading(
        _name(config),
        [*problems, *(change for change in changes if isinstance(change, str))],
        [change for change in changes if not isinstance(change, str)],
        follows=bool(config.get("ensure_weight_tying")),
        replication=tuple((int(low), int(high)) for low, high in config.get("layer_replication") or ()),
    )


def _name(config: Json) -> str:
    plain = "rsLoRA" if config.get("use_rslora") else "LoRA"
    return f"{plain} with DoRA" if config.get("use_dora") else plain


def _unknown_settings(config: Json) -> list[str]:
    """Anything switched on that is not known to be harmless may change the arithmetic."""
    problems = unknown_settings(config, HARMLESS | READ)
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGES_THE_BASE):
        problems.append(f"The adapter was initialised with {start}, which changes the base it belongs to.")
    return problems


def _layers(
    layers: dict[tuple[str, int], dict[str, TensorRef]], config: Json, parameters: Parameters
) -> Iterable[tuple[str, Change] | str]:
    depths: dict[str, int] = {}
    for module, depth in layers:
        depths[module] = max(depths.get(module, 0), depth + 1)
    for (module, depth), parts in layers.items():
        wrapped = _wrapped(module, depths[module], config, parameters)
        if isinstance(wrapped, str):
            yield wrapped
            continue
        # Wrappers nest outwards in the order of the parameters: the deepest belongs to the first.
        target = f"{module}.{wrapped[depths[module] - 1 - depth]}" if wrapped else None
        yield from _layer(module, target, parts, config)


def _wrapped(module: str, count: int, config: Json, parameters: Parameters) -> tuple[str, ...] | str:
    """The parameters that a module's wrappers belong to, in order; () for an ordinary layer."""
    targets = config.get("target_parameters") or ()
    if not targets and count == 1:
        return ()
    own = parameters(module)
    aimed = tuple(
        parameter
        for parameter in own
        if any(
            f"{module}.{parameter}" == target or f".{module}.{parameter}".endswith(f".{target}") for target in targets
        )
    )
    if len(aimed) == count or (not aimed and count == 1):
        return aimed
    return f"{module} has {count} wrapped parameters in the adapter; its config aims at {len(aimed)} of {list(own)}."


def _layer(
    module: str, target: str | None, parts: dict[str, TensorRef], config: Json
) -> Iterable[tuple[str, Change] | str]:
    embedding = any(part.startswith("embedding") for part in parts)
    front = "embedding-" if embedding else ""
    a, b = parts.pop(f"{front}A", None), parts.pop(f"{front}B", None)
    bias, magnitude = parts.pop("B-bias", None), parts.pop("magnitude", None)
    if a is None or b is None:
        which = "A" if a else "B" if b else "magnitude" if magnitude else "bias"
        yield f"{module} has only its {which} matrix."
        return
    if parts:
        yield f"{module} has more than one A and B."
        return
    if bool(magnitude) != bool(config.get("use_dora")):
        yield f"{module} {'has' if magnitude else 'lacks'} a magnitude, and use_dora is {config.get('use_dora')!r}."
        return
    scale_or_problem = scale(target or module, config)
    if isinstance(scale_or_problem, str):
        yield scale_or_problem
        return
    rank, scaling = scale_or_problem
    kind = "embedding" if embedding else "parameter" if target else "weight"
    yield target or f"{module}.weight", LowRank(
        module=module, a=a, b=b, rank=rank, scaling=scaling, magnitude=magnitude, kind=kind,  # type: ignore[arg-type]
        saved_by=version if isinstance(version := config.get("peft_version"), str) else None,
    )  # fmt: skip
    if bias:
        yield f"{module}.bias", Shift(module=module, values=bias, scaling=scaling)


def scale(module: str, config: Json) -> tuple[int, float] | str:
    """(rank, scaling) of a module by the config, or what is wrong with them."""
    try:
        rank = _by_pattern(config.get("rank_pattern"), module, config.get("r", 8))
        alpha = _by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
    except (BadPattern, AttributeError) as error:
        return f"{module}: its rank or alpha pattern cannot be read ({error})."
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float):
        return f"{module}: rank {rank!r} and alpha {alpha!r} are no numbers to merge with."
    return rank, alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _by_pattern(patterns: dict[str, Any] | None, module: str, otherwise: Any) -> Any:
    match = first(patterns or {}, module, r"(?:.*\.)?(?:{})$")
    return otherwise if match is None else list((patterns or {}).values())[match.at]
