"""What the worker does with a model: load it as its users will, run it, compare its outputs with the reference's."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from bot.checks.behaviour import measure
from bot.checks.behaviour.adapter_for_peft import adapter_for_peft
from bot.checks.behaviour.control import SMALL, How, changed, size_of, stand_in, watched
from bot.checks.behaviour.expert_choices import is_mixture
from bot.checks.behaviour.forward_counts import FORWARDS
from bot.checks.behaviour.nearest import merge_to_nearest, quantised_again
from bot.checks.behaviour.probe_inputs import build_inputs, has_tokenizer, load_tokenizer, text_windows, trusts
from bot.checks.behaviour.saved_outputs import TEXT, compare, save_again, save_reference, sums
from bot.checks.behaviour.tokenizer import compare_tokenizers
from bot.checks.case import read_json
from bot.checks.expected.unmerged import loading, mend
from bot.checks.reading.model_skeleton import NEEDS_CODE, Skeleton, build, model_class
from bot.untrusted.patterns import hold_to_end

Job = dict[str, Any]
COMPLAINTS = ("newly initialized", "not initialized from", "MISSING", "UNEXPECTED", "MISMATCH")
BASE = "the base itself"
# Fused attention and grouped products of experts add in an order of their own, and some have no float64.
PLAINEST: Job = {"dtype": torch.float32, "attn_implementation": "eager", "experts_implementation": "eager"}
UNLOADED = ("missing adapter keys", "unexpected keys", "not been loaded")


class CannotRun(Exception):
    """The unmerged model cannot be had in this installation, with its adapter or without: nothing is known of the merge."""


@contextmanager
def trying(what: str) -> Iterator[None]:
    """Whatever goes wrong in the block is no fault of the merge."""
    try:
        yield
    except CannotRun:
        raise
    except Exception as error:
        raise CannotRun(f"{what} cannot be run here ({type(error).__name__}: {str(error)[:300]})") from error


class UnmergedModel:
    """PEFT's unmerged model, which others stand in for by turns. After each it is whole again: small ones are put back,
    of a large one there is never a second copy of the weights, and it is loaded anew."""

    def __init__(self, job: Job, tuned: Any) -> None:
        self._job, self._tuned, self._off, self._spoilt = job, tuned, False, False
        self.plain = tuned.get_base_model()
        self._chance = torch.Generator().manual_seed(0)
        self.small = size_of(self.plain) <= SMALL

    def switched_off(self) -> Any:
        """The base model inside, with PEFT's layers asleep from here on."""
        if self._spoilt:
            self._tuned = self.plain = None  # the one is let go before the other is loaded
            self._tuned, self._off, self._spoilt = _tuned(self._job), False, False
            self.plain = self._tuned.get_base_model()
        if not self._off:
            self._tuned.base_model.disable_adapter_layers()
            self._off = True
        return self.plain

    def far(self, how: How) -> list[measure.Distance]:
        """How far a stand-in lies from the reference."""
        with self._standing_in(how):
            return compare(self.plain, self._job)

    def clamp(self) -> None:
        """The exact merge, of which only what is too large for the storage dtype changes, becomes the reference."""
        with self._standing_in("clamped"):
            save_again(self.plain, self._job)

    @contextmanager
    def _standing_in(self, how: How) -> Iterator[None]:
        replaced = stand_in(self.switched_off(), self._job, how, self._chance, keep=self.small)
        yield
        replaced.restore()
        self._spoilt = not self.small


def reference(job: Job) -> Job:
    """The base with the adapter beside it: its outputs are saved, then the base and the stand-ins are held to them."""
    tuned = _tuned(job)
    if isinstance(tuned, dict):
        return tuned
    unmerged = UnmergedModel(job, tuned)
    del tuned
    answer = _first_run(unmerged, job)
    thorough = answer["thorough"]
    _expect(job, 2 + job["clamps"] + (2 + job["draws"] if thorough else 1))
    exact = unmerged.far("exact") if thorough else None
    if job["clamps"]:
        unmerged.clamp()
    base = compare(unmerged.switched_off(), job)
    if job["rows"] is not None:
        answer["measured"]["base"] = sums(unmerged.plain, job)
    nearest = unmerged.far("nearest") if thorough else None
    controls = [unmerged.far("control") for _ in range(job["draws"] if thorough else 1)]
    return {**answer, "base": base, "exact": exact, "nearest": nearest, "controls": controls}


