"""A folder's weights as a loader would find them: which files, which keys, at which bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bot.checkpoint.header import read_header
from bot.errors import Refused
from bot.records import Header, Json, Stored
from bot.untrusted import strict_json

if TYPE_CHECKING:
    from bot.checks.reading.packed import Packed

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})  # what arithmetic is done on; all else is bytes


@dataclass(frozen=True, kw_only=True)
class Place:
    """One tensor's bytes: `stored.start` to `stored.stop` of the file at `path`.

    Of a weight that is stored quantised (`packed`), `stored` is what it means: the plain key and shape, F32, no bytes.
    """

    path: Path
    stored: Stored
    packed: Packed | None = None

    @property
    def dtype(self) -> str:
        """The dtype that a merge stores it in, if none is asked for."""
        return self.packed.dtype if self.packed else self.stored.dtype

    @property
    def elements(self) -> int:
        """How many elements the shape spans (1 for a scalar)."""
        count = 1
        for extent in self.stored.shape:
            count *= extent
        return count


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Every readable weight file of a folder. `broken` maps an unreadable or absent file to what is wrong with it."""

    folder: Path
    index: Json | None
    headers: tuple[Header, ...]
    tensors: dict[str, Place]
    broken: dict[str, str] = field(default_factory=dict)
    doubled: tuple[str, ...] = ()  # keys that two files hold
    dense: str = ""  # of a quantised checkpoint: the dtype that its weights have when they are not

    @property
    def main(self) -> str:
        """The dtype of most of the model, as plain numbers."""
        return self.dense or main_dtype(self.tensors.values())

    @property
    def metadata_by_file(self) -> dict[str, dict[str, str]]:
        """The `__metadata__` of every readable weight file."""
        return {header.file: header.metadata for header in self.headers}


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
            tensors.update({stored.key: Place(path=path, stored=stored) for stored in header.tensors})
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


def main_dtype(places: Iterable[Place]) -> str:
    """The floating-point dtype that holds the most bytes; "" where there is none."""
    sizes: dict[str, int] = {}
    for stored in (place.stored for place in places):
        if stored.dtype in FLOATS - {"F64"}:
            sizes[stored.dtype] = sizes.get(stored.dtype, 0) + stored.stop - stored.start
    return max(sizes, key=lambda dtype: sizes[dtype], default="")


def quantization_of(config: Json) -> Json | None:
    """The `quantization_config` of a config.json or of its text config; None for a plain checkpoint."""
    nested = config.get("text_config")
    for place in (config, nested if isinstance(nested, dict) else {}):
        found = place.get("quantization_config")
        if isinstance(found, dict) and found:
            return found
    return None
