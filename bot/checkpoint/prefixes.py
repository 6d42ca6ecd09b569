"""One prefix for a whole adapter: which spelling of its names leads into a base, and whether only one does."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from bot.checkpoint.families import star

Rule = tuple[str, str]  # (prefix to drop, prefix to add)
Spelled = Mapping[str, tuple[str, ...]]  # parameter → the names that it goes by, together
Reached = dict[str, tuple[str, ...]]
Naming = tuple[Spelled, Collection[str]]  # parameters as one naming scheme spells them, and the names that there are


class Ambiguous(Exception):
    """Two prefixes fit the adapter equally well and lead to different tensors; `args` are two keys of one parameter."""


@dataclass(frozen=True)
class Choice:
    """`naming_scheme`: the index of the one that fits; `reached`: parameter → the names that it leads to."""

    naming_scheme: int
    reached: Reached


@dataclass(frozen=True)
class Base:
    """What `resolve_prefix` asks about a base. `naming_schemes`: in their order of preference; `parts`: further schemes, in
    which names mean what they mean inside one part of the model. `keys_of` (scheme, names reached) → the base's keys;
    `misfits` (scheme, parameters reached) → how many of them have another size than the adapter's matrices. `stated`: the
    scheme of the part that the adapter says it was trained on."""

    naming_schemes: Sequence[Callable[[Sequence[str]], Naming]]
    parts: Sequence[Callable[[Sequence[str]], Naming]]
    keys_of: Callable[[int, tuple[str, ...]], tuple[str, ...]]
    misfits: Callable[[int, Reached], int]
    stated: int | None = None


def resolve_prefix(base: Base, parameters: Sequence[str]) -> Choice:
    """The naming scheme and the prefix that find most of the parameters; of equals, names without a prefix come first,
    then the order of the schemes, and of the parts after them. A scheme is tried only when those before it have left
    something open. Of prefixes that find as many, those win whose sizes fit, and of those the ones that are only dropped or only
    added: then all of a name is the other's end, as it is not where `encoder.` takes the place of `model.decoder.`. A part that the
    adapter says it was trained on comes before all else where it has any of the parameters. Raises Ambiguous where two prefixes of
    one scheme are left, and lead to different keys."""
    if base.stated is not None:
        part = (*base.naming_schemes, *base.parts)[base.stated]
        if reached := _apply(("", ""), *part(parameters)):
            return Choice(base.stated, reached)
    plain: list[Choice] = []
    spellings: list[Naming] = []
    for number, scheme in enumerate((*base.naming_schemes, *base.parts)):
        spellings.append(scheme(parameters))
        plain.append(Choice(number, _apply(("", ""), *spellings[-1])))
        if len(plain[-1].reached) == len(parameters):
            return plain[-1]
    best = max(plain, key=lambda choice: len(choice.reached))
    prefixed = {
        (number, rule): Choice(number, _apply(rule, spelled, there))
        for number, (spelled, there) in enumerate(spellings[: len(base.naming_schemes)])
        for rule in _rules(spelled, there)
    }
    rival = max(prefixed.values(), key=lambda choice: len(choice.reached), default=best)
    if len(rival.reached) <= len(best.reached):
        return best
    wanted = rival.naming_scheme, len(rival.reached)
    rivals = {
        rule: choice for (_, rule), choice in prefixed.items() if (choice.naming_scheme, len(choice.reached)) == wanted
    }
    misfits = {rule: base.misfits(choice.naming_scheme, choice.reached) for rule, choice in rivals.items()}
    fitting = {rule: choice for rule, choice in rivals.items() if misfits[rule] == min(misfits.values())}
    only = [choice for rule, choice in fitting.items() if "" in rule] or list(fitting.values())
    for other in only[1:]:
        _refuse_if_different(only[0], other, base.keys_of)
    return only[0]


def _apply(rule: Rule, spelled: Spelled, there: Collection[str]) -> Reached:
    drop, add = rule
    reached: Reached = {}
    spelled_as: dict[tuple[str, ...], tuple[str, ...]] = {}
    for parameter, names in spelled.items():
        prefixed = tuple(add + name.removeprefix(drop) for name in names)
        # A head that stands beside the prefixed body (`lm_head`) keeps its name under either rule.
        for candidate in (prefixed, names):
            if all(name in there for name in candidate):
                if spelled_as.setdefault(candidate, names) != names:
                    return {}  # two names would meet in one tensor: a prefix that takes one part of a model for another
                reached[parameter] = candidate
                break
    return reached


def _rules(spelled: Spelled, there: Collection[str]) -> list[Rule]:
    """Prefixes worth trying: those that make some parameter's name, less its numbers, one that there is."""
    templates = [name.split(".") for name in sorted({star(name) for name in there})]
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
    drop, add = (".".join(parts[: len(parts) - common]) for parts in (asked, there))
    if (drop, add) == ("", "") or "*" in drop or "*" in add:
        return None
    return (f"{drop}." if drop else "", f"{add}." if add else "")


def _refuse_if_different(
    first: Choice, second: Choice, keys_of: Callable[[int, tuple[str, ...]], tuple[str, ...]]
) -> None:
    for parameter, names in first.reached.items():
        keys = keys_of(first.naming_scheme, names)
        others = keys_of(second.naming_scheme, second.reached.get(parameter, ()))
        if others and keys != others:
            raise Ambiguous(keys[0], others[0])
