"""The merged folder's tokenizer against its owner's: the adapter's, where that can be loaded, else the base's; of an adapter
that ships settings without a vocabulary, the base's under those settings.

transformers chooses a tokenizer's class by the `model_type` of the config.json beside it, too (AutoTokenizer): beside a
qwen2 config, a LlamaTokenizerFast of DeepSeek's becomes a Qwen2Tokenizer, with other token numbers. An adapter's folder has no
config.json, so its tokenizer is loaded once by itself and, where that is another one, once beside the base's config.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bot.checks.behaviour.job import WorkerJob
from bot.checks.behaviour.probe_inputs import TEXTS, has_tokenizer, load_tokenizer
from bot.checks.folder.special_tokens import ADDED, CONFIG, MAP, vocabulary_files

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
NOT_COPIED = (".py", ".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".ckpt")
MODEL = "config.json"


def compare_tokenizers(merged: Any, job: WorkerJob) -> tuple[list[str], list[str]]:
    """(faults, remarks): where the merged folder's tokenizer says otherwise than its owner's. A remark where that is so
    only because of the config.json beside it, which the base has as well."""
    adapter, base = job.adapter, job.base
    with TemporaryDirectory(dir=job.work) as work:
        folder = Path(work)
        if not vocabulary_files(adapter):
            owner = _base_under_settings(base, adapter, folder, job)
            return ([] if owner is None else differences(merged, owner)), []
        alone = _loaded(adapter, job.trusts(adapter))
        owner = alone if alone is not None else _loaded(base, job.trusts(base))
        faults = differences(merged, owner) if owner is not None else []
        if alone is None or not faults:
            return faults, []
        _copy(adapter, folder, {MODEL})
        shutil.copyfile(base / MODEL, folder / MODEL)
        beside = _loaded(folder, trust=False)
    if beside is None or differences(merged, beside):
        return faults, []
    by_itself, own = type(alone).__name__, type(merged).__name__
    why = f"as a {by_itself} by itself, and beside a config.json like the base's as a {own}"
    return [], [f"transformers reads the adapter's tokenizer {why}: {'; '.join(faults)}"]


def _base_under_settings(base: Path, adapter: Path, folder: Path, job: WorkerJob) -> Any:
    """The base's tokenizer with the adapter's settings, where it ships some; None where that cannot be loaded."""
    if not any((adapter / name).is_file() for name in (CONFIG, MAP, ADDED)):
        return _loaded(base, job.trusts(base))
    _copy(base, folder, {MAP} if (adapter / CONFIG).is_file() else set())
    _copy(adapter, folder, {MODEL})
    return _loaded(folder, trust=False)


def differences(merged: Any, owner: Any) -> list[str]:
    """Where one tokenizer says otherwise than another: special tokens, how many there are, token numbers of texts."""
    faults = [f"{name} is {getattr(merged, name)!r} ({getattr(merged, f'{name}_id')}), and should be {getattr(owner, name)!r} "
            f"({getattr(owner, f'{name}_id')})" for name in NAMES if _token(merged, name) != _token(owner, name)]  # fmt: skip
    if len(merged) != len(owner):
        faults.append(f"the tokenizer has {len(merged)} tokens, and should have {len(owner)}")
    added = " ".join(sorted(map(str, owner.get_added_vocab()))[:64])
    texts = [f"{TEXTS[0]} {added}", *TEXTS]
    other = sum(merged(text)["input_ids"] != owner(text)["input_ids"] for text in texts)
    return faults + ([f"{other} of {len(texts)} texts have other token numbers"] if other else [])


def _token(tokenizer: Any, name: str) -> tuple[Any, Any]:
    return getattr(tokenizer, name), getattr(tokenizer, f"{name}_id")


def _loaded(folder: Path, trust: bool) -> Any:
    """The folder's tokenizer; None where it has none that can be loaded by itself."""
    if not has_tokenizer(folder):
        return None
    try:
        return load_tokenizer(folder, trust)
    except Exception:  # whatever a tokenizer's class raises for files that it has not
        return None


def _copy(source: Path, target: Path, but: set[str]) -> None:
    """A folder's small files: no code, and no weights."""
    for path in source.iterdir():
        if path.is_file() and path.suffix not in NOT_COPIED and path.name not in but:
            shutil.copyfile(path, target / path.name)
