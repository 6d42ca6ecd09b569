"""How to load the merged model: what to install, and lines to run that fit its task, its template and its form."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bot import assets as files
from bot.card.markdown import HUB
from bot.card.metadata import class_of, head_of
from bot.records import Asset, Json, Source
from bot.untrusted.markdown import fenced

LEAST = (4, 56)  # the transformers that first took `dtype=`
# task → (model class, what turns inputs into tensors)
CLASSES = {
    "text-generation": ("AutoModelForCausalLM", "AutoTokenizer"),
    "image-text-to-text": ("AutoModelForImageTextToText", "AutoProcessor"),
    "text2text-generation": ("AutoModelForSeq2SeqLM", "AutoTokenizer"),
    "text-classification": ("AutoModelForSequenceClassification", "AutoTokenizer"),
    "token-classification": ("AutoModelForTokenClassification", "AutoTokenizer"),
    "question-answering": ("AutoModelForQuestionAnswering", "AutoTokenizer"),
    "fill-mask": ("AutoModelForMaskedLM", "AutoTokenizer"),
    "image-classification": ("AutoModelForImageClassification", "AutoImageProcessor"),
    "automatic-speech-recognition": ("AutoModelForSpeechSeq2Seq", "AutoProcessor"),
}
SAME_AS = {
    "summarization": "text2text-generation",
    "translation": "text2text-generation",
    "conversational": "text-generation",
}
OTHERS = ("AutoModel", "AutoTokenizer")
GENERATES = ("text-generation", "image-text-to-text", "text2text-generation")
PICTURES = ("image-text-to-text", "image-classification")
NEEDS = {
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "torchao": "torchao",
    "mxfp4": "kernels",
}

RUN = {
    "chat": """\
messages = [{"role": "user", "content": "What can you do?"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
inputs = inputs.to(model.device)
output = model.generate(**inputs, max_new_tokens=256)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))""",
    "text-generation": """\
inputs = tokenizer("Once upon a time", return_tensors="pt").to(model.device)
output = model.generate(**inputs, max_new_tokens=64)
print(tokenizer.decode(output[0], skip_special_tokens=True))""",
    "text2text-generation": """\
inputs = tokenizer("A text to work on.", return_tensors="pt").to(model.device)
output = model.generate(**inputs, max_new_tokens=64)
print(tokenizer.decode(output[0], skip_special_tokens=True))""",
    "image-text-to-text": """\
content = [{"type": "image", "url": "picture.jpg"}, {"type": "text", "text": "What is this?"}]
messages = [{"role": "user", "content": content}]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
).to(model.device, model.dtype)
output = model.generate(**inputs, max_new_tokens=256)
print(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))""",
    "text-classification": """\
logits = model(**tokenizer("A text to judge.", return_tensors="pt")).logits
print(model.config.id2label[logits.argmax(-1).item()])""",
    "token-classification": """\
inputs = tokenizer("A text to mark.", return_tensors="pt")
for token, label in zip(inputs.tokens(), model(**inputs).logits[0].argmax(-1).tolist()):
    print(token, model.config.id2label[label])""",
    "question-answering": """\
inputs = tokenizer("Who is asked?", "The model is asked.", return_tensors="pt")
output = model(**inputs)
start, end = output.start_logits.argmax().item(), output.end_logits.argmax().item()
print(tokenizer.decode(inputs["input_ids"][0, start : end + 1]))""",
    "fill-mask": """\
inputs = tokenizer(f"This is a {tokenizer.mask_token}.", return_tensors="pt")
logits = model(**inputs).logits[inputs["input_ids"] == tokenizer.mask_token_id]
print(tokenizer.decode(logits.argmax(-1)))""",
    "image-classification": """\
