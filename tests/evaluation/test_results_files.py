"""`.eval_results/` is what huggingface_hub reads, and about the Hub's own data sets only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import parse_eval_result_entries

from bot.evaluation import write_results
from bot.report_document import Document

ROW = {"task": "gpqa/diamond", "metric": "acc", "unmerged": 0.4, "merged": 0.412, "shots": 5}


def document(*rows: dict[str, Any], limit: int | None = None) -> Document:
    return Document.of({"evaluation": {"harness": "lm_eval 0.4.13", "limit": limit, "tasks": list(rows)}})


def test_an_entry_is_the_merged_models_and_says_how_it_was_measured(tmp_path: Path) -> None:
    row = ROW | {"dataset": "Idavidrein/gpqa", "subset": "gpqa_diamond"}
    assert write_results(tmp_path, document(row, limit=100)) == [".eval_results/gpqa-diamond.yaml"]
    (entry,) = parse_eval_result_entries(yaml.safe_load((tmp_path / ".eval_results/gpqa-diamond.yaml").read_text()))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("Idavidrein/gpqa", "gpqa_diamond", 0.412)
    assert entry.notes == "acc, 5-shot, the first 100 samples, lm_eval 0.4.13"


def test_a_data_set_without_subsets_has_the_hubs_default(tmp_path: Path) -> None:
    write_results(tmp_path, document(ROW | {"dataset": "openai/gsm8k"}))
    (entry,) = parse_eval_result_entries(yaml.safe_load((tmp_path / ".eval_results/gpqa-diamond.yaml").read_text()))
    assert entry.task_id == "default"


def test_what_was_measured_on_ones_own_file_or_not_at_all_is_no_entry(tmp_path: Path) -> None:
    rows = (ROW | {"dataset": "json"}, {**ROW, "task": "other", "dataset": "o/d", "merged": None})
    assert write_results(tmp_path, document(*rows)) == []
    assert write_results(tmp_path, Document.of({})) == []
    assert not (tmp_path / ".eval_results").exists()
