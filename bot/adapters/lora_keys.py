"""The keys of a LoRA adapter's file: which module a tensor belongs to, and which part of it.

Keys are read in every form that PEFT has written since 0.6 and that trainers wrap around it (DDP, FSDP, torch.compile, an
adapter's name in the key).
"""

from __future__ import annotations

import re

WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
PREFIX = "base_model.model."

# (kind, pattern on the bare key). The first that matches says what a tensor is; `name` is an adapter's name.
KEYS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("lora", re.compile(r"(?P<module>.+?)\.lora_(?P<side>[AB])(?:\.(?P<name>[^.]+))?\.weight")),
    ("bias", re.compile(r"(?P<module>.+?)\.lora_B(?:\.(?P<name>[^.]+))?\.bias")),
    ("embedding", re.compile(r"(?P<module>.+?)\.lora_embedding_(?P<side>[AB])(?:\.(?P<name>[^.]+))?")),
    ("magnitude", re.compile(r"(?P<module>.+?)\.lora_magnitude_vector(?:\.(?P<name>(?!weight$)[^.]+))?(?:\.weight)?")),
    ("tokens", re.compile(r"(?P<module>.+?)\.(?:token_adapter\.)?trainable_tokens_delta(?:\.(?P<name>[^.]+))?")),
    ("ignored", re.compile(r".+\.trainable_tokens_original(?:\..+)?|.+\.original_module\..+")),
    ("saved", re.compile(r"(?P<module>.+?)\.modules_to_save(?:\.(?P<name>default))?\.(?P<rest>.+)")),
    ("base_layer", re.compile(r"(?P<module>.+?)(?:\.token_adapter)?\.base_layer\.(?P<rest>weight|bias)")),
    ("plain", re.compile(r"(?P<module>.+)\.(?P<rest>[^.]+)")),
)  # fmt: skip


def bare_key(key: str) -> str:
    """A key without the names of what was wrapped around the model."""
    return WRAPPERS.sub("", key.removeprefix(PREFIX)).removeprefix(PREFIX)


def read_key(bare: str) -> tuple[str, re.Match[str] | None]:
    """(kind, match) of a bare key; the match is None for a key of an unknown kind."""
    for kind, pattern in KEYS:
        if match := pattern.fullmatch(bare):
            return kind, match
    return "plain", None
