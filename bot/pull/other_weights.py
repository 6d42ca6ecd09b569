"""Weights that lie beside the adapter's: known ones are passed over, and no other vanishes without a word."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from bot.errors import Refused
from bot.pull.relevant_files import CHECKPOINT, TRAINING
from bot.pull.weights import ADAPTER, PICKLE
from bot.records import Source

WEIGHTS = re.compile(r"[^/]+\.(safetensors|bin|pt|pth|ckpt)|model_head\.pkl")
# The adapter's own weights in another form: llama.cpp's and unsloth's, torchtune's.
SAME = re.compile(r"ggml-adapter-model[\w.-]*\.bin|adapter(_model|_\d+)\.pt")
MERGED = re.compile(r"(.+[-_])?merged([-_].+)?")  # axolotl's merge of the same adapter is merged/, a whole model
OF_A_MERGE = (ADAPTER, PICKLE, "new_embeddings.safetensors")  # what a merge reads, or refuses with a reason of its own
MODULES, MODULE = "modules.json", re.compile(r"(\w+_)?\d+_\w+")  # of sentence-transformers, e.g. 2_Dense
SHOWN = 3


def refuse_others(source: Source) -> None:
    """Raises Refused for trained weights beside the adapter's, by name: a merge would lose them."""
    names = {entry.name for entry in source.files}
    lost = sorted(name for name in names if _is_lost(PurePosixPath(name), names))
    if lost:
        shown = ", ".join(lost[:SHOWN]) + (f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else "")
        raise Refused(
            f"{source.called} holds weights beside the adapter's, which a merge would lose: {shown}.",
            remedy="Keep the adapter separate where they are part of the model. Where they are not (a value head of "
            f"RLHF, an export), copy adapter_config.json, {ADAPTER} and the tokenizer into a folder of their own.",
        )


def _is_lost(path: PurePosixPath, names: set[str]) -> bool:
    if not WEIGHTS.fullmatch(path.name) or TRAINING.fullmatch(path.name) or path.as_posix() in OF_A_MERGE:
        return False
    if SAME.fullmatch(path.as_posix()):
        return False
    if MERGED.fullmatch(path.parent.name) and f"{path.parent}/config.json" in names:
        return False
    folders = [parent.as_posix() for parent in path.parents if parent.name]
    if any(CHECKPOINT.fullmatch(part) or part.startswith(".") for part in path.parts):
        return False
    if any(f"{folder}/adapter_config.json" in names for folder in folders):
        return False  # another adapter, which nobody asked for
    return not (folders and MODULES in names and MODULE.fullmatch(path.parts[0]))
