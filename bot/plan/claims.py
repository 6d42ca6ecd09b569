"""From what an adapter says to what happens to which key: every adapter tensor is claimed once, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from bot.adapters.lora import Changes, LoraPair, TokenRows, WholeTensor
from bot.adapters.lora_config import LoraSettings, is_saved, scaling_of
from bot.checkpoint.locations import Ambiguous, Names, Placement
from bot.plan.layer_replication import LayerReplicas
from bot.plan.patches import Misfit, PairSettings, is_swapped, patches_of, vector_patch
from bot.plan.refusal_texts import SENTENCES, SHOWN
from bot.records import Patch, Refusal, Stored


@dataclass(kw_only=True)
class AdapterClaims:
    """What happens, by output key. `values`: an adapter tensor that is W or takes its place; `new`: keys that the base
    does not have. `must_be_equal`: adapter tensors that must say the same, (one, other, other is transposed)."""

    patches: dict[str, list[Patch]] = field(default_factory=dict)
    views: dict[str, tuple[int, int]] = field(default_factory=dict)
    values: dict[str, WholeTensor] = field(default_factory=dict)
    rows: dict[str, TokenRows] = field(default_factory=dict)
    new: dict[str, WholeTensor] = field(default_factory=dict)
    must_be_equal: list[tuple[Stored, Stored, bool]] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    idle: list[tuple[Stored, str]] = field(default_factory=list)  # B that must be all zeros, and its module
    swapped: list[str] = field(default_factory=list)  # modules of stacked experts in the order of an older PEFT
    refused: dict[str, list[tuple[tuple[str, ...], str]]] = field(default_factory=dict)

    def refuse(self, code: str, detail: str, *tensors: Stored | None) -> None:
        """Claim these tensors by a refusal."""
        keys = tuple(tensor.key for tensor in tensors if tensor is not None)
        self.refused.setdefault(code, []).append((keys, detail))

    def changes(self, key: str) -> bool:
        """Whether an output key has values of its own: not the base's, nor a copy of them that PEFT saved along."""
        trained = key in self.values and self.values[key].trained
        return key in self.patches or key in self.rows or trained

    def move(self, key: str) -> None:
        """Forget what was claimed for a key (its tensors stay used)."""
        for found in (self.patches, self.views, self.values, self.rows):
            found.pop(key, None)

    def refusals(self) -> list[Refusal]:
        """One refusal a code, which names the first few cases."""
        found = []
        for code, cases in self.refused.items():
            sentence, remedy = SENTENCES[code]
            more = f" and {len(cases) - SHOWN} more" if len(cases) > SHOWN else ""
            shown = "; ".join(detail for _, detail in cases[:SHOWN]) + more
            keys = tuple(key for keys, _ in cases for key in keys)
            reason = sentence.format(n=len(cases), shown=shown)
            found.append(Refusal(code=code, reason=reason, remedy=remedy, keys=keys))
        return found


def claim(
    changes: Changes, settings: LoraSettings, names: Names, stored: Mapping[str, Stored], replicas: LayerReplicas
) -> AdapterClaims:
    """Find every change's place and turn it into patches, rows and values."""
    claimer = _Claimer(changes, settings, names, stored, replicas)
    claimer.run()
    return claimer.claims


