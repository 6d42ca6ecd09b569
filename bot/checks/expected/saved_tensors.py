"""What an adapter brings beside its method's own matrices: whole modules, biases, copies of embeddings, rows for tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bot.checks.expected.adapter_files import Named, names_in, read_key, unknown_settings
from bot.checks.expected.changes import AdapterReading, Change, TokenRows, WholeTensor
from bot.checks.reading.checkpoint import TensorRef
from bot.records import Json

# Settings of TRAINABLE_TOKENS that do not change what its rows mean.
HARMLESS = frozenset({
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "target_modules", "token_indices", "init_weights",
})  # fmt: skip

# PEFT adds these to modules_to_save by itself, and older versions did not write that down.
IMPLIED = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}


@dataclass(kw_only=True)
class SavedTensors:
    """Collects them key by key. `indices`: the tokens whose rows are trained, as the config has them."""

    config: Json
    indices: Any
    changes: list[tuple[str, Change]] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def take_all(self, tensors: Mapping[str, TensorRef]) -> list[str]:
        """Account for tensors none of which is the method's own. Returns what is wrong with them."""
        names = names_in(list(tensors))
        problems = [self.take(read_key(key, names), tensor) for key, tensor in tensors.items()]
        return [problem for problem in problems if problem]

    def take(self, named: Named | None, ref: TensorRef) -> str | None:
        """Account for one tensor. Returns what is wrong with it, if anything is."""
        if named is None:
            return f"{ref.stored.key} is no tensor that this verifier knows."
        parameter = f"{named.module}.{named.tail}"
        match named.part:
            case "unused":
                self.unused.append(ref.stored.key)
            case "tokens":
                return self._tokens(named.module, ref)
            case "saved" | "copy" | "plain":
                saved = named.part == "saved" or (named.part == "plain" and self._is_saved(named.module))
                return self._whole(parameter, WholeTensor(module=named.module, values=ref, shared=not saved))
            case _:
                return f"{ref.stored.key} is no tensor that this verifier knows."
        return None

    def in_order(self) -> list[tuple[str, Change]]:
        """(parameter, change), the copies that stand for the base's own first."""
        return sorted(self.changes, key=lambda pair: not (isinstance(pair[1], WholeTensor) and pair[1].shared))

    def reading(
        self, name: str, problems: Iterable[str], layers: Iterable[tuple[str, Change]] = (), **more: Any
    ) -> AdapterReading:
        """What was collected, and then the changes of the method's own layers, as (parameter, change)."""
        changes: dict[str, tuple[Change, ...]] = {}
        for parameter, change in (*self.in_order(), *layers):
            changes[parameter] = (*changes.get(parameter, ()), change)
        return AdapterReading(
            name=name, changes=changes, unused=tuple(self.unused), problems=tuple(problems), config=self.config, **more
        )

    def _whole(self, parameter: str, change: WholeTensor) -> str | None:
        """PEFT itself writes some tensors twice (a saved module that was resized): then they must be the same."""
        from bot.checks.reading.rows import same_values

        for name, other in self.changes:
            if name == parameter and isinstance(other, WholeTensor) and other.shared == change.shared:
                if not same_values(other.values, change.values):
                    return f"{parameter} is brought twice by the adapter, and differs."
                self.unused.append(change.values.stored.key)
                return None
        self.changes.append((parameter, change))
        return None

    def _is_saved(self, module: str) -> bool:
        """Whether modules_to_save names the module or one that it lies in. PEFT compares the ends of names."""
        saved = (*(self.config.get("modules_to_save") or ()), *IMPLIED.get(str(self.config.get("task_type")), ()))
        parts = module.split(".")
        above = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
        return any(path.endswith(name) for path in above for name in saved)

    def _tokens(self, module: str, ref: TensorRef) -> str | None:
        at = self.indices
        if isinstance(at, dict):
            named = [name for name in at if module.endswith(name)]
            at = at[max(named, key=len)] if named else None
        if not isinstance(at, list) or not all(type(number) is int and number >= 0 for number in at):
            return f"{module} has trained tokens, and the config does not say which."
        if ref.stored.shape[0] != len(at):
            return f"{module}: the config names {len(at)} tokens, and the adapter has {ref.stored.shape[0]}."
        self.changes.append((f"{module}.weight", TokenRows(module=module, at=tuple(at), values=ref)))
        return None


def read(config: Json, tensors: dict[str, TensorRef], parameters: object) -> AdapterReading:
    """TRAINABLE_TOKENS: rows of an embedding that are replaced. What is saved are the rows' values, not differences.

    Every trained row, and whatever else came along; anything unknown is a problem.
    """
    saved_tensors = SavedTensors(config=config, indices=config.get("token_indices"))
    problems = unknown_settings(config, HARMLESS) + saved_tensors.take_all(tensors)
    return saved_tensors.reading("trainable tokens", problems)
