"""Whether every id that the merged folder's tokenizer can give has a row in the embedding."""

from __future__ import annotations

from pathlib import Path

from bot.checks.case import Case
from bot.checks.expected.adapter_claims import adapter_claims
from bot.checks.expected.config_changes import at, text_paths
from bot.checks.finding import finding
from bot.checks.reading.folders import read_json
from bot.records import Finding


def vocabulary(case: Case) -> Finding:
    """An id beyond the embedding fails where the adapter trains it, since its rows are lost; else it is a remark."""
    config, allowed = case.merged_config or {}, "ids < rows"
    sizes = [size for path in text_paths(config, "vocab_size") if type(size := at(config, path)) is int]
    last = _last_id(case.subject.folder)
    if not sizes or last is None:
        why = "There is no tokenizer.json or no vocabulary to hold it to."
        return finding("vocabulary", "pass", "not told", allowed, why)
    measured = f"{last + 1} ids, {max(sizes)} rows"
    if last < max(sizes):
        return finding("vocabulary", "pass", measured, allowed, "Every id of the tokenizer has its row.")
    why = f"The tokenizer has ids up to {last}, and the embedding has {max(sizes)} rows: such a prompt is an error"
    if last <= (_last_id(case.subject.base) or -1):
        return finding("vocabulary", "warn", measured, allowed, f"{why}, as it is with the base.")
    if case.once(adapter_claims).trains_vocabulary:
        why += ". The adapter trains tokens whose rows are lost."
        return finding("vocabulary", "fail", measured, allowed, why)
    return finding("vocabulary", "warn", measured, allowed, f"{why}, merged or not.")


def _last_id(folder: Path) -> int | None:
    """The highest id of a tokenizer.json; None where there is none that can be read."""
    tokenizer = read_json(folder / "tokenizer.json") or {}
    model = tokenizer.get("model")
    known = model.get("vocab") if isinstance(model, dict) else None
    ids = [len(known) - 1] if isinstance(known, list) and known else []
    ids += [token for token in known.values() if type(token) is int] if isinstance(known, dict) else []
    added = tokenizer.get("added_tokens")
    added = [token for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    ids += [token["id"] for token in added if type(token.get("id")) is int]
    return max(ids, default=None)
