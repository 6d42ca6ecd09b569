"""compare: two checkpoints, tensor by tensor, in bounded memory. Equal bytes are told without importing torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from bot.checkpoint.header import TORCH_NAMES, read_header
from bot.errors import NotFound
from bot.events import Parts, TextLine, TextTable
from bot.records import Json, Stored

PIECE = 4 << 20  # bytes read at a time; a multiple of every dtype's size


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How one tensor differs. `elements` counts those that do; `largest` is max |a−b|, `relative` ‖a−b‖/‖a‖."""

    key: str
    what: str
    elements: int | None = None
    largest: float | None = None
    relative: float | None = None


def compare_folders(first: Path, second: Path) -> Json:
    """Compare all *.safetensors of two folders by key, wherever their shards put them. Raises NotFound, Refused."""
    a, b = _tensors(first), _tensors(second)
    differences = [Difference(key=key, what="only in A") for key in sorted(a.keys() - b.keys())]
    differences += [Difference(key=key, what="only in B") for key in sorted(b.keys() - a.keys())]
    equal = 0
    for key in sorted(a.keys() & b.keys()):
        difference = _difference(first, a[key], second, b[key])
        differences += [difference] if difference else []
        equal += difference is None
    return {"equal": equal, "different": [asdict(difference) for difference in differences]}


def comparison_table(comparison: Json) -> Parts:
    """The comparison for a person: differing tensors, then the count."""
    rows = comparison["different"]
    count = TextLine(text=f"{comparison['equal']} tensors equal to the byte, {len(rows)} different")
    if not rows:
        return (count,)
    head = ("tensor", "elements", "largest", "‖a−b‖/‖a‖", "how it differs")
    return (TextTable(head=head, rows=tuple((row["key"], *_numbers(row), row["what"]) for row in rows)), count)


def _numbers(row: Json) -> tuple[str, str, str]:
    if row["elements"] is None:
        return ("", "", "")
    relative = "" if row["relative"] is None else f"{row['relative']:.3g}"
    return f"{row['elements']:,}", f"{row['largest']:.3g}", relative


def _tensors(folder: Path) -> dict[str, Stored]:
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise NotFound(f"{folder.name} holds no safetensors weights.", remedy="Name a checkpoint's repo or folder.")
    return {tensor.key: tensor for path in paths for tensor in read_header(path).tensors}


def _difference(first: Path, a: Stored, second: Path, b: Stored) -> Difference | None:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return Difference(key=a.key, what=f"{a.dtype} {list(a.shape)} against {b.dtype} {list(b.shape)}")
    if all(x == y for x, y in _pieces(first, a, second, b)):
        return None
    if a.dtype not in TORCH_NAMES:
        return Difference(key=a.key, what="other bytes")
    measured = [_measure(x, y, a.dtype) for x, y in _pieces(first, a, second, b)]
    norm = sum(own for *_, own in measured)
    return Difference(
        key=a.key,
        what="other values",
        elements=sum(count for count, *_ in measured),
        largest=max(high for _, high, *_ in measured),
        relative=(sum(gap for *_, gap, _ in measured) / norm) ** 0.5 if norm else None,
    )


def _pieces(first: Path, a: Stored, second: Path, b: Stored) -> Iterator[tuple[bytes, bytes]]:
    with (first / a.file).open("rb") as file_a, (second / b.file).open("rb") as file_b:
        file_a.seek(a.start)
        file_b.seek(b.start)
        for offset in range(0, a.stop - a.start, PIECE):
            length = min(PIECE, a.stop - a.start - offset)
            yield file_a.read(length), file_b.read(length)


def _measure(a: bytes, b: bytes, dtype: str) -> tuple[int, float, float, float]:
    """(differing elements, max |a−b|, Σ(a−b)², Σa²) of one piece, in float64."""
    import torch

    kind = getattr(torch, TORCH_NAMES[dtype])
    x, y = (torch.frombuffer(bytearray(piece), dtype=kind).to(torch.float64) for piece in (a, b))
    gap = torch.where(x == y, 0.0, x - y)  # equal infinities do not differ
    return int((gap != 0).sum()), float(gap.abs().max()), float(gap.square().sum()), float(x.square().sum())
