from bot.numerics.rounding import Array

CLONES: tuple[str, ...]
CHAIN: int

def settle(
    weight: Array,
    delta: Array | None,
    scaled_left: Array,
    turned_right: Array,
    out: Array,
    rest: Array,
    row_error: Array,
    column_share: Array,
    left: Array,
    right: Array,
    scale: Array,
    row_bound: Array,
    least: float,
    slope: float,
    clone: str | None = None,
) -> tuple[float, int, int]:
    """(largest |weight + delta|, elements done again in float64, those still open): see `_exact.c`."""
