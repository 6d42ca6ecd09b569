"""Where the action starts and ends: the environment becomes a run; every ending becomes outputs, a summary and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING

from bot import blas
from bot.action.commands import WorkflowCommands
from bot.action.input_names import as_inputs
from bot.action.tokens import secrets_in
from bot.errors import OUR_BUG, AdapterMergeError, Interrupted, Usage, of_system
from bot.signals import end_on_signals, interrupted
from bot.terminal.streams import guard_streams

if TYPE_CHECKING:
    from bot.action.phases import RunContext
    from bot.action.state import Failure, StateStore

ORDER = ("preflight", "fetch", "merge", "publish")
TITLE = "adapter-merge"
INTERRUPTED = Interrupted("Interrupted.", remedy="Nothing more is published; run the job again.")
BUG = AdapterMergeError("This is a bug in adapter-merge.", remedy="Please report it with the lines above.")


def main() -> None:
    """Run the phase that is named, or all of them."""
    guard_streams()
    blas.use_one_thread()
    end_on_signals(f"{INTERRUPTED}\n")
    sys.exit(act(sys.argv[1:], os.environ))


def act(arguments: list[str], env: MutableMapping[str, str]) -> int:
    """One call of `python -m bot.action`; its exit code."""
    commands = WorkflowCommands(on=env.get("GITHUB_ACTIONS") == "true", debug=_wants_debug(env))
    commands.mask(secrets_in(env))
    try:
        return _act(arguments, env, commands)
    except KeyboardInterrupt:
        return _interrupted(commands)
    except AdapterMergeError as error:  # before there was a run to write it down in
        _trace(commands)
        _complain(commands, ((error.what, error.remedy),), "")
        return error.exit_code
    except Exception as error:
        if interrupted():
            return _interrupted(commands)
        if isinstance(error, OSError | MemoryError) and (known := of_system(error)):
            _complain(commands, ((known.what, known.remedy),), "")
            return known.exit_code
        _crash(commands)
        return OUR_BUG
    finally:
        commands.end_group()


def _wants_debug(env: Mapping[str, str]) -> bool:
    """By the input, or by GitHub's debug logging."""
    return env.get("INPUT_DEBUG", "").strip().lower() == "true" or env.get("RUNNER_DEBUG") == "1"


def _interrupted(commands: WorkflowCommands) -> int:
    _complain(commands, ((INTERRUPTED.what, INTERRUPTED.remedy),), "")
    return INTERRUPTED.exit_code


def _act(arguments: list[str], env: MutableMapping[str, str], commands: WorkflowCommands) -> int:
    if arguments == ["adapters"]:  # before any merge, in a job of its own
        from bot.action.fan_out import write_merges

        write_merges(env, commands.line)
        return 0
    if len(arguments) != 1 or arguments[0] not in (*ORDER, "all"):
        raise Usage("A phase has to be named.", remedy=f"One of {', '.join(ORDER)}, or all.")
    _enter(env)
    from bot.action.state import StateStore

    work = _work(env)
    chosen = ORDER if arguments[0] == "all" else (arguments[0],)
    store = StateStore.open(work, fresh=chosen[0] in ("preflight", "fetch"))
    run = _prepare(env, store, commands)
    if run is None:
        if not store.state.outputs_written:
            _tell(store, env)
    else:
        for phase in chosen:
            if store.state.failure is None or phase == "publish":
                _perform(phase, run, env, commands)
    return store.state.failure.exit_code if store.state.failure else 0


def _enter(env: MutableMapping[str, str]) -> None:
    """Go where the workflow's relative paths start, and put the cache where it was asked for, before it is read."""
    workspace = env.get("GITHUB_WORKSPACE", "")
    if workspace and Path(workspace).is_dir():
        os.chdir(workspace)
    if cache := env.get("INPUT_CACHE_DIR", "").strip():
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_XET_CACHE", "HF_ASSETS_CACHE"):
            env.pop(name, None)  # parts of a cache that are elsewhere
        env["HF_HOME"] = str(Path(cache).expanduser().absolute())


