"""A model whose weights lie in a folder, and what is asked of it: prompts, put to the several models that are made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from bot.checks.behaviour import measure
from bot.checks.behaviour.control import How, is_remade, stand_in
from bot.checks.behaviour.device import DEVICES
from bot.checks.behaviour.empty_model import bring
from bot.checks.behaviour.expert_choices import Choices
from bot.checks.behaviour.forward_counts import FORWARDS
from bot.checks.behaviour.in_step import SteppedRun, current, drive, halting
from bot.checks.behaviour.job import WorkerJob
from bot.checks.behaviour.large_modules import embedded_rows, in_slices, is_embedding, is_head
from bot.checks.behaviour.probe import Probe, Variant, head_of, hidden_of, modules_of
from bot.checks.behaviour.stored_weights import StoredWeights
from bot.checks.expected.float64_mode import float64_mode

Inputs = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Variation:
    """One of the models that are made of the same weights. `draw`: the number of a control."""

    how: How | Variant | str
    draw: int = 0


UNMERGED_MODEL, BASE_MODEL, MERGED_MODEL = (Variation(how=how) for how in ("unmerged", "base", "merged"))


@dataclass(kw_only=True, eq=False)
class Question:
    """One prompt, put to one of the models."""

    number: int
    variation: Variation
    choices: Choices
    passing: SteppedRun
    calls: dict[str, int]


class LayeredModel:
    """A model whose weights lie in a folder, and the passes through it. `job.compute` and `job.storage` are as ever."""

    def __init__(self, model: Any, weights: StoredWeights, job: WorkerJob) -> None:
        self.model, self.weights, self.job = model, weights, job
        self.modules = modules_of(model)
        self.head = head_of(model)
        self.probes: dict[int, Probe] = {}
        self.wide = job.compute == "float64"
        self._through: set[SteppedRun | None] = set()  # once; what a pass runs again is not recorded
        bring(model, weights.device)
        DEVICES.add(torch.device(weights.device))

    def question(self, number: int, inputs: Inputs, variation: Variation, choices: Choices) -> Question:
        """A prompt that is to be put to one of the models."""
        inputs = {name: value.to(self.weights.device) for name, value in inputs.items()}

        @contextmanager
        def modes() -> Iterator[None]:
            with torch.inference_mode(), measure.ModelInFloat64() if self.wide else nullcontext(), choices:
                yield

        passing = SteppedRun(lambda: measure.answered(self.model, inputs, self.job.compute), modes)
        return Question(number=number, variation=variation, choices=choices, passing=passing, calls={})

    def ask(self, questions: Sequence[Question], finish: Callable[[Question, str, Tensor], None]) -> None:
        """All of them, in step; `finish` takes what each came to as soon as it is there."""
        of = {id(question.passing): question for question in questions}

        def serve(name: str, passes: list[SteppedRun]) -> None:
            self._serve(name, [of[id(each)] for each in passes], finish)
            FORWARDS.ran()

        with ExitStack() as stack:
            for question in questions:
                stack.enter_context(question.choices.watching(self.model))
            if self.wide:
                stack.enter_context(float64_mode(nullcontext()))
            stack.enter_context(halting(self.modules))
            hook = self.model.register_forward_hook(lambda *_: self._through.add(current()))
            stack.callback(hook.remove)
            drive([question.passing for question in questions], serve)

    def _serve(self, name: str, questions: list[Question], finish: Callable[[Question, str, Tensor], None]) -> None:
        module = self.modules[name]
        if name == self.head and is_head(module, name, self.weights):
            for variation, group in groupby(questions, lambda question: question.variation):
                asked = list(group)
                outputs = in_slices(module, name, self.weights, self.job, variation, [q.passing for q in asked])
                for question in asked:
                    question.passing.give(outputs.pop(0))
                    self._finish(question, finish)
            return
        with self._loaded(name, module, questions):
            for variation, group in groupby(questions, lambda question: question.variation):
                with self._as(variation, module, name):
                    for question in group:
                        output = question.passing.compute()
                        self._record(question, name, output)
                        question.passing.give(output)
                        self._finish(question, finish)

    def _loaded(self, name: str, module: nn.Module, questions: list[Question]) -> AbstractContextManager[None]:
        if is_embedding(module, name, self.weights) and not is_remade(self.job, f"{name}.weight"):
            return embedded_rows(module, name, self.weights, [question.passing for question in questions])
        return self.weights.loaded(module, name)

    @contextmanager
    def _as(self, variation: Variation, module: nn.Module, name: str) -> Iterator[None]:
        """The module as this model has it."""
        if variation in (UNMERGED_MODEL, MERGED_MODEL):
            yield
            return
        _switch(module, on=False)
        replaced = None
        if variation != BASE_MODEL:
            how, called = variation.how, self.called
            replaced = stand_in(module, self.job, how, variation.draw, keep=True, prefix=name, called=called)  # type: ignore[arg-type]
        try:
            yield
        finally:
            if replaced is not None:
                replaced.restore()
            _switch(module, on=True)

    def called(self, parameter: str) -> str:
        """The name that a tied parameter has in the model first."""
        return self.weights.skeleton.tied.get(parameter, parameter)

    def _record(self, question: Question, name: str, output: Any) -> None:
        probe, variant, hidden = self.probes.get(question.number), question.variation.how, hidden_of(output)
        if question.passing in self._through or probe is None or hidden is None or name == self.head:
            return
        if variant not in ("unmerged", "control", "merged"):
            return
        call = question.calls[name] = question.calls.get(name, 0) + 1
        # A GPU's memory is for weights: states wait on the processor.
        probe.record(variant, name if call == 1 else f"{name}#{call}", hidden.cpu())

    def _finish(self, question: Question, finish: Callable[[Question, str, Tensor], None]) -> None:
        if question.passing.ended:
            kind, output = question.passing.take()
            finish(question, kind, output)


def _switch(module: nn.Module, on: bool) -> None:
    """PEFT's layers in a module, as PeftModel.disable_adapter has them all."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for layer in module.modules():
        if isinstance(layer, BaseTunerLayer | AuxiliaryTrainingWrapper):
            layer.enable_adapters(on)
