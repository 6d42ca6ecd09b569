"""`.eval_results/`: the merged model's results as the Hub reads them, a file for each task.

https://huggingface.co/docs/hub/eval-results
"""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from bot.report_document import RESULTS, Document, Json

DATASET = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def write_results(folder: Path, document: Document) -> list[str]:
    """The names of the files written into `folder`: one for each task whose data set is a repo of the Hub.

    The Hub's entries are about its own data sets: what was measured on a file of one's own is in the report alone.
    """
    evaluation = document.json.get("evaluation") or {}
    names = []
    for task in dict.fromkeys(row["task"] for row in evaluation.get("tasks", ())):
        rows = [row for row in evaluation["tasks"] if row["task"] == task and row["merged"] is not None]
        if not rows or not DATASET.fullmatch(str(rows[0].get("dataset"))):
            continue
        name = f"{RESULTS}{re.sub(r'[^A-Za-z0-9._-]+', '-', task)}.yaml"
        (folder / name).parent.mkdir(exist_ok=True)
        text = yaml.safe_dump([_entry(row, evaluation) for row in rows], sort_keys=False, allow_unicode=True)
        (folder / name).write_text(text, encoding="utf-8")
        names.append(name)
    return names


def _entry(row: Json, evaluation: Json) -> Json:
    shots = f"{row['shots']}-shot" if row.get("shots") is not None else None
    limit = f"the first {evaluation['limit']} samples" if evaluation.get("limit") else None
    notes = ", ".join(filter(None, (row["metric"], shots, limit, evaluation["harness"])))
    return {
        "dataset": {"id": row["dataset"], "task_id": row.get("subset") or "default"},
        "value": row["merged"],
        "notes": notes,
    }
