"""Which files of a source count: those that a merge reads or copies, or may refuse for. The rest (what a trainer keeps to go
on training, earlier checkpoints, the same weights in other formats) is neither fetched nor hashed, and is in no fingerprint."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace

from bot import assets
from bot.pull import texts
from bot.records import Role, Source

# What a plan refuses or tells by name: rows of new tokens, and modules of sentence-transformers that are pickles.
REFUSED = {
    "adapter": re.compile(r"new_embeddings\.safetensors"),
    "base": re.compile(r"(\w+_)?\d+_\w+/[^/]+\.(bin|pt|pth|ckpt|pkl)"),
}

# What trainers (transformers, accelerate, DeepSpeed, torchtune) keep to go on training: no weights of the model, or all of it.
TRAINING = re.compile(
    r"((optimizer|scheduler|lr_scheduler|scaler|sampler|training_args|trainer_state|dl_state_dict|rng_state|random_states)"
    r"(_\d+)*|recipe_state|(\w+_)?mp_rank_\d+_(model|optim)_states)\.(pt|pth|bin|pkl|safetensors)"
)
# An earlier state of the same training.
CHECKPOINT = re.compile(
    r"(tmp-)?(checkpoint|global_step|step|epoch)[-_]?\d+|(last|best)-checkpoint|checkpoint-(last|best)"
)
LOGS = re.compile(r"events\.out\.tfevents\..+|runs|wandb|mlruns|logs")


def counting(source: Source, weights: Collection[str]) -> Source:
    """The source with no other files than those that count. `weights`: the names of its weight files."""
    files = tuple(entry for entry in source.files if entry.name in weights or is_read(entry.name, source.role))
    return replace(source, files=files)


def is_read(name: str, role: Role) -> bool:
    """Whether a merge reads or copies a file of that name, which is no weight."""
    known = texts.NAMES.fullmatch(name) or REFUSED[role].fullmatch(name)
    return known is not None or assets.kind_of(name, role) is not None


def is_a_trainers(name: str) -> bool:
    """Whether a trainer keeps a file or folder of that name, without its path, for itself: no merge looks into it."""
    return any(kept.fullmatch(name) for kept in (TRAINING, CHECKPOINT, LOGS))
