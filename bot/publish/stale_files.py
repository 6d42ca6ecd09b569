"""Which files of the target would mislead a loader beside the new weights, and so go in the same commit."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Whatever from_pretrained or an inference server would pick up by itself from the repo's root.
WEIGHTS = r"[^/]+\.(safetensors|bin|pt|pth|ckpt|h5|msgpack)|[^/]+\.index\.json"
ADAPTER = r"adapter_config\.json|adapter_model\.[^/]+"
CONFIGS = (
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|quantize_config|"
    r"(hf_)?quant_config|processor_config|preprocessor_config|chat_template)\.json|merges\.txt|vocab\.txt|chat_template\.jinja|"
    r"additional_chat_templates/[^/]+|[^/]+\.model(\.v\d+)?|[^/]+\.tiktoken|[^/]+\.py"
)
OURS = r"verification\.png|model\.sig"  # drawn of another report; the signature of other files
MISLEADING = re.compile(f"{WEIGHTS}|{ADAPTER}|{CONFIGS}|{OURS}")
NESTED_WEIGHTS = re.compile(r".+/[^/]+\.(safetensors|bin|pt|pth|onnx)|.*\.gguf")


def is_weights(name: str) -> bool:
    """Whether a loader would take the file for a model's weights."""
    return re.fullmatch(WEIGHTS, name) is not None


def stale_files(there: Iterable[str], ours: Iterable[str]) -> tuple[str, ...]:
    """Files of the target that the commit deletes. README.md, licenses, pictures and other folders are its owner's."""
    return tuple(sorted(name for name in set(there) - set(ours) if MISLEADING.fullmatch(name)))


def outdated_weights(there: Iterable[str], ours: Iterable[str]) -> tuple[str, ...]:
    """Weights of an older merge that nobody loads by accident: they are kept, with a warning."""
    return tuple(sorted(name for name in set(there) - set(ours) if NESTED_WEIGHTS.fullmatch(name)))
