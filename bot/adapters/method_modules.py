"""Which modules an adapter of PEFT's own layers changes, found by its keys."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bot.adapters.lora_config import SAVE_AGAIN
from bot.adapters.lora_keys import PREFIX
from bot.adapters.methods import METHODS, Method
from bot.records import Json, Refusal
from bot.untrusted.patterns import first

TUNER = "base_model."  # PEFT keeps what modules share on the tuner itself


@dataclass(frozen=True, kw_only=True)
class Changed:
    """What an adapter's keys say.

    `modules`: module → the parameters that a merge changes, those that the base may not have (`bias`) included.
    `required`: of these, (module, parameter) that the base must have. `shared`: keys that every module needs.
    `whole`: keys of whole tensors (modules_to_save, trained biases), which replace the base's and belong to no module.
    """

    modules: dict[str, tuple[str, ...]]
    keys: dict[str, tuple[str, ...]]
    required: tuple[tuple[str, str], ...]
    shared: tuple[str, ...]
    whole: tuple[str, ...]
    refusals: tuple[Refusal, ...]


def modules_of(config: Json, keys: Iterable[str], base_modules: Iterable[str] = ()) -> Changed:
    """Which modules an adapter of a phantom or in-memory method changes, from its keys; each key is claimed once.

    `base_modules`: the base's modules (checkpoint keys without `.weight`), for methods whose keys name none (Uni-LoRA).
    """
    method = METHODS[str(config.get("peft_type"))]
    pattern = _pattern(method.marks)
    by_module: dict[str, list[str]] = {}
    shared: list[str] = []
    whole: list[str] = []
    strange: list[str] = []
    for key in keys:
        bare = key.removeprefix(PREFIX)
        match = pattern.match(bare) if pattern else None
        if _is_shared(key, method):
            shared.append(key)
        elif match:
            by_module.setdefault(match["module"], []).append(key)
        elif re.search(r"\.(weight|bias)$|\.modules_to_save\.|\.original_module\.", bare):
            whole.append(key)
        else:
            strange.append(key)
    if not by_module and shared:
        by_module = {module: [] for module in base_modules if is_target(config, module)}
    modules = {module: _parameters(config, method, module, own) for module, own in by_module.items()}
    return Changed(
        modules=modules,
        keys={module: tuple(own) for module, own in by_module.items()},
        required=tuple(_required(config, by_module)),
        shared=tuple(shared),
        whole=tuple(whole),
        refusals=_strangers(method, strange),
    )


def is_target(config: Json, module: str) -> bool:
    """PEFT's own matching of `target_modules` (peft.tuners.tuners_utils.check_target_module_exists)."""
    excluded, targets = config.get("exclude_modules"), config.get("target_modules")
    if _named(excluded, module) or not _named(targets, module):
        return False
    wanted = config.get("layers_to_transform")
    if isinstance(targets, str) or wanted is None or wanted == []:
        return True
    indices = [wanted] if isinstance(wanted, int) else list(wanted)
    patterns = config.get("layers_pattern") or [r"[^.]*"]
    for layer in [patterns] if isinstance(patterns, str) else patterns:
        # The first numbered segment is the layer, not a nested expert's number.
        if match := first((layer,), module, r"(?:^|.*?\.){}\.(?P<index>\d+)\."):
            return int(match.groups["index"] or -1) in indices
    return False


def _named(names: Any, module: str) -> bool:
    if not names:
        return False
    if isinstance(names, str):
        return first((names,), module, mode="fullmatch") is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _pattern(marks: tuple[str, ...]) -> re.Pattern[str] | None:
    return re.compile(rf"(?P<module>.+?)\.(?:{'|'.join(marks)})(?:[._].*)?$") if marks else None


def _is_shared(key: str, method: Method) -> bool:
    rest = key.removeprefix(TUNER)
    return rest != key and any(rest == name or rest.startswith(f"{name}.") for name in method.shared)


def _parameters(config: Json, method: Method, module: str, own: list[str]) -> tuple[str, ...]:
    match config.get("peft_type"):
        case "BEFT":
            return ("bias",)
        case "LN_TUNING":
            return tuple(sorted((key.rpartition(".")[2] for key in own), reverse=True))
        case "IA3" if _is_feedforward(config, module):
            return ("weight",)  # its input is scaled, so that the bias stays
        case "LORA":
            return ("weight", "bias") if config.get("lora_bias") else ("weight",)
    return ("weight", "bias") if method.bias else ("weight",)


def _is_feedforward(config: Json, module: str) -> bool:
    named = config.get("feedforward_modules") or ()
    if isinstance(named, str):
        return first((named,), module, mode="fullmatch") is not None
    return any(module.endswith(name) for name in named)


def _required(config: Json, by_module: Mapping[str, list[str]]) -> Iterable[tuple[str, str]]:
    """A trained bias that the base has no place for."""
    peft_type = config.get("peft_type")
    for module, own in by_module.items():
        if peft_type == "BEFT" or (peft_type == "LORA" and config.get("lora_bias")):
            yield module, "bias"
        elif peft_type == "LN_TUNING":
            yield from ((module, key.rpartition(".")[2]) for key in own)


def _strangers(method: Method, keys: list[str]) -> tuple[Refusal, ...]:
    if not keys:
        return ()
    reason = f"{len(keys)} adapter tensors are none of {method.name}'s, e.g. {keys[0]}."
    return (Refusal(code="unknown-key", reason=reason, remedy=SAVE_AGAIN, keys=tuple(keys)),)
