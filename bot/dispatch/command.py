"""An order as a command line of adapter-merge, and what such a command printed as a fate. No shell has a part in it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from bot.dispatch.records import Fate, Order
from bot.errors import Usage
from bot.hub.names import REVISION
from bot.options import Option, Options, Request, options_of
from bot.untrusted import strict_json

# The options of a run by the names that the action's inputs have, those that a run on another machine has no use for left out.
OPTIONS: dict[str, Option] = {
    each.input: each
    for record in (Options, Request)
    for each in options_of(record)
    if each.input and each.metavar not in ("FILE", "DIR") and each.field != "adapter"
}
OF_PUBLISHING = ("target-repo", "publish", "private", "license", "force")


def arguments(order: Order) -> list[str]:
    """The arguments of `adapter-merge`, with JSON on standard output. Raises Usage for an option that is none."""
    revision = revision_of(order)
    ref = f"{order.adapter}@{revision}" if revision else order.adapter
    command = {"merge": "run"}.get(order.kind, order.kind)
    wanted = [part for name, value in order.options if _concerns(order.kind, name) for part in argument(name, value)]
    return [command, ref, "--json", *wanted]


def revision_of(order: Order) -> str:
    """What a run is to merge, by its name; by its commit where the name is none that a run takes, as git allows more. "": main."""
    named = order.revision or ""
    return order.sha if named and order.sha and not REVISION.fullmatch(named) else named


def with_defaults(order: Order, options: Sequence[tuple[str, str]]) -> Order:
    """The order of a merge or a plan with these options too; what it chose itself stays."""
    if order.kind not in ("merge", "plan"):
        return order
    return replace(order, options=tuple((dict(options) | dict(order.options)).items()))


def target_of(adapter: str, options: Iterable[tuple[str, str]]) -> str:
    """The repo that a run with these options publishes to."""
    chosen = dict(options)
    form = chosen.get("quantize", "auto")
    return chosen.get("target-repo") or f"{adapter}-merged" + ("" if form in ("auto", "none") else f"-{form}")


def _concerns(kind: str, name: str) -> bool:
    return kind == "merge" or (kind == "plan" and name not in OF_PUBLISHING)


def argument(name: str, value: str) -> list[str]:
    """The option as one argument, so that no value is taken for another option. Raises Usage."""
    option = OPTIONS.get(name)
    if option is None:
        raise Usage(f"{name!r} is no option of a run.", remedy=f"There are {', '.join(sorted(OPTIONS))}.")
    if option.type is bool:
        if value not in ("true", "false"):
            raise Usage(f"{name} is {value!r}.", remedy="Write true or false.")
        return [f"--{option.name}"] if value == "true" else []
    if option.choices and value not in option.choices:
        raise Usage(f"{name} is {value!r}.", remedy=f"Write one of {', '.join(option.choices)}.")
    return [f"--{option.name}={value}"]


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


def fate_of_log(kind: str, exit_code: int | None, log: Sequence[str]) -> Fate | None:
    """What a finished command came to, by a log that holds both its streams, its JSON among the rest; None where there is none and
    nobody knows its exit code."""
    output = _last_json(log)
    if output is None and exit_code is None:
        return None
    return fate_of(kind, exit_code if exit_code is not None else _exit_code_in(output or b""), output or b"", log)


def _last_json(log: Sequence[str]) -> bytes | None:
    """The last object that was printed as our commands print one: from a line `{` to a line `}`."""
    ends = [number for number, line in enumerate(log) if line == "}"]
    for end in reversed(ends):
        start = next((number for number in range(end, -1, -1) if log[number] == "{"), None)
        text = "\n".join(log[start : end + 1]).encode() if start is not None else b""
        with suppress(ValueError):
            if isinstance(strict_json.loads(text), dict):
                return text
    return None


def _exit_code_in(output: bytes) -> int:
    """As the command would have ended with this result."""
    answer = _object(strict_json.loads(output))
    error = _object(answer.get("error"))
    if isinstance(code := error.get("exit_code"), int):
        return code
    by_status = {"published": 0, "unchanged": 0, "dry-run": 0, "refused": 3, "not-verified": 4}
    return by_status.get(str(answer.get("status")), 5)


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
