"""lm_eval's answers of both models, sample by sample, in the report: by a task of one's own, without a network."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from bot.evaluation import harness
from tests.stories.conftest import Command, World

QUICK = ("--verify", "files")
needs_lm_eval = pytest.mark.skipif(find_spec("lm_eval") is None, reason="the extra `eval` (440 MB) is not installed")
TASK = """\
task: capitals
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["yes", "no", "maybe"]
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """Twelve questions in a file, and how to ask them."""
    lines = [{"question": f"Is {number} a merge of two numbers?", "answer": number % 3} for number in range(12)]
    (tmp_path / "data.json").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    path = tmp_path / "capitals.yaml"
    path.write_text(TASK.format(data=tmp_path / "data.json"))
    return path


@needs_lm_eval
@pytest.mark.slow
def test_both_models_are_asked_the_same_and_their_answers_are_paired(
    world: World, adapter_merge: Command, task: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ran = adapter_merge("merge", "demo/adapter", *QUICK, "-o", out, "--eval", task, "--eval-limit", "9")
    assert ran.code == 0, ran.err
    evaluation = json.loads((out / "verification.json").read_bytes())["evaluation"]
    assert (evaluation["limit"], evaluation["harness"].startswith("lm_eval ")) == (9, True)
    (row,) = evaluation["tasks"]
    assert (row["task"], row["metric"], row["dataset"], row["paired"]["samples"]) == ("capitals", "acc", "json", 9)
    flips = row["paired"]["gained"] - row["paired"]["lost"]
    assert row["merged"] - row["unmerged"] == pytest.approx(flips / 9, abs=1e-5)
    assert "capitals: acc 0." in ran.err
    assert "of 9, difference" in ran.err
    assert not (out / ".eval_results").exists()  # a file of one's own is no benchmark of the Hub
    again = adapter_merge("verify", out, *QUICK, "--eval", task, "--eval-limit", "9", "--json")
    assert json.loads(again.out)["evaluation"] == evaluation


@needs_lm_eval
@pytest.mark.slow
def test_what_cannot_be_evaluated_leaves_the_verdict_alone(
    world: World, adapter_merge: Command, tmp_path: Path
) -> None:
    ran = adapter_merge("merge", "demo/adapter", *QUICK, "-o", tmp_path / "out", "--eval", "no_such_task_anywhere")
    assert ran.code == 0, ran.err
    assert "Nothing was evaluated. Evaluating the unmerged model" in ran.err
    report = json.loads((tmp_path / "out" / "verification.json").read_bytes())
    assert report["evaluation"]["tasks"] == []
    assert "no_such_task_anywhere" in report["evaluation"]["error"]


def test_the_two_models_are_told_apart_by_their_samples(
    world: World, adapter_merge: Command, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a worker that stands for lm_eval: right where the sample is even, the merged model one more."""
    monkeypatch.setattr(harness, "find_spec", lambda name: object())
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import json, sys\n"
        "job = json.load(open(sys.argv[1]))\n"
        "samples = {f'{n:09}': float(n % 2 == 0 or (n == 3 and not job['adapter'])) for n in range(job['limit'])}\n"
        "mean = sum(samples.values()) / len(samples)\n"
        "own = {'dataset': 'o/questions', 'subset': None, 'shots': 0}\n"
        "task = own | {'metrics': {'acc': mean, 'ppl': float('inf')}, 'samples': {'acc': samples, 'ppl': {}}}\n"
        "json.dump({'harness': 'lm_eval 9', 'tasks': {'asked': task}}, open(job['answer'], 'w'))\n"
    )
    run = harness._run
    monkeypatch.setattr(harness, "_run", lambda command, *more: run([sys.executable, str(worker), command[-1]], *more))
    ran = adapter_merge("run", "demo/adapter@v1", *QUICK, "--eval", task, "--eval-limit", "8")
    assert ran.code == 0, ran.err
    assert "asked: acc 0.5000 unmerged, 0.6250 merged; 0 lost and 1 gained of 8, difference +0.1250" in ran.err
    files = world.api.list_repo_files("demo/adapter-merged")
    assert ".eval_results/asked.yaml" in files
    report = json.loads(Path(world.api.hf_hub_download("demo/adapter-merged", "verification.json")).read_text())
    accuracy, perplexity = report["evaluation"]["tasks"]
    assert accuracy["paired"] | {"interval": None} == {
        "samples": 8, "lost": 0, "gained": 1, "difference": 0.125, "interval": None, "p": 1.0,
    }  # fmt: skip
    assert (perplexity["merged"], "paired" in perplexity) == (None, False)
    # Results that others add later are no change of the merge.
    added = b"- {dataset: {id: o/other, task_id: default}, value: 1}\n"
    world.api.upload_file(repo_id="demo/adapter-merged", path_in_repo=".eval_results/more.yaml", path_or_fileobj=added)
    assert adapter_merge("verify", "demo/adapter-merged", *QUICK).code == 0


def test_a_worker_that_dies_is_a_warning(
    world: World, adapter_merge: Command, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "find_spec", lambda name: object())
    run = harness._run
    died = [sys.executable, "-c", "import sys; sys.exit('out of luck')"]
    monkeypatch.setattr(harness, "_run", lambda command, *more: run(died, *more))
    ran = adapter_merge("merge", "demo/adapter", *QUICK, "-o", tmp_path / "out", "--eval", task)
    assert (ran.code, "the process ended with status 1: out of luck" in ran.err) == (0, True)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (("--eval-limit", "5"), "--eval-limit is how many samples of each task --eval takes"),
        (("--eval", "absent.yaml"), "There is no task file absent.yaml"),
        (("--eval", "arc_easy", "--eval-limit", "0"), "--eval-limit is how many samples"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_is_merged(
    world: World, adapter_merge: Command, tmp_path: Path, given: tuple[str, ...], why: str
) -> None:
    ran = adapter_merge("merge", "demo/adapter", *QUICK, "-o", tmp_path / "out", *given)
    assert (ran.code, why in ran.err) == (2, True), ran.err


def test_without_the_extra_one_sentence_says_what_to_install(
    world: World, adapter_merge: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    ran = adapter_merge("merge", "demo/adapter", *QUICK, "-o", tmp_path / "out", "--eval", "arc_easy")
    assert (ran.code, "Evaluations need the extra `eval`, which is not installed." in ran.err) == (2, True)
