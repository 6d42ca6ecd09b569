"""What an adapter does to which key of the output: every adapter tensor is claimed once, or refused."""

from __future__ import annotations

from dataclasses import dataclass, field

from bot.adapters.lora import FullTensor, TrainedRows
from bot.plan.refusal_texts import SENTENCES, SHOWN
from bot.records import Patch, Refusal, Stored


@dataclass(kw_only=True)
class KeyClaims:
    """What happens, by output key. `values`: an adapter tensor that is W or takes its place; `new`: keys that the base
    does not have. `must_be_equal`: adapter tensors that must say the same, (one, other, other is transposed)."""

    patches: dict[str, list[Patch]] = field(default_factory=dict)
    views: dict[str, tuple[int, int]] = field(default_factory=dict)
    values: dict[str, FullTensor] = field(default_factory=dict)
    rows: dict[str, TrainedRows] = field(default_factory=dict)
    new: dict[str, FullTensor] = field(default_factory=dict)
    must_be_equal: list[tuple[Stored, Stored, bool]] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    idle: list[tuple[Stored, str]] = field(default_factory=list)  # B that must be all zeros, and its module
    swapped: list[str] = field(default_factory=list)  # modules of stacked experts in the order of an older PEFT
    refused: dict[str, list[tuple[tuple[str, ...], str]]] = field(default_factory=dict)

    def refuse(self, code: str, detail: str, *tensors: Stored | None) -> None:
        """Claim these tensors by a refusal."""
        keys = tuple(tensor.key for tensor in tensors if tensor is not None)
        self.refused.setdefault(code, []).append((keys, detail))

    def add_patch(self, key: str, view: tuple[int, int], patch: Patch) -> None:
        self.patches.setdefault(key, []).append(patch)
        self.views[key] = view

    def changes(self, key: str) -> bool:
        """Whether an output key has values of its own: not the base's, nor a copy of them that PEFT saved along."""
        trained = key in self.values and self.values[key].trained
        return key in self.patches or key in self.rows or trained

    def move(self, key: str) -> None:
        """Forget what was claimed for a key (its tensors stay used)."""
        for claimed in (self.patches, self.views, self.values, self.rows):
            claimed.pop(key, None)

    def refusals(self) -> list[Refusal]:
        """One refusal a code, which names the first few cases."""
        refusals = []
        for code, cases in self.refused.items():
            sentence, remedy = SENTENCES[code]
            more = f" and {len(cases) - SHOWN} more" if len(cases) > SHOWN else ""
            shown = "; ".join(detail for _, detail in cases[:SHOWN]) + more
            keys = tuple(key for keys, _ in cases for key in keys)
            reason = sentence.format(n=len(cases), shown=shown)
            refusals.append(Refusal(code=code, reason=reason, remedy=remedy, keys=keys))
        return refusals


def is_empty(stored: Stored) -> bool:
    """Whether a tensor holds nothing. (B of a grouped convolution may have no columns: more groups than ranks.)"""
    return 0 in stored.shape and len(stored.shape) < 3
