"""Tied weights: which parameters share one tensor, and which of them still do after the adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bot.checks.names import Names
from bot.checks.touch import Change, LowRank, Tokens, Whole

Changes = dict[str, tuple[Change, ...]]


@dataclass(frozen=True, kw_only=True)
class Ties:
    """`of`: parameter → every parameter of its group, the one that the others follow first. `changes`: by parameter.

    `loose`: groups whose members the adapter makes different, so that each needs a tensor of its own.
    """

    of: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    changes: Changes = field(default_factory=dict)
    loose: frozenset[tuple[str, ...]] = frozenset()
    twins: frozenset[str] = frozenset()  # adapter tensors that only repeat what others say
    problems: tuple[str, ...] = ()


def groups(names: Names) -> dict[str, tuple[str, ...]]:
    """As transformers ties on load: what the config ties, but for two stored tensors that differ."""
    from bot.checks.rows import same_values

    skeleton, found = names.skeleton, dict[str, list[str]]()
    for target, source in (skeleton.tied if skeleton else {}).items():
        keys = [skeleton.key_of.get(one) for one in (target, source)] if skeleton else []
        one, other = (names.base.tensors.get(key or "") for key in keys)
        if one and other and not same_values(one, other):
            continue
        found.setdefault(source, [source]).append(target)
    return {member: tuple(group) for group in found.values() for member in group}


def tie(names: Names, own: Mapping[str, str], changes: Mapping[str, tuple[Change, ...]], follows: bool) -> Ties:
    """`own`: the adapter's name for a parameter → the model's. Changes of tied parameters are shared out or keep apart."""
    of = groups(names)
    shared: dict[tuple[str, ...], list[Change]] = {}
    apart: dict[str, list[Change]] = {}
    problems: list[str] = []
    twins: set[str] = set()
    for name, several in changes.items():
        parameter = own.get(name, name)
        group = of.get(parameter)
        for change in several:
            if group is None:
                apart.setdefault(parameter, []).append(change)
            elif follows or _is_shared(change, group, parameter, changes, own):
                twins |= _share(shared.setdefault(group, []), change, problems)
            else:
                apart.setdefault(parameter, []).append(change)
    loose = frozenset(group for group in set(of.values()) if any(apart.get(one) for one in group))
    for group in loose:
        if len(group) > 2:
            problems.append(
                f"{' and '.join(group)} are one tensor, and the adapter changes one of them: that has no merge."
            )
    done = {name: tuple(several) for name, several in apart.items()}
    for group, common in shared.items():
        for one in group:
            done[one] = (*common, *apart.get(one, ()))
    return Ties(of=of, changes=done, loose=loose, twins=frozenset(twins), problems=tuple(problems))


def _is_shared(
    change: Change,
    group: tuple[str, ...],
    parameter: str,
    changes: Mapping[str, tuple[Change, ...]],
    own: Mapping[str, str],
) -> bool:
    """Loaded over the base's parameter, which all share; or tokens of the embedding, which PEFT hands on to the head.

    Tokens of the head alone are its own, and so are those of an embedding whose head has others.
    """
    if isinstance(change, Whole):
        return change.shared
    if not isinstance(change, Tokens):
        return False
    others = [one for name, several in changes.items() for one in several
              if isinstance(one, Tokens) and one is not change and own.get(name, name) in group]  # fmt: skip
    return all(_same(one, change) for one in others) and (bool(others) or parameter == group[0])


def _share(shared: list[Change], change: Change, problems: list[str]) -> set[str]:
    """A second copy of the same change (PEFT saves one for the embedding and one for the head) must say the same.

    Returns the adapter tensors of such a copy.
    """
    for one in shared:
        if type(one) is type(change) and getattr(one, "shared", None) == getattr(change, "shared", None):
            if not _same(one, change):
                problems.append(
                    f"{one.module} and {change.module} share one weight, and the adapter changes them differently."
                )
            return set(change.uses)
    shared.append(change)
    return set()


def _same(one: Change, other: Change) -> bool:
    from bot.checks.rows import same_turned, same_values

    if isinstance(one, Whole) and isinstance(other, Whole):
        return same_values(one.values, other.values)
    if isinstance(one, Tokens) and isinstance(other, Tokens):
        return one.at == other.at and same_values(one.values, other.values)
    if isinstance(one, LowRank) and isinstance(other, LowRank):
        embedding, head = (one, other) if one.kind == "embedding" else (other, one)
        halves = same_turned(head.a, embedding.b) and same_turned(head.b, embedding.a)
        return halves and one.scaling == other.scaling
    return False