inputs = processor(Image.open("picture.jpg"), return_tensors="pt")
print(model.config.id2label[model(**inputs).logits.argmax(-1).item()])""",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ModelToLoad:
    """The merged model, as far as loading it asks. `assets`: () where they are not known."""

    base: Source
    adapter: Source
    assets: Sequence[Asset] = ()

    @property
    def config(self) -> Json:
        """Its config.json."""
        own = next((asset for asset in self.assets if asset.name == "config.json"), None)
        if own is None or own.content is None:
            return files.read_json(self.base, "config.json")
        config: Json = json.loads(own.content)
        return config

    @property
    def has_template(self) -> bool:
        """Whether its tokenizer has a chat template."""
        names = {asset.name: asset for asset in self.assets}
        if names.keys() & {*files.TEMPLATE_FILES}:
            return True
        settings = names.get("tokenizer_config.json")
        owner = self.adapter if settings is not None and settings.source == "adapter" else self.base
        return settings is not None and bool(files.read_json(owner, "tokenizer_config.json").get("chat_template"))

    def has(self, pattern: str) -> bool:
        """Whether one of its files is called so."""
        return any(re.fullmatch(pattern, asset.name) for asset in self.assets)


def section(target: str, task: str | None, made: ModelToLoad, hub: str = HUB, *, by_transformers: bool = False) -> str:
    """What to install, Python for transformers, and a line for vLLM where the model writes text. `by_transformers`: another
    reader would not see all that was merged."""
    config = made.config
    kind = head_of(config) or task or ""  # the class decides how it is called, whatever a card says it is for
    what = SAME_AS.get(kind, kind)
    remote = bool(config.get("auto_map"))
    parts = [fenced("\n".join(_commands(what, config, made, hub)), "bash")]
    parts.append(fenced("\n".join(_python(target, what, config, made, remote)), "python"))
    if remote:
        parts.append("The base brings its own model code, which `trust_remote_code` runs: read it first.")
    if what == "text-generation" and not by_transformers:
        parts += ["With vLLM:", fenced(f"vllm serve {target}{' --trust-remote-code' if remote else ''}", "bash")]
    return "\n\n".join(parts)


def _commands(task: str, config: Json, made: ModelToLoad, hub: str) -> Iterator[str]:
    if hub != HUB:
        yield f"export HF_ENDPOINT={hub}"
    packages = [f'"transformers>={_least(config)}"', "torch", *(["accelerate"] if task in GENERATES else [])]
    form: Any = config.get("quantization_config")
    method = form.get("quant_method", "bitsandbytes") if isinstance(form, dict) else None
    packages += [NEEDS[method]] if isinstance(method, str) and method in NEEDS else []
    packages += ["pillow", "torchvision"] if task in PICTURES else []
    if made.has(r"(.*\.)?(spiece|tokenizer|sentencepiece.*)\.model") and not made.has(r"tokenizer\.json"):
        packages.append("sentencepiece")
    packages += ["tiktoken"] if made.has(r".*\.tiktoken") else []
    yield f"pip install -U {' '.join(packages)}"


def _least(config: Json) -> str:
    """The oldest transformers that is known to do: the one that wrote the config, or the first that takes these lines."""
    numbers = re.match(r"(\d{1,3})\.(\d{1,3})", str(config.get("transformers_version") or ""))
    wrote = (int(numbers[1]), int(numbers[2])) if numbers else LEAST
    return ".".join(map(str, max(wrote, LEAST)))


def _python(target: str, task: str, config: Json, made: ModelToLoad, remote: bool) -> Iterator[str]:
    model, reader = CLASSES.get(task, OTHERS)
    if class_of(config).endswith("ForCTC"):
        model = "AutoModelForCTC"
    trust = ", trust_remote_code=True" if remote else ""
    name = {"AutoTokenizer": "tokenizer", "AutoProcessor": "processor", "AutoImageProcessor": "processor"}[reader]
    chat = made.has_template
    lines = RUN.get("chat" if task == "text-generation" and chat else task, "")
    if task == "image-text-to-text" and not (chat or made.has(r"chat_template\.(json|jinja)") or not made.assets):
        lines = ""  # how the text and the picture are put together, its own card knows
    if task == "image-classification":
        yield "from PIL import Image"
    yield f"from transformers import {', '.join(sorted((model, reader)))}"
    yield ""
    yield f'{name} = {reader}.from_pretrained("{target}"{trust})'
    placed = ', device_map="auto"' if task in GENERATES else ""
    yield f'model = {model}.from_pretrained("{target}", dtype="auto"{placed}{trust})'
    if lines:
        yield ""
        yield lines
