"""The models that the worker runs, loaded: a folder as its users will, and the base with PEFT's own adapter."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from bot.checks.behaviour.adapter_for_peft import adapter_for_peft
from bot.checks.behaviour.device import placing
from bot.checks.behaviour.held_in_16_bits import NotInFloat32, widen
from bot.checks.behaviour.job import CannotRun, Stopped, WorkerJob
from bot.checks.expected.float64_mode import loading, mend
from bot.checks.expected.heads import stated_class
from bot.checks.reading.folders import read_json
from bot.checks.reading.model_skeleton import NEEDS_CODE, Skeleton, model_class
from bot.records import Json
from bot.untrusted.patterns import require_terminating

BASE, UNMERGED = "the base itself", "PEFT's unmerged model"
# Fused attention and grouped products of experts add in an order of their own, and some have no float64.
PLAINEST: Json = {"dtype": torch.float32, "attn_implementation": "eager", "experts_implementation": "eager"}
OTHERS = ("lora_magnitude", "modules_to_save", "trainable_tokens")  # of PEFT, which read or replace weights of the base
GENERATING = ("CAUSAL_LM", "SEQ_2_SEQ_LM")
UNLOADED = ("missing adapter keys", "unexpected keys", "not been loaded")


@contextmanager
def trying(what: str) -> Iterator[None]:
    """Whatever goes wrong in the block is no fault of the merge."""
    try:
        yield
    except CannotRun:
        raise
    except Exception as error:
        raise CannotRun(f"{what} cannot be run here ({type(error).__name__}: {str(error)[:300]})") from error


def load_tuned(job: WorkerJob) -> Any:
    """The base with PEFT's own adapter, ready to run; Stopped where that cannot be had. Raises CannotRun."""
    with trying(BASE):
        model = _load_base(job)
    if model is None:
        return Stopped(status="skip", why=NEEDS_CODE, unrunnable=True)
    tuned = put_adapter(model, job)
    if isinstance(tuned, Stopped):
        return tuned
    tuned = ready_to_run(tuned, job)
    if job.held:
        _require_lora_in_float32(tuned)
        widen(tuned)
    else:
        mend(tuned, wide=job.compute == "float64")
    return tuned


def plainest(job: WorkerJob) -> Json:
    """How every model of a job is loaded."""
    return PLAINEST | ({"dtype": getattr(torch, job.held)} if job.held else {})


def _require_lora_in_float32(tuned: Any) -> None:
    """Raises NotInFloat32 where PEFT has put anything but plain LoRA on the model, or rounded its factors."""
    for name, weight in tuned.named_parameters():
        own = "lora_" in name
        if own != (weight.dtype == torch.float32) or any(part in name for part in OTHERS):
            raise NotInFloat32(f"{name} is held in {weight.dtype}")


def put_adapter(model: Any, job: WorkerJob) -> Any:
    """PEFT's own adapter put on a model; Stopped where it would not be all of it. Raises CannotRun."""
    from peft import PeftConfig, PeftModel

    adapter_config = read_json(job.adapter / "adapter_config.json") or {}
    require_terminating(adapter_config, (name for name, _ in model.named_modules()))
    adapter = readable_adapter(model, job)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with trying(UNMERGED), loading(adapter_config):
            config = PeftConfig.from_pretrained(adapter)
            # PEFT's own class for such a task asks for what generates, which a body, that gives hidden states, has not.
            if config.task_type in GENERATING and not hasattr(model, "prepare_inputs_for_generation"):
                config.task_type = None
            # PEFT's factors take the dtype of the base's weights before the file's numbers come in, unless it casts them.
            tuned = PeftModel.from_pretrained(model, adapter, config=config, autocast_adapter_dtype=bool(job.held))
    messages = [str(warning.message) for warning in caught]
    lost = [message for message in messages if any(word in message for word in UNLOADED)]
    if lost:
        return Stopped(status="skip", why=f"PEFT did not load the whole adapter: {lost[0][:300]}")
    return tuned


def readable_adapter(model: Any, job: WorkerJob) -> Path:
    """The adapter under the names that PEFT and this model have for its modules."""
    skeleton, modules = Skeleton(model, {}), dict(model.named_modules())
    stated = stated_class(read_json(job.adapter / "adapter_config.json") or {})
    part = skeleton.part_of_class(stated) if stated else None

    def rename(module: str) -> str:
        for name in (f"{part}.{module}",) * bool(part) + (module,):
            if name in modules:
                return name
            own, pattern = skeleton.rename(f"{name}.weight")
            renamed = own.removesuffix(".weight")
            if pattern is None and renamed in modules:
                return renamed
        return next((inner for inner in skeleton.in_decoder(module) if inner in modules), module)

    return adapter_for_peft(job.adapter, job.work, modules, rename)


def _load_base(job: WorkerJob) -> Any:
    """The base as the class, with the labels and the vocabulary, that the adapter was trained with."""
    import transformers

    if not job.model_class and not job.labels:
        model, _ = load_folder(job.base, job)
    else:
        config = transformers.AutoConfig.from_pretrained(job.base, local_files_only=True)
        if job.labels:
            config.num_labels = job.labels
        own = getattr(transformers, job.model_class) if job.model_class else None
        chosen = own or model_class(read_json(job.base / "config.json") or {}, False)
        model = chosen.from_pretrained(
            job.base,
            config=config,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            **plainest(job),
            **placing(job),
        )
    if model is not None and job.vocabulary:
        model.resize_token_embeddings(job.vocabulary, mean_resizing=False)
    return model


def load_folder(folder: Path, job: WorkerJob) -> tuple[Any, Json]:
    """(the model as its users load it, what transformers says of the loading); (None, {}) where it needs code that may not run."""
    config = read_json(folder / "config.json") or {}
    trust = job.trusts(folder)
    chosen = model_class(config, trust)
    if chosen is None:
        return None, {}
    how = {"local_files_only": True, "trust_remote_code": trust, **plainest(job), **placing(job)}
    try:
        model, report = chosen.from_pretrained(folder, output_loading_info=True, **how)
    except AttributeError:  # an omni model's own from_pretrained reads its voices into a model, and gets a pair
        chosen.from_pretrained(folder, **how)  # as its users load it: what is read besides the weights must be there
        model, report = PreTrainedModel.from_pretrained.__func__(chosen, folder, output_loading_info=True, **how)
    return model, report


def why_no_code(folder: Path, job: WorkerJob) -> str:
    """Why the code that a folder needs is not run."""
    why = job.distrusted.get(str(folder))
    return f"the model needs the repo's own code, and {why}" if why else NEEDS_CODE


def ready_to_run(model: Any, job: WorkerJob) -> Any:
    """For evaluation, without a cache, in the dtype that models are compared in."""
    model.eval()
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    return model.double() if job.compute == "float64" else model
