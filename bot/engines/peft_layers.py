"""PEFT's own layers over a model of phantoms: one base weight at a time is real, is merged, and is gone again.

The adapter's config is untrusted. A PeftConfig is made from the allow-listed fields of `bot.adapters.methods` only, and
every adapter tensor must be taken up by some layer, and every tensor of a layer must be in the adapter.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bot import formats
from bot.adapters.method_rules import engine_for
from bot.engines import in_memory, peft_model
from bot.engines.files import write_all
from bot.engines.float64_mode import float64_mode
from bot.engines.peft_model import PEFT_ERRORS, SAVE_AGAIN
from bot.engines.phantom import is_phantom, phantom_model
from bot.engines.row_maker import rounded
from bot.errors import Refused
from bot.numerics.rounding import RAW, Array, widen
from bot.records import Json, PeftMerge, Stored
from bot.untrusted.patterns import require_terminating

ROWS = 2
AGREE = 1e-8  # relative; float64 gives 1e-15, and a real difference is far above


class PeftLayers:
    """The adapted layers of one adapter on one base, built once for a merge.

    `ops`: every PeftMerge of the plan: they say which modules PEFT must adapt, no more and no fewer, and where their
    weights are. `config` and `adapter_config`: the two config.json. Memory: the adapter in float64, and the largest
    single layer (in-memory: the adapted weights of the base in float32 as well). Raises Refused.
    """

    def __init__(
        self, *, base: Path, adapter: Path, config: Json, adapter_config: Json, ops: Sequence[PeftMerge]
    ) -> None:
        self._base, self._adapter = base, adapter
        self._ops: dict[str, dict[str, PeftMerge]] = {}
        for op in ops:
            self._ops.setdefault(op.module, {})[op.parameter] = op
        modules = set(self._ops)
        with peft_model.quiet():
            model = phantom_model(base, config, adapter_config, modules)
            self._phantoms = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
            real = engine_for(adapter_config) == "in-memory"
            if real:
                in_memory.fill(model, self._sources(), self.read)
            require_terminating(adapter_config, (name for name, _ in model.named_modules()))
            float64 = real and peft_model.may_use_float64(adapter_config)
            tuned = peft_model.inject(model, peft_model.peft_config(adapter_config), float64=float64)
            peft_model.load_adapter(tuned, self._phantoms.keys(), adapter, adapter_config)
        self._layers = peft_model.layers_of(tuned)
        if differ := modules ^ self._layers.keys():
            reason = f"PEFT and the plan disagree about which modules the adapter changes, e.g. {sorted(differ)[0]}."
            raise Refused(reason, remedy=SAVE_AGAIN)
        in_memory.after_loading(adapter_config, self._layers)
        self._written_over(real)

    def merge(self, module: str) -> dict[str, Tensor]:
        """The merged parameters of one module, float64. Raises Refused where PEFT cannot, or for NaN and infinity."""
        layer, wanted = self._layers[module], self._ops[module]
        owner = layer.get_base_layer()
        before = {name: weight.data for name, weight in owner.named_parameters(recurse=False)}
        others = {name: tensor for name, tensor in before.items() if name not in wanted}
        for name, op in wanted.items():
            # In-memory: the base as PEFT's initialisation left it.
            held = self.read(op.source) if is_phantom(before[name]) else before[name]
            getattr(owner, name).data = held.to(torch.float64, copy=True)
        try:
            with torch.no_grad(), float64_mode(), peft_model.quiet():
                probe = probe_for(owner)
                _stand_in(owner, others, 1.0)
                unmerged = layer(probe) if probe is not None else None
                _stand_in(owner, others, math.nan)  # a weight that the plan forgot must not pass for one
                layer.merge(safe_merge=False)
                merged = layer.get_base_layer()
                values = {name: _finite(getattr(merged, name).data, op) for name, op in wanted.items()}
                _stand_in(merged, others, 1.0)
                if unmerged is not None and not same_output(unmerged, layer(probe)):
                    reason = f"On {module} PEFT's merged layer does something else than its unmerged one."
                    raise Refused(reason, remedy="Keep the adapter separate, or train it without this layer.")
            return values
        except PEFT_ERRORS as error:
            reason = f"PEFT cannot merge {module} ({type(error).__name__}: {error})."
            raise Refused(reason, remedy="Keep the adapter separate.") from error
        finally:
            _forget(layer)
            for name, tensor in before.items():
                getattr(owner, name).data = tensor

    def _sources(self) -> Iterator[tuple[str, str, Stored]]:
        for own in self._ops.values():
            yield from ((op.module, op.parameter, op.source) for op in own.values())

    def read(self, stored: Stored) -> Tensor:
        """A base tensor (or the adapter's copy of one), float32, exact for 16-bit and packed ones, or float64."""
        if stored.packed is not None:
            rows = stored.shape[0] if len(stored.shape) < 3 else math.prod(stored.shape[:-1])
            values = formats.open_packed(stored, self._bytes).rows(0, rows)
            return torch.from_numpy(np.ascontiguousarray(values)).reshape(stored.shape)
        raw = self._bytes(stored, 0, stored.stop - stored.start)
        numbers = raw.view(RAW[stored.dtype]).reshape(stored.shape)
        return torch.from_numpy(widen(numbers, stored.dtype))

    def _bytes(self, stored: Stored, start: int, count: int) -> Array:
        """`count` bytes of a stored tensor, from its byte `start` on."""
        raw = np.empty(count, np.uint8)
        folder = self._adapter if stored.role == "adapter" else self._base
        with (folder / stored.file).open("rb", buffering=0) as file:
            view, offset = raw.data, stored.start + start
            while view.nbytes:
                if not (read := os.preadv(file.fileno(), [view], offset)):
                    raise Refused("An input file became shorter while it was read.", remedy="Run the merge again.")
                view, offset = view[read:], offset + read
        return raw

    def _written_over(self, real: bool) -> None:
        """Nothing wrote into a phantom: `fill_` and `zero_` would not raise."""
        for tensor in self._phantoms.values():
            if tensor.is_floating_point() and tensor.numel() and not any(tensor.stride()):
                assert is_phantom(tensor), "PEFT wrote into a weight that is not there"
        assert real or all(not any(p.stride()) for p in self._phantoms.values() if p.numel() > 1)


def write_peft_ops(
    ops: Sequence[PeftMerge],
    layers: PeftLayers,
    out_of: Callable[[str], int],
    moved: Callable[[int], None],
    clamps: bool = False,
) -> None:
    """Merge the modules of `ops` and write each target by offset; `out_of`: a weight file's name → its descriptor.

    The files must have their full size already. Parameters of one module that lie in different shards may come in
    different calls. `clamps`: a result that is too large for its dtype becomes that dtype's largest number. Raises
    Refused, for such a result too, and OSError.
    """
    by_module: dict[str, list[PeftMerge]] = {}
    for op in ops:
        by_module.setdefault(op.module, []).append(op)
    for module, own in by_module.items():
        merged = layers.merge(module)
        for op in own:
            value = merged[op.parameter]
            if tuple(value.shape) != op.target.shape:
                reason = f"PEFT makes {tuple(value.shape)} of {op.source.key}, which is {op.target.shape}."
                raise Refused(reason, remedy="Keep the adapter separate.")
            _write(op, value, out_of(op.target.file), clamps)
            moved(op.target.stop - op.target.start)


def _write(op: PeftMerge, value: Tensor, descriptor: int, clamps: bool) -> None:
    write_all(descriptor, rounded(value.contiguous().numpy(), op.target, clamps).tobytes(), op.target.start)


def _forget(layer: Any) -> None:
    """Undo what a merge leaves on a layer, without PEFT's own unmerge, whose arithmetic would be wasted."""
    if hasattr(layer, "ln_tuning_layers") and layer.merged_adapters:
        layer.unmerge()  # swaps the two norms back
    layer.merged_adapters.clear()
    for name in ("_base_weight_before_merge", "_cached_merge_factor"):
        held: Any = getattr(layer, name, None)
        if hasattr(held, "clear"):
            held.clear()
        elif held is not None:
            setattr(layer, name, None)


def _stand_in(owner: Any, others: Iterable[str], value: float) -> None:
    """Parameters that the merge leaves alone, as one number seen many times: nothing can write to them."""
    for name in others:
        weight = getattr(owner, name)
        weight.data = torch.full((), value, dtype=torch.float64).expand(weight.shape)


def _finite(value: Tensor, op: PeftMerge) -> Tensor:
    if not bool(torch.isfinite(value).all()):
        reason = f"Merging {op.module} gives a NaN or Inf in its {op.parameter}."
        raise Refused(reason, remedy="Take another base, or train the adapter again.")
    return value


def probe_for(owner: Any) -> Tensor | None:
    """A random input for a layer, float64 (token numbers for an embedding); None for kinds that PEFT merely swaps."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(owner, nn.Embedding):
        return torch.randint(0, owner.num_embeddings, (ROWS, 5), generator=generator)
    if isinstance(owner, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        extents = [
            dilation * (kernel - 1) + 2 * stride + 1
            for dilation, kernel, stride in zip(owner.dilation, owner.kernel_size, owner.stride, strict=True)
        ]
        return torch.randn((1, owner.in_channels, *extents), generator=generator, dtype=torch.float64)
    if isinstance(owner, nn.Linear):
        return torch.randn((ROWS, owner.in_features), generator=generator, dtype=torch.float64)
    if type(owner).__name__ == "Conv1D":  # transformers' own: in × out
        return torch.randn((ROWS, owner.weight.shape[0]), generator=generator, dtype=torch.float64)
    return None


def same_output(first: Tensor, second: Tensor) -> bool:
    """Equal up to float64's own error: whether a merged layer still does what the unmerged one did, as far as one input says.

    It cannot always: an OFT on a convolution rotates overlapping patches and adds them up, which no kernel does.
    """
    if first.shape != second.shape:
        return False
    largest = float(first.abs().max())
    return float((first - second).abs().max()) <= AGREE * (largest or 1.0)
