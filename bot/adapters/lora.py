"""An adapter of the LoRA family, read from its keys and its settings: what it changes, before the base is known.

The rules are PEFT's (peft.tuners.lora, peft.utils.other).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from bot.adapters.lora_config import SAVE_AGAIN, LoraSettings, is_saved
from bot.adapters.lora_keys import bare_key, read_key
from bot.records import Refusal, Stored


@dataclass(frozen=True, kw_only=True)
class LoraPair:
    """The two matrices of one module. linear: A rank × in, B out × rank; embedding: A rank × rows, B columns × rank.

    `depth`: how many LoRA wrappers of bare parameters lie around this one (`target_parameters`).
    """

    module: str
    kind: Literal["linear", "embedding"]
    a: Stored
    b: Stored
    magnitude: Stored | None = None
    depth: int = 0


@dataclass(frozen=True, kw_only=True)
class FullTensor:
    """A whole tensor. `trained`: it replaces the module's own (modules_to_save, trained biases); else it is a copy of
    the base's parameter, which PEFT loads over it, tied heads included."""

    parameter: str
    values: Stored
    trained: bool


@dataclass(frozen=True, kw_only=True)
class TrainedRows:
    """New values for some rows of an embedding."""

    module: str
    rows: tuple[int, ...]
    values: Stored


@dataclass(frozen=True, kw_only=True)
class Changes:
    """All that an adapter says; every key of it is in one of these."""

    pairs: tuple[LoraPair, ...] = ()
    biases: tuple[tuple[str, Stored], ...] = ()  # (module, lora_B's bias)
    wholes: tuple[FullTensor, ...] = ()
    tokens: tuple[TrainedRows, ...] = ()
    ignored: tuple[Stored, ...] = ()
    refusals: tuple[Refusal, ...] = ()


def read_changes(tensors: Iterable[Stored], settings: LoraSettings) -> Changes:
    """Sort an adapter's tensors into what they do; what cannot be sorted is a refusal that claims it."""
    reader = _Reader(settings)
    for tensor in tensors:
        reader.take(tensor)
    return reader.changes()


class _Reader:
    """Collects the tensors of one adapter."""

    def __init__(self, settings: LoraSettings) -> None:
        self.settings = settings
        self.names: set[str] = set()
        self.sides: dict[tuple[str, str], dict[str, Stored]] = {}  # (kind, module) → side → tensor
        self.biases: list[tuple[str, Stored]] = []
        self.wholes: list[FullTensor] = []
        self.tokens: list[TrainedRows] = []
        self.ignored: list[Stored] = []
        self.refused: dict[tuple[str, str, str], list[str]] = {}  # (code, sentence, remedy) → keys

    def take(self, tensor: Stored) -> None:
        kind, match = read_key(bare_key(tensor.key))
        if match is None:
            self._refuse("unknown-key", "are of an unknown kind", tensor)
            return
        parts = match.groupdict()
        if parts.get("name"):
            self.names.add(parts["name"])
        module, rest = parts.get("module") or "", parts.get("rest") or ""
        match kind:
            case "lora" | "embedding":
                self._side(kind, module, parts["side"], tensor)
            case "magnitude":
                self._side("magnitude", module, "M", tensor)
            case "bias":
                self.biases.append((module, tensor))
            case "tokens":
                self._tokens(module, tensor)
            case "ignored":
                self.ignored.append(tensor)
            case _:
                self._whole(kind, f"{module}.{rest}", tensor)

    def _side(self, kind: str, module: str, side: str, tensor: Stored) -> None:
        sides = self.sides.setdefault((kind, module), {})
        if side in sides:
            self._refuse("repeated-key", "are a second LoRA matrix for the same module", tensor)
        else:
            sides[side] = tensor

    def _whole(self, kind: str, parameter: str, tensor: Stored) -> None:
        if kind == "plain" and not parameter.endswith((".weight", ".bias")) and not is_saved(self.settings, parameter):
            self._refuse("unknown-key", "are of an unknown kind", tensor)
            return
        trained = kind == "saved" or (kind == "plain" and is_saved(self.settings, parameter))
        trained = trained or (parameter.endswith(".bias") and self.settings.bias != "none")
        self.wholes.append(FullTensor(parameter=parameter, values=tensor, trained=trained))

    def _tokens(self, module: str, tensor: Stored) -> None:
        tokens = self.settings.tokens
        named = tokens.items() if isinstance(tokens, Mapping) else [("", tokens)]
        rows: tuple[int, ...] = next((rows for name, rows in named if module.endswith(name)), ())
        if len(rows) != (tensor.shape[0] if tensor.shape else 0) or len(set(rows)) != len(rows):
            self._refuse("trainable-tokens", "have another number of rows than the config has token indices", tensor)
        else:
            self.tokens.append(TrainedRows(module=module, rows=rows, values=tensor))

    def _refuse(self, code: str, sentence: str, tensor: Stored, remedy: str = SAVE_AGAIN) -> None:
        self.refused.setdefault((code, sentence, remedy), []).append(tensor.key)

    def changes(self) -> Changes:
        pairs = []
        for (kind, module), sides in sorted(self.sides.items()):
            if kind == "magnitude":
                if not any((other, module) in self.sides for other in ("lora", "embedding")):
                    self._refuse("half-a-pair", "lack their other half", sides["M"])
            elif sides.keys() != {"A", "B"}:
                for tensor in sides.values():
                    self._refuse("half-a-pair", "lack their other half", tensor)
            else:
                pairs.append(self._pair(kind, module, sides))
        refusals = []
        for (code, sentence, remedy), keys in self.refused.items():
            reason = f"{len(keys)} adapter tensors {sentence}, e.g. {keys[0]}."
            refusals.append(Refusal(code=code, reason=reason, remedy=remedy, keys=tuple(keys)))
        if len(self.names) > 1:
            reason = f"The adapter file holds several adapters: {', '.join(sorted(self.names))}."
            refusals.append(Refusal(code="several-adapters", reason=reason, remedy="Save them one by one."))
        return Changes(
            pairs=tuple(pairs),
            biases=tuple(self.biases),
            wholes=tuple(self.wholes),
            tokens=tuple(self.tokens),
            ignored=tuple(self.ignored),
            refusals=tuple(refusals),
        )

    def _pair(self, kind: str, module: str, sides: dict[str, Stored]) -> LoraPair:
        depth = 0
        while module.endswith(".base_layer"):
            module, depth = module.removesuffix(".base_layer"), depth + 1
        magnitude = self.sides.get(("magnitude", module), {}).get("M")
        layer: Literal["linear", "embedding"] = "linear" if kind == "lora" else "embedding"
        return LoraPair(module=module, kind=layer, a=sides["A"], b=sides["B"], magnitude=magnitude, depth=depth)
