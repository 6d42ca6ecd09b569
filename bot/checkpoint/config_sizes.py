"""What transformers' converters ask a built model for, read from config.json and from the base's own tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from bot.checkpoint.conversions import known
from bot.checkpoint.layouts import Unmergeable
from bot.records import Json

PROJECTION = re.compile(r"\b(q|k|v)_proj\b")


class ModelSizes:
    """The sizes of one v5 parameter, `target`. `shape_of`: another one's shape, None where the base has none."""

    def __init__(self, config: Json, target: str, shape_of: Callable[[str], tuple[int, ...] | None]) -> None:
        self._config, self._target, self._shape_of = config, target, shape_of

    @property
    def matrix(self) -> tuple[int, int]:
        """The last two sizes that a model gives stacked experts, out × in."""
        text = self._config.get("text_config")
        config = text if isinstance(text, dict) else self._config
        hidden, inner = (int(config.get(key) or 0) for key in ("hidden_size", "moe_intermediate_size"))
        return (2 * inner, hidden) if self._target.endswith("gate_up_proj") else (hidden, inner)

    def heads(self, part: str | None) -> int:
        """`num_attention_heads`, as PermuteForRope finds it: where config.json is silent, the class's default.

        Raises Unmergeable where no class with such heads is known.
        """
        parts = known()["heads"].get(self._config.get("model_type"), {})
        key = part if part in parts else ""
        if key not in parts:
            raise Unmergeable(
                f"transformers rearranges the heads of {self._target} on load, and their number is not known."
            )
        name, usual = parts[key]
        inner = self._config.get(key) if key else self._config
        config = inner if isinstance(inner, dict) else {}
        heads = config.get(name, config.get("num_attention_heads", usual))
        if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1:
            raise Unmergeable(f"The base's config.json gives {self._target} {heads!r} attention heads.")
        return heads

    def rows(self, targets: Sequence[str], total: int) -> tuple[int, ...]:
        """The rows of queries, keys and values, which lie one above the other: those of the queries are what the output
        projection takes in. Raises Unmergeable for other targets."""
        names = [kinds[0] if (kinds := PROJECTION.findall(target)) else "" for target in targets]
        output = self._shape_of(PROJECTION.sub("o_proj", self._target).rpartition(".")[0] + ".weight")
        queries = output[1] if output and len(output) == 2 else 0
        if sorted(names) != ["k", "q", "v"] or not 0 < queries < total or (total - queries) % 2:
            raise Unmergeable(f"transformers splits the tensor of {self._target} on load, in parts of unknown sizes.")
        return tuple(queries if name == "q" else (total - queries) // 2 for name in names)
