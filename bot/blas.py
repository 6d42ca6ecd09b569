"""What the libraries that multiply matrices are told before they are loaded."""

from __future__ import annotations

import os


def use_one_thread() -> None:
    """Of OpenBLAS's own, which numpy brings: several of ours multiply small matrices at a time, and its would be in their way, and
    spin when they start. To be called before numpy is loaded; what the user has set counts."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
