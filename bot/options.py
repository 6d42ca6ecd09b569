"""What may be asked for: every option once, with its choices, help and default, and the request that they make.

The command line, the action's inputs, the fingerprint and the report's options are made from these fields. action.yml,
merge.yml and the tables of the docs are held to them by tests/house/test_options.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints


@dataclass(frozen=True, kw_only=True)
class Option:
    """A field that is set from outside.

    `name`: on the command line, without the dashes. `input`: of the action; None where it has none. `type`: of a value as
    it is written; `choices`: () where any value of that type will do. `decides`: the merged bytes depend on it, so that it
    is in the fingerprint and in the report. `writes`: its value is a file to be made.
    """

    field: str
    name: str
    input: str | None
    help: str
    type: type
    choices: tuple[str, ...]
    default: Any
    metavar: str | None = None
    decides: bool = False
    writes: bool = False


def option(help: str, default: Any = None, **more: Any) -> Any:
    """A record's field that is an option. `more`: of Option's fields those that do not follow from this one."""
    return field(default=default, metadata={"help": help, **more})


@cache
def options_of(record: type) -> tuple[Option, ...]:
    """The options among a record's fields, in their order."""
    options = []
    for item, hint in zip(fields(record), get_type_hints(record).values(), strict=True):
        if item.metadata:
            plain = next((arg for arg in get_args(hint) if NoneType in get_args(hint)), hint)  # without its None
            name = item.metadata.get("name", item.name.replace("_", "-"))
            follows = {
                "field": item.name,
                "name": name,
                "input": name,
                "type": plain if plain in (bool, int, float) else str,
                "choices": get_args(plain) if get_origin(plain) is Literal else (),
                "default": item.default,
            }
            options.append(Option(**follows | item.metadata))
    return tuple(options)


def every_option() -> tuple[Option, ...]:
    """All that may be asked for."""
    return (*options_of(Request), *options_of(Options), *options_of(Combination))


def deciding(options: Options) -> dict[str, Any]:
    """The values that decide the merged bytes, as JSON has them."""
    values = {each.field: getattr(options, each.field) for each in options_of(Options) if each.decides}
    if values["quantize"] == "auto":  # of a plan it is decided: none, or same where the base's form is carried
        values["quantize"] = "none"
    return values | {"quantization": dict(options.quantization)}


@dataclass(frozen=True, kw_only=True)
class Ref:
    """What a person wrote: `owner/name[/folder][@revision]` on the Hub, or a folder. One of `repo`, `folder` is set.

    `subfolder`: where in its repo an adapter lies; None: at the root.
    """

    text: str
    repo: str | None = None
    revision: str | None = None
    folder: Path | None = None
    subfolder: str | None = None

    @property
    def as_repo(self) -> str | None:
        """One name for a repo and the folder in it, which a repo of its own could have: `owner/name-checkpoint-500`."""
        if self.repo is None or self.subfolder is None:
            return self.repo
        return f"{self.repo}-" + re.sub(r"[^\w.]+|[.-]{2,}", "-", self.subfolder, flags=re.ASCII).strip("-.")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What may change the bytes of the result, or how hard they are proven."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = option(
        "Storage dtype of the result; auto keeps the base's.", "auto", decides=True
    )
    base_weights: Literal["auto", "stored", "original", "simulate-nf4"] = option(
        "What to merge into: what the base's files hold (stored, dequantised where they are quantised), the 16-bit model "
        "that a quantised base was made from, or a 16-bit base as bitsandbytes would have quantised it (for an adapter "
        "trained with QLoRA). auto: stored, and what the adapter does not touch stays as it is stored where no packed weight is.",
        "auto",
        decides=True,
    )
    quantization: tuple[tuple[str, str | int | bool], ...] = option(  # sorted fields; (): as QLoRA usually does
        "How simulate-nf4 quantises: JSON with BitsAndBytesConfig's fields. Default: nf4 with double quantisation.",
        (),
        name="quantization-config",
        metavar="FILE",
        input=None,
        decides=True,
    )
    quantize: Literal["auto", "none", "nf4", "fp4", "int8", "fp8", "same"] = option(
        "Store the merged weights quantised, from their exact values; same: in the base's own form; none: as plain numbers. "
        "auto: same where the adapter changes no weight that is packed, else none.",
        "auto",
        decides=True,
    )
    overflow: Literal["refuse", "clamp"] = option(
        "What to do with a number too large for the storage dtype (float16 ends at 65504): refuse the merge, or clamp it "
        "to the largest there is.",
        "refuse",
        decides=True,
    )
    engine: Literal["auto", "streaming", "phantom", "in-memory"] = option(
        "How to merge. The method decides: auto takes its engine, another one is refused.", "auto", input=None
    )
    verify: Literal["auto", "files", "weights", "full"] = option(
        "How hard to prove the merge; auto takes the highest level that fits this machine, never below weights.", "auto"
    )
    device: Literal["auto", "cpu", "cuda"] = option(
        "Where deltas are multiplied, and where the full verification runs the models. auto takes a GPU that torch can use: "
        "for ranks of 128 and more, and for models that fit its free memory; cuda insists. The bytes are the same.",
        "auto",
    )
    disk: Literal["auto", "whole", "shards"] = option(
        "Whether base and result lie on this disk as a whole, or one weight file after the other is fetched, merged, proven, "
        "uploaded and dropped (of no use where the result stays here). auto: as a whole where that fits.",
        "auto",
    )
    allow_pickle: bool = option("Read an adapter that ships only as adapter_model.bin.", False)
    trust_remote_code: bool = option("Let the full verification run the base's own code.", False)

    @property
    def clamps(self) -> bool:
        """Whether numbers too large for their dtype become its largest."""
        return self.overflow == "clamp"


