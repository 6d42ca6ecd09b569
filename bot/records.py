"""The records that join the stages. All frozen, keyword-only, and free of behaviour that touches the world.

Request → pull → Sources → plan → Plan → merge → Merged → verify → Report → card → publish → Publication → Outcome
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bot.options import Combination as Combination
from bot.options import Options as Options
from bot.options import Ref as Ref
from bot.options import Request as Request
from bot.report_document import Document

RECIPE = "2"  # bumped whenever the same inputs would give other bytes; part of every fingerprint

Level = Literal["files", "weights", "full"]
Role = Literal["base", "adapter"]
Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a filesystem says of a file. A write shows in it: no program can set `changed` (ctime) back. Times in ns."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of a repo or folder. `size` in bytes; `sha256` where it is known without reading the file (LFS), else, in
    a repo, `oid`: git's blob id, a sha1.

    `here`: it lies on this disk already (a folder's file, or one in the Hub cache), so that fetching costs nothing.
    `path`: its name in the repo, where that is another: of an adapter that lies deeper in it.
    """

    name: str
    size: int
    sha256: str | None = None
    here: bool = False
    oid: str | None = None
    identity: Identity | None = None  # of a folder's file, before anything of it was read
    path: str | None = None


@dataclass(frozen=True, kw_only=True)
class Held:
    """An input file as it lies on this disk, and what its bytes must be: those of `sha256`, or of git's blob id `oid`
    (neither is stated of some files of a cache without links).

    `owner`: the source as its user named it. `repo` and `sha`: where the file can be fetched again; None for a folder's.
    `identity`: before anything of it was read.
    """

    role: Role | Literal["merged"]
    name: str
    path: Path
    owner: str
    repo: str | None
    sha: str
    sha256: str | None
    oid: str | None
    identity: Identity


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One tensor as a safetensors header describes it; `start` and `stop` are absolute byte offsets in `file`.

    `role`: whose file it is: the base's (or the output's), or the adapter's.
    """

    key: str
    file: str
    dtype: str  # safetensors' own names: BF16, F16, F32, F64, I64, U8, BOOL, F8_E4M3 …
    shape: tuple[int, ...]
    start: int
    stop: int
    role: Role = "base"
    packed: Packed | None = None


@dataclass(frozen=True, kw_only=True)
class Packed:
    """How a weight is stored that is not plain numbers. The tensor that has it is a logical one: the plain key and
    shape, dtype F32, and no bytes of its own.

    `format`: the reader's name; `parts`: the checkpoint's tensors by their role, e.g. weight, absmax; `settings`: what the
    reader needs to know of them.
    """

    format: str
    parts: tuple[tuple[str, Stored], ...]
    settings: tuple[tuple[str, str | int | float | bool], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Header:
    """The header of one safetensors file: `raw` is all of it, the 8 length bytes included; the data begins there."""

    file: str
    raw: bytes
    file_size: int
    metadata: dict[str, str]
    tensors: tuple[Stored, ...]  # in file order (by start)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A base or an adapter, pinned: nothing in it can change any more.

    `sha` is a commit sha for a Hub repo, `sha256:…` over the sorted (name, sha256) list for a folder; "" while some of its files
    are still to be hashed.
    `texts` holds the small text files that planning reads, by name (configs, index, README.md).
    """

    role: Role
    ref: Ref
    repo: str | None
    revision: str | None  # as asked for, or the tag that was resolved
    sha: str
    files: tuple[FileEntry, ...]
    headers: tuple[Header, ...]
    texts: dict[str, bytes]
    # Contents of tiny tensors, by key; tokenizer.json's beginning.
    small: dict[str, bytes] = field(default_factory=dict)
    private: bool = False
    gated: str | None = None  # "auto" | "manual"
    tags: tuple[str, ...] = ()  # git tags that point at `sha`
    card: Json = field(default_factory=dict)  # README.md's metadata block
    subfolder: str | None = None  # where in the repo the adapter lies

    @property
    def called(self) -> str:
        """The source as its user named it, without the revision."""
        return "/".join(filter(None, (self.repo, self.subfolder))) or self.ref.text

    @property
    def pin(self) -> str:
        """What names its bytes: the sha, and where in that commit an adapter lies deeper, the folder."""
        return f"{self.sha}/{self.subfolder}" if self.subfolder else self.sha

    def in_repo(self, name: str) -> str:
        """What one of its files is called in its repo."""
        paths = (entry.path for entry in self.files if entry.name == name) if self.subfolder else ()
        return next(filter(None, paths), name)


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The pinned inputs of one merge. `more`: further adapters, which are combined with `adapter` before it is planned."""

    base: Source
    adapter: Source
    more: tuple[Source, ...] = ()

    @property
    def adapters(self) -> tuple[Source, ...]:
        """All that were given, in their order."""
        return (self.adapter, *self.more)


# --- the plan -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A merge that must not happen. `exit_code` is 3, or 6 where only this machine is in the way."""

    code: str
    reason: str
    remedy: str
    exit_code: int = 3
    keys: tuple[str, ...] = ()  # the base or adapter keys that this refusal claims


