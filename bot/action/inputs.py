"""The action's inputs: INPUT_<NAME> variables, with dashes as underscores, become one request for each adapter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from bot.adapters.combine import notation
from bot.errors import Usage
from bot.hub import is_repo_id
from bot.metadata.licenses import require
from bot.options import Combination, Options, Ref, Request, every_option, options_of
from bot.pull import parse_ref
from bot.target import target_of
from bot.terminal.spelling import describe_choices, resolve_choice

Number = TypeVar("Number", int, float)

OPTIONS = {each.input: each for each in every_option() if each.input}
REPORTS = ("summary", "check-run", "comment", "release", "status", "hub-comment", "page", "repo")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the workflow asked for. `report` lists where to tell it; `none` alone stands for nowhere."""

    requests: tuple[Request, ...]
    report: frozenset[str]

    @property
    def asks(self) -> bool:
        """Whether the report's page is to have three prompts answered."""
        return not self.report.isdisjoint({"page", "repo"})


def variable(name: str) -> str:
    """The variable that carries an input."""
    return f"INPUT_{name.upper().replace('-', '_')}"


def read_inputs(env: Mapping[str, str]) -> Inputs:
    """All inputs, checked. Raises Usage with the input's name and what it takes."""
    variables = _Variables(env)
    adapters = variables.several("adapter")
    if not adapters:
        raise Usage("The input adapter is empty.", remedy="Name a Hub repo or a folder: `adapter: owner/name`.")
    revisions = variables.for_each("adapter-revision", len(adapters))
    refs = [_ref("adapter", *pair) for pair in zip(adapters, revisions, strict=True)]
    how = _combination(variables, len(refs))
    if how is None:
        targets = variables.for_each("target-repo", len(adapters))
        requests = tuple(_request(variables, (ref,), to) for ref, to in zip(refs, targets, strict=True))
    else:
        requests = (replace(_request(variables, tuple(refs), _one_target(variables)), combination=how),)
    _require_targets(requests)
    variables.flag("debug")  # which the entry has read already
    return Inputs(requests=requests, report=_report(variables))


def adapters_of(request: Request) -> tuple[Ref, ...]:
    """One, or those that become one."""
    return (request.adapter, *request.more)


def called(request: Request) -> str:
    """The adapter as it was asked for; several that become one with a + between them."""
    return " + ".join(ref.text for ref in adapters_of(request))


def _combination(variables: _Variables, count: int) -> Combination | None:
    """How the adapters become one; None where each is merged into a model of its own."""
    if not variables.text("combine"):
        setting = next((each.name for each in options_of(Combination) if variables.text(each.name)), None)
        if setting:
            raise Usage(
                f"{setting} is given, and combine is empty, so that each adapter becomes a model of its own.",
                remedy="Say how they become one (`combine: cat` is their sum), or leave it empty.",
            )
        return None
    how = Combination(**variables.fields(Combination))
    notation.with_defaults(how, count)  # a mistake is reported before anything is read
    return how


def _one_target(variables: _Variables) -> str | None:
    targets = variables.several("target-repo")
    if len(targets) > 1:
        raise Usage(
            f"target-repo has {len(targets)} entries, and combine makes one model.", remedy="Name one target repo."
        )
    return targets[0] if targets else None


def _request(variables: _Variables, adapters: tuple[Ref, ...], target: str | None) -> Request:
    base = variables.text("base-model")
    if not base and variables.text("base-revision"):
        raise Usage("base-revision is given without base-model.", remedy="Name the base with base-model, too.")
    values = variables.fields(Request) | {
        "options": Options(**variables.fields(Options)),
        "base": _ref("base", base, variables.text("base-revision")) if base else None,
        "target": target,
        "license": require(variables.text("license") or None),
    }
    return Request(adapter=adapters[0], more=adapters[1:], **values)


