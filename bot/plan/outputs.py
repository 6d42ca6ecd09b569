"""What every tensor of the output is made of: one op a tensor, in the order and the files of the base."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from bot.checkpoint.shards import new_dtype
from bot.plan.claims import KeyClaims
from bot.plan.layer_replication import LayerReplicas
from bot.records import AddDelta, Cast, Copy, Drop, Header, Op, PeftMerge, Replace, SetRows, Stored, plain_op


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """`ops` have targets whose offsets are not known yet (0), in file order."""

    ops: tuple[Op, ...]
    drops: tuple[Drop, ...]


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """What was decided beside the claims. `untied`: (embedding's key, head's key) where the head is written apart;
    `follows`: (embedding, head) where both are stored and stay the same. `peft`: output key → (module, parameter).
    `per_depth`: base key → the same weight's names at other depths, which get tensors of their own."""

    wanted: str | None  # another storage dtype
    replicas: LayerReplicas = field(default_factory=LayerReplicas)
    untied: tuple[str, str] | None = None
    follows: tuple[str, str] | None = None
    per_depth: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)  # base key → why
    peft: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def make_outputs(headers: Iterable[Header], claims: KeyClaims, decisions: Decisions, main: str) -> Outputs:
    """One op for every tensor that the output has, one Drop for every base tensor that it has not.

    `main`: the dtype of most of the base, in safetensors' spelling: that of weights that are stored packed, and of new ones.
    """
    headers = tuple(headers)
    maker = _Maker(claims, decisions, main)
    ops: list[Op] = []
    drops: list[Drop] = []
    stored = {tensor.key: tensor for header in headers for tensor in header.tensors}
    for header in headers:
        for tensor in header.tensors:
            why = decisions.dropped.get(tensor.key)
            keys = () if why else decisions.replicas.output_keys(tensor.key)
            if not keys:
                drops.append(Drop(source=tensor, why=why or "a layer that the replicated model does not have"))
            for key in keys:
                ops.append(maker.op(key, _source(tensor, stored, decisions)))
            ops += [maker.op(key, tensor) for key in decisions.per_depth.get(tensor.key, ())]
            if decisions.untied and tensor.key == decisions.untied[0] and decisions.untied[1] not in stored:
                ops.append(maker.op(decisions.untied[1], tensor))
    if headers:
        ops += [maker.new(key, headers[-1].file) for key in claims.new]
    return Outputs(ops=tuple(ops), drops=tuple(drops))


def _source(tensor: Stored, stored: Mapping[str, Stored], decisions: Decisions) -> Stored:
    """What a tied head that is stored all the same stands for: the embedding, whatever stale values it holds."""
    for pair in (decisions.untied, decisions.follows):
        if pair and tensor.key == pair[1]:
            return stored[pair[0]]
    return tensor


class _Maker:
    def __init__(self, claims: KeyClaims, decisions: Decisions, main: str) -> None:
        self.claims, self.decisions, self.main = claims, decisions, main

    def op(self, key: str, base: Stored) -> Op:
        """What becomes of `base` under the name `key`."""
        claimed = self.decisions.follows[0] if self.decisions.follows and key == self.decisions.follows[1] else key
        claims, whole = self.claims, self.claims.values.get(claimed)
        source = whole.values if whole else base
        dtype = new_dtype(base, self.main, self.decisions.wanted)
        target = Stored(key=key, file=base.file, dtype=dtype, shape=source.shape, start=0, stop=0)
        if claimed in claims.patches:
            view = (source.shape[0], math.prod(source.shape[1:])) if whole else claims.views[claimed]
            patches = tuple(sorted(claims.patches[claimed], key=lambda patch: (patch.rows, patch.columns)))
            return AddDelta(source=source, target=target, view=view, patches=patches)
        if claimed in claims.rows:
            tokens = claims.rows[claimed]
            return SetRows(source=source, target=target, rows=tokens.rows, values=tokens.values, module=tokens.module)
        if key in self.decisions.peft:  # an adapter's own copy of the weight, where it brings one, is the W
            module, parameter = self.decisions.peft[key]
            return PeftMerge(source=source, target=target, module=module, parameter=parameter)
        if whole:
            return Replace(source=base, target=target, values=whole.values, module=whole.parameter)
        plain = dtype == base.dtype and base.packed is None
        return Copy(source=base, target=target) if plain else Cast(source=base, target=target)

    def new(self, key: str, file: str) -> Op:
        """A tensor that the base does not have, stored as most of the base is."""
        values = self.claims.new[key].values
        dtype = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}.get(self.decisions.wanted or "", self.main)
        target = Stored(key=key, file=file, dtype=dtype, shape=values.shape, start=0, stop=0)
        return Replace(source=None, target=target, values=values, module=self.claims.new[key].parameter)


def is_change(op: Op) -> bool:
    """Whether an op gives a tensor values that are the adapter's doing."""
    return isinstance(plain_op(op), AddDelta | Replace | SetRows | PeftMerge)
