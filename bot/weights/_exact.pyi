from bot.weights.rounding import Array

def settle(
    weight: Array,
    delta: Array | None,
    scaled_left: Array,
    turned_right: Array,
    out: Array,
    rest: Array,
    row_error: Array,
    left: Array,
    right: Array,
    scale: Array,
    row_bound: Array,
    slope: float,
) -> tuple[float, int, int]:
    """(largest |weight + delta|, elements done again in float64, those still open): see `_exact.c`."""
