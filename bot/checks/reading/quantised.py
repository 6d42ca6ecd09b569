"""Quantised checkpoints, seen as the models that they are: every weight under its plain key.

To teach the verifier a further form, write a module that satisfies `Form` and add it to FORMS.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from bot.checks.reading import bitsandbytes, compressed_tensors, fp8, mxfp4, torchao
from bot.checks.reading.checkpoint import STORED_AS, Checkpoint, PackedWeight, SlabCache, TensorRef, quantization_of
from bot.checks.reading.packed import Form
from bot.errors import Refused
from bot.records import Json, Stored

FORMS: tuple[Form, ...] = (bitsandbytes, fp8, compressed_tensors, torchao, mxfp4)


def dense_dtype(config: Json) -> str:
    """The dtype of the weights once they are plain: what config.json names, its text config, else bfloat16."""
    nested = config.get("text_config")
    for section in (config, nested if isinstance(nested, dict) else {}):
        for name in ("dtype", "torch_dtype"):
            if section.get(name) in STORED_AS:
                return STORED_AS[section[name]]
    return STORED_AS["bfloat16"]


def as_model(checkpoint: Checkpoint, config: Json, role: str, cache: SlabCache | None = None) -> Checkpoint:
    """The checkpoint with the model's own tensors. Raises Refused for a form that nobody here reads, and without its
    library."""
    quantization = quantization_of(config)
    if quantization is None:
        return checkpoint
    form = next((form for form in FORMS if form.recognises(quantization)), None)
    if form is None:
        what = f"The {role} is stored in a form that the verifier does not read ({quantization.get('quant_method')})."
        known = "bitsandbytes, FP8, MXFP4, compressed-tensors or torchao"
        raise Refused(what, remedy=f"Name a base that is stored as plain numbers, or as {known}.")
    dtype = dense_dtype(config)
    try:
        packed = form.unpack(checkpoint.tensors, quantization, config, dtype)
    except ImportError as error:
        what = f"The {role} is stored in {form.NAME}'s form, and {form.PACKAGE} is not installed ({error})."
        raise Refused(what, remedy=f"Install it: pip install {form.PACKAGE}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(f"The {role} is not stored as its config.json says: {error}", remedy="Fetch it again.") from error
    shared = cache or SlabCache()
    packed = {key: replace(weight, cache=shared) for key, weight in packed.items()}
    return as_logical(checkpoint, packed, form.extras(checkpoint.tensors.keys()), dtype)


def scales_beside(keys: Collection[str], config: Json) -> set[str]:
    """Of these keys, those that are neither a weight nor a part of one: scales of activations and caches."""
    quantization = quantization_of(config) or {}
    form = next((form for form in FORMS if form.recognises(quantization)), None)
    return form.extras(keys) if form else set()


def as_stored(checkpoint: Checkpoint, config: Json) -> Checkpoint:
    """The checkpoint with its own tensors, whatever they mean."""
    return replace(checkpoint, dense=dense_dtype(config))


def as_logical(checkpoint: Checkpoint, packed: Mapping[str, PackedWeight], extras: set[str], dtype: str) -> Checkpoint:
    """The checkpoint with logical tensors in place of their components."""
    components = {ref.stored.key: key for key, weight in packed.items() for ref in weight.components.values()}
    tensors: dict[str, TensorRef] = {}
    for key, ref in checkpoint.tensors.items():
        if key in components:
            tensors.setdefault(components[key], logical_tensor(components[key], packed[components[key]], ref))
        elif key not in extras:
            tensors[key] = ref
    return replace(checkpoint, tensors=tensors, dense=dtype)


def logical_tensor(key: str, packed: PackedWeight, component: TensorRef) -> TensorRef:
    """A weight as what it means; `component`: one of its components."""
    stored = Stored(key=key, file=component.stored.file, dtype="F32", shape=packed.shape, start=0, stop=0)
    return TensorRef(path=component.path, stored=stored, packed=packed)
