"""What PEFT's unmerged layers do, found out by asking them: the verifier's own source of W' for methods beside LoRA.

Nothing of PEFT's merge code runs. A layer is fed the unit vectors (token numbers, unit patches), and what comes out is
its weight, column by column; a zero input gives its bias. All in float64, also where PEFT would go through float32.
The engines' modules are not used here: this has its own model, its own reading of the config, its own casts.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bot.records import Json
from bot.untrusted.patterns import hold_to_end

PREFIX = "base_model.model."
BATCH = 1 << 24  # elements of probes and of what they give, at a time: 128 MB of float64
# The methods whose layers give W' when asked, by peft_type; for LORA, its variants that PEFT alone has.
METHODS = {
    "ADALORA": "AdaLoRA", "ADAMSS": "AdaMSS", "BEFT": "BEFT", "BOFT": "BOFT", "C3A": "C3A", "DEFT": "DEFT",
    "DELORA": "DeLoRA", "FOURIERFT": "FourierFT", "FROD": "FRoD", "GLORA": "GLoRA", "GRALORA": "GraLoRA",
    "HIRA": "HiRA", "HRA": "HRA", "IA3": "IA³", "LN_TUNING": "LN-tuning", "LOHA": "LoHa", "LOKR": "LoKr",
    "LORA": "a LoRA variant", "MISS": "MiSS", "OFT": "OFT", "OSF": "OSF", "PEANUT": "PEANuT", "PSOFT": "PSOFT",
    "PVERA": "PVeRA", "RANDLORA": "RandLoRA", "ROAD": "RoAd", "SHIRA": "SHiRA", "SUPERTUNING": "SuperTuning",
    "TINYLORA": "TinyLoRA", "UNILORA": "Uni-LoRA", "VBLORA": "VB-LoRA", "VERA": "VeRA", "WAVEFT": "WaveFT",
}  # fmt: skip
# Layers that take something from the base while they are made; PSOFT and AdaMSS from its float32 decomposition.
READS_BASE = frozenset({"ADAMSS", "FROD", "OSF", "PSOFT", "SUPERTUNING", "TINYLORA"})
IN_FLOAT32 = frozenset({"ADAMSS", "PSOFT"})
# How far, relative to its largest element, a W' found here may be off: by float64's errors, by those of a float32
# decomposition, or by float64's after FRoD has solved for a factor with an ill-conditioned matrix.
SLACK = {"ADAMSS": 2.0**-20, "PSOFT": 2.0**-20, "FROD": 2.0**-24}
# Methods that change a module's bias too, where it has one; BEFT nothing else.
MOVES_BIAS = frozenset({"ADAMSS", "BEFT", "GLORA", "IA3", "LN_TUNING", "ROAD"})
# Fields that never reach PEFT: they name code to import, or say what other checks look at.
KEPT_OUT = frozenset({
    "auto_mapping", "megatron_core", "megatron_config", "base_model_name_or_path", "revision", "runtime_config",
    "peft_type", "peft_version", "task_type", "bias", "modules_to_save", "inference_mode", "trainable_token_indices",
})  # fmt: skip
ERRORS = (ImportError, AttributeError, KeyError, RuntimeError, TypeError, ValueError)


class NoUnmerged(Exception):
    """PEFT cannot make these layers; the sentence says why."""


class NoWeight(Exception):
    """A layer that no weight can stand for; the sentence says which."""


class ProbedLayers:
    """The adapted layers of one adapter, with phantoms for the base's weights until one is asked for.

    `model`: the base on the meta device. `read`: a parameter by the model's name → its values, float32 or float64, or
    None where the base has no such tensor. `keys`: the adapter tensors that its layers are made of. Raises NoUnmerged.
    """

    def __init__(
        self, model: Any, adapter: Path, config: Json, keys: set[str], read: Callable[[str], Tensor | None]
    ) -> None:
        self._read, self._lock = read, Lock()
        self._last: tuple[str, Tensor] | None = None
        self._given = {key: tensor for key, tensor in load_file(adapter).items() if key in keys}
        self._type = str(config["peft_type"])
        for owner in model.modules():
            _hollow(owner)
        shared = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        reads = _reads_base(config)
        if reads:
            self._fill(model, config)
        try:
            with torch.no_grad(), _silence(), loading(config):
                self._layers = _layers(model, config, self._given, shared)
        except ERRORS as error:
            raise NoUnmerged(f"PEFT cannot load the adapter ({type(error).__name__}: {str(error)[:300]}).") from error
        for layer in self._layers.values():
            _use_saved_projection(layer)

    def parameters(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(name, shape) of every parameter that an adapted layer has."""
        for module, layer in self._layers.items():
            for name, weight in layer.get_base_layer().named_parameters(recurse=False):
                yield f"{module}.{name}", tuple(weight.shape)

    def exact(self, parameter: str) -> Tensor:
        """W' (or b') in float64, in the layout of the parameter. Raises NoWeight. One thread at a time; the last is kept."""
        with self._lock:
            if self._last is None or self._last[0] != parameter:
                self._last = None  # the one before is let go first
                self._last = parameter, self._ask(parameter)
            return self._last[1]

    @property
    def slack(self) -> float:
        """How far, relative to its largest element, a W' found here may be off."""
        return SLACK.get(self._type, 2.0**-37)

    def _ask(self, parameter: str) -> Tensor:
        module, _, name = parameter.rpartition(".")
        layer = self._layers[module]
        owner = layer.get_base_layer()
        with torch.no_grad(), _silence(), _all_wide():
            before = {own: weight.data for own, weight in owner.named_parameters(recurse=False)}
            try:
                for own, held in before.items():
                    getattr(owner, own).data = self._wide_weight(f"{module}.{own}", held)
                if hasattr(layer, "ln_tuning_layers"):
                    (kept,) = layer.ln_tuning_layers.values()
                    given: Tensor = getattr(kept, name).data.double().clone()
                    return given
                return _asked(layer, owner, name, module)
            finally:
                for own, held in before.items():
                    getattr(owner, own).data = held

    def _wide_weight(self, parameter: str, held: Tensor) -> Tensor:
        if any(held.stride()):
            return held.to(torch.float64, copy=True)  # what the initialisation made of the base
        found = self._read(parameter)
        if found is None or found.shape != held.shape:
            raise NoWeight(f"The base has no {parameter} of {tuple(held.shape)}.")
        return found.to(torch.float64, copy=True)

    def _fill(self, model: Any, config: Json) -> None:
        from peft.tuners.tuners_utils import check_target_module_exists

        made = _made(config)
        for module, owner in model.named_modules():
            if module and check_target_module_exists(made, module):
                for own, weight in owner.named_parameters(recurse=False):
                    found = self._read(f"{module}.{own}")
                    if found is not None and found.shape == weight.shape:
                        weight.data = found.float()


