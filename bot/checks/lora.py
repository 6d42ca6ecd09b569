"""LoRA and rsLoRA as their adapter's own files describe them: ΔW = scaling · B·A.

Sources: Hu et al. 2021 (arXiv 2106.09685): scaling = α/r; Kalajdzievski 2023 (arXiv 2312.03732): α/√r for rsLoRA.
Which rank and α a module has follows PEFT: the first pattern that matches the end of the module's name wins.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from bot.checks.checkpoint import Place
from bot.checks.touch import Reading, Touch
from bot.records import Json

PREFIX = "base_model.model."
HALVES = {".lora_A.weight": "A", ".lora_B.weight": "B"}
CARRIED = re.compile(r"(?P<module>(?:(?!\.lora_).)+?)(?:\.base_layer)?\.weight")

# Settings that do not change what a trained A and B mean.
HARMLESS = frozenset({
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "use_rslora",
    "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "megatron_config", "megatron_core",
    "loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size", "runtime_config",
    "init_lora_weights", "bias", "ensure_weight_tying",
})  # fmt: skip
# Initialisations that also change the base: A and B are then relative to a base that is not this one.
CHANGES_THE_BASE = ("pissa", "olora", "corda", "lora_ga", "mica", "kasa", "loftq")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A (rank × in) and B (out × rank) of one module, and what their product is scaled by."""

    module: str
    a: Place
    b: Place
    scaling: float

    @property
    def uses(self) -> tuple[str, ...]:
        """The adapter tensors that this pair consists of."""
        return (self.a.stored.key, self.b.stored.key)

    def shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The weight's shape as a Linear (out × in) and as a Conv1D (in × out) would store it."""
        out, into = self.b.stored.shape[0], self.a.stored.shape[1]
        return (out, into), (into, out)

    def on(self, place: Place, transposed: bool) -> Touch:
        """The change to the weight at `place`: B·A, or its transpose Aᵀ·Bᵀ."""
        left, right = (self.a, self.b) if transposed else (self.b, self.a)
        return Touch(
            key=place.stored.key, module=self.module, uses=self.uses, left=left, right=right, flipped=transposed,
            scaling=self.scaling,
        )  # fmt: skip


def read(config: Json, tensors: dict[str, Place]) -> Reading:
    """Every A with its B, and copies of the base's weights that came along; anything else is a problem."""
    problems = _unknown_settings(config)
    halves: dict[str, dict[str, Place]] = {}
    carried: dict[str, Place] = {}
    for key, place in tensors.items():
        bare = key.removeprefix(PREFIX)
        suffix = next((suffix for suffix in HALVES if bare.endswith(suffix)), None)
        if suffix and len(place.stored.shape) == 2:
            halves.setdefault(bare.removesuffix(suffix), {})[HALVES[suffix]] = place
        elif (copy := CARRIED.fullmatch(bare)) and copy["module"] not in carried:
            carried[copy["module"]] = place
        else:
            problems.append(f"{key} is not a LoRA matrix that this verifier knows.")
    pairs = {}
    for module, pair in halves.items():
        found = _pair(module, pair, config)
        if isinstance(found, str):
            problems.append(found)
        else:
            pairs[module] = found
    name = "rsLoRA" if config.get("use_rslora") else "LoRA"
    return Reading(name=name, changes=pairs, carried=carried, problems=tuple(problems))


def _unknown_settings(config: Json) -> list[str]:
    """Anything switched on that is not known to be harmless may change the arithmetic."""
    said = [f"The adapter sets {key}, which this verifier does not know." for key, value in sorted(config.items())
            if key not in HARMLESS and value not in (None, False, [], {}, "")]  # fmt: skip
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGES_THE_BASE):
        said.append(f"The adapter was initialised with {start}, which changes the base it belongs to.")
    return said


def _pair(module: str, halves: dict[str, Place], config: Json) -> Pair | str:
    if halves.keys() != {"A", "B"}:
        return f"{module} has only its {' and '.join(sorted(halves))} matrix."
    a, b = halves["A"], halves["B"]
    try:
        rank = _by_pattern(config.get("rank_pattern"), module, config.get("r", 8))
        alpha = _by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
    except (re.error, AttributeError) as error:
        return f"{module}: its rank or alpha pattern cannot be read ({error})."
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float):
        return f"{module}: rank {rank!r} and alpha {alpha!r} are no numbers to merge with."
    if not a.stored.shape[0] == b.stored.shape[1] == rank:
        return f"{module}: the config says rank {rank}; A is {a.stored.shape} and B is {b.stored.shape}."
    scaling = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return Pair(module=module, a=a, b=b, scaling=scaling)


def _by_pattern(patterns: dict[str, Any] | None, module: str, otherwise: Any) -> Any:
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return otherwise