def _ref(role: str, text: str, revision: str | None) -> Ref:
    """A reference and the revision from its own input; the names of branches and tags may come as full refs."""
    ref = parse_ref(text, deeper=role == "adapter")
    wanted = re.sub(r"^refs/(tags|heads)/", "", revision or "")
    if not wanted:
        return ref
    if ref.folder is not None:
        raise Usage(f"{text} is a folder, which has no revision {wanted}.", remedy=f"Leave {role}-revision empty.")
    if ref.revision not in (None, wanted):
        raise Usage(f"{text} names one revision and {role}-revision another, {wanted}.", remedy="Name one of them.")
    named = "/".join(filter(None, (ref.repo, ref.subfolder)))
    return parse_ref(f"{named}@{wanted}", deeper=role == "adapter")


def _require_targets(requests: tuple[Request, ...]) -> None:
    """Every target is known and can be a repo before anything is read; two merges never go to the same one."""
    targets = []
    for request in requests:
        if request.publish == "none":
            continue
        target = target_of(request)
        if not is_repo_id(target) or "/" not in target:
            raise Usage(f"{target!r} is not a Hub repo.", remedy="Name it with `target-repo: owner/name`.")
        targets.append(target.lower())
    if len(set(targets)) < len(targets):
        raise Usage(
            "Two adapters would go to the same target repo.", remedy="Give target-repo one name for each adapter."
        )


def _report(variables: _Variables) -> frozenset[str]:
    kinds = variables.several("report")
    unknown = [kind for kind in kinds if kind not in (*REPORTS, "none")]
    if unknown:
        raise Usage(f"report cannot be {unknown[0]!r}.", remedy=f"It takes {', '.join(REPORTS)}, or none.")
    if kinds == ["none"]:
        return frozenset()
    return frozenset({"summary", *kinds} - {"none"})


class _Variables:
    """The variables, read by the inputs' names."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env

    def text(self, name: str) -> str:
        return self._env.get(variable(name), "").strip()

    def several(self, name: str) -> list[str]:
        """Entries between commas or line ends."""
        return [entry.strip() for entry in re.split(r"[,\n]", self.text(name)) if entry.strip()]

    def for_each(self, name: str, count: int) -> list[str | None]:
        entries = self.several(name)
        if entries and len(entries) != count:
            raise Usage(
                f"{name} has {len(entries)} entries for {count} adapter(s).",
                remedy="Give one for each adapter, in their order, or leave it empty.",
            )
        return list(entries) or [None] * count

    def fields(self, record: type) -> dict[str, Any]:
        """The record's fields whose inputs are not empty, by their names."""
        return {
            option.field: self._value(name, option.type, option.choices)
            for name, option in OPTIONS.items()
            if option in options_of(record) and self.text(name)
        }

    def _value(self, name: str, kind: type, choices: tuple[str, ...]) -> Any:
        if name == "weights":
            return tuple(self._number(name, float, weight) for weight in self.several(name))
        if kind is bool:
            return self.flag(name)
        if kind in (int, float):
            return self._number(name, kind, self.text(name))
        return self._choice(name, choices) if choices else self.text(name)

    def _choice(self, name: str, choices: tuple[str, ...]) -> str:
        value = self.text(name)
        choice = resolve_choice(name, value, choices)
        if choice is None:
            raise Usage(f"{name} cannot be {value!r}.", remedy=describe_choices(name, value, choices))
        return choice

    def _number(self, name: str, kind: type[Number], value: str) -> Number:
        try:
            return kind(value)
        except ValueError as error:
            kinds = "whole numbers" if kind is int else "numbers"
            raise Usage(f"{name} cannot be {value!r}.", remedy=f"It takes {kinds}.") from error

    def flag(self, name: str) -> bool:
        value = self.text(name).lower()
        if value not in ("", "true", "false"):
            raise Usage(f"{name} cannot be {value!r}.", remedy="It takes true or false.")
        return value == "true"