def has_own_merge(layer: Any) -> bool:
    """Whether a PEFT layer is of a method that only asking can derive: not B·A, not rows of tokens."""
    if not hasattr(layer, "base_layer") or not hasattr(layer, "adapter_layer_names"):
        return False
    if type(layer).__module__.startswith("peft.tuners.lora."):
        variants = {type(one).__name__ for one in getattr(layer, "lora_variant", {}).values()}
        variants |= {one.__name__ for one in getattr(layer, "lora_variant", {}).values() if isinstance(one, type)}
        return any(name.startswith(("Kasa", "BdLora", "Velora", "Monteclora")) for name in variants)
    return not type(layer).__module__.startswith("peft.tuners.trainable_tokens.")


def changed_by(layer: Any) -> Iterator[str]:
    """The parameters of its module that such a layer changes, by the method's name."""
    method = type(layer).__module__.split(".")[2].upper()
    for name, _ in layer.get_base_layer().named_parameters(recurse=False):
        if (name != "bias" and method != "BEFT") or (name == "bias" and method in MOVES_BIAS):
            yield name


def ask(layer: Any, name: str, path: str) -> Tensor:
    """What a layer of a whole model makes of a parameter, float64; its adapter may be switched off. Raises NoWeight."""
    alone = copy.deepcopy(layer).double()
    alone._disable_adapters = False
    if "dtype" in alone.__dict__:
        alone.__dict__["dtype"] = torch.float64
    with torch.no_grad(), _silence(), _all_wide():
        if hasattr(alone, "ln_tuning_layers"):
            (kept,) = alone.ln_tuning_layers.values()
            given: Tensor = getattr(kept, name).data
            return given
        return _asked(alone, alone.get_base_layer(), name, path)


def loading(config: Json) -> AbstractContextManager[Any]:
    """The casts under which an adapter is to be put on a base, for layers as exact as float64 makes them."""
    return _Widen() if _reads_base(config) and config.get("peft_type") not in IN_FLOAT32 else nullcontext()


def mend(tuned: nn.Module, wide: bool) -> None:
    """Make a PEFT model that was just loaded what it should be: see _use_saved_projection.

    `wide`: PEFT's own layers compute in float64 from here on; the model's code, which the merged model shares, as it is.
    """
    if not wide:
        tuned.float()  # what `loading` has widened, beside a model that computes in float32
    for layer in tuned.modules():
        if has_own_merge(layer):
            _use_saved_projection(layer)
            if wide and "dtype" in layer.__dict__:
                layer.__dict__["dtype"] = torch.float64
            if wide:
                layer.forward = _widened(layer.forward)


