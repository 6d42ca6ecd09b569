"""What a PEFT method does to one tensor: the joint between the methods and the sweep over the bytes.

A tensor is seen as a matrix (its `view`); a step changes a rectangle of it; the steps of one tensor do not overlap.
A kind of step is a small frozen dataclass here, with its arithmetic (a `Ready`) in `steps.py`: see KINDS there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from bot.checks.reading.checkpoint import Matrix, TensorRef, View

Span = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class TensorStep:
    """One change to the rectangle rows × columns of a tensor's view. `uses`: the adapter tensors that it consists of.

    Only each `every`-th row of the rectangle is changed, from the first on.
    """

    module: str
    uses: tuple[str, ...]
    rows: Span
    columns: Span
    every: int = 1

    @property
    def lines(self) -> range:
        """The rows that it changes."""
        return range(*self.rows, self.every)


@dataclass(frozen=True, kw_only=True)
class AddProduct(TensorStep):
    """V = W + scaling · left · right (no right: left is one column, added as it is).

    With `magnitude` (DoRA): m ⊙ V / ‖V‖, the norm along each row (`along` "rows": m is a column) or column ("columns").
    """

    left: Matrix
    right: Matrix | None
    scaling: float
    magnitude: Matrix | None = None
    along: Literal["rows", "columns"] = "rows"


@dataclass(frozen=True, kw_only=True)
class SetRows(TensorStep):
    """The rows named in `at` take the rows of `values`, in that order; where a row is named twice, the last counts."""

    at: tuple[int, ...]
    values: TensorRef


@dataclass(frozen=True, kw_only=True)
class SetRectangle(TensorStep):
    """The rectangle is `values`, whatever it was."""

    values: Matrix


class ParameterProbe(Protocol):
    """Layers that say what they are when they are probed (see `probed_layers`)."""

    @property
    def slack(self) -> float: ...
    def exact(self, parameter: str) -> Any:
        """The parameter's new value, a float64 tensor of its shape."""


@dataclass(frozen=True, kw_only=True)
class ProbedParameter(TensorStep):
    """All of a parameter is what `probed_layers` finds it to be: what a method says, and the step itself."""

    parameter: str
    probed: ParameterProbe


@dataclass(frozen=True, kw_only=True)
class Expected:
    """One tensor of the merged checkpoint: the numbers of `source`, changed by `steps`, rounded once.

    `base`: the base's tensor of this very key, or None where the base has none. `source` is another one for a replica, an
    untied head, or a tensor that the adapter brings whole; `dtype` is the stored dtype if none was asked for.
    """

    key: str
    base: TensorRef | None
    source: TensorRef
    dtype: str
    view: View
    steps: tuple[TensorStep, ...] = ()
    uses: tuple[str, ...] = ()  # adapter tensors that `source` is, beside those of the steps

    @property
    def touched(self) -> bool:
        """Whether the adapter has a say in it; a mere copy under a new key (a replica, an untied head) is not touched."""
        return bool(self.steps or self.uses)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that it must have."""
        return self.source.stored.shape


# --- what a method says, by parameter, before it is known where that parameter is stored --------------------------------


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """scaling · B · A on a parameter seen as a stack of out × in matrices; `magnitude` for DoRA.

    `kind` says what the adapter was trained on: a module's weight, an embedding (A is rank × tokens), or a bare
    parameter (target_parameters), whose stacked experts share the rank dimension of A and B.
    """

    module: str
    a: TensorRef
    b: TensorRef
    rank: int
    scaling: float
    magnitude: TensorRef | None = None
    kind: Literal["weight", "embedding", "parameter"] = "weight"
    saved_by: str | None = None  # the PEFT version, where the config says it

    @property
    def uses(self) -> tuple[str, ...]:
        """The adapter tensors that it consists of."""
        refs = (self.a, self.b, *([self.magnitude] if self.magnitude else []))
        return tuple(ref.stored.key for ref in refs)


@dataclass(frozen=True, kw_only=True)
class OneTensor:
    """A change that is one adapter tensor, `values`."""

    module: str
    values: TensorRef

    @property
    def uses(self) -> tuple[str, ...]:
        """The adapter tensor."""
        return (self.values.stored.key,)


@dataclass(frozen=True, kw_only=True)
class Shift(OneTensor):
    """scaling · values, added to a bias."""

    scaling: float


@dataclass(frozen=True, kw_only=True)
class WholeTensor(OneTensor):
    """The adapter's tensor stands for the parameter.

    `shared`: it is loaded over the base's own parameter, so whatever is tied to that follows; else it replaces this one
    module's only (modules_to_save).
    """

    shared: bool


@dataclass(frozen=True, kw_only=True)
class TokenRows(OneTensor):
    """Rows of an embedding; `at` are their numbers. What is tied to it follows."""

    at: tuple[int, ...]


Change = LowRank | Shift | WholeTensor | TokenRows | ProbedParameter


@dataclass(frozen=True, kw_only=True)
class AdapterReading:
    """An adapter, read by its method: changes per parameter, and a sentence per thing that could not be read.

    Parameter names are the adapter's, without its prefixes (`model.layers.0.self_attn.q_proj.weight`).
    `follows`: a head that is tied to the embedding follows whatever happens to it (ensure_weight_tying).
    `replication`: layer_replication, as [start, stop) pairs. `unused`: adapter tensors that say nothing about the merge.
    """

    name: str
    changes: Mapping[str, tuple[Change, ...]] = field(default_factory=dict)
    follows: bool = False
    replication: tuple[Span, ...] = ()
    unused: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
