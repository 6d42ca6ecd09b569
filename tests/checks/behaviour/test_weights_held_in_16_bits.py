"""Models whose weights stay in 16 bits: what they give is what the same models in float32 give, or they are not run so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bot.checks.behaviour import held_in_16_bits, joint, trial
from bot.checks.behaviour.adapted_weights import adapted
from bot.checks.behaviour.answers import Trial
from bot.checks.behaviour.control import control_by_rows, made_of
from bot.checks.behaviour.held_in_16_bits import NotInFloat32, widen
from bot.checks.behaviour.job import LENGTH, Answer, JointAnswer, MergedAnswer, ReferenceAnswer, Stopped, WorkerJob
from bot.checks.behaviour.load_models import load_tuned
from bot.checks.case import Case
from bot.events import Event, Note
from tests.checks.behaviour.test_joint_pass import Builder, job, jointly, made, require_same
from tests.faults.conftest import claim
from tests.faults.damage import rewrite
from tests.faults.models import Built

__all__ = ["made"]  # the fixture
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_it_gives_what_float32_gives(made: Builder, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    """Also where the head is widened some rows at a time."""
    monkeypatch.setattr(held_in_16_bits, "SLICE", 256)
    built = made(name)
    wide, together = jointly(job(built, built.merged, tmp_path))
    assert together
    held, together = jointly(job(built, built.merged, tmp_path, held="bfloat16"))
    assert together
    require_same(held, wide)


def test_the_weights_are_in_16_bits_and_lora_is_not(made: Builder, tmp_path: Path):
    tuned = load_tuned(job(made("llama"), made("llama").merged, tmp_path, held="bfloat16"))
    weights = dict(tuned.named_parameters())
    assert {"lora_" in name: weight.dtype for name, weight in weights.items()} == {
        False: torch.bfloat16,
        True: torch.float32,
    }
    for key, factor in load_file(made("llama").adapter / "adapter_model.safetensors").items():
        assert torch.equal(weights[key.replace(".weight", ".default.weight")], factor), key


def test_a_control_by_rows_has_the_same_numbers(made: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bot.checks.behaviour.control.CHUNK", 100)
    own = job(made("llama"), made("llama").merged, tmp_path, held="bfloat16")
    changes = [change for change in adapted(load_tuned(own).get_base_model()) if change.delta_by_rows]
    assert changes
    with torch.inference_mode():
        for change in changes:
            whole = made_of(change.exact(), own, "control", 3, change.parameter, torch.float32)
            assert torch.equal(control_by_rows(change, own, 3), whole)


class Reader(nn.Module):
    """A module that computes in the dtype of another's weights, as T5 does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8, dtype=torch.bfloat16)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.inner(hidden.to(self.inner.weight.dtype))


def test_a_model_that_computes_in_its_weights_dtype_is_noticed():
    model = Reader()
    widen(model)
    with pytest.raises(NotInFloat32, match="a Linear is given 16 bits"):
        model(torch.zeros(1, 8))


def test_a_buffer_in_16_bits_is_noticed():
    model = nn.Linear(8, 8)
    model.register_buffer("angles", torch.zeros(4, dtype=torch.bfloat16))
    with pytest.raises(NotInFloat32, match="angles"):
        widen(model)


def test_t5_is_run_in_full_instead(made: Builder, tmp_path: Path):
    """Its feed-forward computes in the dtype of its weights."""
    built = made("t5")
    answer = joint.joint(job(built, built.merged, tmp_path, held="bfloat16"), lambda run: run())
    assert answer == Stopped(status="skip", why="")


def looked_at(built: Built, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Trial, list[Event]]:
    """As a large model: the process that runs the models tells by itself what is large, and is not changed."""
    monkeypatch.setattr(trial, "LARGE", 10)
    events: list[Event] = []
    return trial.hold_trial(Case(claim(built.base, built.adapter, folder), events.append)), events


def notes(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Note) and "one after the other" in event.text]


def test_a_large_model_is_looked_at_briefly(made: Builder, monkeypatch: pytest.MonkeyPatch):
    looks = []
    work = trial._work

    def recorded(case: Case, job: WorkerJob) -> Answer:
        answer = work(case, job)
        looks.append((job, answer))
        return answer

    monkeypatch.setattr(trial, "_work", recorded)
    _, events = looked_at(made("llama"), made("llama").merged, monkeypatch)
    brief, answer = looks[0]
    assert (brief.role, brief.held, brief.tokens) == ("joint", "bfloat16", trial.BRIEF)
    assert not notes(events)
    assert isinstance(answer, JointAnswer)
    assert answer.together
    assert isinstance(answer.merged, MergedAnswer)
    assert {len(distance.tokens) for distance in answer.merged.distances or ()} == {trial.BRIEF}
    assert brief.with_more().tokens == LENGTH


def test_a_module_left_out_of_a_large_model_fails(made: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    built = made("llama")
    folder = built.fresh(tmp_path / "merged")
    plain = load_file(built.base / "model.safetensors")
    key = next(key for key in plain if key.endswith("1.self_attn.v_proj.weight"))
    rewrite(folder / "model.safetensors", lambda tensors: tensors.update({key: plain[key]}))
    held, _ = looked_at(built, folder, monkeypatch)
    assert held.ratio.k > 4 * held.ratio.limit


@pytest.mark.parametrize("asks", [False, True])
def test_each_fourth_prompt_shows_what_the_adapter_moves(
    made: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asks: bool
):
    built = made("llama")
    own = job(built, built.merged, tmp_path, asks=asks, draws=1)
    whole, _ = jointly(own)
    monkeypatch.setattr(joint, "SMALL", 0)
    brief, _ = jointly(own)
    assert isinstance(brief.reference, ReferenceAnswer)
    assert isinstance(whole.reference, ReferenceAnswer)
    assert isinstance(brief.merged, MergedAnswer)
    asked = range(8) if asks else (0, 4)
    like = [whole.reference.base[number] for number in asked]
    assert brief.reference.base_prompts == [*asked]
    assert [each.far for each in brief.reference.base] == pytest.approx([each.far for each in like])
    assert len(brief.merged.distances or ()) == 8
    assert (brief.noise_floor or {})["adapter"] == pytest.approx(
        sum(each.far for each in like) / sum(each.positions for each in like)
    )


def test_what_surprises_is_told(made: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise KeyError("angles")

    built = made("llama")
    monkeypatch.setattr(joint, "run_together", broken)
    answer = joint.joint(job(built, built.merged, tmp_path), lambda run: run())
    assert isinstance(answer, JointAnswer)
    assert answer.surprise == "KeyError: 'angles'"
    assert isinstance(answer.reference, ReferenceAnswer)
    work = trial._work
    monkeypatch.setattr(trial, "_work", lambda case, job: answer if job.role == "joint" else work(case, job))
    _, events = looked_at(built, built.merged, monkeypatch)
    assert notes(events) == ["The models cannot be run in one pass (KeyError: 'angles'): they run one after the other."]
