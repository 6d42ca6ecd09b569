"""A folder's weights as a loader would find them: which files, which keys, at which bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np

from bot.checkpoint.header import read_header
from bot.checks.reading.stored_numbers import Array
from bot.errors import Refused
from bot.records import Header, Json, Stored
from bot.untrusted import strict_json

if TYPE_CHECKING:
    from torch import Tensor

View = tuple[int, int]
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# What floating-point dtypes are called in safetensors files, and in torch and in config.json.
TORCH_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
STORED_AS = {name: stored for stored, name in TORCH_NAMES.items() if stored != "F64"}  # what `--dtype` may name
FLOATS = frozenset(TORCH_NAMES)  # what arithmetic is done on; all else is bytes


class SlabCache:
    """What was dequantised of quantised tensors, kept while it is in use: the slabs that somebody still holds, and the last one
    besides, as ranges of one tensor are compared one after the other, by several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._used: WeakValueDictionary[Hashable, Array] = WeakValueDictionary()
        self._last: Array | None = None

    def take(self, key: Hashable, make: Callable[[], Array]) -> Array:
        """The slab of this key, made where nobody holds it."""
        with self._lock:
            slab = self._used.get(key)
            if slab is None:
                self._last = None  # before the next one is made
                slab = self._used[key] = make()
            self._last = slab
            return slab

    def clear(self) -> None:
        """Let the last one go."""
        with self._lock:
            self._last = None


@dataclass(frozen=True, kw_only=True)
class TensorRef:
    """One tensor's bytes: `stored.start` to `stored.stop` of the file at `path`.

    Of a weight that is stored quantised (`packed`), `stored` is what it means: the plain key and shape, F32, no bytes.
    """

    path: Path
    stored: Stored
    packed: PackedWeight | None = None

    @property
    def dtype(self) -> str:
        """The dtype that a merge stores it in, if none is asked for."""
        return self.packed.dtype if self.packed else self.stored.dtype

    @property
    def elements(self) -> int:
        """How many elements the shape spans (1 for a scalar)."""
        return math.prod(self.stored.shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedWeight:
    """A weight that is stored quantised. `components`: the checkpoint's tensors by their role; `dtype`: as which a merge
    stores the weight; `dense`: its form's.

    A weight of several `slabs` (a stack of experts) is dequantised one at a time; `settings` are the form's own. The
    weights of a case share one `cache`.
    """

    components: Mapping[str, TensorRef]
    shape: tuple[int, ...]
    dtype: str
    dense: Callable[[PackedWeight, int], Array | Tensor]
    slabs: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    cache: SlabCache = field(default_factory=SlabCache)

    def numbers(self, slab: int = 0) -> Array:
        """A slab as one row of float32, dequantised once for all who need it at the same time."""

        def make() -> Array:
            dense = np.asarray(self.dense(self, slab))
            assert dense.dtype == np.float32
            assert dense.size == math.prod(self.shape) // self.slabs
            return dense.reshape(-1)

        return self.cache.take((self, slab), make)

    def slab(self, number: int = 0) -> Tensor:
        """The same in torch."""
        import torch

        return torch.from_numpy(self.numbers(number))


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Every readable weight file of a folder. `broken` maps an unreadable or absent file to what is wrong with it."""

    folder: Path
    index: Json | None
    headers: tuple[Header, ...]
    tensors: dict[str, TensorRef]
    broken: dict[str, str] = field(default_factory=dict)
    doubled: tuple[str, ...] = ()  # keys that two files hold
    dense: str = ""  # of a quantised checkpoint: the dtype that its weights have when they are not

    @property
    def main(self) -> str:
        """The dtype of most of the model, as plain numbers."""
        return self.dense or main_dtype(self.tensors.values())


def read_checkpoint(folder: Path) -> Checkpoint:
    """Headers only; a file that cannot be read is listed in `broken`, never raised."""
    index = read_index(folder)
    headers, tensors, broken, doubled = [], {}, {}, []
    for name in weight_files(folder, index):
        path = folder / name
        if "/" in name or name in ("", ".", ".."):
            broken[name] = f"The index names {name!r}, which is not a file of this folder."
            continue
        try:
            header = read_header(path)
        except Refused as refused:
            broken[name] = refused.what
        except FileNotFoundError:
            broken[name] = f"{name} is missing."
        else:
            headers.append(header)
            doubled += [stored.key for stored in header.tensors if stored.key in tensors]
            tensors.update({stored.key: TensorRef(path=path, stored=stored) for stored in header.tensors})
    return Checkpoint(
        folder=folder, index=index, headers=tuple(headers), tensors=tensors, broken=broken, doubled=tuple(doubled)
    )


def read_input(folder: Path, role: str) -> Checkpoint:
    """The same for a base, which has to be whole. Raises Refused where it is not."""
    checkpoint = read_checkpoint(folder)
    if checkpoint.broken:
        what = " ".join(checkpoint.broken.values())
        raise Refused(f"The {role} cannot be read: {what}", remedy="Fetch it again, or name another revision.")
    return checkpoint


def read_index(folder: Path) -> Json | None:
    """The index of a sharded checkpoint, None where there is none, {} where it is not a JSON object with a map."""
    path = folder / INDEX
    if not path.is_file():
        return None
    try:
        index = strict_json.loads(path.read_bytes())
    except ValueError:
        return {}
    if not isinstance(index, dict) or not isinstance(index.get("weight_map"), dict):
        return {}
    return index


def weight_files(folder: Path, index: Json | None) -> tuple[str, ...]:
    """The root's weight files: those that the index names, else the single file.

    Where both exist the index wins here; that a loader would take the single file is the `strays` check's business.
    """
    if index:
        return tuple(sorted({str(name) for name in index["weight_map"].values()}))
    return (SINGLE,)


def main_dtype(refs: Iterable[TensorRef]) -> str:
    """The floating-point dtype that holds the most bytes; "" where there is none."""
    sizes: dict[str, int] = {}
    for stored in (ref.stored for ref in refs):
        if stored.dtype in FLOATS - {"F64"}:
            sizes[stored.dtype] = sizes.get(stored.dtype, 0) + stored.stop - stored.start
    return max(sizes, key=lambda dtype: sizes[dtype], default="")


def quantization_of(config: Json) -> Json | None:
    """The `quantization_config` of a config.json or of its text config; None for a plain checkpoint."""
    nested = config.get("text_config")
    for section in (config, nested if isinstance(nested, dict) else {}):
        quantization = section.get("quantization_config")
        if isinstance(quantization, dict) and quantization:
            return quantization
    return None


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A matrix out of an adapter tensor, which is first viewed as shape[0] × the rest (a vector as one column).

    `rows` and `columns` say what is cut out of that view; `transposed`: the cut is then transposed.
    """

    ref: TensorRef
    rows: range
    columns: range
    transposed: bool = False
    view: View | None = None  # where it is not shape[0] × the rest

    @property
    def shape(self) -> View:
        """rows × columns, after transposing."""
        shape = (len(self.rows), len(self.columns))
        return shape[::-1] if self.transposed else shape

    def between(self, low: int, high: int) -> Matrix:
        """Its rows from `low` to `high`."""
        if self.transposed:
            return replace(self, columns=self.columns[low:high])
        return replace(self, rows=self.rows[low:high])