def _work(env: MutableMapping[str, str]) -> Path:
    chosen = env.get("ADAPTER_MERGE_WORK")
    if chosen:
        return Path(chosen)
    if not env.get("RUNNER_TEMP"):
        raise Usage("There is no place to work in.", remedy="Set ADAPTER_MERGE_WORK to a folder.")
    return Path(env["RUNNER_TEMP"]) / "adapter-merge"


def _prepare(env: MutableMapping[str, str], store: StateStore, commands: WorkflowCommands) -> RunContext | None:
    """The run that the environment asks for; None, with the failure written down, where it makes no sense."""
    from bot.action.event import read_event
    from bot.action.inputs import read_inputs
    from bot.action.log import Log
    from bot.action.phases import RunContext
    from bot.action.report import file_of
    from bot.action.tokens import read_tokens

    event = read_event(env)
    try:
        inputs = read_inputs(env)
    except AdapterMergeError as error:
        _fail(error, store, commands, event.workflow)
        return None
    log = Log(commands, file_of(event.workflow, [request.adapter.folder for request in inputs.requests]))
    tokens = read_tokens(env, plan_only=bool(event.plan_only))
    return RunContext(inputs=inputs, event=event, tokens=tokens, store=store, emit=log)


def _perform(phase: str, run: RunContext, env: MutableMapping[str, str], commands: WorkflowCommands) -> None:
    """One phase. Its failure is saved and reported; the publish phase, the last one, also reports elsewhere."""
    from bot.action.phases import PHASES
    from bot.action.report import file_of, send

    store, earlier = run.store, run.store.state.failure
    if earlier is None:
        file = file_of(run.event.workflow, [request.adapter.folder for request in run.inputs.requests])
        try:
            if phase == "fetch" and run.event.plan_only:
                commands.annotate("notice", f"Plan only: {run.event.plan_only}.", title=TITLE)
            PHASES[phase](run)
        except AdapterMergeError as error:
            if interrupted():
                raise KeyboardInterrupt from error
            _fail(error, store, commands, file)
        except Exception as error:
            if interrupted():
                raise KeyboardInterrupt from error
            known = of_system(error) if isinstance(error, OSError | MemoryError) else None
            if known is None:
                _crash(commands)
            _fail(known or BUG, store, commands, file)
    if not store.state.outputs_written and (store.state.failure is not None or phase == "publish"):
        _tell(store, env, summary="summary" in run.inputs.report)
    if phase == "publish":
        send(run)
        _close(store, commands)


def _fail(error: AdapterMergeError, store: StateStore, commands: WorkflowCommands, file: str) -> None:
    from bot.action.state import failure_of

    failure: Failure = failure_of(error)
    store.change(failure=failure)
    if failure.exit_code != OUR_BUG:  # whose traceback is shown anyway
        _trace(commands)
    _complain(commands, failure.sentences, file)


def _tell(store: StateStore, env: MutableMapping[str, str], *, summary: bool = True) -> None:
    """Outputs and summary, once, by whichever phase ends the run."""
    from bot.action.outputs import outputs_of, write_outputs
    from bot.action.summary import whole, write_summary

    if output := env.get("GITHUB_OUTPUT"):
        write_outputs(Path(output), outputs_of(store))
        store.change(outputs_written=True)
    if summary and (page := env.get("GITHUB_STEP_SUMMARY")):
        write_summary(Path(page), whole(store))


def _close(store: StateStore, commands: WorkflowCommands) -> None:
    from bot.action.summary import headline

    commands.end_group()
    for job in store.state.jobs if store.state.failure is None else ():
        link = (job.publication.link if job.publication else None) or ""
        commands.line(f"{headline(job, None)}  {link}".replace("\\", "").rstrip())


def _complain(commands: WorkflowCommands, sentences: tuple[tuple[str, str], ...], file: str) -> None:
    for what, remedy in sentences:
        commands.annotate("error", as_inputs(f"{what} {remedy}"), title=TITLE, file=file)


def _trace(commands: WorkflowCommands) -> None:
    if commands.debug:
        _crash(commands)


def _crash(commands: WorkflowCommands) -> None:
    commands.end_group()
    commands.line(traceback.format_exc())
