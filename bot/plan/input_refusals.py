"""What is wrong with the files of a base, or missing from those of an adapter."""

from __future__ import annotations

import re
from dataclasses import replace

from bot.assets import read_json
from bot.checkpoint.shards import INDEX_NAME
from bot.records import Json, Refusal, Source

# The weights of a sentence-transformers module, e.g. 2_Dense, as a pickle: copied they would be code.
MODULE_WEIGHTS = re.compile(r"(\w+_)?\d+_\w+/[\w.-]+\.safetensors")
MODULE_PICKLE = re.compile(r"((?:\w+_)?\d+_\w+/)[^/]+\.(?:bin|pt|pth|ckpt|pkl)")
NEW_ROWS = "new_embeddings.safetensors"


def base_refusals(base: Source, config: Json) -> list[Refusal]:
    refusals = []
    if not config:
        reason = "The base has no config.json, so it is not a transformers model."
        refusals.append(Refusal(code="no-config", reason=reason, remedy="Name the base with --base owner/name."))
    names = {entry.name for entry in base.files}
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
