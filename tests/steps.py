"""The stages, as tests call them one by one."""

from __future__ import annotations

from pathlib import Path

from bot.events import silent
from bot.machine import look
from bot.merge import merge
from bot.partial_folder import locked_partial_dir
from bot.plan import make_plan
from bot.records import Local, Options, Plan, Ref, Request, Sources


def sources_of(base: Path, adapter: Path) -> Sources:
    """Pin two folders."""
    from bot.hub import Hub
    from bot.pull import pin

    request = Request(adapter=Ref(text=str(adapter), folder=adapter), base=Ref(text=str(base), folder=base))
    return pin(request, Hub(), silent)


def plan_folders(base: Path, adapter: Path, options: Options | None = None) -> Plan:
    """Plan the merge of two folders."""
    return make_plan(sources_of(base, adapter), options or Options(), look(adapter))


def merge_folders(base: Path, adapter: Path, output: Path, options: Options | None = None) -> Path:
    """Plan and merge two folders, without verification."""
    plan = plan_folders(base, adapter, options)
    assert not plan.refusals, plan.refusals
    with locked_partial_dir(output, plan.fingerprint) as partial:
        merged = merge(plan, Local(base=base, adapter=adapter), partial, silent)
        merged.folder.rename(output)
    return output
