"""Several adapters made one, for as long as a merge or its proof needs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from bot.adapters.combine import Predicted, notation
from bot.adapters.combine.prediction import combined_in
from bot.events import Emit, Stage, beating
from bot.input_files import holding
from bot.records import Local

if TYPE_CHECKING:
    from bot.hub import Hub


@contextmanager
def one_adapter(together: Predicted | None, inputs: Local, hub: Hub, emit: Emit) -> Iterator[Local]:
    """The inputs with one adapter: where there are several, the combination of them, for as long as the block runs."""
    if together is None:
        yield inputs
        return
    emit(Stage(name="combine", title=f"Combining the adapters: {notation.words(together.how)}"))
    adapters = [held for held in inputs.files if held.role == "adapter"]
    with ExitStack() as stack:
        with holding(adapters) as keeper, beating(emit, "combine", "Combining"):
            keeper.follow(held.path for held in adapters)
            adapter = stack.enter_context(combined_in(hub.scratch, together, inputs.adapters))
        # They need not be hashed again, only stay the same.
        hashed = tuple(replace(held, sha256=None, oid=None) if held in adapters else held for held in inputs.files)
        yield replace(inputs, adapter=adapter, files=hashed)
