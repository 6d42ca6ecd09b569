"""What the worker does with a model: load it as its users will, run it, compare its outputs with the reference's."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from bot.checks import measure
from bot.checks.case import read_json
from bot.checks.control import clamped, controls
from bot.checks.nearest import merge_to_nearest, quantised_again
from bot.checks.probes import build_inputs, has_tokenizer, load_tokenizer, other_tokens, text_windows, trusts
from bot.checks.respelled import respelled
from bot.checks.skeleton import NEEDS_CODE, Skeleton, build, model_class
from bot.checks.unmerged import loading, mend
from bot.patterns import hold_to_end

Job = dict[str, Any]
PROMPTS, TEXT = "reference", "text"  # what the reference's outputs were saved for
COMPLAINTS = ("newly initialized", "not initialized from", "MISSING", "UNEXPECTED", "MISMATCH")
UNLOADED = ("missing adapter keys", "unexpected keys", "not been loaded")


def reference(job: Job) -> Job:
    """The base with the adapter beside it: its outputs are saved, then the base and the control are held to them."""
    tuned = _tuned(job)
    if isinstance(tuned, dict):
        return tuned
    plain = tuned.get_base_model()
    inputs = build_inputs(plain, job)
    kind = _save_reference(plain, inputs, job)
    measured = {}
    if job["rows"] is not None:
        _save_reference(plain, text_windows(plain, job), job, TEXT)
        measured["as-trained"] = _sums(plain, job, itself=True)
    with tuned.disable_adapter():
        if job["clamps"]:
            with clamped(plain, job):
                _save_reference(plain, inputs, job)
        base = _compare(plain, job)
        if job["rows"] is not None:
            measured["base"] = _sums(plain, job)
        drawn = [(layers, _compare(plain, job)) for layers in controls(plain, job)]
    control = [measure.average(one) for one in zip(*(found for _, found in drawn), strict=True)]
    return {"kind": kind, "base": base, "control": control, "layers": sorted(drawn[0][0]), "measured": measured}


def comparison(job: Job) -> Job:
    """Other ways to use base and adapter, each held to the unmerged model on the same texts."""
    return {"measured": {row["id"]: _one_way(row, job) for row in job["rows"]}}


def _one_way(row: Job, job: Job) -> measure.Sums:
    if not row["merge"]:
        model, _ = _load(Path(row["folder"]), job)
        return _sums(_prepared(model, job), job)
    tuned = _tuned({**job, "base": row["folder"]})
    assert not isinstance(tuned, dict), tuned
    plain = tuned.get_base_model()
    again = quantised_again(plain, row["again"], _skeleton(Path(row["folder"]), job)) if row["again"] else {}
    with tuned.disable_adapter():
        merge_to_nearest(plain, getattr(torch, job["storage"]), again)
        return _sums(plain, job)


def _skeleton(folder: Path, job: Job) -> Any:
    trust = trusts(folder, job)
    return build(folder, model_class(read_json(folder / "config.json") or {}, trust), trust)


def _tuned(job: Job) -> Any:
    """The base with PEFT's own adapter, ready to run; {"skip": …} where that cannot be had."""
    from peft import PeftModel

    model = _load_base(job)
    if model is None:
        return {"skip": NEEDS_CODE}
    said_by_adapter = read_json(Path(job["adapter"]) / "adapter_config.json") or {}
    hold_to_end(said_by_adapter, (name for name, _ in model.named_modules()))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with loading(said_by_adapter):
            tuned = PeftModel.from_pretrained(model, _readable(model, job), autocast_adapter_dtype=False)
    lost = [str(one.message) for one in said if any(word in str(one.message) for word in UNLOADED)]
    if lost:
        return {"skip": f"PEFT did not load the whole adapter: {lost[0][:300]}"}
    tuned = _prepared(tuned, job)
    mend(tuned, wide=job["compute"] == "float64")
    return tuned


def _readable(model: Any, job: Job) -> Path:
    """The adapter under the names that PEFT and this model have for its modules."""
    skeleton, modules = Skeleton(model, {}), dict(model.named_modules())

    def rename(module: str) -> str:
        own, pattern = skeleton.rename(f"{module}.weight")
        renamed = own.removesuffix(".weight")
        if pattern is None and renamed in modules:
            return renamed
        return next((inner for inner in skeleton.in_decoder(module) if inner in modules), module)

    return respelled(Path(job["adapter"]), Path(job["work"]), modules, rename)


