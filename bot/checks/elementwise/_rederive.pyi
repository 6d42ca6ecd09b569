"""See rederive.py."""

from bot.checks.reading.stored_numbers import Array

KINDS: tuple[str, ...]

def compare(
    weight: Array,
    weight_as: str,
    stored: Array,
    stored_as: str,
    left: Array,
    right: Array,
    rows: int,
    rank: int,
    columns: int,
    kind: str | None = None,
    /,
) -> tuple[int, int, float, float, float]: ...
def product(
    left: Array, right: Array, out: Array, rows: int, rank: int, columns: int, kind: str | None = None, /
) -> None: ...
