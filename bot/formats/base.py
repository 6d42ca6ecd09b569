"""What a format is: the protocols of readers and writers, and where a config.json names a format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from bot.records import Json, Refusal, Stored

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

    NAME: str  # in a plan

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


def small_keys(keys: Iterable[str]) -> list[str]:
    """Of a form whose shapes say everything."""
    return []


def quantization_of(config: Json) -> Json | None:
    """The quantization_config of a config.json or of its text config; None for a plain checkpoint."""
    for level in _levels(config):
        quantization = level.get("quantization_config")
        if isinstance(quantization, dict) and quantization:
            return quantization
    return None


def dtype_of(config: Json) -> str:
    """The dtype that config.json names, its text config's, else bfloat16."""
    for level in _levels(config):
        for name in ("dtype", "torch_dtype"):
            if level.get(name) in ("bfloat16", "float16", "float32"):
                return str(level[name])
    return "bfloat16"


def _levels(config: Json) -> tuple[Json, Json]:
    text_config = config.get("text_config")
    return config, text_config if isinstance(text_config, dict) else {}
