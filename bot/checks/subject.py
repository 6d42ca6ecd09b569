"""What is to be proven: a merged folder, the inputs it claims to come from, and how hard to look."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bot.records import Json, Level, ProofDevice
from bot.report_document import Document, InputPins, MergeFacts


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A merged folder and its pinned inputs.

    `folder`, `base` and `adapter` are local folders; the files in them may be links into the Hub's cache.
    `inputs` and `merge` are copied into the document and never interpreted. `recorded` is the verification.json that came with
    the folder.
    `unhashed`: files of the base that nobody has hashed yet, of which comparing them is to do it; `inputs_of` then names the
    inputs, given {name: sha256} of those.
    `dtype` is "auto" (every tensor keeps the base's storage dtype), bfloat16, float16 or float32.
    `adapters` and `combination`: where `adapter` is the combination of several, those it was made of, in their order,
    and how (as `inputs` names it); () and None where there is one.
    `hashed`: the sha256 of files that were hashed while they were written, moments ago.
    `base_weights`: `stored` (the base's own, dequantised where they are quantised) or `simulate-nf4`, with
    `quantization`: how, as BitsAndBytesConfig has it. `quantize`: the form that the merged weights are stored in.
    `as_stored`: the base's own, of which nothing is written anew: every tensor is compared as the bytes that it is.
    `required`: the level was asked for by name, so that all of it must be found out; else what this installation cannot run
    at all leaves the verdict to the level `weights`.
    `clamps`: numbers too large for their dtype are stored as its largest.
    `original`: the 16-bit model that a quantised base was made from, where that lies here; `eval_text`: what to compare
    on beside the prompts; `force`: a quantised result that has lost the tune is a remark, not a failure.
    `card_bases`: the base models that the folder's card names, where none of them is among the inputs.
    `trained`: what the adapters' repos say of a base in four bits that they were trained on.
    `attestations`: files with in-toto statements that somebody made of this folder.
    `device`: where the models run.
    `eval_tasks`, `eval_limit`: what the models are evaluated on, as `bot.evaluation.evaluate` takes it; None: on nothing.
    `signed_by`: whose the model's signature must be, as `bot.signing.Signer.to_verify` reads it.
    `asks`: the models answer three prompts as well, for a page.
    `ours`: the folder claims to be this bot's work and must be exact; else any named arithmetic is a mere warning.
    """

    folder: Path
    base: Path
    adapter: Path
    inputs: InputPins
    recorded: Document | None
    merge: MergeFacts
    dtype: str
    ours: bool
    level: Level
    not_run: tuple[tuple[str, str], ...]
    trust_remote_code: bool
    card_bases: tuple[str, ...] = ()
    hashed: dict[str, str] = field(default_factory=dict)
    unhashed: tuple[str, ...] = ()
    inputs_of: Callable[[Mapping[str, str]], InputPins] | None = None
    adapters: tuple[Path, ...] = ()
    combination: Json | None = None
    base_weights: str = "stored"
    quantization: Json = field(default_factory=dict)
    quantize: str = "none"
    as_stored: bool = False
    required: bool = True
    clamps: bool = False
    original: Path | None = None
    eval_text: Path | None = None
    force: bool = False
    trained: tuple[str, ...] = ()
    attestations: tuple[Path, ...] = ()
    device: ProofDevice = field(default_factory=ProofDevice)
    signed_by: str | None = None
    eval_tasks: str | None = None
    eval_limit: int | None = None
    asks: bool = False
