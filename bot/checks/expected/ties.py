"""Tied weights: which parameters share one tensor, and which of them still do after the adapter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from bot.checks.expected.changes import AdapterReading, Change, LowRank, TokenRows, WholeTensor
from bot.checks.expected.parameter_names import ParameterNames

NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
Changes = dict[str, tuple[Change, ...]]


@dataclass(frozen=True, kw_only=True)
class Ties:
    """`of`: parameter → every parameter of its group, the one that the others follow first. `changes`: by parameter.

    `loose`: groups whose members the adapter makes different, so that each needs a tensor of its own; config.json unties all
    groups then, but for the sake of a block at several depths.
    """

    of: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    changes: Changes = field(default_factory=dict)
    loose: frozenset[tuple[str, ...]] = frozenset()
    repeated: frozenset[str] = frozenset()  # adapter tensors that only repeat what others say
    problems: tuple[str, ...] = ()

    @property
    def unties(self) -> bool:
        """Whether config.json must not tie any more: two weights that a loader would make one again, whatever is stored."""
        return any(not at_several_depths(group) for group in self.loose)


def at_several_depths(group: tuple[str, ...]) -> bool:
    """Whether a group is one weight of a block that several layers have: names that differ in the layer's number alone. A loader
    ties such names only where one of them is missing."""
    return len({NUMBER.sub("*", parameter) for parameter in group}) == 1


def groups(names: ParameterNames) -> dict[str, tuple[str, ...]]:
    """As transformers ties on load: what the config ties, but for two stored tensors that differ."""
    from bot.checks.reading.rows import same_values

    skeleton, members = names.skeleton, dict[str, list[str]]()
    for target, source in (skeleton.tied if skeleton else {}).items():
        keys = [skeleton.key_of.get(parameter) for parameter in (target, source)] if skeleton else []
        first, second = (names.base.tensors.get(key or "") for key in keys)
        if first and second and (_is_block(names, target) or not same_values(first, second)):
            continue
        members.setdefault(source, [source]).append(target)
    return {member: tuple(group) for group in members.values() for member in group}


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
            elif _is_shared(change, group, parameter, changes, own, reading.follows and not at_several_depths(group)):
                repeated |= _share(shared.setdefault(group, []), change, problems)
            else:
                apart.setdefault(parameter, []).append(change)
    loose = frozenset(group for group in set(of.values()) if any(apart.get(parameter) for parameter in group))
    for group in loose:
        if len(group) > 2 and not at_several_depths(group):
            problems.append(
                f"{' and '.join(group)} are one tensor, and the adapter changes one of them: that has no merge."
            )
    for group in dict.fromkeys(of.values()):
        problems += _contradictions(group, shared.get(group, []), apart, reading)
    done = {name: tuple(several) for name, several in apart.items()}
    for group, common in shared.items():
        for parameter in group:
            done[parameter] = (*common, *apart.get(parameter, ()))
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
    others = [other for name, several in changes.items() for other in several
              if isinstance(other, TokenRows) and other is not change and own.get(name, name) in group]  # fmt: skip
    return all(_same(other, change) for other in others) and (bool(others) or parameter == group[0])


def _second_copies(
    reading: AdapterReading, own: Mapping[str, str], of: Mapping[str, tuple[str, ...]]
) -> Mapping[str, tuple[Change, ...]]:
    """With ensure_weight_tying PEFT takes the head out of modules_to_save and saves it all the same: its tensor is the
    trained module's again, and not a copy of the base's own numbers."""
    trained = {
        of.get(own.get(name, name)): name
        for name, several in reading.changes.items()
        if any(isinstance(change, WholeTensor) and not change.shared for change in several)
    }
    changes = dict(reading.changes)
    for name, several in reading.changes.items():
        group = of.get(own.get(name, name))
        if group and trained.get(group, name) != name:
            changes[name] = tuple(
                replace(change, shared=False) if isinstance(change, WholeTensor) else change for change in several
            )
    return changes


def _contradictions(
    group: tuple[str, ...], shared: list[Change], apart: Mapping[str, list[Change]], reading: AdapterReading
) -> list[str]:
    """Tokens that all members follow, beside a change of one of them as a whole: PEFT has no such model."""
    loose = [change for parameter in group for change in apart.get(parameter, ())]
    whole = any(
        isinstance(change, LowRank) or (isinstance(change, WholeTensor) and not change.shared) for change in shared
    )
    common = any(isinstance(change, TokenRows) for change in shared)
    saved = [str(name) for name in reading.config.get("modules_to_save") or ()]
    named = any(parameter.rpartition(".")[0].endswith(name) for parameter in group for name in saved)
    if (common and (loose or whole or named)) or (whole and any(isinstance(change, TokenRows) for change in loose)):
        return [f"{' and '.join(group)} are one tensor, and the adapter has tokens of it beside a change of all of it."]
    return []


def _share(shared: list[Change], change: Change, problems: list[str]) -> set[str]:
    """A second copy of the same change (PEFT saves one for the embedding and one for the head) must say the same.

    Returns the adapter tensors of such a copy.
    """
    for known in shared:
        if type(known) is type(change) and getattr(known, "shared", None) == getattr(change, "shared", None):
            if not _same(known, change):
                problems.append(
                    f"{known.module} and {change.module} share one weight, and the adapter changes them differently."
                )
            return set(change.uses)
    shared.append(change)
    return set()


def _same(first: Change, second: Change) -> bool:
    from bot.checks.reading.rows import same_values

    if isinstance(first, WholeTensor) and isinstance(second, WholeTensor):
        return same_values(first.values, second.values)
    if isinstance(first, TokenRows) and isinstance(second, TokenRows):
        return first.at == second.at and same_values(first.values, second.values)
    if isinstance(first, LowRank) and isinstance(second, LowRank):
        embedding, head = (first, second) if first.kind == "embedding" else (second, first)
        halves = same_values(head.a, embedding.b, transposed=True) and same_values(head.b, embedding.a, transposed=True)
        return halves and first.scaling == second.scaling
    return False
