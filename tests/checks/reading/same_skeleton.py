"""Holds what is known of a class without its model to what its model says."""

from __future__ import annotations

import re

import pytest

from bot.checks.reading.laid_out_skeleton import LaidOutSkeleton
from bot.checks.reading.model_skeleton import Skeleton
from bot.checks.reading.plain_skeleton import NotPlain


def hold(known: LaidOutSkeleton, skeleton: Skeleton, *, all_of_it: bool = True) -> None:
    """Both over one checkpoint. `all_of_it`: nothing is left to the model that is stored as it is,
    and what is in a module is known of each."""
    special = [parameter for parameter in skeleton.symbolic if parameter not in known.symbolic]
    for parameter in special:
        with pytest.raises(NotPlain):
            known.trace(parameter)
    assert not all_of_it or all(converted(skeleton, parameter) for parameter in special)
    assert {key: value.blocks for key, value in known.symbolic.items()} == {
        key: value.blocks for key, value in skeleton.symbolic.items() if key not in special
    }
    assert (known.tied, known.embedding, known.head) == (skeleton.tied, skeleton.embedding, skeleton.head)
    assert known.used == skeleton.used
    assert {key: set(names) for key, names in known.feeds.items()} == {
        key: set(names) for key, names in skeleton.feeds.items()
    }
    assert known.key_of == {name: key for name, key in skeleton.key_of.items() if name not in special}
    assert known.modules.keys() <= skeleton.modules.keys()
    hold_lacking(known, skeleton)
    for parameter in known.symbolic:
        hold_owner(known, skeleton, parameter, all_of_it)
    for key in known.shapes:
        try:
            traced = known.trace(key)
        except NotPlain:
            continue
        expected = skeleton.trace(key)
        assert isinstance(expected, tuple)
        assert traced is not None
        assert (traced[0].blocks, traced[1]) == (expected[0].blocks, expected[1])


def hold_lacking(known: LaidOutSkeleton, skeleton: Skeleton) -> None:
    """Where nothing is lacking by the row, nothing is; the rest is left to the model."""
    try:
        lacking = known.lacking()
    except NotPlain:
        return
    there = skeleton.symbolic.keys() | skeleton.tied.keys()
    ignored = [re.compile(pattern) for pattern in skeleton.model._keys_to_ignore_on_load_missing or ()]
    own = (name for name, _ in skeleton.model.named_parameters(remove_duplicate=False))
    lost = {name for name in own if name not in there and not any(each.search(name) for each in ignored)}
    assert not lost or lacking, "what is lost is not noticed"


def hold_owner(known: LaidOutSkeleton, skeleton: Skeleton, parameter: str, all_of_it: bool) -> None:
    """What the parameter's module is, and what else is in it."""
    try:
        owner = known.owner(parameter)
    except NotPlain:
        return
    real = skeleton.owner(parameter)
    assert (type(owner).__name__ == "Conv1D") == (type(real).__name__ == "Conv1D")
    assert getattr(owner, "is_transposed", False) == getattr(real, "is_transposed", False)
    assert not hasattr(real, "kernel_size")
    assert type(real).__name__ != "MultiheadAttention"
    module = parameter.rpartition(".")[0]
    try:
        assert known.parameters_of(module) == skeleton.parameters_of(module)
    except NotPlain:
        has_less = any(f"{module}.{name}" not in known.symbolic for name in skeleton.parameters_of(module))
        assert has_less or not all_of_it or not skeleton.parameters_of(module)


def converted(skeleton: Skeleton, parameter: str) -> bool:
    """Whether a parameter is not simply the tensor that is stored for it, whatever its shape."""
    plain = skeleton.symbolic[parameter].plain
    return plain is None or skeleton.rename(plain)[1] is not None
