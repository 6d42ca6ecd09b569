"""How to load the merged model: the few lines that fit its task."""

from __future__ import annotations

from bot.card.metadata import config_of
from bot.records import Source

# task → (model class, what turns inputs into tensors)
CLASSES = {
    "text-generation": ("AutoModelForCausalLM", "AutoTokenizer"),
    "image-text-to-text": ("AutoModelForImageTextToText", "AutoProcessor"),
    "text2text-generation": ("AutoModelForSeq2SeqLM", "AutoTokenizer"),
    "summarization": ("AutoModelForSeq2SeqLM", "AutoTokenizer"),
    "translation": ("AutoModelForSeq2SeqLM", "AutoTokenizer"),
    "text-classification": ("AutoModelForSequenceClassification", "AutoTokenizer"),
    "token-classification": ("AutoModelForTokenClassification", "AutoTokenizer"),
    "question-answering": ("AutoModelForQuestionAnswering", "AutoTokenizer"),
    "fill-mask": ("AutoModelForMaskedLM", "AutoTokenizer"),
    "image-classification": ("AutoModelForImageClassification", "AutoImageProcessor"),
    "automatic-speech-recognition": ("AutoModelForSpeechSeq2Seq", "AutoProcessor"),
}
OTHERS = ("AutoModel", "AutoTokenizer")


def snippet(target: str, tag: str | None, base: Source) -> str:
    """Python for transformers, and a line for vLLM where the model generates text."""
    model, reader = CLASSES.get(tag or "", OTHERS)
    remote = bool(config_of(base).get("auto_map"))
    trust = ", trust_remote_code=True" if remote else ""
    name = {"AutoTokenizer": "tokenizer", "AutoProcessor": "processor", "AutoImageProcessor": "processor"}[reader]
    lines = [
        "```python",
        f"from transformers import {', '.join(sorted((model, reader)))}",
        "",
        f'{name} = {reader}.from_pretrained("{target}"{trust})',
        f'model = {model}.from_pretrained("{target}", dtype="auto"{trust})',
        "```",
    ]
    if remote:
        lines += ["", "The base brings its own model code, which `trust_remote_code` runs: read it first."]
    if tag == "text-generation":
        lines += [
            "",
            "With vLLM:",
            "",
            "```bash",
            f"vllm serve {target}{' --trust-remote-code' if remote else ''}",
            "```",
        ]
    return "\n".join(lines)
