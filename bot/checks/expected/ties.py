"""Tied weights: which parameters share one tensor, and which of them still do after the adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from bot.checks.expected.changes import AdapterReading, Change, LowRank, TokenRows, WholeTensor
from bot.checks.expected.parameter_names import ParameterNames

Changes = dict[str, tuple[Change, ...]]


@dataclass(frozen=True, kw_only=True)
class Ties:
    """`of`: parameter → every parameter of its group, the one that the others follow first. `changes`: by parameter.

    `loose`: groups whose members the adapter makes different, so that each needs a tensor of its own.
    """

    of: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    changes: Changes = field(default_factory=dict)
    loose: frozenset[tuple[str, ...]] = frozenset()
    repeated: frozenset[str] = frozenset()  # adapter tensors that only repeat what others say
    problems: tuple[str, ...] = ()


def groups(names: ParameterNames) -> dict[str, tuple[str, ...]]:
    """As transformers ties on load: what the config ties, but for two stored tensors that differ."""
    from bot.checks.reading.rows import same_values

    skeleton, found = names.skeleton, dict[str, list[str]]()
    for target, source in (skeleton.tied if skeleton else {}).items():
        keys = [skeleton.key_of.get(one) for one in (target, source)] if skeleton else []
        one, other = (names.base.tensors.get(key or "") for key in keys)
        if one and other and (_is_block(names, target) or not same_values(one, other)):
            continue
        found.setdefault(source, [source]).append(target)
    return {member: tuple(group) for group in found.values() for member in group}


def _is_block(names: ParameterNames, parameter: str) -> bool:
    """Whether it is no embedding nor head. Where such weights are stored at every depth, each has a tensor of its own, and
    transformers ties them only as long as they are equal."""
    skeleton = names.skeleton
    return skeleton is not None and skeleton.tied.get(parameter) != skeleton.embedding and parameter != skeleton.head


def tie(names: ParameterNames, own: Mapping[str, str], reading: AdapterReading) -> Ties:
    """`own`: the adapter's name for a parameter → the model's. Changes of tied parameters are shared out or keep apart."""
    of = groups(names)
    changes = _second_copies(reading, own, of) if reading.follows else reading.changes
    shared: dict[tuple[str, ...], list[Change]] = {}
    apart: dict[str, list[Change]] = {}
    problems: list[str] = []
    repeated: set[str] = set()
    for name, several in changes.items():
        parameter = own.get(name, name)
        group = of.get(parameter)
        for change in several:
            if group is None:
                apart.setdefault(parameter, []).append(change)
            elif len(group) > 2 and isinstance(change, TokenRows):
                problems.append(f"{' and '.join(group)} are one tensor, and PEFT hands tokens on to some of them only.")
            elif _is_shared(change, group, parameter, changes, own, reading.follows):
                repeated |= _share(shared.setdefault(group, []), change, problems)
            else:
                apart.setdefault(parameter, []).append(change)
    loose = frozenset(group for group in set(of.values()) if any(apart.get(one) for one in group))
    for group in loose:
        if len(group) > 2:
            problems.append(
                f"{' and '.join(group)} are one tensor, and the adapter changes one of them: that has no merge."
            )
    for group in dict.fromkeys(of.values()):
        problems += _contradictions(group, shared.get(group, []), apart, reading)
    done = {name: tuple(several) for name, several in apart.items()}
    for group, common in shared.items():
        for one in group:
            done[one] = (*common, *apart.get(one, ()))
    return Ties(of=of, changes=done, loose=loose, repeated=frozenset(repeated), problems=tuple(problems))


def _is_shared(
    change: Change,
    group: tuple[str, ...],
    parameter: str,
    changes: Mapping[str, tuple[Change, ...]],
    own: Mapping[str, str],
    follows: bool,
) -> bool:
    """Loaded over the base's parameter, which all share; or tokens of the embedding, which PEFT hands on to the head.

    Tokens of the head alone are its own, and so are those of an embedding whose head has others; `follows`
    (ensure_weight_tying) is about all that is not tokens.
    """
    if not isinstance(change, TokenRows):
        return follows or (isinstance(change, WholeTensor) and change.shared)
    others = [one for name, several in changes.items() for one in several
              if isinstance(one, TokenRows) and one is not change and own.get(name, name) in group]  # fmt: skip
    return all(_same(one, change) for one in others) and (bool(others) or parameter == group[0])


def _second_copies(
    reading: AdapterReading, own: Mapping[str, str], of: Mapping[str, tuple[str, ...]]
) -> Mapping[str, tuple[Change, ...]]:
    """With ensure_weight_tying PEFT takes the head out of modules_to_save and saves it all the same: its tensor is the
    trained module's again, and not a copy of the base's own numbers."""
    trained = {
        of.get(own.get(name, name)): name
        for name, several in reading.changes.items()
        if any(isinstance(one, WholeTensor) and not one.shared for one in several)
    }
    found = dict(reading.changes)
    for name, several in reading.changes.items():
        group = of.get(own.get(name, name))
        if group and trained.get(group, name) != name:
            found[name] = tuple(replace(one, shared=False) if isinstance(one, WholeTensor) else one for one in several)
    return found


def _contradictions(
    group: tuple[str, ...], shared: list[Change], apart: Mapping[str, list[Change]], reading: AdapterReading
) -> list[str]:
    """Tokens that all members follow, beside a change of one of them as a whole: PEFT has no such model."""
    loose = [change for one in group for change in apart.get(one, ())]
    whole = [one for one in shared if isinstance(one, LowRank) or (isinstance(one, WholeTensor) and not one.shared)]
    common = any(isinstance(one, TokenRows) for one in shared)
    saved = [str(name) for name in reading.config.get("modules_to_save") or ()]
    named = any(one.rpartition(".")[0].endswith(name) for one in group for name in saved)
    if (common and (loose or whole or named)) or (whole and any(isinstance(one, TokenRows) for one in loose)):
        return [f"{' and '.join(group)} are one tensor, and the adapter has tokens of it beside a change of all of it."]
    return []


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
    from bot.checks.reading.rows import same_transposed, same_values

    if isinstance(one, WholeTensor) and isinstance(other, WholeTensor):
        return same_values(one.values, other.values)
    if isinstance(one, TokenRows) and isinstance(other, TokenRows):
        return one.at == other.at and same_values(one.values, other.values)
    if isinstance(one, LowRank) and isinstance(other, LowRank):
        embedding, head = (one, other) if one.kind == "embedding" else (other, one)
        halves = same_transposed(head.a, embedding.b) and same_transposed(head.b, embedding.a)
        return halves and one.scaling == other.scaling
    return False
