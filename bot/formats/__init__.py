"""How weights are stored that are not plain numbers: who reads which form, and who writes which.

To add a form, write a module that satisfies Reader or Writer and add one line to READERS or WRITERS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from bot.formats import compressed_tensors, torchao
from bot.formats.bitsandbytes import four_bit, int8, simulated, writer
from bot.formats.bitsandbytes import linears as linears
from bot.formats.fp8 import reader as fp8
from bot.formats.fp8 import writer_channel, writer_same
from bot.formats.mxfp4 import reader as mxfp4
from bot.formats.unsupported import parent_of as parent_of
from bot.formats.unsupported import refusal_of
from bot.records import Json, Quantize, Refusal, Stored

if TYPE_CHECKING:  # numpy is not for those who only plan
    from numpy.typing import NDArray

Bytes: TypeAlias = "NDArray[Any]"  # uint8
ReadRange = Callable[[Stored, int, int], "Bytes"]  # (tensor, first byte, bytes) → what the file holds there
Take = Callable[[int, int], "NDArray[Any]"]  # (first row, rows) → float32, rows × columns


@dataclass(frozen=True, kw_only=True)
class Unpacked:
    """Every tensor of the model in file order: logical ones where something is packed, plain ones as they are."""

    tensors: dict[str, Stored]
    refusals: tuple[Refusal, ...] = ()


class Rows(Protocol):
    """One opened logical tensor; its small parts are read once, the large one by range."""

    def rows(self, first: int, count: int) -> NDArray[Any]:
        """Rows as float32, count × columns, of the tensor seen as shape[0] × the rest (stacks of experts: E·R × C)."""


class Reader(Protocol):
    """A form that can be read. A module with these names is one."""

    @property
    def NAME(self) -> str:
        """Its name in a plan."""

    def recognises(self, config: Json) -> bool:
        """Whether config.json's `quantization_config` says that the weights are stored so."""

    def small_keys(self, keys: Iterable[str]) -> list[str]:
        """Tiny tensors whose contents planning needs."""

    def unpack(self, stored: Mapping[str, Stored], config: Json, small: Mapping[str, bytes]) -> Unpacked:
        """The model's own tensors."""

    def opener(self, tensor: Stored, read: ReadRange) -> Rows:
        """A logical tensor of this form, ready to be read."""


class Writer(Protocol):
    """A form that can be written. A module with these names is one."""

    @property
    def NAME(self) -> str:
        """Its name in a plan."""

    def applies(self, key: str, shape: tuple[int, ...]) -> bool:
        """Whether a weight of this shape can be stored so."""

    def parts(self, key: str, shape: tuple[int, ...]) -> list[tuple[str, str, tuple[int, ...]]]:
        """(key, safetensors dtype, shape) of what is stored for one weight."""

    def quantise(self, key: str, rows: Take, shape: tuple[int, ...]) -> Iterator[tuple[str, int, Bytes]]:
        """(part's key, byte offset in it, bytes), streaming; `rows` may be asked for the same rows twice."""

    def quantization_config(self, config: Json, left: Iterable[str]) -> Json:
        """What config.json gets. `left`: the Linear modules that stay as they are."""


READERS: tuple[Reader, ...] = (four_bit, int8, fp8, mxfp4, compressed_tensors, torchao, simulated)
WRITERS: dict[str, Writer] = {
    "nf4": writer.NF4,
    "fp4": writer.FP4,
    "int8": writer.INT8,
    "fp8": writer_channel,
}


def quantization_of(config: Json) -> Json | None:
    """The quantization_config of a config.json or of its text config; None for a plain checkpoint."""
    nested = config.get("text_config")
    for place in (config, nested if isinstance(nested, dict) else {}):
        found = place.get("quantization_config")
        if isinstance(found, dict) and found:
            return found
    return None


def open_packed(tensor: Stored, read: ReadRange) -> Rows:
    """A logical tensor, ready to be read."""
    assert tensor.packed is not None
    reader = next(reader for reader in READERS if tensor.packed.format == reader.NAME)
    return reader.opener(tensor, read)


def small_keys(keys: Iterable[str], config: Json) -> list[str]:
    """Tiny tensors whose contents planning needs."""
    reader = _reader_of(config)
    return reader.small_keys(keys) if reader else []


def unpack(stored: Mapping[str, Stored], config: Json, small: Mapping[str, bytes], card: Json) -> Unpacked:
    """The model's own tensors of a quantised checkpoint; a form that nobody reads is a refusal."""
    reader = _reader_of(config)
    if reader is None:
        return Unpacked(tensors=dict(stored), refusals=(refusal_of(config, card),))
    return reader.unpack(stored, config, small)


def writer_of(op: Quantize) -> Writer:
    """Who stores what this op makes."""
    if op.writer != "same":
        return writer_named(op.writer)
    assert op.make.source is not None
    return writer_same.OwnFp8(tensor=op.make.source)


def writer_named(name: str) -> Writer:
    """A writer by its name, or by that with words behind it (see `adapted`)."""
    return writer.adapted(name) if " " in name else WRITERS[name]


def adapted(name: str, dtype: str, turned: bool) -> str | None:
    """The name of this writer for weights of this dtype (torch's word), `turned`: stored in × out. None where it does not take
    such weights."""
    if not isinstance(WRITERS[name], writer.Bnb):
        return None if turned else name
    return f"{name} {dtype}{' turned' if turned else ''}"


def _reader_of(config: Json) -> Reader | None:
    return next((reader for reader in READERS if reader.recognises(config)), None)