@dataclass(frozen=True, kw_only=True)
class Combination:
    """How several adapters become one; `bot.adapters.combine` has the algebra. None: the default, or of no use to the kind."""

    kind: Literal["cat", "linear", "svd", "ties", "dare_linear", "dare_ties", "magnitude_prune"] = option(
        "How several adapters become one. Default: cat, the weighted sum itself, which with weights of 1 is one adapter "
        "merged after the other, rounded once. The others are PEFT's approximations of it.",
        "cat",
        name="combine",
        input="combine",
    )
    weights: tuple[float, ...] = option(  # in the adapters' order; (): 1 each
        "One weight for each adapter, negative ones too. Default: 1 each.", (), metavar="W,W,…"
    )
    density: float | None = option(
        "The share of values that ties, dare_linear, dare_ties and magnitude_prune keep. Default: 0.5."
    )
    seed: int | None = option("Of the random pruning of dare_linear and dare_ties. Default: 0.")
    rank: int | None = option("Of svd's result. Default: the largest rank of the adapters.")
    majority_sign: Literal["total", "frequency"] | None = option(
        "Whether ties and dare_ties elect a sign by sum or by number. Default: total."
    )


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked. `more`: further adapters, to be combined with the first; `combination` None: to their plain sum."""

    adapter: Ref
    more: tuple[Ref, ...] = ()
    combination: Combination | None = None
    base: Ref | None = option(
        "The base model. Default: the one the adapter's config names.", metavar="REF", input="base-model"
    )
    output: Path | None = option("Keep the merged folder here.", metavar="DIR", input=None)
    target: str | None = option(  # None: `<adapter>-merged`, with the quantised form behind it
        "The repo to publish to. Default: the adapter's name with -merged.",
        name="to",
        metavar="REPO",
        input="target-repo",
    )
    eval_text: Path | None = option(
        "A text to compare quantised bases and results on, beside the fixed prompts.", metavar="FILE", input=None
    )
    attestation: Path | None = option(
        "Write in-toto statements here, a line each: SLSA provenance and the test result; beside it, in files of their own, "
        "what actions/attest and cosign take.",
        metavar="FILE",
        input=None,
        writes=True,
    )
    sign: str | None = option(
        "Sign the proven model with OpenSSF's model_signing (an extra): key:FILE, env:VARIABLE, "
        "certificate:KEY,CERTIFICATE[,CHAIN…] or sigstore.",
        metavar="HOW",
        input=None,
    )
    eval_tasks: str | None = option(
        "Evaluate the unmerged and the merged model with lm_eval (an extra) on these tasks, names or files, separated by "
        "commas; for the report, never for the verdict.",
        name="eval",
        metavar="TASKS",
        input=None,
    )
    eval_limit: int | None = option("Take the first N samples of each task of --eval.", metavar="N", input=None)
    report: Path | None = option(
        "Write the report as a page (HTML) here, with pictures, and with three prompts answered where the models are run.",
        metavar="FILE",
        input=None,
        writes=True,
    )
    publish_report: bool = option("Put that page into the target repo too, as report.html.", False, input=None)
    publish: Literal["auto", "pr", "push", "none"] = option(
        "auto: push to a new repo, open a pull request on one that exists.", "auto"
    )
    private: Literal["auto", "true", "false"] = option(
        "Visibility of a new target, and of one that holds this merge already; auto: a new one is private if either input "
        "is.",
        "auto",
    )
    license: str | None = option(
        "License id for the card. Default: the stricter of the adapter's and the base's.", metavar="ID"
    )
    force: bool = option("Do it again, or over what is there, instead of stopping.", False)
    dry_run: bool = option("Plan and look at the target; download no weight and write nothing.", False, input=None)
    options: Options = field(default_factory=Options)
