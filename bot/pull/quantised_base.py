"""A quantised base: its 16-bit parent where that is asked for, and the tiny tensors that say how it is packed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bot import formats
from bot.errors import Refused
from bot.events import Emit, Note
from bot.pull.texts import read_json
from bot.pull.weights import read_span
from bot.records import Ref, Source

if TYPE_CHECKING:
    from bot.hub import Hub

LARGEST = 1 << 16  # bytes; such a tensor holds a few hundred


def select_base(base: Source, asked: str, pin: Callable[[Ref], Source], hub: Hub, emit: Emit) -> Source:
    """The base to merge into. `asked`: what `--base-weights` says; `pin`: pins another base. Raises Refused."""
    config = read_json(base, "config.json")
    if formats.quantization_of(config) is None:
        return base
    if asked == "original":
        return _parent(base, pin, emit)
    keys = set(formats.small_keys([t.key for header in base.headers for t in header.tensors], config))
    wanted = [tensor for header in base.headers for tensor in header.tensors if tensor.key in keys]
    large = [tensor.key for tensor in wanted if tensor.stop - tensor.start > LARGEST]
    if large:
        raise Refused(f"{large[0]} of {base.called} is too large to be what its name says.", remedy="Check the repo.")
    with ThreadPoolExecutor(max_workers=8) as pool:
        contents = list(pool.map(lambda tensor: read_span(base, tensor.file, tensor.start, tensor.stop, hub), wanted))
    return replace(base, small={tensor.key: content for tensor, content in zip(wanted, contents, strict=True)})


def original_at_hand(base: Source, hub: Hub) -> Path | None:
    """The 16-bit model that a quantised base was made from, where all of it lies in the Hub's cache; else None."""
    config = read_json(base, "config.json")
    name = formats.parent_of(config, base.card, base.repo) if formats.quantization_of(config) is not None else None
    folder = hub.cached_folder(name) if name else None
    plain = folder is not None and b'"quantization_config"' not in (folder / "config.json").read_bytes()
    return folder if plain else None


def _parent(base: Source, pin: Callable[[Ref], Source], emit: Emit) -> Source:
    name = formats.parent_of(read_json(base, "config.json"), base.card, base.repo)
    if name is None:
        raise Refused(
            f"{base.called} is quantised, and neither its card nor its name says which 16-bit model it was made from.",
            remedy="Name that model with --base.",
        )
    emit(Note(text=f"base-weights: original: {name}, which {base.called} was quantised from."))
    parent = pin(Ref(text=name, repo=name))
    if formats.quantization_of(read_json(parent, "config.json")) is not None:
        raise Refused(
            f"{name}, which {base.called} was made from, is quantised too.", remedy="Name the 16-bit model with --base."
        )
    return parent
