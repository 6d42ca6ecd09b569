"""What was dequantised of quantised tensors, kept while it is in use."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from threading import Lock
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from torch import Tensor


class SlabCache:
    """The slabs that somebody still holds, and the last one besides: ranges of one tensor are compared one after the
    other, by several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._used: WeakValueDictionary[Hashable, Tensor] = WeakValueDictionary()
        self._last: Tensor | None = None

    def take(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """The slab of this key, made where nobody holds it."""
        with self._lock:
            slab = self._used.get(key)
            if slab is None:
                self._last = None  # before the next one is made
                slab = self._used[key] = make()
            self._last = slab
            return slab

    def clear(self) -> None:
        """Let the last one go."""
        with self._lock:
            self._last = None
