"""How weights are stored that are not plain numbers: who reads which form, and who writes which.

To add a form, write a module that satisfies Reader or Writer and add one line to READERS or WRITERS.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bot.formats import compressed_tensors, torchao
from bot.formats.base import Reader, ReadRange, Rows, Unpacked, Writer
from bot.formats.base import dtype_of as dtype_of
from bot.formats.base import quantization_of as quantization_of
from bot.formats.bitsandbytes import four_bit, int8, simulated, writer
from bot.formats.bitsandbytes import linears as linears
from bot.formats.compressed_tensors import is_rotated as is_rotated
from bot.formats.fp8 import reader as fp8
from bot.formats.fp8 import writer_channel, writer_same
from bot.formats.mxfp4 import reader as mxfp4
from bot.formats.mxfp4 import writer as mxfp4_writer
from bot.formats.unsupported import parent_of as parent_of
from bot.formats.unsupported import refusal_of
from bot.records import Json, Quantize, Stored, WriterChoice

READERS: tuple[Reader, ...] = (four_bit, int8, fp8, mxfp4, compressed_tensors, torchao, simulated)
WRITERS: dict[str, Writer] = {"nf4": writer.NF4, "fp4": writer.FP4, "int8": writer.INT8, "fp8": writer_channel}


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


def writer_of(op: Quantize, read: ReadRange) -> Writer:
    """Who stores what this op makes. `read`: the base's own bytes, some of which may be to be written again."""
    if op.writer.name == "same":
        assert op.make.source is not None
        chosen = same_writer(op.make.source, op.writer.dtype, read)
    else:
        chosen = writer_for(op.writer)
    assert chosen is not None
    return chosen


def same_writer(tensor: Stored, dtype: str, read: ReadRange | None = None) -> Writer | None:
    """The writer of the form that a base's packed weight has, in a model of this dtype; None where there is none. `read`: as
    `writer_of` has it; who only plans has none."""
    assert tensor.packed is not None
    if tensor.packed.format == mxfp4.NAME:
        return mxfp4_writer.SameMxfp4Writer(tensor=tensor, read=read)
    if writer_same.writes(tensor):
        return writer_same.SameFp8Writer(tensor=tensor)
    return writer.writer_same(tensor, dtype)


def writer_for(choice: WriterChoice) -> Writer | None:
    """The writer for such weights; None where it does not take transposed ones."""
    named = WRITERS[choice.name]
    if isinstance(named, writer.BitsAndBytesWriter):
        return named.for_model(dtype=choice.dtype, transposed=choice.transposed)
    return None if choice.transposed else named


def _reader_of(config: Json) -> Reader | None:
    return next((reader for reader in READERS if reader.recognises(config)), None)
