"""An order as a command line of adapter-merge, and what such a command printed as a fate. No shell has a part in it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from bot.dispatch.records import Fate, Order
from bot.errors import Usage
from bot.untrusted import strict_json

# The action's inputs that an order may carry, and the option of the command line that each one is. Nothing else is handed on: what
# a comment's author may choose stands in `bot.dispatch.comments`.
OPTIONS = {
    "base-model": "--base",
    "target-repo": "--to",
    "publish": "--publish",
    "dtype": "--dtype",
    "base-weights": "--base-weights",
    "quantize": "--quantize",
    "overflow": "--overflow",
    "verify": "--verify",
    "device": "--device",
    "private": "--private",
    "license": "--license",
}
FLAGS = {"force": "--force", "trust-remote-code": "--trust-remote-code", "allow-pickle": "--allow-pickle"}


def arguments(order: Order) -> list[str]:
    """The arguments of `adapter-merge`, with JSON on standard output. Raises Usage for an option that is none."""
    # A tag by its full name: a branch may be called the same.
    ref = f"{order.adapter}@{order.revision}" if order.revision else order.adapter
    if order.kind == "verify":
        return ["verify", ref, "--json"]
    command = ["plan" if order.kind == "plan" else "run", ref, "--json"]
    for name, value in order.options:
        if name in OPTIONS:
            command += [f"{OPTIONS[name]}={value}"]
        elif name in FLAGS and value == "true":
            command += [FLAGS[name]]
        elif name not in FLAGS:
            raise Usage(f"{name} is no option of a run.", remedy=f"There are {', '.join([*OPTIONS, *FLAGS])}.")
    if order.kind == "plan":
        unknown = ("--to=", "--publish=", "--private=", "--license=", "--force")
        command = [part for part in command if not part.startswith(unknown)]
    return command


def fate_of(kind: str, exit_code: int, output: bytes, log: Iterable[str] = ()) -> Fate:
    """What a finished command came to, by its exit code and its JSON; by its last words where it printed none."""
    try:
        answer = strict_json.loads(output) if output.strip() else {}
    except ValueError:
        answer = {}
    answer = answer if isinstance(answer, dict) else {}
    if (exit_code == 0 and kind == "run") or answer.get("status") in ("published", "unchanged"):
        return _of_a_run(answer, exit_code)
    if kind == "verify" and exit_code in (0, 4):
        verdict = f"{answer.get('verdict', 'verified' if exit_code == 0 else 'not-verified')}"
        return Fate(status="verified" if exit_code == 0 else "not-verified", verdict=verdict, exit_code=exit_code)
    if kind == "plan" and exit_code == 0:
        return Fate(status="dry-run", verdict=_size(answer), exit_code=0)
    reason, remedy = _failure(answer, log)
    status: Any = {3: "refused", 4: "not-verified"}.get(exit_code, "failed")
    return Fate(status=status, reason=reason, remedy=remedy, exit_code=exit_code)


def _of_a_run(answer: Mapping[str, Any], exit_code: int) -> Fate:
    publication, report = _object(answer.get("publication")), _object(answer.get("report"))
    proof = _object(publication.get("proof"))
    verdict = report.get("verdict") or proof.get("verdict") or ""
    level = report.get("level") or proof.get("level")
    return Fate(
        status="unchanged" if answer.get("status") == "unchanged" else "dry-run" if answer.get("status") == "dry-run" else "published",
        url=str(publication.get("pr_url") or publication.get("url") or ""),
        verdict=f"{verdict} ({level})" if verdict and level else str(verdict),
        exit_code=exit_code,
    )  # fmt: skip


def _failure(answer: Mapping[str, Any], log: Iterable[str]) -> tuple[str, str]:
    """(what happened, what to do)."""
    refusals = [_object(refusal) for refusal in answer.get("refusals") or ()]
    if refusals:
        more = f" (and {len(refusals) - 1} more)" if len(refusals) > 1 else ""
        return f"{refusals[0].get('reason', '')}{more}", str(refusals[0].get("remedy", ""))
    report = _object(answer.get("report")) or answer
    failed = [check for check in map(_object, report.get("checks") or ()) if check.get("status") == "fail"]
    if failed:
        return f"{failed[0].get('id')}: {failed[0].get('why')}", "docs/troubleshooting.md says what each check means."
    error = _object(answer.get("error"))
    if error:
        return str(error.get("what", "")), str(error.get("remedy", ""))
    last = [line.strip() for line in log if line.strip()]
    return (last[-1][:500] if last else "The run ended without a word."), "Its log says more."


def _size(answer: Mapping[str, Any]) -> str:
    budget = _object(answer.get("budget"))
    size = budget.get("output")
    return f"{size / 1e9:.2f} GB" if isinstance(size, int) else ""


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def dumped(order: Order) -> str:
    """The command as JSON, for a runner in another process."""
    return json.dumps({"kind": order.kind if order.kind != "merge" else "run", "arguments": arguments(order)})
