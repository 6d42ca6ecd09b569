"""The action's inputs: INPUT_<NAME> variables, with dashes as underscores, become one request for each adapter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bot.errors import Usage
from bot.hub import is_repo_id
from bot.pipeline import target_of
from bot.pull import parse_ref
from bot.records import Options, Ref, Request

CHOICES = {
    "publish": ("auto", "pr", "push", "none"),
    "dtype": ("auto", "bfloat16", "float16", "float32"),
    "base-weights": ("auto", "stored", "original", "simulate-nf4"),
    "quantize": ("none", "nf4", "fp4", "int8", "fp8", "same"),
    "overflow": ("refuse", "clamp"),
    "verify": ("auto", "files", "weights", "full"),
    "private": ("auto", "true", "false"),
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


def read_inputs(env: Mapping[str, str], pushed_tag: str | None = None) -> Inputs:
    """All inputs, checked. Raises Usage with the input's name and what it takes.

    An adapter on the Hub that names no revision is taken at the tag whose push started the workflow, if one did.
    """
    asked = _Asked(env)
    adapters = asked.several("adapter")
    if not adapters:
        raise Usage("The input adapter is empty.", remedy="Name a Hub repo or a folder: `adapter: owner/name`.")
    revisions = asked.for_each("adapter-revision", len(adapters))
    targets = asked.for_each("target-repo", len(adapters))
    pairs = zip(adapters, revisions, targets, strict=True)
    requests = tuple(_request(asked, _adapter(*pair[:2], pushed_tag), pair[2]) for pair in pairs)
    _require_targets(requests)
    return Inputs(requests=requests, report=_report(asked))


def _request(asked: _Asked, adapter: Ref, target: str | None) -> Request:
    base = asked.text("base-model")
    if not base and asked.text("base-revision"):
        raise Usage("base-revision is given without base-model.", remedy="Name the base with base-model, too.")
    choice = asked.choice
    chosen: dict[str, Any] = {name: choice(name) for name in ("publish", "private")}
    options: dict[str, Any] = {name: choice(name) for name in ("dtype", "verify", "quantize", "overflow")}
    options["base_weights"] = choice("base-weights")
    return Request(
        adapter=adapter,
        base=_ref("base", base, asked.text("base-revision")) if base else None,
        target=target,
        license=asked.text("license") or None,
        force=asked.flag("force"),
        options=Options(
            allow_pickle=asked.flag("allow-pickle"), trust_remote_code=asked.flag("trust-remote-code"), **options
        ),
        **chosen,
    )


def _adapter(text: str, revision: str | None, pushed_tag: str | None) -> Ref:
    ref = _ref("adapter", text, revision)
    return _ref("adapter", text, pushed_tag) if ref.folder is None and ref.revision is None else ref


def _ref(role: str, text: str, revision: str | None) -> Ref:
    """A reference and the revision from its own input; the names of branches and tags may come as full refs."""
    ref = parse_ref(text)
    wanted = re.sub(r"^refs/(tags|heads)/", "", revision or "")
    if not wanted:
        return ref
    if ref.folder is not None:
        raise Usage(f"{text} is a folder, which has no revision {wanted}.", remedy=f"Leave {role}-revision empty.")
    if ref.revision not in (None, wanted):
        raise Usage(f"{text} names one revision and {role}-revision another, {wanted}.", remedy="Name one of them.")
    return parse_ref(f"{ref.repo}@{wanted}")


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
        if value not in allowed:
            raise Usage(f"{name} cannot be {value!r}.", remedy=f"It takes {', '.join(allowed)}.")
        return value

    def flag(self, name: str) -> bool:
        value = self.text(name).lower()
        if value not in ("", "true", "false"):
            raise Usage(f"{name} cannot be {value!r}.", remedy="It takes true or false.")
        return value == "true"
