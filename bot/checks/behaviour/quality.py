"""What quantisation costs: the ways that a quantised base or result can be used, side by side, on the same texts.

All of it in float32 on plain numbers: what is stored quantised is dequantised by its own library first. (A `Linear4bit`
that has run computes in 16 bits, and repacks its weights on some processors.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bot.checks.behaviour.job import OutputSums, Usage
from bot.checks.reading.bitsandbytes_settings import settings_of
from bot.checks.reading.checkpoint import Checkpoint, quantization_of, read_input
from bot.records import Json

if TYPE_CHECKING:
    from bot.checks.case import Case

ITEM = {"float32": 4, "float16": 2, "bfloat16": 2}
NOT_HERE = "the 16-bit model that the base was made from is not at hand"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to use base and adapter. `folder`: the model to load; `merge`: the adapter is merged into it, to nearest;
    `requantize`: and then quantised (BitsAndBytesConfig's fields). `missing`: why it is not measured."""

    id: str
    what: str
    size: int | None = None
    published: bool = False
    folder: Path | None = None
    merge: bool = False
    requantize: Json | None = None
    missing: str | None = None


def applies(case: Case) -> bool:
    """There is something to compare where base or result is quantised."""
    return case.subject.quantize != "none" or any(ref.packed for ref in case.base.tensors.values())


def rows(case: Case, base: Path, work: Path, storage: str) -> list[Row]:
    """The ways, in the order in which they are read. `base`: the base as plain numbers."""
    subject = case.subject
    packed = any(ref.packed for ref in case.base.tensors.values())
    result = subject.quantize != "none"
    plain = _plain_bytes(case.base, storage)
    rows_to_read = []
    if packed:
        rows_to_read.append(Row(id="dequantise-merged", what="merged into the dequantised base", size=plain, folder=base,
                         merge=True, published=not result))  # fmt: skip
    rows_to_read.append(_original(case, packed, storage))
    if result:
        from bot.checks.reading.plain_copy import write_plain

        folder = write_plain(case.model, work / "result")
        rows_to_read.append(Row(id="re-quantised", what=f"merged, then stored as {subject.quantize}", published=True,
                         size=_bytes(case.merged), folder=folder))  # fmt: skip
    else:
        rows_to_read.append(_requantised(case, base))
    return rows_to_read


def _original(case: Case, packed: bool, storage: str) -> Row:
    """Merged into the 16-bit model: a plain base itself, or the parent of a quantised one, where that is at hand."""
    subject, id = case.subject, "original-merged"
    what = "merged into the 16-bit original" if packed else "merged in 16 bits"
    if not packed or subject.base_weights == "simulate-nf4":
        return Row(id=id, what=what, size=_plain_bytes(case.base, storage), folder=subject.base, merge=True)
    if subject.original is None:
        return Row(id=id, what=what, missing=NOT_HERE)
    size = _plain_bytes(read_input(subject.original, "original"), storage)
    return Row(id=id, what=what, size=size, folder=subject.original, merge=True)


def _requantised(case: Case, base: Path) -> Row:
    """What quantising the merge again would come to, where bitsandbytes can say."""
    settings = settings_of(case.subject.quantization) if case.subject.base_weights == "simulate-nf4" else None
    settings = settings or quantization_of(case.base_config) or {}
    four, eight = settings.get("load_in_4bit"), settings.get("load_in_8bit")
    if not four and not eight:
        return Row(
            id="re-quantised", what="merged, then quantised again", missing="nothing was stored quantised in this run"
        )
    name = str(settings.get("bnb_4bit_quant_type", "fp4")) if four else "int8"
    return Row(id="re-quantised", what=f"merged, then quantised again ({name}; not stored)", folder=base, merge=True,
               requantize=settings, size=_stored_bytes(case.base))  # fmt: skip


def usages(rows: list[Row]) -> tuple[Usage, ...]:
    """The rows that can be measured, for the worker."""
    return tuple(
        Usage(id=row.id, folder=row.folder, merge=row.merge, requantize=row.requantize) for row in rows if row.folder
    )


def table_of(case: Case, rows: list[Row], measured: Mapping[str, OutputSums]) -> list[Json]:
    """The rows with what was measured. `measured`: sums by id, those of the base and of the unmerged model among them."""
    base_bytes = _stored_bytes(case.base)
    adapter = sum(path.stat().st_size for path in case.subject.adapter.glob("adapter_model.safetensors"))
    packed = any(ref.packed for ref in case.base.tensors.values())
    kind = "quantised base" if packed else "base"
    all_rows = [
        Row(id="as-trained", what=f"as trained: the {kind} with the adapter", size=base_bytes + adapter),
        *rows,
        Row(id="base", what=f"the {kind} alone", size=base_bytes),
    ]
    return [_entry(row, measured) for row in all_rows]


def _entry(row: Row, measured: Mapping[str, OutputSums]) -> Json:
    entry: Json = {"id": row.id, "what": row.what, "bytes": row.size, "published": row.published}
    if row.missing or row.id not in measured:
        return {**entry, "not_run": row.missing or "it could not be measured"}
    sums, effect = measured[row.id], measured["base"].far
    entry["kl_ratio"] = sums.far / effect if effect > 0 else 0.0
    entry["top1_agreement"] = sums.agree / sums.positions
    if sums.predicted:
        entry["perplexity"] = math.exp(min(700.0, sums.loss / sums.predicted))
    return entry


# --- sizes ------------------------------------------------------------------------------------------------------------


def _bytes(checkpoint: Checkpoint) -> int:
    return sum(stored.stop - stored.start for header in checkpoint.headers for stored in header.tensors)


def _plain_bytes(checkpoint: Checkpoint, storage: str) -> int:
    """Of the weights as plain numbers."""
    return sum(ref.elements * ITEM[storage] if ref.packed else ref.stored.stop - ref.stored.start
               for ref in checkpoint.tensors.values())  # fmt: skip


def _stored_bytes(checkpoint: Checkpoint) -> int:
    """Of the weights as they are stored; of simulated ones, as bitsandbytes would hold them."""
    total = 0
    for ref in checkpoint.tensors.values():
        parts = ref.packed.components.values() if ref.packed else (ref,)
        held = sum(part.stored.stop - part.stored.start for part in parts)
        total += ref.packed.settings.get("held", held) if ref.packed else held
    return total