def _use_saved_projection(layer: Any) -> None:
    """FRoD: U = W · V⁻ᵀ with unit columns, of the V that was saved; PEFT takes the V that it has found again, whose
    columns may have other signs."""
    if not hasattr(layer, "frod_U"):
        return
    with torch.no_grad():
        weight = layer.get_base_layer().weight.data.double()
        weight = weight.T if layer.fan_in_fan_out else weight
        for name in list(layer.frod_U):
            columns = torch.linalg.lstsq(layer.frod_V[name].double(), weight.T).solution.T
            layer.frod_U[name] = (columns / columns.norm(dim=0).clamp_min(1e-12)).to(layer.frod_U[name].dtype)


def _widened(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with _all_wide():
            return forward(*args, **kwargs)

    return run


def _reads_base(config: Json) -> bool:
    """LoRA's PiSSA and OLoRA move the base, and KaSA truncates it."""
    start = str(config.get("init_lora_weights", "")).lower()
    return config.get("peft_type") in READS_BASE or (
        config.get("peft_type") == "LORA" and (start in ("pissa", "olora") or bool(config.get("kasa_config")))
    )


# --- asking a layer -----------------------------------------------------------------------------------------------


def _asked(layer: Any, owner: Any, name: str, module: str) -> Tensor:
    if isinstance(owner, nn.Embedding):
        return _embedding(layer, owner)
    if isinstance(owner, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return _convolution(layer, owner, name, module)
    if not isinstance(owner, nn.Linear) and type(owner).__name__ != "Conv1D":
        raise NoWeight(f"{module} is a {type(owner).__name__}, which this verifier cannot ask.")
    straight = isinstance(owner, nn.Linear)
    out, into = owner.weight.shape if straight else owner.weight.shape[::-1]
    offset: Tensor = layer(torch.zeros(1, into))[0]
    if name == "bias":
        return offset
    rows = []
    step = max(1, BATCH // (out + into))
    for low in range(0, into, step):
        units = torch.zeros(min(step, into - low), into)
        units[torch.arange(len(units)), torch.arange(low, low + len(units))] = 1.0
        rows.append(layer(units) - offset)
    transposed = torch.cat(rows)  # in × out
    _is_affine(layer, transposed, offset, module)
    return transposed.T.contiguous() if straight else transposed


def _is_affine(layer: Any, transposed: Tensor, offset: Tensor, module: str) -> None:
    probe = torch.randn(3, transposed.shape[0], generator=torch.Generator().manual_seed(0)) * 3.0
    found, wanted = layer(probe), probe @ transposed + offset
    if float((found - wanted).abs().max()) > 1e-8 * float(wanted.abs().max() + 1.0):
        raise NoWeight(f"{module} is not linear: no weight can stand for it.")


def _embedding(layer: Any, owner: Any) -> Tensor:
    scale = getattr(owner, "embed_scale", None)
    if scale is not None:
        owner.embed_scale = torch.ones(()) if isinstance(scale, Tensor) else 1.0
    try:
        step = max(1, BATCH // owner.embedding_dim)
        return torch.cat([
            layer(torch.arange(low, min(owner.num_embeddings, low + step)))
            for low in range(0, owner.num_embeddings, step)
        ])  # fmt: skip
    finally:
        if scale is not None:
            owner.embed_scale = scale


def _convolution(layer: Any, owner: Any, name: str, module: str) -> Tensor:
    """Unit patches, laid so that one output position sees all of a patch and nothing else."""
    at, extents, index = [], [], []
    for axis, kernel in enumerate(owner.kernel_size):
        stride, dilation, padding = owner.stride[axis], owner.dilation[axis], owner.padding[axis]
        if isinstance(padding, str):
            raise NoWeight(f"{module} pads by name ({owner.padding}), which this verifier cannot ask.")
        start = -padding % stride
        at.append(range(start, start + dilation * (kernel - 1) + 1, dilation))
        extents.append(start + dilation * (kernel - 1) + 1 + padding)
        index.append((start + padding) // stride)
    here = (slice(None), slice(None), *index)
    offset: Tensor = layer(torch.zeros(1, owner.in_channels, *extents))[here][0]
    if name == "bias":
        return offset
    count = owner.weight[0].numel()
    per_group = owner.in_channels // owner.groups
    weight = torch.empty_like(owner.weight, dtype=torch.float64)
    tall = owner.out_channels // owner.groups
    for group in range(owner.groups):
        units = torch.zeros(count, owner.in_channels, *extents)
        channels = slice(group * per_group, (group + 1) * per_group)
        places = torch.cartesian_prod(*(torch.tensor(list(one)) for one in at)).view(-1, len(at))
        for number, place in enumerate(places):
            for channel in range(per_group):
                row = channel * len(places) + number
                units[(row, channels.start + channel, *place.tolist())] = 1.0
        found = layer(units)[here] - offset  # (channels · kernel) × out
        own = slice(group * tall, (group + 1) * tall)
        others = torch.cat([found[:, : own.start], found[:, own.stop :]], dim=1)
        if others.numel() and float(others.abs().max()) > 0:
            raise NoWeight(f"{module}'s adapter mixes the groups of its convolution: no weight can stand for it.")
        weight[own] = found[:, own].T.reshape(weight[own].shape)
    _is_convolution(layer, owner, weight, offset, module)
    return weight


def _is_convolution(layer: Any, owner: Any, weight: Tensor, offset: Tensor, module: str) -> None:
    extents = [3 * kernel + 2 * stride for kernel, stride in zip(owner.kernel_size, owner.stride, strict=True)]
    probe = torch.randn(1, owner.in_channels, *extents, generator=torch.Generator().manual_seed(0))
    wanted = owner._conv_forward(probe, weight, offset)
    if float((layer(probe) - wanted).abs().max()) > 1e-8 * float(wanted.abs().max() + 1.0):
        raise NoWeight(f"{module}'s adapter is no convolution: no weight can stand for it.")


# --- making the layers --------------------------------------------------------------------------------------------


def _hollow(owner: Any) -> None:
    """Every tensor of a module as one NaN seen many times (zero, for whole numbers)."""
    for held in (owner._parameters, owner._buffers):
        for name, tensor in list(held.items()):
            if tensor is not None and tensor.is_meta:
                value = float("nan") if tensor.is_floating_point() else 0
                kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
                hollow = torch.full((), value, dtype=kind).expand(tensor.shape)
                held[name] = nn.Parameter(hollow, requires_grad=False) if held is owner._parameters else hollow


def _made(config: Json) -> Any:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kind = PEFT_TYPE_TO_CONFIG_MAPPING[config["peft_type"]]
    known = {field.name for field in dataclasses.fields(kind)} - KEPT_OUT
    return kind(**{name: value for name, value in config.items() if name in known and value is not None})


def _layers(model: Any, config: Json, given: Mapping[str, Tensor], shared: set[int]) -> dict[str, Any]:
    from peft import PeftModel, set_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer

    hold_to_end(config, (name for name, _ in model.named_modules()))
    tuned = PeftModel(model, _made(config), autocast_adapter_dtype=False).eval()
    _double_own(tuned, shared)
    result = set_peft_model_state_dict(tuned, dict(given))
    _double_own(tuned, shared)  # AdaLoRA makes its tensors anew where ranks were cut
    if result.unexpected_keys:
        raise ValueError(f"no layer takes {result.unexpected_keys[0]}")
    return {
        name.removeprefix(PREFIX): owner
        for name, owner in tuned.named_modules()
        if isinstance(owner, BaseTunerLayer) and hasattr(owner, "base_layer")
    }


def _double_own(tuned: nn.Module, shared: set[int]) -> None:
    """The layers' own numbers in float64; what several share, once."""
    done: dict[int, Tensor] = {}
    for owner in tuned.modules():
        for weight in owner._parameters.values():
            if weight is not None and id(weight) not in shared and weight.is_floating_point():
                weight.data = weight.data.double()
        for name, buffer in list(owner._buffers.items()):
            if buffer is not None and id(buffer) not in shared and buffer.is_floating_point():
                owner._buffers[name] = done.setdefault(id(buffer), buffer.double())
        if "dtype" in owner.__dict__:
            owner.__dict__["dtype"] = torch.float64


BYTES = (torch.frombuffer, torch.asarray, Tensor.view)  # here a dtype says what bytes mean: files are read inside


class _Widen(TorchFunctionMode):
    """A request for float32 is a request for the wide type: PEFT takes it for steps that 16 bits would spoil."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.float:
            return args[0].double()
        if func in BYTES:
            return func(*args, **(kwargs or {}))
        wide = {torch.float32: torch.float64, torch.complex64: torch.complex128}
        changed = [wide.get(one, one) if isinstance(one, torch.dtype) else one for one in args]
        named = {
            name: wide.get(one, one) if isinstance(one, torch.dtype) else one for name, one in (kwargs or {}).items()
        }
        return func(*changed, **named)


@contextmanager
def _all_wide() -> Iterator[None]:
    """New tensors are float64 too. Not while layers are made: some draw numbers from a seed, in float32."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Widen():
            yield
    finally:
        torch.set_default_dtype(default)


@contextmanager
def _silence() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
