"""One architecture, tried whole: a tiny model, LoRA on all-linear by PEFT, merged, proven at `weights`, held to PEFT's own."""

from __future__ import annotations

import gc
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from bot.report_document import InputPins, MergeFacts
from tests.steps import merge_folders, plan_folders
from tools.small_models import class_of, config_of

LARGEST = 40_000_000  # parameters that still count as tiny
CLOSE = 1e-5


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """`kind`: right, refused, wrong, not proven, no layers (PEFT finds nothing to adapt), not built; and what was seen.

    `answers`: the distance of the merged model's answers to the unmerged model's; None where it was not asked.
    """

    kind: str
    note: str = ""
    answers: float | None = None


def try_one(model_type: str, folder: Path, given: dict[str, Any] | None = None, prove: bool = True) -> Outcome:
    """The outcome of one model type; `folder` is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    chosen = getattr(transformers, class_of(model_type) or "", None)
    try:
        base = _base(chosen, model_type, folder / "base", given)
    except Exception as error:  # whatever a constructor raises
        return Outcome(kind="not built", note=_said(error))
    try:
        model = adapted(load(chosen, base), folder / "adapter", target_modules="all-linear")
    except Exception as error:
        return Outcome(kind="no layers", note=_said(error))
    return _merged(chosen, model, folder, prove)


def _base(chosen: Any, model_type: str, folder: Path, given: dict[str, Any] | None) -> Path:
    config = config_of(model_type, given)
    with torch.device("meta"):
        size = sum(one.numel() for one in chosen(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size} parameters")
    torch.manual_seed(0)
    model = chosen(config).eval()
    for one in model.parameters():
        if one.is_floating_point():
            one.data += 0.02 * torch.randn(one.shape)
    model.save_pretrained(folder)
    return folder


def adapted(model: Any, folder: Path, **lora: Any) -> Any:
    """The model with a LoRA of random numbers, which is saved in the folder too."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    tuned = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8} | lora)).eval()
    for name, one in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(one, std=0.05)
        elif "magnitude" in name:
            one.data *= 1 + 0.2 * torch.rand_like(one)
    tuned.save_pretrained(str(folder))
    return tuned


def load(chosen: Any, folder: Path) -> Any:
    """A saved model in float32; experts one by one where the class can."""
    try:
        model = chosen.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    except (ValueError, ImportError):
        model = chosen.from_pretrained(folder, dtype=torch.float32)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    return model.eval()


def _merged(chosen: Any, tuned: Any, folder: Path, prove: bool) -> Outcome:
    base, adapter = folder / "base", folder / "adapter"
    plan = plan_folders(base, adapter)
    if plan.refusals:
        return Outcome(kind="refused", note="; ".join(f"{one.code}: {one.reason}" for one in plan.refusals)[:400])
    merged = merge_folders(base, adapter, folder / "merged")
    inputs = inputs_of(tuned.base_model.model)
    expected = answers(tuned, inputs)
    peft = tuned.merge_and_unload()
    theirs = answers(peft, inputs)
    ours = load(chosen, merged)
    off = furthest(dict(ours.named_parameters()), dict(peft.named_parameters()))
    mine = answers(ours, inputs)
    distance = None if expected is None or mine is None else float((mine - expected).norm() / expected.norm())
    floor = None if expected is None or theirs is None else float((theirs - expected).norm() / expected.norm())
    if distance is not None and floor is not None and distance < CLOSE < floor:
        off = ""  # a block at several depths: PEFT's merge adds up the changes of all, and is not its unmerged model
    del peft, ours, tuned
    gc.collect()
    if off:
        return Outcome(kind="wrong", note=off, answers=distance)
    said = proven(folder) if prove else ""
    if distance is not None and not distance < CLOSE and not said:
        note = f"weights are PEFT's own merge's, whose answers are {floor:.1e} off the unmerged model's"
        return Outcome(kind="wrong", note=note, answers=distance)
    return Outcome(kind="not proven" if said else "right", note=said, answers=distance)


