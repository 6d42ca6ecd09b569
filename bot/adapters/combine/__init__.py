"""combine: several LoRA adapters become one, which is then planned, merged and verified like any other.

`predict` derives everything about it but its numbers from headers and configs, so that a merge can be planned before
anything is downloaded; `combine` computes and writes it: a folder that PEFT can load, with canonical keys, float64
numbers, and a scaling of 1 everywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bot.adapters.combine import notation
from bot.adapters.combine.adapter_input import AdapterInput, read_adapter_input
from bot.adapters.combine.outline import CONFIG, WEIGHTS, Outline, config_bytes, notes, outline
from bot.assets import KINDS
from bot.checkpoint.header import read_header
from bot.records import Combination, FileEntry, Json, Ref, Refusal, Source

__all__ = ["Predicted", "combine", "notation", "predict"]

TEXT_KINDS = ("tokenizer", "chat template")  # taken together from one adapter


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """The combined adapter, as `pin` would find it if it existed already. `origins`: file → index of its adapter."""

    source: Source
    adapters: tuple[Source, ...]
    how: Combination
    adapter_inputs: tuple[AdapterInput, ...]
    outline: Outline
    origins: dict[str, int]
    refusals: tuple[Refusal, ...]
    notes: tuple[str, ...]


def predict(adapters: Sequence[Source], how: Combination) -> Predicted:
    """The combined adapter from pinned ones, their headers and configs. `how` has all its defaults (`notation.with_defaults`)."""
    assert len(how.weights) == len(adapters)
    adapter_inputs, refusals = [], []
    for index, adapter in enumerate(adapters):
        adapter_input, refused = read_adapter_input(adapter, index)
        adapter_inputs.append(adapter_input)
        refusals += refused
    planned, unlike = outline(adapter_inputs, how)
    origins, differing = _origins(adapters)
    return Predicted(
        source=_source(adapters, how, planned, origins),
        adapters=tuple(adapters),
        how=how,
        adapter_inputs=tuple(adapter_inputs),
        outline=planned,
        origins=origins,
        refusals=(*refusals, *unlike),
        notes=(*notes(adapter_inputs, how), *differing),
    )


def combine(predicted: Predicted, folders: Sequence[Path], target: Path) -> Path:
    """Compute the combined adapter from the adapters' local folders and write it to `target`, whole or not at all.

    Raises Refused for adapters whose bytes forbid it: not those that were pinned, not finite, or disagreeing on a copy.
    """
    from bot.adapters.combine.compute import write_weights  # imports numpy, which a plan does not need

    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    write_weights(predicted.outline, predicted.adapter_inputs, predicted.how, folders, part / WEIGHTS)
    assert read_header(part / WEIGHTS, role="adapter") == predicted.outline.header
    (part / CONFIG).write_bytes(config_bytes(predicted.outline.config))
    for name, index in predicted.origins.items():
        if (folders[index] / name).is_file():  # only what the merge has a use for was fetched
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folders[index] / name, part / name)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(part, target)
    return target


# --- the source that it will be -----------------------------------------------------------------------------------


def _source(adapters: Sequence[Source], how: Combination, planned: Outline, origins: dict[str, int]) -> Source:
    files = [
        FileEntry(name=entry.name, size=entry.size, sha256=entry.sha256, here=entry.here)
        for index, adapter in enumerate(adapters)
        for entry in adapter.files
        if origins.get(entry.name) == index
    ]
    config = config_bytes(planned.config)
    files += [
        FileEntry(name=CONFIG, size=len(config), sha256=hashlib.sha256(config).hexdigest(), here=True),
        FileEntry(name=WEIGHTS, size=planned.header.file_size, here=True),
    ]
    texts = {name: adapters[index].texts[name] for name, index in origins.items() if name in adapters[index].texts}
    gates = [adapter.gated for adapter in adapters if adapter.gated]
    return Source(
        role="adapter",
        ref=Ref(text=" + ".join(adapter.called for adapter in adapters)),
        repo=None,
        revision=None,
        sha=_sha(adapters, how),
        files=tuple(sorted(files, key=lambda entry: entry.name)),
        headers=(planned.header,),
        texts={**texts, CONFIG: config},
        private=any(adapter.private for adapter in adapters),
        gated="manual" if "manual" in gates else next(iter(gates), None),
        card=_card(adapters),
    )


def _sha(adapters: Sequence[Source], how: Combination) -> str:
    """`sha256:…` over the canonical JSON of what decides its numbers: the pins, in their order, and the combination."""
    decides = {"adapters": [adapter.pin for adapter in adapters], "combination": notation.to_json(how)}
    return f"sha256:{hashlib.sha256(json.dumps(decides, sort_keys=True, separators=(',', ':')).encode()).hexdigest()}"


def _card(adapters: Sequence[Source]) -> Json:
    """The first card, with every license, language, data set and tag that any of them names."""
    card = dict(adapters[0].card)
    for name in ("license", "language", "datasets", "tags"):
        values = [adapter.card.get(name) for adapter in adapters]
        union = list(dict.fromkeys(str(v) for value in values for v in (value if isinstance(value, list) else [value])
                                   if isinstance(v, str)))  # fmt: skip
        if union:
            card[name] = union
    return card


def _origins(adapters: Sequence[Source]) -> tuple[dict[str, int], list[str]]:
    """Which adapter each asset is taken from, and notes: the whole set of one adapter, so that no tokenizer is mixed, and
    the licenses of all."""
    owned = [{entry.name: kind for entry in adapter.files if (kind := _kind(entry))} for adapter in adapters]
    main = next((index for index, names in enumerate(owned) if set(names.values()) & set(TEXT_KINDS)), 0)
    origins = dict.fromkeys(owned[main], main)
    differing = []
    for index, names in enumerate(owned):
        for name, kind in names.items():
            if kind == "license":
                origins.setdefault(name, index)
        other = [name for name, kind in names.items() if kind in TEXT_KINDS and _differs(adapters, name, main, index)]
        if other:
            owner, rival = adapters[main].called, adapters[index].called
            differing.append(f"The tokenizer and chat template are {owner}'s; {rival} brings another {other[0]}.")
    return origins, differing


def _differs(adapters: Sequence[Source], name: str, index: int, other: int) -> bool:
    """Whether two adapters' files of a name are known to differ, by text, size or hash."""
    if index == other:
        return False
    texts = [adapters[at].texts.get(name) for at in (index, other)]
    entries = [next((entry for entry in adapters[at].files if entry.name == name), None) for at in (index, other)]
    if texts[0] is not None and texts[1] is not None:
        return texts[0] != texts[1]
    first, second = entries
    if first is None or second is None:
        return True
    hashes = {first.sha256, second.sha256}
    return first.size != second.size or (None not in hashes and len(hashes) == 2)


def _kind(entry: FileEntry) -> str | None:
    return next((kind for kind, pattern, wins in KINDS if wins and pattern.fullmatch(entry.name)), None)