class _Claimer:
    def __init__(
        self,
        changes: Changes,
        settings: LoraSettings,
        names: Names,
        stored: Mapping[str, Stored],
        replicas: LayerReplicas,
    ) -> None:
        self.settings, self.names, self.stored = settings, names, stored
        self.replicas = replicas
        self.claims = AdapterClaims(used={tensor.key for tensor in changes.ignored})
        self.changes = self._gathered(changes)
        self.parameters = {id(pair): self._parameter(pair) for pair in changes.pairs}

    def run(self) -> None:
        asked = [
            *self.parameters.values(),
            *(whole.parameter for whole in self.changes.wholes),
            *(f"{tokens.module}.weight" for tokens in self.changes.tokens),
        ]
        try:
            names = list(dict.fromkeys(self.replicas.in_base(name)[0] for name in asked))
            self.found = self.names.find(names, self._sizes())
        except Ambiguous as ambiguity:
            self._refuse_all("ambiguous-names", f"{ambiguity.args[0]} and {ambiguity.args[1]}")
            return
        is_known = any(self.names.names_of_one(self.replicas.in_base(name)[0]) for name in asked)
        if asked and not self.found.placements and not self.found.unmergeable and not self._only_new() and not is_known:
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
            "biases": [(one, (one[1],)) for one in changes.biases],
            "wholes": [(one, (one.values,)) for one in changes.wholes],
            "tokens": [(one, (one.values,)) for one in changes.tokens],
        }
        for tensors in (tensors for several in held.values() for _, tensors in several):
            if empty := next(filter(is_empty, tensors), None):
                self.claims.refuse("not-gathered", empty.key, *tensors)
        whole = {
            name: tuple(one for one, tensors in several if not any(map(is_empty, tensors)))
            for name, several in held.items()
        }
        return replace(changes, **whole)

    def _only_new(self) -> bool:
        """Whether nothing but a head is claimed, tied or new: then finding nothing is no surprise."""
        own = [self.parameters[id(pair)] for pair in self.changes.pairs]
        return all(self._is_head(name) for name in own) and not self.changes.biases and not self.changes.tokens

    # --- one change --------------------------------------------------------------------------------------------------

    def _whole(self, whole: WholeTensor) -> None:
        placement, new = self._placement(whole.parameter)
        if whole.trained and self._is_shared(whole.parameter, placement):
            self.claims.refuse(self._shared_code, whole.parameter, whole.values)
            return
        if placement is None and (twin := self._twin_of(whole)):
            self.claims.must_be_equal.append((twin.values, whole.values, False))
            self.claims.used.add(whole.values.key)
            return
        if placement is None:
            if self._is_tied_head(whole.parameter) and self.names.head:
                self._take_value(self.names.head, whole)
            elif whole.trained and is_saved(self.settings, whole.parameter):
                self._new(whole)
            else:
                self._missing(whole.parameter, whole.values)
            return
        if placement.key is None:
            self.claims.refuse("in-pieces", whole.parameter, whole.values)
            return
        self._take_value(self.replicas.renumbered(placement.key, new), whole, self.stored[placement.key])

    def _twin_of(self, whole: WholeTensor) -> WholeTensor | None:
        """BERT's head has its bias twice, `X.decoder.bias` being `X.bias`: one tensor, stored once and saved twice."""
        name = whole.parameter.removesuffix(".decoder.bias")
        other = f"{name}.bias" if name != whole.parameter else ""
        return next((one for one in self.changes.wholes if one.parameter == other), None)

    def _take_value(self, key: str, whole: WholeTensor, base: Stored | None = None) -> None:
        if base is not None and base.shape != whole.values.shape and not self._may_resize(key, whole, base):
            detail = f"{key} is {shape_of(base)}, the adapter brings {shape_of(whole.values)}"
            self.claims.refuse("shape", detail, whole.values)
        elif key in self.claims.values and not self.claims.values[key].trained and whole.trained:
            # What PEFT saved of the original module, beside the trained one.
            self.claims.used.add(whole.values.key)
            self.claims.values[key] = whole
        elif key in self.claims.values:
            if whole.trained == self.claims.values[key].trained:  # PEFT saved it twice, under two names
                self.claims.must_be_equal.append((self.claims.values[key].values, whole.values, False))
            self.claims.used.add(whole.values.key)
        else:
            self.claims.used.add(whole.values.key)
            self.claims.values[key] = whole

    def _may_resize(self, key: str, whole: WholeTensor, base: Stored) -> bool:
        same_rest = base.shape[1:] == whole.values.shape[1:] and len(base.shape) == len(whole.values.shape) > 0
        return same_rest and (key in (self.names.embedding, self.names.head) or whole.trained)

    def _new(self, whole: WholeTensor) -> None:
        self.claims.used.add(whole.values.key)
        self.claims.new[whole.parameter] = whole

    def _tokens(self, tokens: TokenRows) -> None:
        placement, new = self._placement(f"{tokens.module}.weight")
        if self._is_shared(f"{tokens.module}.weight", placement):
            self.claims.refuse(self._shared_code, tokens.module, tokens.values)
            return
        if placement is not None and placement.key is None:
            self.claims.refuse("in-pieces", f"{tokens.module}.weight", tokens.values)
        elif placement is not None and placement.key is not None:
            self._take_rows(self.replicas.renumbered(placement.key, new), tokens, self.stored[placement.key])
        elif self._is_tied_head(f"{tokens.module}.weight") and self.names.head:
            self._take_rows(self.names.head, tokens, None)
        else:
            self._missing(tokens.module, tokens.values)

    def _take_rows(self, key: str, tokens: TokenRows, base: Stored | None) -> None:
        if base is not None:
            if key in self.claims.values:
                base = self.claims.values[key].values
            if base.shape[1:] != tokens.values.shape[1:] or max(tokens.rows, default=0) >= base.shape[0]:
                detail = (
                    f"{key} is {shape_of(base)}, the adapter sets row {max(tokens.rows)} of {shape_of(tokens.values)}"
                )
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
        placement, new = self._placement(parameter)
        if self._is_shared(parameter, placement):
            self.claims.refuse(self._shared_code, parameter, *tensors)
            return
        key = None
        if placement is None and self._is_tied_head(parameter) and self.names.embedding and self.names.head:
            # The head of a tied model: its weight is the embedding's, under a name of its own.
            placement, key = self._placement_of_key(self.names.embedding), self.names.head
        if placement is None and self.names.is_never_called(self.replicas.in_base(parameter)[0]):
            self.claims.idle.append((pair.b, pair.module))
            self.claims.used |= {tensor.key for tensor in tensors if tensor is not None}
            return
        if placement is None:
            self._missing(parameter, *tensors)
            return
        stacked = parameter != f"{pair.module}.weight"
        rank, alpha, scaling = scaling_of(
            self.settings, parameter if stacked or self._is_parameter(parameter) else pair.module
        )
        try:
            how = PairSettings(
                rank=rank, alpha=alpha, scaling=scaling, dora=self.settings.dora, version=self.settings.version
            )
            found = patches_of(pair, placement, self._weights(placement, key, new), how)
            swapped = is_swapped(pair, placement, how.version)
        except Misfit as misfit:
            code = "rows-not-saved" if misfit.code == "shape" and self._is_resized(pair, placement) else misfit.code
            self.claims.refuse(code, misfit.detail, *tensors)
            return
        targets = [(key or self.replicas.renumbered(base_key, new), view, patch) for base_key, view, patch in found]
        for target, _, patch in targets:
            if any(_overlap(patch, other) for other in self.claims.patches.get(target, ())):
                self.claims.refuse("claimed-twice", target, *tensors)
                return
            if target in self.claims.rows:
                self.claims.refuse("claimed-twice", target, *tensors)
                return
        for target, view, patch in targets:
            self.claims.patches.setdefault(target, []).append(patch)
            self.claims.views[target] = view
        self.claims.used |= {tensor.key for tensor in tensors if tensor is not None}
        self.claims.swapped += [pair.module] * swapped

    def _bias(self, module: str, bias: Stored) -> None:
        weight, new = self._placement(f"{module}.weight")
        placement = self.names.beside(weight, "bias")
        if placement is None:
            self.claims.refuse("lora-bias", module, bias)
            return
        try:
            _, alpha, scaling = scaling_of(self.settings, module)
            found = vector_patch(
                module, bias, placement, self._weights(placement, None, new), alpha=alpha, scaling=scaling
            )
        except Misfit as misfit:
            self.claims.refuse(misfit.code, misfit.detail, bias)
            return
        for base_key, view, patch in found:
            target = self.replicas.renumbered(base_key, new)
            self.claims.patches.setdefault(target, []).append(patch)
            self.claims.views[target] = view
        self.claims.used.add(bias.key)

    # --- where -------------------------------------------------------------------------------------------------------

    def _parameter(self, pair: LoraPair) -> str:
        """The parameter that a pair changes: a Linear's weight, or one of the stacked parameters of an expert module."""
        inner = self.replicas.in_base(pair.module)[0]
        targeted = [
            name
            for name in self.names.expert_parameters(inner)
            if any(
                f"{inner}.{name}" == one or f"{inner}.{name}".endswith(f".{one}") for one in self.settings.parameters
            )
        ]
        at = len(targeted) - 1 - pair.depth
        return f"{pair.module}.{targeted[at]}" if 0 <= at < len(targeted) else f"{pair.module}.weight"

    def _is_resized(self, pair: LoraPair, placement: Placement) -> bool:
        """Whether it would fit the embedding or the head, but for the number of rows: a vocabulary of another size."""
        a, b, stored = pair.a.shape, pair.b.shape, self.stored[placement.rectangles[0].key].shape
        rows, width = (a[1:], b[:1]) if pair.kind == "embedding" else (b[:1], a[1:])
        ours = placement.rectangles[0].key in (self.names.embedding, self.names.head)
        return ours and width == stored[1:] and rows != stored[:1]

    def _is_parameter(self, parameter: str) -> bool:
        return any(parameter == one or parameter.endswith(f".{one}") for one in self.settings.parameters)

    def _placement(self, parameter: str) -> tuple[Placement | None, int | None]:
        name, new = self.replicas.in_base(parameter)
        return self.found.placements.get(name), new

    @property
    def _shared_code(self) -> str:
        """Where the forward pass scales by the tie flag, one that is untied would not do either."""
        return "tied-scaling" if self.names.scaled_by_tying else "shared-weight"

    def _is_shared(self, parameter: str, placement: Placement | None) -> bool:
        """Whether the adapter changes one name of a weight that others go by too. A weight at several depths may well be
        stored at each of them: then each has its own."""
        own = parameter.replace(
            ".base_layer.", "."
        )  # PEFT wraps trained tokens twice where an embedding has several names
        names = self.names.names_of_one(self.replicas.in_base(own)[0])
        return len(names) > 1 or (len(names) == 1 and placement is None)

    def _placement_of_key(self, key: str) -> Placement | None:
        return self.names.find([key]).placements.get(key)

    def _weights(self, placement: Placement, key: str | None, new: int | None) -> dict[str, Stored]:
        """What is W at each piece: the adapter's own copy where it brought one, else the base's tensor."""
        weights = {}
        for rectangle in placement.rectangles:
            target = key or self.replicas.renumbered(rectangle.key, new)
            brought = self.claims.values.get(target)
            shared = (
                self.claims.values.get(rectangle.key) if key else None
            )  # a copy that PEFT loads over the shared tensor
            brought = brought or (shared if shared and not shared.trained else None)
            weights[rectangle.key] = brought.values if brought else self.stored[rectangle.key]
        return weights

    def _is_head(self, parameter: str) -> bool:
        head = self.names.head
        return head is not None and any(
            a == b or a.endswith(f".{b}") for a, b in ((parameter, head), (head, parameter))
        )

    def _is_tied_head(self, parameter: str) -> bool:
        return self.names.tied and self._is_head(parameter)

    # --- refusals ----------------------------------------------------------------------------------------------------

    def _missing(self, parameter: str, *tensors: Stored | None) -> None:
        reason = self.found.unmergeable.get(self.replicas.in_base(parameter)[0])
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


def _overlap(one: Patch, other: Patch) -> bool:
    rows = max(one.rows[0], other.rows[0]) < min(one.rows[1], other.rows[1])
    columns = max(one.columns[0], other.columns[0]) < min(one.columns[1], other.columns[1])
    if not rows or not columns or one.step == other.step == 1:
        return rows and columns
    mine, theirs = range(*one.rows, one.step), range(*other.rows, other.step)
    return any(row in theirs for row in mine)


def is_empty(stored: Stored) -> bool:
    """Whether a tensor holds nothing. (B of a grouped convolution may have no columns: more groups than ranks.)"""
    return 0 in stored.shape and len(stored.shape) < 3


def shape_of(stored: Stored) -> str:
    """A shape for a sentence: 64×32."""
    return "×".join(map(str, stored.shape)) or "a single number"
