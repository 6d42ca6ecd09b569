"""Whatever is neither weight nor config: copied byte for byte, the adapter's where it ships it, else the base's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from bot.checks.case import Case
from bot.checks.finding import Check, Group, counted, finding, graded
from bot.checks.folder import chat_templates
from bot.checks.folder.special_tokens import GENERATION as GENERATION_CONFIG
from bot.checks.folder.special_tokens import foreign_to_the_tokenizer, generation_drift, special_tokens
from bot.checks.reading.folders import list_files, read_json
from bot.records import Finding


@dataclass(frozen=True, kw_only=True)
class AssetFamily:
    """Files that go together: their names, what losing one means, and what a changed one means."""

    id: str
    noun: str
    patterns: tuple[str, ...]
    group: Group = "files"
    lost: str = "fail"
    changed: str = "fail"
    # "first": the adapter's copy stands before the base's. "never": only the base's count (an adapter repo's train.py
    # is no model code). "both": each of the two is kept, under whatever name of the family.
    adapters: Literal["first", "never", "both"] = "first"


# No license texts.
PROGRAMS = (".py", ".sh", ".so", ".exe", ".js", ".json", ".bin", ".pt", ".pth", ".pkl", ".safetensors")

KEPT = {"first": "the adapter's, else the base's", "never": "the base's", "both": "kept, the base's and the adapter's"}
GENERATION = AssetFamily(
    id="generation-config",
    noun="generation config",
    patterns=("generation_config.json",),
    group="config",
    lost="warn",
)
FAMILIES = (
    AssetFamily(
        id="tokenizer",
        noun="tokenizer file",
        group="tokenizer",
        patterns=(
            "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
            "vocab.txt", "merges.txt", "*.tiktoken", "tokenizer.model", "tokenizer.model.v*", "spiece.model",
            "sentencepiece.model", "sentencepiece.bpe.model", "source.spm", "target.spm", "bpe.codes", "emoji.json", "dict.txt",
            "normalizer.json", "tekken.json", "spm.model", "spm_char.model", "target_vocab.json", "entity_vocab.json",
            "vocab-src.json", "vocab-tgt.json", "prophetnet.tokenizer", "tokenizer.[0-9]*.json", "tiktoken.model", "byte_maps.json",
            "word_shape.json", "word_pronunciation.json", "question_encoder_tokenizer/*", "generator_tokenizer/*",
        ),
    ),
    AssetFamily(
        id="processor",
        noun="processor file",
        group="tokenizer",
        patterns=("preprocessor_config.json", "processor_config.json", "*_preprocessor_config.json", "*_processor_config.json",
                  "audio_tokenizer_config.json"),
    ),
    AssetFamily(
        id="beside",
        noun="file that the model reads by name",
        patterns=("spk_dict.pt", "speaker_embeddings_path.json", "speaker_embeddings/*.npy", "decision.json", "judge_config.json",
                  "decision_template.jinja", "decision_config.json", "calibration.json", "head.safetensors", "readout.safetensors"),
        adapters="never",
    ),
    AssetFamily(id="custom-code", noun="code file", patterns=("*.py", "*/*.py"), adapters="never"),
    GENERATION,
    AssetFamily(
        id="modules",
        noun="module file",
        patterns=("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "router_config.json",
                  "[0-9]*_*/*", "*_[0-9]*_*/*"),
    ),
    AssetFamily(
        id="license",
        noun="license file",
        patterns=("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "USE_POLICY*", "license*"),
        lost="warn",
        changed="warn",
        adapters="both",
    ),
)  # fmt: skip


def preserved(family: AssetFamily) -> Callable[[Case], Finding]:
    """The check of one family."""

    def check(case: Case) -> Finding:
        fails: list[str] = []
        warns: list[str] = []
        names = _names(case, family)
        for name in names:
            verdict, sentence = _compare(case, family, name)
            if verdict:
                (fails if verdict == "fail" else warns).append(sentence)
        if not names:
            return finding(family.id, "pass", "none", "same bytes", f"There is no {family.noun} to keep.")
        right = (counted(len(names), "file"), f"Every {family.noun} is {KEPT[family.adapters]}.")
        return graded(family.id, "same bytes", right, fails=fails, warns=warns)

    return check


def checks() -> tuple[Check, ...]:
    """One check per family; `license` is a remark for the reader, the others carry weight."""
    special = {GENERATION.id: generation_config}
    checks = [
        Check(id=each.id, group=each.group, level="files", run=special.get(each.id, preserved(each)))
        for each in FAMILIES
    ]
    return (*checks, Check(id="special-tokens", group="tokenizer", level="files", run=special_tokens))


def generation_config(case: Case) -> Finding:
    """generation_config.json is the adapter's, else the base's with the tokens of the adapter's tokenizer."""
    drift = generation_drift(case)
    if drift is None:
        return preserved(GENERATION)(case)
    right = ("as declared", "It is the base's, with the tokens of the adapter's tokenizer.")
    if not (case.subject.folder / GENERATION_CONFIG).is_file():
        return graded(GENERATION.id, "as declared", right, warns=["generation_config.json is lost; the base has it."])
    here, base = case.subject.folder / GENERATION_CONFIG, case.subject.base / GENERATION_CONFIG
    ends = set(drift)
    if not case.subject.ours:  # it may leave the base's as it is
        ends &= set(chat_templates.other_stop_tokens(here, base))
        drift = {name: sentence for name, sentence in drift.items() if name != "transformers_version"}
    fails = [sentence for name, sentence in drift.items() if name in ends]
    warns = [sentence for sentence in drift.values() if sentence not in fails]
    return graded(GENERATION.id, "as declared", right, fails=fails, warns=warns)


