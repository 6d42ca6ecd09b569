"""Which stored weights a quantiser converts on loading: it is run on a model without weights, which names its modules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bot.checks.reading.checkpoint import FLOATS, Checkpoint
from bot.checks.reading.folders import read_json
from bot.checks.reading.model_skeleton import BUILD_ERRORS, NEEDS_CODE, Skeleton, build, model_class
from bot.errors import Refused

REMEDY = "Merge into the base as it is stored, and store the result as plain numbers."


def converted(checkpoint: Checkpoint, folder: Path, modules: Callable[[Any], list[str]]) -> dict[str, bool]:
    """{key: whether it is a Conv1D's, which is quantised transposed}. `modules` may change the model it is given.

    Raises Refused where the model cannot be built, or where a module's weight is not one stored tensor.
    """
    try:
        chosen = model_class(read_json(folder / "config.json") or {})
        if chosen is None:
            raise ImportError(NEEDS_CODE)
        plain = build(folder, chosen)
        names = modules(build(folder, chosen))
    except BUILD_ERRORS as error:
        what = f"Which weights are quantised cannot be said: the model cannot be built ({error})."
        raise Refused(what, remedy=REMEDY) from error
    skeleton = Skeleton(plain, {key: ref.stored.shape for key, ref in checkpoint.tensors.items()})
    converted_weights = {}
    for name in names:
        symbolic = skeleton.symbolic.get(f"{name}.weight")
        if symbolic is None or symbolic.plain is None:
            raise Refused(f"{name} is quantised on loading, and is not stored as one tensor.", remedy=REMEDY)
        if checkpoint.tensors[symbolic.plain].stored.dtype in FLOATS - {"F64"}:
            converted_weights[symbolic.plain] = type(skeleton.modules[name]).__name__ == "Conv1D"
    return converted_weights
