"""How several adapters are combined, as it was asked for and as a report records it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from bot.errors import Usage
from bot.options import Combination, options_of
from bot.records import Json

KINDS = next(each.choices for each in options_of(Combination) if each.field == "kind")
PRUNING = frozenset({"ties", "dare_linear", "dare_ties", "magnitude_prune"})
RANDOM = frozenset({"dare_linear", "dare_ties"})
VOTING = frozenset({"ties", "dare_ties"})
DENSITY, SEED = 0.5, 0  # where the kind needs one and none was given
LARGEST_SEED = 2**63 - 1


def with_defaults(asked: Combination | None, count: int) -> Combination | None:
    """What was asked for, with every default filled in and what its kind has no use for left out.

    None where one adapter is merged as it is. Raises Usage for what makes no sense.
    """
    if asked is None and count == 1:
        return None
    asked = asked or Combination()
    if asked.kind not in KINDS:
        raise Usage(f"There is no way to combine adapters called {asked.kind!r}.", remedy=f"Take {', '.join(KINDS)}.")
    weights = tuple(float(weight) for weight in asked.weights) or (1.0,) * count
    if len(weights) != count:
        raise Usage(
            f"The adapters are {count}, and their weights {len(weights)}.",
            remedy="Give one weight for each adapter, in their order: --weights 0.7,0.3.",
        )
    if not all(math.isfinite(weight) for weight in weights):
        raise Usage("A weight is not a finite number.", remedy="Write weights as --weights 0.7,-0.3.")
    if asked.density is not None and not 0 < asked.density <= 1:
        raise Usage(
            f"A density of {asked.density:g} is not a share of an adapter's values.",
            remedy="Give one above 0 and up to 1: --density 0.5 keeps half of them.",
        )
    if asked.rank is not None and asked.rank < 1:
        raise Usage(f"A rank of {asked.rank} leaves nothing of the adapters.", remedy="Give a --rank of 1 or more.")
    if asked.seed is not None and not 0 <= asked.seed <= LARGEST_SEED:
        raise Usage(f"{asked.seed} is not a seed.", remedy="Give a --seed of 0 or more, of at most 63 bits.")
    return Combination(
        kind=asked.kind,
        weights=weights,
        density=(DENSITY if asked.density is None else float(asked.density)) if asked.kind in PRUNING else None,
        seed=(SEED if asked.seed is None else asked.seed) if asked.kind in RANDOM else None,
        rank=asked.rank if asked.kind == "svd" else None,
        majority_sign=(asked.majority_sign or "total") if asked.kind in VOTING else None,
    )


def without_use(asked: Combination | None, complete: Combination | None) -> list[str]:
    """The settings that were asked for and that the kind has no use for."""
    if asked is None or complete is None:
        return []
    names = ("density", "seed", "rank", "majority_sign")
    return [name for name in names if getattr(asked, name) is not None and getattr(complete, name) is None]


def to_json(how: Combination) -> Json:
    """As verification.json names it. Numbers that are not whole are text: a report rounds its floats, these must stay."""
    combination: Json = {"kind": how.kind, "weights": [repr(weight) for weight in how.weights]}
    if how.density is not None:
        combination["density"] = repr(how.density)
    return combination | {
        name: value for name in ("seed", "rank", "majority_sign") if (value := getattr(how, name)) is not None
    }


def from_json(written: Any) -> Combination:
    """The reverse of `to_json`. Raises ValueError for anything that it did not write."""
    try:
        how = Combination(**{**written, "weights": tuple(map(float, written["weights"]))})
        how = replace(how, density=None if how.density is None else float(how.density))
        complete = with_defaults(how, len(how.weights))
    except (KeyError, TypeError, ValueError, Usage) as error:
        raise ValueError(f"not a combination of adapters: {error}") from error
    if complete != how:
        raise ValueError("not a combination of adapters: its kind does not have these settings")
    return how


def words(how: Combination) -> str:
    """For a person: `ties of weights 0.7, -0.3, density 0.5`."""
    parts = [f"{how.kind} of weights {', '.join(f'{weight:g}' for weight in how.weights)}"]
    if how.density is not None:
        parts.append(f"density {how.density:g}")
    for name in ("seed", "rank"):
        if (value := getattr(how, name)) is not None:
            parts.append(f"{name} {value}")
    if how.majority_sign == "frequency":
        parts.append("signs by frequency")
    return ", ".join(parts)
