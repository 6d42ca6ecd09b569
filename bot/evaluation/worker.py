"""A process that evaluates one model with lm_eval: `python -m bot.evaluation.worker JOB.json`; its answer is a JSON file."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bot.report_document import Json
from bot.signals import end_with_parent

LONGEST = 300  # characters of what went wrong
BATCH = 8  # on a GPU; on a CPU one at a time, without padding


def main(path: Path) -> None:
    """Do the job, and write down what came of it, an error included."""
    end_with_parent()
    job = json.loads(path.read_bytes())
    try:
        answer = evaluated(job)
    except Exception as error:  # the parent reads a file, not a traceback
        import traceback

        traceback.print_exc()
        answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:LONGEST]}
    target = Path(job["answer"])
    fresh = target.with_suffix(".tmp")
    fresh.write_text(json.dumps(answer))
    fresh.replace(target)


def evaluated(job: Json) -> Json:
    """{harness, tasks: {name: {dataset, subset, shots, metrics: {metric: value}, samples: {metric: {sample: value}}}}}."""
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    tasks = [load_yaml(name, resolve_func=True) if name.endswith((".yaml", ".yml")) else name for name in job["tasks"]]
    given = {"pretrained": job["model"], "tokenizer": job["tokenizer"], "trust_remote_code": False}
    if job["adapter"]:
        given["peft"] = job["adapter"]
    on_gpu = torch.cuda.is_available()
    results: Any = simple_evaluate(
        model="hf",
        model_args=given,
        tasks=tasks,
        limit=job["limit"],
        device="cuda" if on_gpu else "cpu",
        batch_size=BATCH if on_gpu else 1,
        bootstrap_iters=0,
        task_manager=TaskManager(),
    )
    return {
        "harness": f"lm_eval {version('lm_eval')}",
        "tasks": {name: _task(name, results) for name in results["samples"]},
    }


def _task(name: str, results: Any) -> Json:
    config, measured = results["configs"][name], results["results"][name]
    metrics = {}
    for key, value in measured.items():
        metric, _, kind = key.partition(",")  # acc,none
        if kind and not metric.endswith("_stderr") and isinstance(value, int | float):
            metrics[metric if kind == "none" else key] = float(value)
    samples: dict[str, dict[str, float]] = {metric: {} for metric in metrics}
    for sample in results["samples"][name]:
        kind = sample.get("filter", "none")
        for metric in sample.get("metrics", ()):
            column = samples.get(metric if kind == "none" else f"{metric},{kind}")
            if column is not None and isinstance(sample.get(metric), int | float):
                column[f"{sample['doc_id']:09}"] = float(sample[metric])
    own = {
        "dataset": config.get("dataset_path"),
        "subset": config.get("dataset_name"),
        "shots": config.get("num_fewshot"),
    }
    return {**own, "metrics": metrics, "samples": samples}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
