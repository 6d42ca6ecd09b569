"""Work that is too small for several threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """For as long as the block runs, torch computes in one thread. Small products gain nothing from a second one, and on a busy
    machine the two wait for each other: training the demo's model took nine times the processor seconds, and nineteen times as
    long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
