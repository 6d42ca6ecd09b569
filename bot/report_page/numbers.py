"""Numbers as a page writes them, and what in a report is a number at all."""

from __future__ import annotations

from math import isfinite
from typing import Any


def number(value: Any) -> float | None:
    """A finite number; None for whatever else stands in a report of somebody's."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if isfinite(value) else None
    except OverflowError:
        return None


def whole(value: Any) -> int | None:
    """A whole number that is not negative, and not absurd."""
    return value if type(value) is int and 0 <= value < 1 << 62 else None


def short(value: float, digits: int = 3) -> str:
    """`0.00843`, `0.410`, `12.4`, `12,300`, `1.2e-07`: so many significant digits, also where the last of them are zeros."""
    if value == 0:
        return "0"
    if 10**digits <= abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:#.{digits}g}".removesuffix(".").replace(".e", "e")


def percentage(value: float, digits: int = 3) -> str:
    """`0.843` for a share of 0.00843."""
    return short(100 * value, digits)


def percent(value: float, digits: int = 3) -> str:
    """`0.843 %`."""
    return f"{percentage(value, digits)} %"
