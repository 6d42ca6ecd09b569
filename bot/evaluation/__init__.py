"""Task evaluations by lm_eval (an extra): the unmerged and the merged model on the same samples. For the reader, never for the
verdict: two models that differ by rounding answer a few close questions differently, and either may gain by it.

https://github.com/EleutherAI/lm-evaluation-harness
"""

from __future__ import annotations

from bot.evaluation.harness import evaluate, require_harness
from bot.evaluation.results_files import write_results

__all__ = ["evaluate", "require_harness", "write_results"]
