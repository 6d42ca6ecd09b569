"""Quantised checkpoints, seen as the models that they are: every weight under its plain key.

To teach the verifier a further form, write a module that satisfies `Form` and add it to FORMS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from bot.checks.reading import bitsandbytes, compressed_tensors, fp8, mxfp4, torchao
from bot.checks.reading.checkpoint import Checkpoint, Place, quantization_of
from bot.checks.reading.packed import Form, Packed
from bot.errors import Refused
from bot.records import Json, Stored

FORMS: tuple[Form, ...] = (bitsandbytes, fp8, mxfp4, compressed_tensors, torchao)
DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def dense_dtype(config: Json) -> str:
    """The dtype of the weights once they are plain: what config.json names, its text config, else bfloat16."""
    nested = config.get("text_config")
    for place in (config, nested if isinstance(nested, dict) else {}):
        for name in ("dtype", "torch_dtype"):
            if place.get(name) in DTYPES:
                return DTYPES[place[name]]
    return DTYPES["bfloat16"]


def as_model(checkpoint: Checkpoint, config: Json, role: str) -> Checkpoint:
    """The checkpoint with the model's own tensors. Raises Refused for a form that nobody here reads, and without its
    library."""
    said = quantization_of(config)
    if said is None:
        return checkpoint
    form = next((one for one in FORMS if one.recognises(said)), None)
    if form is None:
        what = f"The {role} is stored in a form that the verifier does not read ({said.get('quant_method')})."
        raise Refused(
            what,
            remedy="Name a base that is stored as plain numbers, or as bitsandbytes, FP8, MXFP4, compressed-tensors or torchao.",
        )
    dtype = dense_dtype(config)
    try:
        packed = form.unpack(checkpoint.tensors, said, config, dtype)
    except ImportError as error:
        what = f"The {role} is stored in {form.NAME}'s form, and {form.PACKAGE} is not installed ({error})."
        raise Refused(what, remedy=f"Install it: pip install {form.PACKAGE}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(f"The {role} is not stored as its config.json says: {error}", remedy="Fetch it again.") from error
    return seen(checkpoint, packed, form.extras(checkpoint.tensors.keys()), dtype)


def seen(checkpoint: Checkpoint, packed: Mapping[str, Packed], extras: set[str], dtype: str) -> Checkpoint:
    """The checkpoint with logical tensors in place of their parts."""
    parts = {place.stored.key: key for key, one in packed.items() for place in one.parts.values()}
    tensors: dict[str, Place] = {}
    for key, place in checkpoint.tensors.items():
        if key in parts:
            tensors.setdefault(parts[key], logical(parts[key], packed[parts[key]], place))
        elif key not in extras:
            tensors[key] = place
    return replace(checkpoint, tensors=tensors, dense=dtype)


def logical(key: str, packed: Packed, place: Place) -> Place:
    """A weight as what it means; `place`: one of its parts."""
    stored = Stored(key=key, file=place.stored.file, dtype="F32", shape=packed.shape, start=0, stop=0)
    return Place(path=place.path, stored=stored, packed=packed)