@dataclass(frozen=True, kw_only=True)
class Copy:
    """The bytes of `source`, unchanged."""

    source: Stored
    target: Stored


@dataclass(frozen=True, kw_only=True)
class Cast:
    """`source` rounded once to the dtype of `target`."""

    source: Stored
    target: Stored


@dataclass(frozen=True, kw_only=True)
class Factor:
    """A matrix out of an adapter tensor, which is first viewed as shape[0] × the rest (a vector as one column).

    `rows` and `columns` are (start, stop, step) of that view; `transposed`: what they cut out is then transposed.
    """

    stored: Stored
    rows: tuple[int, int, int]
    columns: tuple[int, int, int]
    transposed: bool = False


@dataclass(frozen=True, kw_only=True)
class Term:
    """scaling · left · right. left: rows × rank, right: rank × columns; no right: left is one column, added as it is."""

    module: str  # as the adapter names it
    left: Factor
    right: Factor | None
    rank: int
    alpha: float
    scaling: float


@dataclass(frozen=True, kw_only=True)
class Patch:
    """What is added to the rectangle [rows) × [columns) of a tensor viewed as a matrix, to every `step`-th of its rows.

    With `magnitude` (DoRA) the rectangle is V = W + Σ terms, and becomes magnitude ⊙ V / ‖V‖, where the norm runs along
    each row (`along` "rows": one magnitude a row) or each column ("columns").
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    terms: tuple[Term, ...]
    magnitude: Factor | None = None
    along: Literal["rows", "columns"] = "rows"
    step: int = 1


@dataclass(frozen=True, kw_only=True)
class AddDelta:
    """round(W + delta), one rounding. W is `source`, seen as `view` (rows × columns); the patches do not overlap."""

    source: Stored
    target: Stored
    view: tuple[int, int]
    patches: tuple[Patch, ...]


@dataclass(frozen=True, kw_only=True)
class Replace:
    """The adapter's whole tensor `values` in place of the base's `source` (None: a key that the base does not have)."""

    source: Stored | None
    target: Stored
    values: Stored
    module: str


@dataclass(frozen=True, kw_only=True)
class SetRows:
    """`source` with its rows `rows` set to those of `values` (len(rows) × the rest), in that order."""

    source: Stored
    target: Stored
    rows: tuple[int, ...]
    values: Stored
    module: str


@dataclass(frozen=True, kw_only=True)
class WriterChoice:
    """Who stores a weight: a writer by its name (`same`: the writer of the base's own form), for a model of this dtype
    (torch's word). `transposed`: the weight comes as in × out and is stored as out × in (Conv1D)."""

    name: str
    dtype: str = "bfloat16"
    transposed: bool = False


@dataclass(frozen=True, kw_only=True)
class Quantize:
    """What `make` gives in float32, correctly rounded, stored by the chosen writer as the tensors `parts`.

    `target` is the logical tensor, without bytes of its own.
    """

    make: PlainOp
    target: Stored
    writer: WriterChoice
    parts: tuple[Stored, ...]

    @property
    def source(self) -> Stored | None:
        return self.make.source


@dataclass(frozen=True, kw_only=True)
class PeftMerge:
    """What PEFT's own layer `module` makes of `source`, its `parameter` (the phantom and in-memory engines)."""

    source: Stored
    target: Stored
    module: str
    parameter: str  # weight or bias


PlainOp = Copy | Cast | AddDelta | Replace | SetRows | PeftMerge
Op = PlainOp | Quantize


def plain_op(op: Op) -> PlainOp:
    """What an op makes, however that is stored."""
    return op.make if isinstance(op, Quantize) else op


@dataclass(frozen=True, kw_only=True)
class Drop:
    """A base tensor that the output does not have, and why."""

    source: Stored
    why: str


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One weight file of the output. `header` is its complete header, the 8 length bytes included."""

    name: str
    size: int
    header: bytes
    same_as_base: bool  # every byte equals the base's file of this name


@dataclass(frozen=True, kw_only=True)
class Asset:
    """A file that is not a weight. Its bytes are `source`'s file of that name (or that called `original`), or `content` where
    the plan declares a change."""

    name: str
    source: Role
    why: str
    content: bytes | None = None
    original: str | None = None

    @property
    def origin(self) -> str:
        """What the file is called in its source."""
        return self.original or self.name


@dataclass(frozen=True, kw_only=True)
class ConfigChange:
    """A declared difference between the base's config.json and the merged one; `path` is dotted, and has another file's
    name in front where it is in that (`generation_config.json: eos_token_id`)."""

    path: str
    before: Any
    after: Any


@dataclass(frozen=True, kw_only=True)
class ShardCosts:
    """What a merge costs that is made one weight file after the other, in bytes. `disk`: at most, at any moment; `copied`: of
    files that the Hub copies itself."""

    disk: int
    fetch: int
    send: int
    copied: int


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a merge will take, in bytes."""

    download: int
    output: int
    peak_memory: int
    disk: int
    verify_memory: int  # what `--verify full` needs
    # The same, beside the output: plain copies of a quantised base and result, while they are measured.
    verify_disk: int = 0
    by_shard: ShardCosts | None = None  # None: this merge cannot be made so, or nothing is published


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """An NVIDIA GPU, or a slice of one. `memory`, `free`: bytes; None where the driver does not tell."""

    name: str
    uuid: str
    memory: int | None = None
    free: int | None = None


@dataclass(frozen=True, kw_only=True)
class ProofDevice:
    """Where the full proof runs its models. `gpus`: the UUIDs of those that it may use, () for the processor; over several, each
    model is spread.

    `insists`: the GPU was asked for by name; else the processor takes over where it fails, if the models fit there
    (`fits_cpu`). `lacks`: what an insisting proof does not have, behind "The full verification". `by_layers`: the GPU is too small
    for a whole model, and each layer runs there by itself.
    """

    gpus: tuple[str, ...] = ()
    insists: bool = False
    fits_cpu: bool = True
    lacks: str | None = None
    by_layers: bool = False

    @property
    def kind(self) -> Literal["cpu", "cuda"]:
        """What torch calls it."""
        return "cuda" if self.gpus else "cpu"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Pure data, made from headers and configs. `fingerprint` is what makes re-runs idempotent."""

    base: Json  # {repo, revision, sha}
    adapter: Json
    options: Options
    method: str  # e.g. "LoRA", "rsLoRA"
    engine: str
    base_weights: Literal["stored", "simulate-nf4"]  # what W is, once it is decided
    device: Literal["cpu", "cuda"]  # where the deltas are multiplied; the bytes are the same
    dtype: str  # the storage dtype of the merged tensors: bfloat16 …, or "mixed"
    level: Level
    not_run: tuple[tuple[str, str], ...]  # (check level, reason)
    ops: tuple[Op, ...]
    drops: tuple[Drop, ...]
    base_tensors: tuple[Stored, ...]  # all of them, as the headers that were planned from have them
    must_be_equal: tuple[tuple[Stored, Stored, bool], ...]  # pairs of adapter tensors (True: one is transposed)
    shards: tuple[Shard, ...]
    index: bytes | None  # model.safetensors.index.json, where there is one
    index_name: str | None
    assets: tuple[Asset, ...]
    config_changes: tuple[ConfigChange, ...]
    refusals: tuple[Refusal, ...]
    notes: tuple[str, ...]
    budget: Budget
    fingerprint: str
    base_weights_why: str = ""  # which weights of the base are merged into, and why: words behind "base-weights: "
    tensors: tuple[tuple[str, int], ...] = ()  # what the model's tensors are made of, see `bot.plan.tensor_counts`
    warnings: tuple[str, ...] = ()  # what may make this the wrong merge
    shared_blocks: str | None = None  # of weights that are written once for each depth: what, and who would not see it
    adapters: tuple[Json, ...] = ()  # where `adapter` is the combination of several: those, as pinned
    combination: Json | None = None  # and how they are combined
    # Adapter tensors that must be all zeros, since the base has no place for what they add.
    idle: tuple[Stored, ...] = ()
    forced: bool = False  # whether a merge that changes nothing is made all the same
    disk: Literal["whole", "shards"] = "whole"  # whether all of it lies on the disk at once
    proof_device: ProofDevice = field(default_factory=ProofDevice)  # where the full proof runs its models


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What this machine has. Sizes in bytes; `disk_free` at the place where the output goes, `cache_free` where downloads go,
    None where that is the same disk. `gpus`: those that a program started here would see. `cuda`: whether the installed
    torch is built for GPUs."""

    memory: int
    memory_available: int
    disk_free: int
    platform: str
    versions: dict[str, str]
    cache_free: int | None = None
    gpus: tuple[Gpu, ...] = ()
    cuda: bool = True


@dataclass(frozen=True, kw_only=True)
class Local:
    """Where the pinned inputs lie on this disk: two folders that hold every file the plan names.

    `adapters`: the given adapters' folders; `adapter` is the first of them, until they are combined. `files`: what is read
    of them, and what it must be.
    """

    base: Path
    adapter: Path
    adapters: tuple[Path, ...] = ()
    files: tuple[Held, ...] = ()  # of base and given adapters, all that the plan names


# --- the result ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Merged:
    """A finished folder that has not got its final name yet."""

    folder: Path
    plan: Plan
    sha256: dict[str, str]  # of the weight files


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found. `measured` and `allowed` are short and printable; `why` is a sentence.

    `group`: files, config, tokenizer, weights or behaviour, as CHECKS has it.
    """

    id: str
    group: str = ""
    status: Literal["pass", "warn", "fail", "skip"]
    measured: str
    allowed: str
    why: str
    worst: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Report:
    """The findings, and the verdict they force: `verified` only when no required check failed or was skipped."""

    level: Level
    findings: tuple[Finding, ...]
    not_run: tuple[tuple[str, str], ...]
    noise_floor: Json | None
    verdict: Literal["verified", "not-verified"]
    document: Document  # verification.json


@dataclass(frozen=True, kw_only=True)
class Publication:
    """Where the proven model now is."""

    status: Literal["published", "unchanged", "dry-run", "none"]
    how: Literal["push", "pr", "none"]
    repo: str | None = None
    revision: str | None = None
    tag: str | None = None
    pr_url: str | None = None
    pr_number: int | None = None
    url: str | None = None
    why: str = ""
    proof: Json | None = None  # where it is there already and proven: {verdict, level, report: its address}

    @property
    def link(self) -> str | None:
        """The page to look at: the pull request, else the repo."""
        return self.pr_url or self.url


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """All that one run did; `status` is the action's output of that name."""

    status: Literal["published", "unchanged", "refused", "not-verified", "dry-run", "merged"]
    plan: Plan
    report: Report | None = None
    publication: Publication | None = None
    folder: Path | None = None
