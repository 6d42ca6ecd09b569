"""Which files beside the weights go into a merged folder, from the base or from the adapter. Copied, never re-saved.

Re-saving loses content: transformers 5 rewrites tokenizer_class, which older readers do not know.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from bot.records import Asset, ConfigChange, FileEntry, Json, Role, Source, Sources

VOCABULARY = (  # each by itself, or with others of these, all that a tokenizer is made of
    r"tokenizer(\.\d[\w.]*)?\.json|(tokenizer|tiktoken)\.model(\.v\d+)?|vocab\.(json|txt)|merges\.txt|[\w.-]*\.tiktoken|"
    r"spiece\.model|sentencepiece[\w.]*\.model|source\.spm|target\.spm|tekken\.json|normalizer\.json|emoji\.json|bpe\.codes|"
    r"dict\.txt|spm(_char)?\.model|(target_|entity_)vocab\.json|vocab-(src|tgt)\.json|prophetnet\.tokenizer|byte_maps\.json|"
    r"word_(shape|pronunciation)\.json|(question_encoder|generator)_tokenizer/[\w.-]+\.(json|txt|model)"
)
SETTINGS = r"tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json"
TEMPLATE = r"chat_template\.(jinja|json)|additional_chat_templates/[\w.-]+\.jinja"
PROCESSOR = r"(pre)?processor_config\.json|(image|video|audio)[\w]*processor_config\.json|audio_tokenizer_config\.json"
SENTENCE = (
    r"modules\.json|sentence_[\w]*config\.json|config_sentence_transformers\.json|router_config\.json|"
    r"(\w+_)?\d+_\w+/[\w.-]+\.(json|txt|model|safetensors)"
)
# Read by name when a model or its processor is loaded: voices (tensors, which transformers reads with weights_only), and the
# head and the questions of a decision model.
BESIDE = (
    r"spk_dict\.pt|speaker_embeddings_path\.json|speaker_embeddings/([\w-]+/)*[\w.-]+\.npy|"
    r"decision\.json|decision_template\.jinja|(decision|judge)_config\.json|calibration\.json|(head|readout)\.safetensors"
)
# Whatever it is called, a program or a weight is no license.
NO_TEXT = r"(?!.*\.(pyc?|pyd|so|dll|exe|sh|bat|cmd|ps1|js|json|bin|pth?|ckpt|pkl|pickle|safetensors|gguf|h5|onnx|np[yz]|zip|gz|tar)$)"
LEGAL = NO_TEXT + r"(LICEN[SC]E|NOTICE|COPYING|USE_POLICY|ACCEPTABLE_USE)[\w.-]*"
CODE = r"([\w-]+/)*[\w-]+\.py"
# What quantisers said of a form beside config.json (AutoGPTQ, AutoAWQ, Model-Optimizer), and serving engines still read.
FORM = r"quantize_config\.json|quant_config\.json|hf_quant_config\.json"
FORM_KIND = "quantisation"

# (what it is, pattern, may the adapter's file replace the base's)
KINDS: tuple[tuple[str, re.Pattern[str], bool], ...] = (
    ("tokenizer", re.compile(f"{VOCABULARY}|{SETTINGS}"), True),
    ("chat template", re.compile(TEMPLATE), True),
    ("generation config", re.compile(r"generation_config\.json"), True),
    ("processor", re.compile(PROCESSOR), True),
    ("sentence-transformers", re.compile(SENTENCE), True),
    ("model's own", re.compile(BESIDE), False),
    ("license", re.compile(LEGAL, re.IGNORECASE), True),
    ("custom code", re.compile(CODE), False),
    (FORM_KIND, re.compile(FORM), False),
)
REMOVED: Any = object()  # an edit that takes a field out of config.json
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")


def choose_assets(
    base: Source,
    adapter: Source,
    dtype: str | None,
    edits: Mapping[str, Any] | None = None,
    changed: Asset | None = None,
) -> tuple[tuple[Asset, ...], tuple[ConfigChange, ...]]:
    """Every non-weight file of the output, and what its config.json changes. `dtype`: a new storage dtype, or None;
    `edits`: other declared changes, by dotted path; `changed`: another file with declared changes.

    An adapter's Python files are left behind: they train, they do not run the model.
    """
    chosen: dict[str, Asset] = {}
    for source in (base, adapter):
        for entry in source.files:
            if kind := kind_of(entry.name, source.role):
                chosen[entry.name] = Asset(name=entry.name, source=source.role, why=kind)
    _keep_both_licenses(chosen, base, adapter)
    for name in base_tokenizer_left_out(base, adapter):
        del chosen[name]
    _follow_template(chosen, base, adapter)
    if changed is not None:
        chosen[changed.name] = changed
    config, changes = _config(base, dtype, edits or {})
    chosen["config.json"] = Asset(name="config.json", source="base", why="model config", content=config)
    return tuple(sorted(chosen.values(), key=lambda asset: asset.name)), changes


def read_json(source: Source, name: str) -> Json:
    """A config that was pulled with the source; {} where there is none."""
    text = source.texts.get(name)
    content: Any = json.loads(text) if text is not None else {}
    return content if isinstance(content, dict) else {}


def kind_of(name: str, role: Role) -> str | None:
    """What a file is that is copied from the base or from the adapter, e.g. "tokenizer"; None for one that is left behind."""
    for kind, pattern, adapter_wins in KINDS:
        if pattern.fullmatch(name) and (role == "base" or adapter_wins):
            return kind
    return None


def files_to_prove(sources: Sources) -> dict[Role, list[str]]:
    """By role, the files that a verification compares with: all weights, and whatever may have been copied."""
    names: dict[Role, list[str]] = {"base": [], "adapter": []}
    for source in (sources.base, *sources.adapters):
        names[source.role] += [header.file for header in source.headers]
        names[source.role] += [entry.name for entry in source.files if kind_of(entry.name, source.role)]
    return names


def without_form(assets: Iterable[Asset]) -> tuple[Asset, ...]:
    """The files of a result that does not keep the base's form: none says that it does."""
    return tuple(asset for asset in assets if asset.why != FORM_KIND)


