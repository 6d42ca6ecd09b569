"""Half a second of processor time less for importing transformers: what a worker does not need is not imported, and what has been
read is not read again."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def quick_imports() -> Iterator[None]:
    """For as long as the block runs, which imports transformers and what stands on it; afterwards nothing differs."""
    with _without_losses(), _models_listed_once():
        yield


@contextmanager
def _without_losses() -> Iterator[None]:
    """As if scipy were not installed, which takes as long as PEFT: no module that is loaded here needs it but the losses for object
    detection. A model that needs it is imported later, and gets it."""
    if "scipy" in sys.modules:
        yield
        return
    sys.modules["scipy"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["scipy"]
        from transformers.utils import import_utils

        import_utils.is_scipy_available.cache_clear()


@contextmanager
def _models_listed_once() -> Iterator[None]:
    """transformers reads every file of its models for the names in it, once for itself and once more for `transformers.models`,
    which have the same names but for a prefix. The second is made of the first, which transformers keeps."""
    from transformers.utils import import_utils

    read = import_utils.define_import_structure
    folder = Path(import_utils.__file__).parents[1] / "models"

    def listed(path: Any, prefix: str | None = None) -> dict[Any, dict[str, Any]]:
        if prefix is not None or Path(path) != folder / "__init__.py":
            structure: dict[Any, dict[str, Any]] = read(path, prefix=prefix)
            return structure
        return {backends: {name.removeprefix("models."): objects for name, objects in names.items() if name.startswith("models.")}
                for backends, names in read(folder, prefix="models").items()}  # fmt: skip

    import_utils.define_import_structure = listed
    try:
        yield
    finally:
        import_utils.define_import_structure = read