def _load_base(job: Job) -> Any:
    """The base as the class, with the labels and the vocabulary, that the adapter was trained with."""
    import transformers

    folder = Path(job["base"])
    if not job["class"] and not job["labels"]:
        model, _ = _load(folder, job)
    else:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        if job["labels"]:
            config.num_labels = job["labels"]
        chosen = (
            getattr(transformers, job["class"])
            if job["class"]
            else model_class(read_json(folder / "config.json") or {}, False)
        )
        model = chosen.from_pretrained(
            folder, config=config, dtype=torch.float32, attn_implementation="eager", local_files_only=True,
            ignore_mismatched_sizes=True,
        )  # fmt: skip
    if model is not None and job["vocabulary"]:
        model.resize_token_embeddings(job["vocabulary"], mean_resizing=False)
    return model


def merged(job: Job) -> Job:
    """The folder as its users load it: what the loader said, and how far its outputs are from the reference's."""
    heard = _Heard()
    logging.getLogger("transformers").addHandler(heard)
    folder = Path(job["folder"])
    model, loading = _load(folder, job)
    if model is None:
        return {"skip": why_no_code(folder, job)}
    loads = {
        "missing": sorted(loading["missing_keys"]),
        "unexpected": sorted(loading["unexpected_keys"]),
        "mismatched": sorted(str(key) for key in loading["mismatched_keys"]),
        "said": heard.lines,
        "class": type(model).__name__,
        "tokenizer": "none",
    }
    if has_tokenizer(folder):
        tokenizer = load_tokenizer(folder, trusts(folder, job))
        loads["tokenizer"] = type(tokenizer).__name__
        loads["tokens"] = other_tokens(tokenizer, job)
    runs = not job["quantised"] and (Path(job["work"]) / "reference.json").exists()
    return {"loads": loads, "merged": _compare(_prepared(model, job), job) if runs else None}


ROLES = {"reference": reference, "merged": merged, "comparison": comparison}


def _load(folder: Path, job: Job) -> tuple[Any, Job]:
    config = read_json(folder / "config.json") or {}
    trust = trusts(folder, job)
    chosen = model_class(config, trust)
    if chosen is None:
        return None, {}
    how = {
        "dtype": torch.float32,
        "attn_implementation": "eager",
        "local_files_only": True,
        "trust_remote_code": trust,
    }
    try:
        model, loading = chosen.from_pretrained(folder, output_loading_info=True, **how)
    except AttributeError:  # an omni model's own from_pretrained reads its voices into a model, and gets a pair
        chosen.from_pretrained(folder, **how)  # as its users load it: what is read besides the weights must be there
        model, loading = PreTrainedModel.from_pretrained.__func__(chosen, folder, output_loading_info=True, **how)
    return model, loading


def why_no_code(folder: Path, job: Job) -> str:
    """Why the code that a folder needs is not run."""
    why = job["distrusted"].get(str(folder))
    return f"the model needs the repo's own code, and {why}" if why else NEEDS_CODE


def _prepared(model: Any, job: Job) -> Any:
    model.eval()
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    return model.double() if job["compute"] == "float64" else model


def _save_reference(model: Any, inputs: list[dict[str, torch.Tensor]], job: Job, what: str = PROMPTS) -> str:
    kind = ""
    for number, one in enumerate(inputs):
        kind, found = measure.outputs(model, one, job["compute"])
        save_file({"found": found, **{f"input.{name}": value for name, value in one.items()}}, _at(job, number, what))
    return kind


def _saved(job: Job, what: str) -> Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    """What the reference gave, and to which inputs."""
    for number in range(10_000):
        if not _at(job, number, what).exists():
            break
        saved = load_file(_at(job, number, what))
        wanted = saved.pop("found")
        yield wanted, {name.removeprefix("input."): value for name, value in saved.items()}


def _sums(model: Any, job: Job, itself: bool = False) -> measure.Sums:
    """Prompts and text together. `itself`: the model is the reference."""
    total = measure.Sums(far=0.0, positions=0, agree=0, loss=0.0, predicted=0)
    for what in (PROMPTS, TEXT):
        for wanted, inputs in _saved(job, what):
            kind, found = ("kl", wanted) if itself else measure.outputs(model, inputs, job["compute"])
            distance = measure.distance(kind, wanted, found)
            loss, predicted = measure.next_token_loss(model, inputs, found)
            total["far"] += distance["far"] if not itself else 0.0
            total["positions"] += distance["positions"]
            total["agree"] += distance["agree"]
            total["loss"] += loss
            total["predicted"] += predicted
    return total


def _compare(model: Any, job: Job) -> list[measure.Distance]:
    distances = []
    for wanted, inputs in _saved(job, PROMPTS):
        kind, found = measure.outputs(model, inputs, job["compute"])
        distances.append(measure.distance(kind, wanted, found))
    return distances


def _at(job: Job, number: int, what: str) -> Path:
    return Path(job["work"]) / f"{what}-{number:04}.safetensors"


class _Heard(logging.Handler):
    """Keeps what transformers complains about while it loads."""

    def __init__(self) -> None:
        super().__init__(level=logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if any(word in text for word in COMPLAINTS):
            self.lines.append(text[:300])