def _keep_both_licenses(chosen: dict[str, Asset], base: Source, adapter: Source) -> None:
    """Where both ship a license of one name, the base's keeps it and the adapter's gets `.adapter` into its name: what is
    merged is under both. One of them does where their bytes are known to be the same."""
    bases = {entry.name: entry for entry in base.files if kind_of(entry.name, "base") == "license"}
    for entry in adapter.files:
        other = bases.get(entry.name)
        if other is None or _same_bytes(entry, other):
            continue
        stem, dot, suffix = entry.name.partition(".")
        name = f"{stem}.adapter{dot}{suffix}"
        chosen[entry.name] = Asset(name=entry.name, source="base", why="license")
        chosen[name] = Asset(name=name, source="adapter", why="license", original=entry.name)


def _same_bytes(entry: FileEntry, other: FileEntry) -> bool:
    """Whether they are known to be the same; a folder's file is known by its sha256, a repo's small one by git's id."""
    by_sha256 = entry.sha256 is not None and entry.sha256 == other.sha256
    return by_sha256 or (entry.oid is not None and entry.oid == other.oid)


def base_tokenizer_left_out(base: Source, adapter: Source) -> list[str]:
    """The base's tokenizer files that would mix with the adapter's: a tokenizer is taken whole, from one of the two.

    With an adapter that brings a vocabulary, all of the base's (tekken.json, say, is taken before tokenizer.json), save for
    other spellings of the same vocabulary where both have the same tokenizer.json. With one that brings only settings, the
    older special_tokens_map.json, which transformers would read after them.
    """
    bases, adapters = _tokenizer_files(base), _tokenizer_files(adapter)
    settings = {name for name in adapters if re.fullmatch(SETTINGS, name)}
    if not adapters:
        return []
    if adapters.keys() == settings:
        return sorted({"special_tokens_map.json"} & bases.keys() - settings)
    same = adapters.get("tokenizer.json")
    kept = same is not None and same == bases.get("tokenizer.json")
    # tokenizer_config.json stays: an adapter without one has its tokenizer's class from there.
    left = bases.keys() - adapters.keys() - {"tokenizer_config.json"}
    return sorted(name for name in left if not kept or re.fullmatch(SETTINGS, name))


def _tokenizer_files(source: Source) -> dict[str, str | None]:
    """name → sha256, where that is known, of the files that a tokenizer is made of."""
    return {entry.name: entry.sha256 for entry in source.files if re.fullmatch(f"{VOCABULARY}|{SETTINGS}", entry.name)}


def _follow_template(chosen: dict[str, Asset], base: Source, adapter: Source) -> None:
    """Keep one effective chat template: the adapter's where it ships one, wherever it stores it, else the base's."""
    own_config = chosen.get("tokenizer_config.json")
    if own_config is None or own_config.source == "base":
        return
    adapter_names = {entry.name for entry in adapter.files}
    inside = read_json(adapter, "tokenizer_config.json").get("chat_template")
    if inside is not None and not adapter_names & set(TEMPLATE_FILES):
        # A separate file wins over the config when transformers loads, so the base's would shadow the adapter's.
        for name in TEMPLATE_FILES:
            chosen.pop(name, None)
    elif inside is None and not any(name in chosen for name in TEMPLATE_FILES):
        template = read_json(base, "tokenizer_config.json").get("chat_template")
        if isinstance(template, str):
            why = "chat template, out of the base's tokenizer_config.json, which the adapter's replaces"
            name = "chat_template.jinja"
            chosen[name] = Asset(name=name, source="base", why=why, content=template.encode())


def _config(base: Source, dtype: str | None, edits: Mapping[str, Any]) -> tuple[bytes | None, tuple[ConfigChange, ...]]:
    """config.json with the new storage dtype wherever it states one; (None, ()) where the base's bytes stay."""
    if dtype is None and not edits:
        return None, ()
    config = read_json(base, "config.json")
    changes: list[ConfigChange] = []
    if dtype is not None:
        _set_dtype(config, "", dtype, changes)
        if "dtype" not in config and "torch_dtype" not in config:
            config["dtype"] = dtype
            changes.append(ConfigChange(path="dtype", before=None, after=dtype))
    for path, value in edits.items():
        *parents, name = path.split(".")
        inner = config
        for parent in parents:
            inner = inner[parent]
        if value is REMOVED:
            changes.append(ConfigChange(path=path, before=inner.pop(name), after=None))
        elif inner.get(name) != value:
            changes.append(ConfigChange(path=path, before=inner.get(name), after=value))
            inner[name] = value
    if not changes:
        return None, ()
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode(), tuple(changes)


def _set_dtype(config: Json, prefix: str, dtype: str, changes: list[ConfigChange]) -> None:
    for key, value in config.items():
        if key in ("dtype", "torch_dtype") and isinstance(value, str) and value != dtype:
            changes.append(ConfigChange(path=prefix + key, before=value, after=dtype))
            config[key] = dtype
        elif isinstance(value, dict):
            _set_dtype(value, f"{prefix}{key}.", dtype, changes)