def _expect(job: Job, models: int) -> None:
    """So many models are each asked every prompt."""
    FORWARDS.expect(models * job["prompts"])


def _first_run(unmerged: UnmergedModel, job: Job) -> Job:
    """Its outputs are saved. Raises CannotRun."""
    plain = unmerged.plain
    inputs = build_inputs(plain, job)
    _expect(job, 3)  # itself, the base and one control, if not more
    with trying("PEFT's unmerged model"):
        try:
            with watched(plain) as uncalled:
                kind = save_reference(plain, inputs, job)
        except Exception:  # whose fault is it? The base alone answers that
            with trying(BASE):
                measure.outputs(unmerged.switched_off(), inputs[0], job["compute"])
            raise
    measured: Job = {}
    if job["rows"] is not None:
        save_reference(plain, text_windows(plain, job), job, TEXT)
        measured["as-trained"] = sums(plain, job, itself=True)
    said = {"layers": sorted(changed(plain)), "uncalled": sorted(uncalled), "mixture": is_mixture(plain)}
    return {"kind": kind, "thorough": unmerged.small or job["thorough"], "measured": measured, **said}


def comparison(job: Job) -> Job:
    """Other ways to use base and adapter, each held to the unmerged model on the same texts."""
    _expect(job, len(job["rows"]))
    return {"measured": {row["id"]: _one_way(row, job) for row in job["rows"]}}


def _one_way(row: Job, job: Job) -> measure.OutputSums:
    if not row["merge"]:
        model, _ = _load(Path(row["folder"]), job)
        return sums(_prepared(model, job), job)
    tuned = _tuned({**job, "base": row["folder"]})
    assert not isinstance(tuned, dict), tuned
    plain = tuned.get_base_model()
    again = quantised_again(plain, row["again"], _skeleton(Path(row["folder"]), job)) if row["again"] else {}
    with tuned.disable_adapter():
        merge_to_nearest(plain, getattr(torch, job["storage"]), again)
        return sums(plain, job)


def _skeleton(folder: Path, job: Job) -> Any:
    trust = trusts(folder, job)
    return build(folder, model_class(read_json(folder / "config.json") or {}, trust), trust)


def _tuned(job: Job) -> Any:
    """The base with PEFT's own adapter, ready to run; {"skip": …} where that cannot be had."""
    from peft import PeftModel

    with trying(BASE):
        model = _load_base(job)
    if model is None:
        return {"skip": NEEDS_CODE, "beyond": True}
    said_by_adapter = read_json(Path(job["adapter"]) / "adapter_config.json") or {}
    hold_to_end(said_by_adapter, (name for name, _ in model.named_modules()))
    readable = _readable(model, job)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with trying("PEFT's unmerged model"), loading(said_by_adapter):
            tuned = PeftModel.from_pretrained(model, readable, autocast_adapter_dtype=False)
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

    return adapter_for_peft(Path(job["adapter"]), Path(job["work"]), modules, rename)


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
            folder, config=config, local_files_only=True, ignore_mismatched_sizes=True, **PLAINEST
        )
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
        return {"skip": why_no_code(folder, job), "beyond": str(folder) not in job["distrusted"]}
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
        loads["tokens"], loads["remarks"] = compare_tokenizers(tokenizer, job)
    runs = not job["quantised"] and (Path(job["work"]) / "reference.json").exists()
    _expect(job, 1)
    return {"loads": loads, "merged": compare(_prepared(model, job), job) if runs else None}


ROLES = {"reference": reference, "merged": merged, "comparison": comparison}


def _load(folder: Path, job: Job) -> tuple[Any, Job]:
    config = read_json(folder / "config.json") or {}
    trust = trusts(folder, job)
    chosen = model_class(config, trust)
    if chosen is None:
        return None, {}
    how = {"local_files_only": True, "trust_remote_code": trust, **PLAINEST}
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


class _Heard(logging.Handler):
    """Keeps what transformers complains about while it loads."""

    def __init__(self) -> None:
        super().__init__(level=logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if any(word in text for word in COMPLAINTS):
            self.lines.append(text[:300])