def chat_template(case: Case) -> Finding:
    """The template in effect is the adapter's if it ships one, else the base's, wherever it is kept."""
    subject = case.subject
    bases, adapters = map(chat_templates.effective_templates, (subject.base, subject.adapter))
    wanted, owner = (adapters, "adapter") if adapters else (bases, "base")
    merged = chat_templates.effective_templates(subject.folder)
    if not wanted and not merged:
        return finding("chat-template", "pass", "none", "same template", "There is no chat template to keep.")
    if merged == wanted:
        why = f"The chat template in effect is the {owner}'s."
        return finding("chat-template", "pass", counted(len(merged), "template"), "same template", why)
    if not wanted:
        return _changed("A chat template appeared that neither base nor adapter has.")
    lost = sorted(wanted.keys() - merged.keys())
    if lost:
        return _changed(f"The {owner}'s chat template is lost ({', '.join(lost)}).")
    return _changed(f"The chat template in effect is not the {owner}'s.")


def _changed(why: str) -> Finding:
    return finding("chat-template", "fail", "differs", "same template", why)


def _names(case: Case, family: AssetFamily) -> list[str]:
    """What base and adapter ship of a family; a file that only the merged folder has is the strays check's business."""
    shipped = set(list_files(case.subject.base))
    if family.id == "tokenizer":  # a tokenizer is taken whole, from one of the two
        shipped -= foreign_to_the_tokenizer(case)
    if family.adapters != "never":
        shipped |= {name for name in list_files(case.subject.adapter) if "/" not in name or family.id == "modules"}
    if family.id == "license":
        shipped = {name for name in shipped if not name.endswith(PROGRAMS)}
    return sorted(name for name in shipped if any(_matches(name, pattern) for pattern in family.patterns))


def _matches(name: str, pattern: str) -> bool:
    """A star crosses no slash unless the pattern has one: `original/tokenizer.model` is no tokenizer to transformers."""
    return fnmatchcase(name, pattern) and ("/" in pattern or "/" not in name)


def _originals(case: Case, family: AssetFamily, name: str) -> list[tuple[str, Path]]:
    """(owner, path) of the copies that the merged file may equal; the first is the one it should."""
    adapters, bases = ("adapter", case.subject.adapter / name), ("base", case.subject.base / name)
    copies = [copy for copy in (adapters, bases) if copy[1].is_file()]
    return {"first": copies[:1], "never": [bases], "both": copies}[family.adapters]


def _compare(case: Case, family: AssetFamily, name: str) -> tuple[str | None, str]:
    """(verdict, sentence) for one file; verdict None when it is as it should be."""
    if family.adapters == "both":
        return _both_kept(case, family, name)
    subject = case.subject
    here = subject.folder / name
    originals = _originals(case, family, name)
    owner, original = originals[0]
    if not here.is_file():
        if not subject.ours and name in chat_templates.OPTIONAL_FOR_OTHERS and _has_fast_tokenizer(subject.folder):
            return "warn", f"{name} is lost; tokenizer.json holds what it says."
        return family.lost, f"{name} is lost; the {owner} has it."
    mine = here.read_bytes()
    if any(mine == path.read_bytes() for _, path in originals):
        return None, ""
    sentence = f"{name} is not the {owner}'s."
    if subject.ours:
        return family.changed, sentence
    tokens = chat_templates.token_changes(here, original)
    sentence = f"{name} is not the {owner}'s: {'; '.join(tokens)}." if tokens else sentence
    return chat_templates.foreign_verdict(here, original, family.changed), sentence


def _both_kept(case: Case, family: AssetFamily, name: str) -> tuple[str | None, str]:
    """Whether the base's file and the adapter's of this name are both in the merged folder, under any of the family's names."""
    folder = case.subject.folder
    alike = [path for path in case.files if any(_matches(path, pattern) for pattern in family.patterns)]
    kept = {(folder / path).read_bytes() for path in alike if (folder / path).is_file()}
    lost = [owner for owner, path in _originals(case, family, name) if path.read_bytes() not in kept]
    if not lost:
        return None, ""
    if not (folder / name).is_file():
        return family.lost, f"{name} is lost; the {lost[0]} has it."
    return family.changed, f"{name} of the {' and of the '.join(lost)} is not in the folder."


def _has_fast_tokenizer(folder: Path) -> bool:
    return read_json(folder / "tokenizer.json") is not None
