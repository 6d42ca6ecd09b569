"""How large a machine a run needs, for how long, and which of those on offer is the cheapest that will do.

Nothing is downloaded for it but headers: `adapter-merge plan` says it, in a process of its own, so that the server stays small.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bot.budget import PROVING, readable
from bot.dispatch.command import arguments
from bot.dispatch.records import Order
from bot.errors import Outside, Refused, Usage
from bot.untrusted import strict_json

if TYPE_CHECKING:
    from bot.hub.jobs import JobMachine

PLANNING = 600.0  # seconds that a plan may take
MARGIN = 1.1  # of memory and disk, over what is predicted
BESIDE = 2 * 10**9  # bytes of each that the system and the libraries take
RATE = 20e6  # bytes a second that a run moves at the least: down, through the merge and its proof, and up again
SHORTEST, LONGEST = 30 * 60, 24 * 3600  # seconds that a Job may run
START = 15 * 60  # of these to get the image and to begin
KNOWN = {2: Usage, 3: Refused, 5: Outside}


@dataclass(frozen=True, kw_only=True)
class Needs:
    """`memory` and `disk` in bytes, what the system takes included; `moved`: bytes that are read, written and uploaded."""

    memory: int
    disk: int
    moved: int


def needs_of(order: Order, environment: Mapping[str, str]) -> Needs:
    """What a plan predicts for an order. Raises Refused with the plan's own refusal, and what else keeps a plan from being made."""
    if order.kind == "verify":
        # What it reads is named in the report of what it reads: a machine with room for a model, not the smallest one.
        return Needs(memory=8 * 10**9, disk=40 * 10**9, moved=40 * 10**9)
    if order.kind == "plan":
        return Needs(memory=BESIDE, disk=BESIDE, moved=0)
    plan = _plan(order, environment)
    budget = plan["budget"]
    download, output = int(budget["download"]), int(budget["output"])
    memory, disk = max(int(budget["peak_memory"]), PROVING), int(budget["disk"])
    if dict(order.options).get("verify") == "full":
        memory, disk = max(memory, int(budget["verify_memory"])), disk + int(budget["verify_disk"])
    return Needs(memory=int(MARGIN * memory) + BESIDE, disk=int(MARGIN * disk) + BESIDE, moved=download + 3 * output)


def _plan(order: Order, environment: Mapping[str, str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="adapter-merge-") as empty:
        # In an empty cache: what lies on this machine the other one has to fetch.
        given = {**environment, "HF_HUB_CACHE": empty}
        command = [sys.executable, "-P", "-m", "bot", *arguments(replace(order, kind="plan"))]
        try:
            ended = subprocess.run(
                command, env=given, stdin=subprocess.DEVNULL, capture_output=True, timeout=PLANNING, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Outside(
                f"The plan of {order.adapter} could not be made: {getattr(error, 'strerror', None) or 'it took too long'}.",
                remedy="Name the machine with --flavor, and how long it may run with --timeout.",
            ) from error
    try:
        plan = strict_json.loads(ended.stdout)
    except ValueError:
        plan = {}
    if isinstance(plan, dict) and isinstance(failure := plan.get("error"), dict):
        raise KNOWN.get(ended.returncode, Outside)(str(failure.get("what")), remedy=str(failure.get("remedy")))
    if not isinstance(plan, dict) or not isinstance(plan.get("budget"), dict):
        last = ended.stderr.decode("utf-8", "replace").strip().splitlines()
        raise Outside(
            f"The plan of {order.adapter} could not be made: {last[-1][:300] if last else 'it printed nothing'}.",
            remedy=f"Run `adapter-merge plan {order.adapter}` by hand.",
        )
    # What only this machine lacks (exit code 6) the Job's may have.
    refusals = [refusal for refusal in plan.get("refusals") or () if refusal.get("exit_code", 3) != 6]
    if refusals:
        raise Refused(str(refusals[0].get("reason")), remedy=str(refusals[0].get("remedy")))
    return plan


def cheapest(machines: Iterable[JobMachine], needs: Needs) -> JobMachine:
    """The first of them that is large enough; they come the cheapest first. Raises Refused where none is."""
    machines = tuple(machines)
    for machine in machines:
        if machine.memory >= needs.memory and machine.disk >= needs.disk:
            return machine
    raise Refused(
        f"No machine for Jobs has {readable(needs.memory)} of memory and {readable(needs.disk)} of disk.",
        remedy="Name the largest with --flavor, and pass --option disk=shards; or choose another --backend.",
    )


def seconds_for(needs: Needs) -> int:
    """How long a run may take, in whole minutes: a Job that hangs costs money until then."""
    seconds = min(LONGEST, max(SHORTEST, START + needs.moved / RATE))
    return int(-(-seconds // 60) * 60)


def plan_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What the process of a plan gets: this one's, without what only the bot needs."""
    kept_back = ("ADAPTER_MERGE_WEBHOOK_SECRET", "ADAPTER_MERGE_HUB_TOKEN", "GITHUB_TOKEN")
    return {name: value for name, value in environment.items() if name not in kept_back}
