"""The full proof in one process, where both models fit into memory side by side: the merged model is loaded first, where `peft`
does not exist, then PEFT's unmerged one, and both are run together; where that cannot be, one after the other."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from transformers.utils import import_utils

from bot.checks.behaviour.answers_text import ask
from bot.checks.behaviour.control import SMALL, changed, size_of, watched
from bot.checks.behaviour.device import DEVICES
from bot.checks.behaviour.expert_choices import is_mixture
from bot.checks.behaviour.held_in_16_bits import NotInFloat32, widen
from bot.checks.behaviour.job import Answer, JointAnswer, LoadReport, MergedAnswer, ReferenceAnswer, Stopped, WorkerJob
from bot.checks.behaviour.joint_pass import Pass, rows_of
from bot.checks.behaviour.load_models import load_tuned, ready_to_run
from bot.checks.behaviour.probe_inputs import build_inputs
from bot.checks.behaviour.roles import load_merged, reference_of, run_merged
from bot.checks.behaviour.same_model import NotJoint

Attempt = Callable[[Callable[[], Any]], Any]  # what came of it, or Stopped


def joint(job: WorkerJob, attempt: Attempt) -> Answer:
    """What the roles `reference` and `merged` answer, each by itself."""
    with without_peft():
        loaded = attempt(lambda: _load(job))
    tuned = attempt(lambda: load_tuned(job))
    surprise = ""
    if not isinstance(loaded, Stopped) and not isinstance(tuned, Stopped):
        together = _together(job, tuned, loaded)
        if isinstance(together, JointAnswer):
            return together
        surprise = together
    if job.held:  # by themselves they are loaded in full
        return Stopped(status="skip", why=surprise)
    only = [tuned]
    del tuned  # reference_of lets go of it where it is large
    reference = only.pop() if isinstance(only[0], Stopped) else attempt(lambda: reference_of(job, only))
    if isinstance(loaded, Stopped):
        return JointAnswer(reference=reference, merged=loaded, surprise=surprise)
    model, loads = loaded
    runs = isinstance(reference, ReferenceAnswer)
    merged = attempt(lambda: run_merged(job, model, loads, runs))
    return JointAnswer(reference=reference, merged=merged, surprise=surprise)


def _load(job: WorkerJob) -> tuple[Any, LoadReport] | Stopped:
    """The merged model, ready to run, and what the loader said of it."""
    loaded = load_merged(job)
    if isinstance(loaded, Stopped):
        return loaded
    model = ready_to_run(loaded[0], job)
    if job.held:
        widen(model)
    return model, loaded[1]


def _together(job: WorkerJob, tuned: Any, loaded: tuple[Any, LoadReport]) -> JointAnswer | str:
    """Both answers from joint passes. Where there cannot be any: what went wrong, or "" for a model that this is not made for."""
    try:
        answer = run_together(job, tuned.get_base_model(), *loaded)
        return _with_replies(answer, tuned, loaded[0], job) if job.asks else answer
    except (NotJoint, NotInFloat32) as why:
        print(f"Not together: {why}.")
        return ""
    except Exception as error:  # whatever it was, the models by themselves will say whose fault it is
        traceback.print_exc()
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _with_replies(answer: JointAnswer, tuned: Any, model: Any, job: WorkerJob) -> JointAnswer:
    """The same with what the models say to the prompts."""
    assert isinstance(answer.reference, ReferenceAnswer)
    assert isinstance(answer.merged, MergedAnswer)
    plain = tuned.get_base_model()
    unmerged, merged = ask(plain, job), ask(model, job)
    with tuned.disable_adapter():
        base = ask(plain, job)
    reference = replace(answer.reference, unmerged_replies=unmerged, base_replies=base)
    return replace(answer, reference=reference, merged=replace(answer.merged, replies=merged))


def run_together(job: WorkerJob, plain: Any, model: Any, loads: LoadReport) -> JointAnswer:
    """`plain`: the base with PEFT's layers in it, awake; `model`: the merged model. Raises NotJoint, and whatever models raise."""
    size = size_of(plain)
    thorough = size <= SMALL
    if is_mixture(plain):
        raise NotJoint("routers choose")
    if job.compute == "float64" or job.casts_more:
        raise NotJoint("weights are cast besides those that are adapted, or computed with in float64")
    if job.thorough and not thorough:
        raise NotJoint("so many controls of a large model are made once each")
    prompts = build_inputs(plain, job)
    passes = Pass(plain, model, job, rows_of(job, thorough))
    with watched(plain) as uncalled:
        passes.run(prompts)
    if uncalled:
        raise NotJoint("a layer was never called")
    if not passes.agrees(prompts[0]):
        raise NotJoint("the merged model by itself gives something else")
    reference = ReferenceAnswer(
        kind=passes.kind, thorough=thorough, mixture=False, layers=sorted(changed(plain)), uncalled=[],
        base=passes.of("base")[0], base_prompts=passes.base_prompts,
        controls=passes.of("control"), measured={}, probe=passes.probe.distances("control"),
        exact=next(iter(passes.of("exact")), None), nearest=next(iter(passes.of("nearest")), None), device=DEVICES.names,
    )  # fmt: skip
    distances, probe = passes.of("merged")[0], passes.probe.distances("merged")
    merged = MergedAnswer(loads=loads, distances=distances, probe=probe, device=DEVICES.names)
    return JointAnswer(reference=reference, merged=merged, together=True)


@contextmanager
def without_peft() -> Iterator[None]:
    """For as long as the block runs, it is as if peft were not installed: `import peft` raises, find_spec answers None."""
    held = sys.modules.get("peft")
    sys.modules["peft"] = None  # type: ignore[assignment]
    import_utils.is_peft_available.cache_clear()
    try:
        yield
    finally:
        del sys.modules["peft"]
        if held is not None:
            sys.modules["peft"] = held
        import_utils.is_peft_available.cache_clear()
