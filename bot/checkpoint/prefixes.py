"""One prefix for a whole adapter: which spelling of its names leads into a base, and whether only one does."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from bot.checkpoint.families import star

Rule = tuple[str, str]  # (prefix to drop, prefix to add)
Spelled = Mapping[str, tuple[str, ...]]  # parameter → the names that it goes by, together
Reached = dict[str, tuple[str, ...]]
Way = tuple[Spelled, Collection[str]]  # parameters as one way of naming spells them, and the names that there are


class Ambiguous(Exception):
    """Two prefixes fit the adapter equally well and lead to different tensors; `args` are two keys of one parameter."""


@dataclass(frozen=True)
class Choice:
    """`way`: the index of the way of naming that fits; `reached`: parameter → the names that it leads to."""

    way: int
    reached: Reached


@dataclass(frozen=True)
class Base:
    """What `choose` asks about a base. `ways`: of naming, in their order of preference; `parts`: further ways, in which
    names mean what they mean inside one part of the model. `keys_of` (way, names reached) → the base's keys;
    `misfits` (way, parameters reached) → how many of them have another size than the adapter's matrices."""

    ways: Sequence[Callable[[Sequence[str]], Way]]
    parts: Sequence[Callable[[Sequence[str]], Way]]
    keys_of: Callable[[int, tuple[str, ...]], tuple[str, ...]]
    misfits: Callable[[int, Reached], int]


def choose(base: Base, parameters: Sequence[str]) -> Choice:
    """The way and the prefix that find most of the parameters; of equals, names as they are come first, then the order
    of the ways, the parts behind them. A way is asked for only when those before it have left something open. Of
    prefixes that find as many, those win whose sizes fit. Raises Ambiguous where two prefixes of one way are left, and
    lead to different keys."""
    plain: list[Choice] = []
    asked: list[Way] = []
    for number, way in enumerate((*base.ways, *base.parts)):
        asked.append(way(parameters))
        plain.append(Choice(number, _apply(("", ""), *asked[-1])))
        if len(plain[-1].reached) == len(parameters):
            return plain[-1]
    best = max(plain, key=lambda choice: len(choice.reached))
    prefixed = [
        Choice(number, _apply(rule, spelled, there))
        for number, (spelled, there) in enumerate(asked[: len(base.ways)])
        for rule in _rules(spelled, there)
    ]
    rival = max(prefixed, key=lambda choice: len(choice.reached), default=best)
    if len(rival.reached) <= len(best.reached):
        return best
    rivals = [one for one in prefixed if one.way == rival.way and len(one.reached) == len(rival.reached)]
    misfits = [base.misfits(one.way, one.reached) for one in rivals]
    fitting = [one for one, count in zip(rivals, misfits, strict=True) if count == min(misfits)]
    for other in fitting[1:]:
        _refuse_if_different(fitting[0], other, base.keys_of)
    return fitting[0]


def _apply(rule: Rule, spelled: Spelled, there: Collection[str]) -> Reached:
    drop, add = rule
    reached: Reached = {}
    spelled_as: dict[tuple[str, ...], tuple[str, ...]] = {}
    for parameter, names in spelled.items():
        prefixed = tuple(add + name.removeprefix(drop) for name in names)
        # A head that stands beside the prefixed body (`lm_head`) keeps its name under either rule.
        for one in (prefixed, names):
            if all(name in there for name in one):
                if spelled_as.setdefault(one, names) != names:
                    return {}  # two names would meet in one tensor: a prefix that takes one part of a model for another
                reached[parameter] = one
                break
    return reached


def _rules(spelled: Spelled, there: Collection[str]) -> list[Rule]:
    """Prefixes worth trying: those that make some parameter's name, less its numbers, one that there is."""
    templates = [one.split(".") for one in sorted({star(name) for name in there})]
    rules: dict[Rule, None] = {}
    for asked in sorted({star(name) for names in spelled.values() for name in names}):
        parts = asked.split(".")
        for template in templates:
            rule = _bridge(parts, template)
            if rule is not None:
                rules[rule] = None
    return list(rules)


def _bridge(asked: list[str], there: list[str]) -> Rule | None:
    """(drop, add) that turns one name into the other: all of one of them is the other's end, or both end alike from a
    numbered layer on."""
    common = 0
    while common < min(len(asked), len(there)) and asked[-1 - common] == there[-1 - common]:
        common += 1
    whole = common in (len(asked), len(there)) and common > 1
    if not whole and "*" not in asked[len(asked) - common + 1 :]:  # from the list of layers on, its name included
        return None
    drop, add = (".".join(one[: len(one) - common]) for one in (asked, there))
    if (drop, add) == ("", "") or "*" in drop or "*" in add:
        return None
    return (f"{drop}." if drop else "", f"{add}." if add else "")


def _refuse_if_different(
    one: Choice, other: Choice, keys_of: Callable[[int, tuple[str, ...]], tuple[str, ...]]
) -> None:
    for parameter, reached in one.reached.items():
        mine, theirs = keys_of(one.way, reached), keys_of(other.way, other.reached.get(parameter, ()))
        if theirs and mine != theirs:
            raise Ambiguous(mine[0], theirs[0])
