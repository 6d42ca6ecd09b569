"""What a webhook without a server starts: `python -m bot.dispatch.job_entry`, in our image, as a Hugging Face Job.

The Hub hands the event over in WEBHOOK_PAYLOAD. `bot install --jobs` sets who may start a merge, and how it is made:
  ADAPTER_MERGE_ALLOW, ADAPTER_MERGE_TAGS   patterns, one a line
  ADAPTER_MERGE_OPTIONS                     NAME=VALUE for the run, one a line, by the names of the action's inputs
The token is the webhook's own secret HF_TOKEN. Events that mean nothing end with 0 and say why: a Job that fails is tried again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from hmac import compare_digest

from bot.dispatch.allow import Allowed
from bot.dispatch.by_hand import pairs
from bot.dispatch.command import arguments
from bot.dispatch.payload import FOREIGN, read_payload
from bot.dispatch.records import Order
from bot.dispatch.resolve import Gone, Resolved, resolver
from bot.errors import AdapterMergeError, Forbidden
from bot.untrusted import strict_json

ALLOW, TAGS, OPTIONS = "ADAPTER_MERGE_ALLOW", "ADAPTER_MERGE_TAGS", "ADAPTER_MERGE_OPTIONS"
EXPECTED = "ADAPTER_MERGE_WEBHOOK_SECRET"
COMMAND = (sys.executable, "-P", "-m", "bot")


def orders_of(environment: Mapping[str, str]) -> tuple[tuple[Order, ...], str]:
    """(what is to be run, why nothing is). Raises Usage for settings that are none, Forbidden for an event with a wrong secret."""
    payload = environment.get("WEBHOOK_PAYLOAD")
    if not payload:
        return (), "There is no event: this run only shows the Hub what to start for each."
    expected = environment.get(EXPECTED, "")
    if expected and not compare_digest(environment.get("WEBHOOK_SECRET", "").encode(), expected.encode()):
        raise Forbidden(
            "The event does not bear the webhook's secret.", remedy="Run `adapter-merge bot install --jobs` again."
        )
    allowed = _allowed(environment)
    try:
        reading = read_payload(strict_json.loads(payload), allowed)
    except ValueError:
        return (), f"ignored: {FOREIGN}"
    options = pairs(environment.get(OPTIONS, "").splitlines())
    return tuple(replace(order, options=options) for order in reading.orders), reading.verdict


def _allowed(environment: Mapping[str, str]) -> Allowed:
    return Allowed.of(environment.get(ALLOW, "").split(), environment.get(TAGS, "").split())


def run(environment: Mapping[str, str]) -> int:
    """Do what the event asks for; the exit code of the first run that failed."""
    from bot.hub import Hub

    orders, why = orders_of(environment)
    if not orders:
        print(why)
        return 0
    resolve, code = resolver(Hub(), _allowed(environment)), 0
    for order in orders:
        answer = resolve(order)
        if not isinstance(answer, Resolved):
            reason = answer.reason if isinstance(answer, Gone) else answer.fate.reason or answer.fate.status
            print(f"ignored: {reason}")
            continue
        command = [*COMMAND, *arguments(replace(order, adapter=answer.adapter, sha=answer.sha))]
        # An event can be larger than what a process may be given; the run has no use for it.
        given = {
            name: value for name, value in environment.items() if not name.startswith("WEBHOOK_") and name != EXPECTED
        }
        sys.stdout.flush()
        code = code or subprocess.run(command, env=given, stdin=subprocess.DEVNULL, check=False).returncode
    return code


def main() -> int:
    """Run, and tell a failure in its two sentences."""
    try:
        return run(os.environ)
    except AdapterMergeError as error:
        print(f"✗ {error.what}\n  {error.remedy}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
