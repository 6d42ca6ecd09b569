"""A pair on stacked experts as older versions of PEFT saved it: read by its shapes, and where they say nothing, by its date.

PEFT's ParamWrapper took E × m × n for "experts × inputs × outputs" at first, whatever the module: A is (E·rank) × m, B is
n × (rank·E), and ΔW_e (m × n) = (B_e·A_e)ᵀ. Release 0.19.0 (pull request 3083) turned that round for the modules that say
`is_transposed`, which were the right ones already; 0.19.1 (pull request 3165) for the others instead, as it is today.
"""

from __future__ import annotations

import re

from bot.checks.expected.changes import LowRank
from bot.checks.reading.checkpoint import View

# peft_version: a release, or `x.y.z.dev0@commit` for what came after the release before x.y.z.
WRITTEN = re.compile(r"0*(\d{1,3})\.0*(\d{1,3})(?:\.0*(\d{1,3}))?(\.?dev)?.*")
# (is_transposed, version) of a development version that was made before the change and after it.
BOTH = {(True, (0, 18, 2)), (True, (0, 19, 1)), (False, (0, 19, 1))}


class Undated(Exception):
    """Nothing says which side is which; the sentence says what was looked at."""


def trades_sides(change: LowRank, size: View, transposed: bool) -> bool:
    """Whether A reads the outputs and B writes the inputs of experts of this size (outputs × inputs), so that
    ΔW = Aᵀ·Bᵀ. Raises Undated."""
    tall, wide = size
    if tall != wide:
        return (change.b.stored.shape[0], change.a.stored.shape[-1]) == (wide, tall)
    release = WRITTEN.fullmatch(change.saved_by or "")
    version = tuple(int(number or 0) for number in release.groups()[:3]) if release else ()
    if release is None or (release[4] and (transposed, version) in BOTH):
        raise Undated(
            f"{change.module}: A and B fit either way round, and peft_version ({change.saved_by}) does not say which it is."
        )
    return version == (0, 19, 0) if transposed else version <= (0, 19, 0)
