"""An adapter's files as the verifier reads them: where each tensor lies, what its name says, and which settings it does not know.

What a name says (which module, which part of it) needs no base and no model. Read are PEFT's own forms since 0.6, and those that
wrappers leave behind: `module.`, `_orig_mod.`, `_fsdp_wrapped_module.`, an adapter's name in the key (`lora_A.default.weight`), a
magnitude with and without `.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bot.checkpoint.header import read_header
from bot.checks.reading.checkpoint import TensorRef
from bot.records import Json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FRONTS = ("base_model.model.", "module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

Part = Literal[
    "A", "B", "A-bias", "B-bias", "embedding-A", "embedding-B", "magnitude", "tokens", "saved", "copy", "plain", "unused",
]  # fmt: skip


def tensors_of(adapter: Path) -> dict[str, TensorRef]:
    """The tensors of an adapter's folder by their keys; only the header is read."""
    path = adapter / WEIGHTS
    return {stored.key: TensorRef(path=path, stored=stored) for stored in read_header(path).tensors}


def unknown_settings(config: Json, known: Collection[str]) -> list[str]:
    """A sentence for each field that is switched on and not among the known ones."""
    return [f"The adapter sets {key}, which this verifier does not know." for key, value in sorted(config.items())
            if key not in known and value not in (None, False, [], {}, "")]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Named:
    """`module` is the module's name, `tail` the parameter's below it (saved, copy, plain). `depth`: of wrappers inside it."""

    module: str
    part: Part
    tail: str = ""
    name: str = ""  # the adapter's, where the key has one
    depth: int = 0


NAME = r"(?:\.(?P<name>[^.]+))?"
FORMS: tuple[tuple[re.Pattern[str], Part | None], ...] = (
    (re.compile(rf"(?P<module>.+)\.lora_(?P<half>A|B){NAME}\.(?P<what>weight|bias)"), None),
    (re.compile(rf"(?P<module>.+)\.lora_embedding_(?P<half>A|B){NAME}"), None),
    (re.compile(r"(?P<module>.+)\.lora_magnitude_vector(?:\.(?P<name>(?!weight$)[^.]+))?(?:\.weight)?"), "magnitude"),
    (re.compile(rf"(?P<module>.+?)(?:\.token_adapter)?\.trainable_tokens_original{NAME}"), "unused"),
    (re.compile(rf"(?P<module>.+?)(?:\.token_adapter)?\.trainable_tokens_delta{NAME}"), "tokens"),
    (re.compile(r"(?P<module>.+?)\.modules_to_save\.(?P<tail>.+)"), "saved"),
    (re.compile(r"(?P<module>.+?)\.original_module\.(?P<tail>.+)"), "copy"),
    (re.compile(r"(?P<module>.+?)(?:\.token_adapter)?(?P<depth>(?:\.base_layer)+)\.(?P<tail>[^.]+)"), "copy"),
    (re.compile(r"(?P<module>.+)\.(?P<tail>[^.]+)"), "plain"),
)
HALVES: dict[tuple[str, str | None], Part] = {
    ("A", "weight"): "A", ("B", "weight"): "B", ("A", "bias"): "A-bias", ("B", "bias"): "B-bias",
    ("A", None): "embedding-A", ("B", None): "embedding-B",
}  # fmt: skip


def bare(key: str) -> str:
    """The key without what wrappers put in front of it or into it."""
    key = WRAPPERS.sub("", key)
    while front := next((wrapper for wrapper in FRONTS if key.startswith(wrapper)), None):
        key = key.removeprefix(front)
    return key


def read_key(key: str, names: frozenset[str]) -> Named | None:
    """What a key says. `names`: the adapter names that the file is known to use. None: no form fits."""
    plain = bare(key)
    for form, part in FORMS:
        if match := form.fullmatch(plain):
            groups = match.groupdict()
            module, depth = _unwrapped(groups["module"], part)
            tail = groups.get("tail") or ""
            if part == "saved" and tail.split(".", 1)[0] in names and "." in tail:
                tail = tail.split(".", 1)[1]
            part = part or HALVES[groups["half"], groups.get("what")]
            return Named(module=module, part=part, tail=tail, name=groups.get("name") or "", depth=depth)
    return None


def names_in(keys: list[str]) -> frozenset[str]:
    """The adapter names that a file's keys carry; PEFT's own is `default`."""
    adapter_names = {named.name for key in keys if (named := read_key(key, frozenset())) and named.name}
    return frozenset(adapter_names | {"default"})


def _unwrapped(module: str, part: Part | None) -> tuple[str, int]:
    """Wrappers around one module's several parameters nest: `experts.base_layer.lora_A` is one deeper than `experts.lora_A`."""
    depth = 0
    while part is None and module.endswith(".base_layer"):
        module, depth = module.removesuffix(".base_layer"), depth + 1
    return module.replace(".base_layer.", "."), depth