def furthest(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> str:
    """What differs most from PEFT's merge; "" where nothing does."""
    if ours.keys() != theirs.keys():
        return f"parameters differ: {sorted(ours.keys() ^ theirs.keys())[:3]}"
    found = []
    for name, one in ours.items():
        other = theirs[name]
        if one.shape != other.shape:
            return f"{name} is {tuple(one.shape)}, PEFT has {tuple(other.shape)}"
        if one.is_floating_point() and one.numel():
            off = float((one.detach().double() - other.detach().double()).abs().max())
            if not off <= 1e-5 * max(1e-3, float(other.abs().max())):
                found.append((off, name))
    found.sort(reverse=True)
    return f"{len(found)} parameters are off PEFT's merge, e.g. {found[0][1]} by {found[0][0]:.1e}" if found else ""


def proven(folder: Path) -> str:
    """ "" where the verifier agrees, else what it says."""
    from bot.events import silent
    from bot.verify import Subject, verify

    inputs = {
        "base": {"repo": "o/base", "sha": "b" * 40},
        "adapter": {"repo": "o/adapter", "sha": "a" * 40},
        "recipe": "1",
    }
    subject = Subject(
        folder=folder / "merged", base=folder / "base", adapter=folder / "adapter", inputs=InputPins.of(inputs), recorded=None,
        merge=MergeFacts.of({"method": "LoRA"}), dtype="float32", ours=True, level="weights", not_run=(), trust_remote_code=False,
    )  # fmt: skip
    report = verify(subject, silent)
    bad = [f"{one.id} {one.status}: {one.why}" for one in report.findings if one.status in ("fail", "skip")]
    return "; ".join(bad)[:500]


# --- answers -------------------------------------------------------------------------------------------------------


def inputs_of(model: PreTrainedModel) -> list[dict[str, torch.Tensor]]:
    """Inputs that such a model may take, the likeliest first."""
    torch.manual_seed(2)
    tokens = torch.randint(3, 100, (2, 12))
    main = str(getattr(model, "main_input_name", "input_ids"))
    decoder = {"decoder_input_ids": tokens} if getattr(model.config, "is_encoder_decoder", False) else {}
    pictures = [{"pixel_values": torch.randn(2, count, size, size)} for count, size in _pictures(model.config)]
    sounds = [{"input_values": torch.randn(2, 1600)}, {"input_values": torch.randn(2, 1, 1600)}]
    features = [
        {"input_features": torch.randn(shape)} for shape in ((2, 16, 64), (2, 64, 16), (2, 16, 256), (2, 64, 160))
    ]
    text = {"input_ids": tokens}
    tries: list[dict[str, torch.Tensor]] = {
        "input_ids": [text], "pixel_values": pictures, "input_values": sounds, "input_features": features,
    }.get(main, [text])  # fmt: skip
    tries = [*tries, *([text] if main != "input_ids" else []), *pictures[:1], *sounds[:1], *features[:1]]
    tries += [{**text, **one} for one in pictures[:1]]
    return [{**one, **decoder} for one in tries]


def _pictures(config: Any) -> list[tuple[int, int]]:
    nested = getattr(config, "vision_config", None) or config
    size = getattr(nested, "image_size", 32)
    size = size if isinstance(size, int) else (size[0] if isinstance(size, list | tuple) and size else 32)
    return [(getattr(nested, "num_channels", 3) or 3, size), (3, 64)]


def answers(model: Any, tries: list[dict[str, torch.Tensor]]) -> torch.Tensor | None:
    """Every floating-point output of the first inputs that the model takes, in one; None where it takes none."""
    for one in tries:
        torch.manual_seed(3)
        try:
            with torch.no_grad():
                found = model(**one)
        except Exception:
            continue
        flat = [t.double().flatten() for t in _tensors(found) if t.is_floating_point()]
        if flat and bool(torch.isfinite(together := torch.cat(flat)).all()):
            return together
    return None


def _tensors(found: Any) -> list[torch.Tensor]:
    if isinstance(found, torch.Tensor):
        return [found]
    values = found.values() if hasattr(found, "values") else found if isinstance(found, list | tuple) else ()
    return [one for value in values for one in _tensors(value)]


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
