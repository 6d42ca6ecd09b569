"""What most likely went wrong with a merge, asked once its checks are done and some of them are not content.

To add a hypothesis: write its module, and add its line here. Of two that explain the same equally well the earlier one is named.
"""

from __future__ import annotations

from bot.checks.cause.damaged import DAMAGED
from bot.checks.cause.dora import DORA
from bot.checks.cause.factor import FACTOR
from bot.checks.cause.files import CHANGED_FILES
from bot.checks.cause.hypothesis import Hypothesis
from bot.checks.cause.keys import KEYS
from bot.checks.cause.left_out import LEFT_OUT
from bot.checks.cause.merged_twice import MERGED_TWICE
from bot.checks.cause.others import OTHER_ADAPTER, OTHER_BASE, UNEXPLAINED
from bot.checks.cause.quantised_base import QUANTISED_BASE
from bot.checks.cause.rounded import ROUNDED
from bot.checks.cause.swapped import SWAPPED
from bot.checks.cause.tied import TIED
from bot.checks.cause.transposed import TRANSPOSED

HYPOTHESES: tuple[Hypothesis, ...] = (
    LEFT_OUT,
    TIED,
    MERGED_TWICE,
    FACTOR,
    DORA,
    TRANSPOSED,
    ROUNDED,
    SWAPPED,
    QUANTISED_BASE,
    DAMAGED,
    OTHER_BASE,
    OTHER_ADAPTER,
    KEYS,
    CHANGED_FILES,
    UNEXPLAINED,
)
