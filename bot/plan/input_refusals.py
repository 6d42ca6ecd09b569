"""What is wrong with the files of a base, or missing from those of an adapter; and code that the output's configs would name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from bot import formats
from bot.assets import FORM_KIND, kind_of, read_json
from bot.checkpoint.shards import INDEX_NAME
from bot.records import Asset, Json, Options, Refusal, Source

REFERENCE = re.compile(r"(?:(?P<repo>[^\s]+)--)?(?P<module>[A-Za-z_]\w*)\.[A-Za-z_]\w*")
READ_IT = "Read that code, then pass --trust-remote-code; or name a base that brings its own."
# The weights of a sentence-transformers module, e.g. 2_Dense, as a pickle: copied they would be code.
MODULE_WEIGHTS = re.compile(r"(\w+_)?\d+_\w+/[\w.-]+\.safetensors")
MODULE_PICKLE = re.compile(r"((?:\w+_)?\d+_\w+/)[^/]+\.(?:bin|pt|pth|ckpt|pkl)")
PACKED = ("U8", "I8", "I16", "I32", "F8_E4M3", "F8_E5M2")  # as no plain weight is stored
NEW_ROWS = "new_embeddings.safetensors"


def base_refusals(base: Source, config: Json) -> list[Refusal]:
    refusals = []
    if not config:
        reason = "The base has no config.json, so it is not a transformers model."
        refusals.append(Refusal(code="no-config", reason=reason, remedy="Name the base with --base owner/name."))
    names = {entry.name for entry in base.files}
    if form := _unsaid_form(base, config, names):
        reason = f"{form} says that the base's weights are quantised, and its config.json has no quantization_config."
        remedy = "Name a revision whose config.json has it, or the 16-bit model that it was made from, with --base."
        refusals.append(Refusal(code="quantised-base", reason=reason, remedy=remedy))
    pickles = {name: match[1] for name in names if (match := MODULE_PICKLE.fullmatch(name))}
    pickled = [name for name, folder in pickles.items() if f"{folder}model.safetensors" not in names]
    if pickled and "modules.json" in names:
        reason = (
            f"The base has a module whose weights are a pickle ({min(pickled)}), which can run code when it is read."
        )
        remedy = "Save the base again with sentence-transformers 3 or later, or keep the adapter separate."
        refusals.append(Refusal(code="module-weights", reason=reason, remedy=remedy))
    unnamed = sorted(name for name in names if MODULE_WEIGHTS.fullmatch(name)) if "modules.json" not in names else []
    if unnamed:
        reason = f"The base has modules with weights of their own ({unnamed[0]}), and no modules.json that says what they are for."
        remedy = "Add the modules.json of sentence-transformers, or remove those folders from the base."
        refusals.append(Refusal(code="module-weights", reason=reason, remedy=remedy))
    seen: set[str] = set()
    for tensor in (tensor for header in base.headers for tensor in header.tensors):
        if tensor.key in seen:
            reason = f"The base stores {tensor.key} twice."
            refusals.append(Refusal(code="key-twice", reason=reason, remedy="Take another revision of the base."))
        seen.add(tensor.key)
    for key, file in (read_json(base, INDEX_NAME).get("weight_map") or {}).items():
        if key not in seen:
            reason = f"The base's index promises {key} in {file}, which does not hold it."
            refusals.append(Refusal(code="index-lies", reason=reason, remedy="Take another revision of the base."))
            break
    return refusals


def _unsaid_form(base: Source, config: Json, names: set[str]) -> str | None:
    """The file that alone says how the weights are packed; no loader would know of a result of it. One beside weights that are all
    plain is a leftover."""
    named = sorted(name for name in names if kind_of(name, "base") == FORM_KIND)
    if not named or formats.quantization_of(config) is not None:
        return None
    packed = any(t.dtype in PACKED and len(t.shape) > 1 for header in base.headers for t in header.tensors)
    return named[0] if packed else None


def with_new_rows(refusals: list[Refusal], adapter: Source) -> list[Refusal]:
    """The refusals, and what they do not say of rows of new tokens that some trainers put into a file of their own."""
    if not any(entry.name == NEW_ROWS for entry in adapter.files):
        return refusals
    if not refusals:  # nothing else misses these rows; they are trained all the same, and must not be dropped silently
        reason = f"Rows of new tokens lie in {NEW_ROWS} beside the adapter, which this version does not read."
        remedy = "Save it again with save_embedding_layers=True, or keep the adapter separate."
        return [Refusal(code="rows-not-saved", reason=reason, remedy=remedy)]
    note = f" (Rows of new tokens lie in {NEW_ROWS}, which this version does not read.)"
    return [
        replace(refusal, reason=refusal.reason + note) if refusal.code == "rows-not-saved" else refusal
        for refusal in refusals
    ]


def code_refusals(base: Source, adapter: Source, assets: Iterable[Asset], options: Options) -> list[Refusal]:
    """What is refused at every level, of the code that the output's configs name (`auto_map`): code of another repo
    (unless it is trusted), and code that nobody would find. The merge runs none, and must not publish a pointer to a stranger's."""
    there = {entry.name for entry in base.files}
    refusals: dict[str, Refusal] = {}
    for name, role, reference in _named(base, adapter, assets):
        match = REFERENCE.fullmatch(reference)
        whose = f"{name} of the {role}"
        if match is None:
            reason = f"{whose} names {reference[:100]!r} as code, which is no class of a file."
            refusal = Refusal(code="code-elsewhere", reason=reason, remedy="Do not trust it; name another revision.")
        elif match["repo"] is not None and not options.trust_remote_code:
            reason = (
                f"{whose} names code of another repo ({reference[:100]}), which whoever loads the result would run."
            )
            refusal = Refusal(code="code-elsewhere", reason=reason, remedy=READ_IT)
        elif match["repo"] is None and f"{match['module']}.py" not in there:
            reason = f"{whose} names code that the base does not have ({match['module']}.py)."
            remedy = "Take it out of that file; an adapter's own Python files are never carried over."
            refusal = Refusal(code="code-elsewhere", reason=reason, remedy=remedy)
        else:
            continue
        refusals.setdefault(refusal.reason, refusal)
    return list(refusals.values())


def _named(base: Source, adapter: Source, assets: Iterable[Asset]) -> Iterator[tuple[str, str, str]]:
    """(file, whose, module.Class) of every class that a config of the output names."""
    sources = {"base": base, "adapter": adapter}
    for asset in assets:
        text = sources[asset.source].texts.get(asset.name)
        if text is None or not asset.name.endswith(".json"):
            continue
        auto_map = json.loads(text).get("auto_map")
        for value in auto_map.values() if isinstance(auto_map, dict) else [auto_map] if auto_map else []:
            for name in value if isinstance(value, list) else [value]:
                if name is not None:
                    yield asset.name, asset.source, name if isinstance(name, str) else repr(name)[:100]
