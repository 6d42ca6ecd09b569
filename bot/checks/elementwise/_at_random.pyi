"""See rounding.py."""

from bot.checks.reading.stored_numbers import Array

def round_at_random(exact: Array, out: Array, cut: int, normal: float, smallest: float, seed: int, /) -> None: ...
def add_at_random(
    weight: Array, delta: Array, out: Array, cut: int, normal: float, smallest: float, seed: int, /
) -> None: ...
