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
from bot.pipeline import target_of
from bot.pull import parse_ref
from bot.records import Combination, Options, Ref, Request
from bot.terminal.spelling import meant, taken

Number = TypeVar("Number", int, float)

CHOICES = {
    "publish": ("auto", "pr", "push", "none"),
    "dtype": ("auto", "bfloat16", "float16", "float32"),
    "base-weights": ("auto", "stored", "original", "simulate-nf4"),
    "quantize": ("none", "nf4", "fp4", "int8", "fp8", "same"),
    "overflow": ("refuse", "clamp"),
    "verify": ("auto", "files", "weights", "full"),
    "private": ("auto", "true", "false"),
    "device": ("auto", "cpu", "cuda"),
    "combine": notation.KINDS,
    "majority-sign": ("total", "frequency"),
}
REPORTS = ("summary", "check-run", "comment", "release", "status", "hub-comment")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the workflow asked for. `report` lists where to tell it; `none` alone stands for nowhere."""

    requests: tuple[Request, ...]
    report: frozenset[str]


def variable(name: str) -> str:
    """The variable that carries an input."""
    return f"INPUT_{name.upper().replace('-', '_')}"


def read_inputs(env: Mapping[str, str]) -> Inputs:
    """All inputs, checked. Raises Usage with the input's name and what it takes."""
    asked = _Asked(env)
    adapters = asked.several("adapter")
    if not adapters:
        raise Usage("The input adapter is empty.", remedy="Name a Hub repo or a folder: `adapter: owner/name`.")
    revisions = asked.for_each("adapter-revision", len(adapters))
    refs = [_ref("adapter", *pair) for pair in zip(adapters, revisions, strict=True)]
    how = _combination(asked, len(refs))
    if how is None:
        targets = asked.for_each("target-repo", len(adapters))
        requests = tuple(_request(asked, (ref,), to) for ref, to in zip(refs, targets, strict=True))
    else:
        requests = (replace(_request(asked, tuple(refs), _one_target(asked)), combination=how),)
    _require_targets(requests)
    asked.flag("debug")  # which the door has read already
    return Inputs(requests=requests, report=_report(asked))


def adapters_of(request: Request) -> tuple[Ref, ...]:
    """One, or those that become one."""
    return (request.adapter, *request.more)


def called(request: Request) -> str:
    """The adapter as it was asked for; several that become one with a + between them."""
    return " + ".join(ref.text for ref in adapters_of(request))


def _combination(asked: _Asked, count: int) -> Combination | None:
    """How the adapters become one; None where each is merged into a model of its own."""
    settings = {name: asked.text(name) for name in ("weights", "density", "seed", "rank", "majority-sign")}
    if not asked.text("combine"):
        given = next((name for name, value in settings.items() if value), None)
        if given:
            raise Usage(
                f"{given} is given, and combine is empty, so that each adapter becomes a model of its own.",
                remedy="Say how they become one (`combine: cat` is their sum), or leave it empty.",
            )
        return None
    sign: Any = asked.choice("majority-sign") if settings["majority-sign"] else None
    kind: Any = asked.choice("combine")
    how = Combination(
        kind=kind,
        weights=tuple(asked.number("weights", float, each) for each in asked.several("weights")),
        density=asked.number("density", float, settings["density"]) if settings["density"] else None,
        seed=asked.number("seed", int, settings["seed"]) if settings["seed"] else None,
        rank=asked.number("rank", int, settings["rank"]) if settings["rank"] else None,
        majority_sign=sign,
    )
    notation.with_defaults(how, count)  # what cannot be meant is said before the first look
    return how


def _one_target(asked: _Asked) -> str | None:
    found = asked.several("target-repo")
    if len(found) > 1:
        raise Usage(
            f"target-repo has {len(found)} entries, and combine makes one model.", remedy="Name one target repo."
        )
    return found[0] if found else None


def _request(asked: _Asked, adapters: tuple[Ref, ...], target: str | None) -> Request:
    base = asked.text("base-model")
    if not base and asked.text("base-revision"):
        raise Usage("base-revision is given without base-model.", remedy="Name the base with base-model, too.")
    choice = asked.choice
    chosen: dict[str, Any] = {name: choice(name) for name in ("publish", "private")}
    options: dict[str, Any] = {name: choice(name) for name in ("dtype", "verify", "quantize", "overflow", "device")}
    options["base_weights"] = choice("base-weights")
    return Request(
        adapter=adapters[0],
        more=adapters[1:],
        base=_ref("base", base, asked.text("base-revision")) if base else None,
        target=target,
        license=require(asked.text("license") or None),
        force=asked.flag("force"),
        options=Options(
            allow_pickle=asked.flag("allow-pickle"), trust_remote_code=asked.flag("trust-remote-code"), **options
        ),
        **chosen,
    )


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


def _report(asked: _Asked) -> frozenset[str]:
    found = asked.several("report")
    unknown = [kind for kind in found if kind not in (*REPORTS, "none")]
    if unknown:
        raise Usage(f"report cannot be {unknown[0]!r}.", remedy=f"It takes {', '.join(REPORTS)}, or none.")
    if found == ["none"]:
        return frozenset()
    return frozenset({"summary", *found} - {"none"})


class _Asked:
    """The variables, read by the inputs' names."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env

    def text(self, name: str) -> str:
        return self._env.get(variable(name), "").strip()

    def several(self, name: str) -> list[str]:
        """Entries between commas or line ends."""
        return [entry.strip() for entry in re.split(r"[,\n]", self.text(name)) if entry.strip()]

    def for_each(self, name: str, count: int) -> list[str | None]:
        found = self.several(name)
        if found and len(found) != count:
            raise Usage(
                f"{name} has {len(found)} entries for {count} adapter(s).",
                remedy="Give one for each adapter, in their order, or leave it empty.",
            )
        return list(found) or [None] * count

    def choice(self, name: str) -> str:
        value, allowed = self.text(name) or CHOICES[name][0], CHOICES[name]
        found = meant(name, value, allowed)
        if found is None:
            raise Usage(f"{name} cannot be {value!r}.", remedy=taken(name, value, allowed))
        return found

    def number(self, name: str, kind: type[Number], value: str) -> Number:
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
