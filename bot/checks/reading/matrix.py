"""A matrix out of a stored tensor: which rows and columns of it, and which way round."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bot.checks.reading.checkpoint import TensorRef

View = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A matrix out of an adapter tensor, which is first viewed as shape[0] × the rest (a vector as one column).

    `rows` and `columns` say what is cut out of that view; `transposed`: the cut is then transposed.
    """

    ref: TensorRef
    rows: range
    columns: range
    transposed: bool = False
    view: View | None = None  # where it is not shape[0] × the rest

    @property
    def shape(self) -> View:
        """rows × columns, after transposing."""
        shape = (len(self.rows), len(self.columns))
        return shape[::-1] if self.transposed else shape

    def between(self, low: int, high: int) -> Matrix:
        """Its rows from `low` to `high`."""
        if self.transposed:
            return replace(self, columns=self.columns[low:high])
        return replace(self, rows=self.rows[low:high])
