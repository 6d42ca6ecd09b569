"""From what a LoRA adapter says to claims: every change finds its parameter and becomes patches, rows or a value."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

from bot.adapters.lora import Changes, FullTensor, LoraPair, TrainedRows
from bot.adapters.lora_config import is_saved, scaling_of
from bot.checkpoint.locations import Ambiguous, Placement
from bot.plan.claims import KeyClaims, is_empty
from bot.plan.patches import Misfit, PairSettings, is_swapped, patches_of, shape_text, vector_patch
from bot.plan.refusal_texts import SHOWN
from bot.plan.targets import Targets
from bot.records import Patch, Stored


def claim(changes: Changes, targets: Targets) -> KeyClaims:
    """Find where every change belongs, and turn it into patches, rows and values."""
    claimer = _Claimer(changes, targets)
    claimer.run()
    return claimer.claims


class _Claimer:
    def __init__(self, changes: Changes, targets: Targets) -> None:
        self.targets, self.settings, self.names = targets, targets.settings, targets.names
        self.stored, self.replicas = targets.stored, targets.replicas
        self.claims = KeyClaims(used={tensor.key for tensor in changes.ignored})
        self.changes = self._gathered(changes)
        self.parameters = {id(pair): self.targets.parameter_of(pair) for pair in changes.pairs}

    def run(self) -> None:
        asked = [
            *self.parameters.values(),
            *(whole.parameter for whole in self.changes.wholes),
            *(f"{tokens.module}.weight" for tokens in self.changes.tokens),
        ]
        try:
            self.targets.locate(asked, self._sizes())
        except Ambiguous as ambiguity:
            self._refuse_all("ambiguous-names", f"{ambiguity.args[0]} and {ambiguity.args[1]}")
            return
        is_known = any(self.names.names_of_one(self.replicas.in_base(name)[0]) for name in asked)
        located = self.targets.locations.placements or self.targets.locations.unmergeable
        if asked and not located and not self._only_new() and not is_known:
            self._refuse_all("matches-nothing", "; ".join(list(dict.fromkeys(asked))[:SHOWN]))
            return
        for whole in self.changes.wholes:
            self._whole(whole)
        for tokens in self.changes.tokens:
            self._tokens(tokens)
        for pair in self.changes.pairs:
            self._pair(pair)
        for module, bias in self.changes.biases:
            self._bias(module, bias)

    def _sizes(self) -> dict[str, tuple[int, int]]:
        """How large the adapter's matrices say that a module's weight is, by its name in the base."""
        return {
            self.replicas.in_base(name)[0]: (pair.b.shape[0], prod(pair.a.shape[1:]))
            for pair in self.changes.pairs
            if (name := self.parameters[id(pair)]) == f"{pair.module}.weight" and pair.b.shape
        }

    def _gathered(self, changes: Changes) -> Changes:
        """What is whole of the changes; what has an empty tensor is refused."""
        held: dict[str, list[tuple[Any, tuple[Stored, ...]]]] = {
            "pairs": [(pair, (pair.a, pair.b, *filter(None, (pair.magnitude,)))) for pair in changes.pairs],
            "biases": [(bias, (bias[1],)) for bias in changes.biases],
            "wholes": [(change, (change.values,)) for change in changes.wholes],
            "tokens": [(change, (change.values,)) for change in changes.tokens],
        }
        for tensors in (tensors for several in held.values() for _, tensors in several):
            if empty := next(filter(is_empty, tensors), None):
                self.claims.refuse("not-gathered", empty.key, *tensors)
        whole = {
            name: tuple(change for change, tensors in several if not any(map(is_empty, tensors)))
            for name, several in held.items()
        }
        return replace(changes, **whole)

    def _only_new(self) -> bool:
        """Whether nothing but a head is claimed, tied or new: then finding nothing is no surprise."""
        own = [self.parameters[id(pair)] for pair in self.changes.pairs]
        return all(self.targets.is_head(name) for name in own) and not self.changes.biases and not self.changes.tokens

    def _whole(self, whole: FullTensor) -> None:
        placement, new = self.targets.placement_of(whole.parameter)
        if whole.trained and self.targets.is_shared(whole.parameter, placement):
            self.claims.refuse(self.targets.shared_code, whole.parameter, whole.values)
            return
        if placement is None and (twin := self._twin_of(whole)):
            self.claims.must_be_equal.append((twin.values, whole.values, False))
            self.claims.used.add(whole.values.key)
            return
        if placement is None:
            if self.targets.is_tied_head(whole.parameter) and self.names.head:
                self._take_value(self.names.head, whole)
            elif whole.trained and is_saved(self.settings, whole.parameter):
                self.claims.used.add(whole.values.key)
                self.claims.new[whole.parameter] = whole
            else:
                self._missing(whole.parameter, whole.values)
            return
        if placement.key is None:
            self.claims.refuse("in-pieces", whole.parameter, whole.values)
            return
        self._take_value(self.replicas.renumbered(placement.key, new), whole, self.stored[placement.key])

    def _twin_of(self, whole: FullTensor) -> FullTensor | None:
        """BERT's head has its bias twice, `X.decoder.bias` being `X.bias`: one tensor, stored once and saved twice."""
        name = whole.parameter.removesuffix(".decoder.bias")
        other = f"{name}.bias" if name != whole.parameter else ""
        return next((twin for twin in self.changes.wholes if twin.parameter == other), None)

    def _take_value(self, key: str, whole: FullTensor, base: Stored | None = None) -> None:
        if base is not None and base.shape != whole.values.shape and not self._may_resize(key, whole, base):
            detail = f"{key} is {shape_text(base.shape)}, the adapter brings {shape_text(whole.values.shape)}"
            self.claims.refuse("shape", detail, whole.values)
            return
        self.claims.used.add(whole.values.key)
        known = self.claims.values.get(key)
        # PEFT may have saved the original module beside the trained one.
        if known is None or (whole.trained and not known.trained):
            self.claims.values[key] = whole
        elif whole.trained == known.trained:  # PEFT saved it twice, under two names
            self.claims.must_be_equal.append((known.values, whole.values, False))

    def _may_resize(self, key: str, whole: FullTensor, base: Stored) -> bool:
        same_rest = base.shape[1:] == whole.values.shape[1:] and len(base.shape) == len(whole.values.shape) > 0
        return same_rest and (key in (self.names.embedding, self.names.head) or whole.trained)

    def _tokens(self, tokens: TrainedRows) -> None:
        placement, new = self.targets.placement_of(f"{tokens.module}.weight")
        if self.targets.is_shared(f"{tokens.module}.weight", placement):
            self.claims.refuse(self.targets.shared_code, tokens.module, tokens.values)
            return
        if placement is not None and placement.key is None:
            self.claims.refuse("in-pieces", f"{tokens.module}.weight", tokens.values)
        elif placement is not None and placement.key is not None:
            self._take_rows(self.replicas.renumbered(placement.key, new), tokens, self.stored[placement.key])
        elif self.targets.is_tied_head(f"{tokens.module}.weight") and self.names.head:
            self._take_rows(self.names.head, tokens, None)
        else:
            self._missing(tokens.module, tokens.values)

    def _take_rows(self, key: str, tokens: TrainedRows, base: Stored | None) -> None:
        if base is not None:
            if key in self.claims.values:
                base = self.claims.values[key].values
            if base.shape[1:] != tokens.values.shape[1:] or max(tokens.rows, default=0) >= base.shape[0]:
                shape = shape_text(tokens.values.shape)
                detail = f"{key} is {shape_text(base.shape)}, the adapter sets row {max(tokens.rows)} of {shape}"
                code = "shape" if base.shape[1:] != tokens.values.shape[1:] else "rows-not-saved"
                self.claims.refuse(code, detail, tokens.values)
                return
        if key in self.claims.rows:
            self.claims.refuse("claimed-twice", key, tokens.values)
            return
        if is_saved(self.settings, f"{tokens.module}.weight"):
            self.claims.refuse("tokens-and-weight", key, tokens.values)
            return
        self.claims.used.add(tokens.values.key)
        self.claims.rows[key] = tokens

    def _pair(self, pair: LoraPair) -> None:
        parameter = self.parameters[id(pair)]
        tensors = (pair.a, pair.b, pair.magnitude)
        placement, new = self.targets.placement_of(parameter)
        if self.targets.is_shared(parameter, placement):
            self.claims.refuse(self.targets.shared_code, parameter, *tensors)
            return
        key = None
        if placement is None and self.targets.is_tied_head(parameter) and self.names.embedding and self.names.head:
            # The head of a tied model: its weight is the embedding's, under a name of its own.
            placement = self.names.at(self.names.embedding)
            key = self.names.head
        if placement is None and self.names.is_never_called(self.replicas.in_base(parameter)[0]):
            self.claims.idle.append((pair.b, pair.module))
            self.claims.used |= {tensor.key for tensor in tensors if tensor is not None}
            return
        if placement is None:
            self._missing(parameter, *tensors)
            return
        stacked = parameter != f"{pair.module}.weight"
        rank, alpha, scaling = scaling_of(
            self.settings, parameter if stacked or self.targets.is_parameter(parameter) else pair.module
        )
        try:
            how = PairSettings(
                rank=rank, alpha=alpha, scaling=scaling, dora=self.settings.dora, version=self.settings.version
            )
            patches = patches_of(pair, placement, self._weights(placement, key, new), how)
            swapped = is_swapped(pair, placement, how.version)
        except Misfit as misfit:
            resized = misfit.code == "shape" and self.targets.is_resized(pair, placement)
            self.claims.refuse("rows-not-saved" if resized else misfit.code, misfit.detail, *tensors)
            return
        targets = [(key or self.replicas.renumbered(base_key, new), view, patch) for base_key, view, patch in patches]
        for target, _, patch in targets:
            overlaps = any(_overlap(patch, other) for other in self.claims.patches.get(target, ()))
            if overlaps or target in self.claims.rows:
                self.claims.refuse("claimed-twice", target, *tensors)
                return
        for target, view, patch in targets:
            self.claims.add_patch(target, view, patch)
        self.claims.used |= {tensor.key for tensor in tensors if tensor is not None}
        self.claims.swapped += [pair.module] * swapped

    def _bias(self, module: str, bias: Stored) -> None:
        weight, new = self.targets.placement_of(f"{module}.weight")
        placement = self.names.beside(weight, "bias")
        if placement is None:
            self.claims.refuse("lora-bias", module, bias)
            return
        try:
            _, alpha, scaling = scaling_of(self.settings, module)
            patches = vector_patch(
                module, bias, placement, self._weights(placement, None, new), alpha=alpha, scaling=scaling
            )
        except Misfit as misfit:
            self.claims.refuse(misfit.code, misfit.detail, bias)
            return
        for base_key, view, patch in patches:
            self.claims.add_patch(self.replicas.renumbered(base_key, new), view, patch)
        self.claims.used.add(bias.key)

    def _weights(self, placement: Placement, key: str | None, new: int | None) -> dict[str, Stored]:
        """What is W at each rectangle: the adapter's own copy where it brought one, else the base's tensor."""
        weights = {}
        for rectangle in placement.rectangles:
            target = key or self.replicas.renumbered(rectangle.key, new)
            brought = self.claims.values.get(target)
            shared = self.claims.values.get(rectangle.key) if key else None
            if not brought and shared and not shared.trained:  # a copy that PEFT loads over the shared tensor
                brought = shared
            weights[rectangle.key] = brought.values if brought else self.stored[rectangle.key]
        return weights

    def _missing(self, parameter: str, *tensors: Stored | None) -> None:
        reason = self.targets.locations.unmergeable.get(self.replicas.in_base(parameter)[0])
        self.claims.refuse("unmergeable" if reason else "not-in-base", reason or parameter, *tensors)

    def _refuse_all(self, code: str, detail: str) -> None:
        changes = self.changes
        tensors = [
            *(tensor for pair in changes.pairs for tensor in (pair.a, pair.b, pair.magnitude)),
            *(bias for _, bias in changes.biases),
            *(whole.values for whole in changes.wholes),
            *(tokens.values for tokens in changes.tokens),
        ]
        self.claims.refuse(code, detail, *tensors)


def _overlap(patch: Patch, other: Patch) -> bool:
    rows = max(patch.rows[0], other.rows[0]) < min(patch.rows[1], other.rows[1])
    columns = max(patch.columns[0], other.columns[0]) < min(patch.columns[1], other.columns[1])
    if not rows or not columns or patch.step == other.step == 1:
        return rows and columns
    others = range(*other.rows, other.step)
    return any(row in others for row in range(*patch.rows, patch.step))
