"""Which side of stacked experts an adapter's A belongs to, by the version of PEFT that saved it.

LoRA on a bare parameter of stacked experts (`target_parameters`, PEFT 0.17) has A of rank·experts × one side and B of
the other side × rank·experts. Which is which has changed (read in PEFT's own history and releases):

| PEFT             | E × out × in            | E × in × out (`is_transposed`) |
| 0.17.0 to 0.18.1 | A: out, B: in           | A: in, B: out                  |
| 0.19.0           | A: out, B: in           | A: out, B: in                  |
| 0.19.1 and later | A: in, B: out           | A: in, B: out                  |

"A: in, B: out" is the usual LoRA, ΔW = B·A. "A: out, B: in" gives ΔW = Aᵀ·Bᵀ: an exact merged form too.
Where the two sides differ in size, the shapes say which it is; where they are equal, only the version can.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

Order = Literal["today's", "older"]

Version = tuple[int, int, int]
# By is_transposed: the versions [first, end) that have the older order.
OLDER: Mapping[bool, tuple[Version, Version]] = {False: ((0, 0, 0), (0, 19, 1)), True: ((0, 19, 0), (0, 19, 1))}
# Development versions that were made on both sides of a change.
UNCLEAR: Mapping[bool, frozenset[Version]] = {False: frozenset({(0, 19, 1)}), True: frozenset({(0, 18, 2), (0, 19, 1)})}
VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?(?P<rest>\D.*)?", re.DOTALL)
RELEASE = re.compile(r"(\.post\d+)?(\+.*)?(@.*)?")  # what may follow the numbers of a released version


def order_of(version: object, transposed: bool) -> Order | None:
    """The order that PEFT `version` (adapter_config.json's peft_version, written since 0.18.0) saves for such a
    parameter; None where that cannot be told."""
    match = VERSION.fullmatch(version) if isinstance(version, str) else None
    if match is None:
        return None
    number = (int(match[1]), int(match[2]), int(match[3] or 0))
    if number in UNCLEAR[transposed] and not RELEASE.fullmatch(match["rest"] or ""):
        return None
    first, end = OLDER[transposed]
    return "older" if first <= number < end else "today's"
