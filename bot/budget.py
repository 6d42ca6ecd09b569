"""What a merge will take, and how far this machine lets us prove it. All sizes in bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from bot.records import (
    AddDelta,
    Asset,
    Budget,
    Json,
    Level,
    Machine,
    Op,
    Options,
    Patch,
    PeftMerge,
    ProofDevice,
    Quantize,
    Refusal,
    Shard,
    Source,
    Sources,
    Stored,
)

MIB = 1 << 20
IMPORTED = 90 * MIB  # resident memory of this program once numpy is imported; bench/merge.py measures the whole
WITH_PEFT = 700 * MIB  # the same with torch, transformers and peft, and a model without weights
WORKERS = 4  # at most, in the streaming engine
BLOCKS = WORKERS * 20 * MIB  # their row blocks, the float32 copies, and the elements decided in float64
# huggingface_hub's: files at a time, and bytes of each that are on their way to the disk, which httpx has three times by then.
FETCHED_AT_ONCE, FETCHED = 8, 3 * 10 * MIB
PROVING = 450 * MIB  # at the level weights, whatever the model's size: most of it is torch, where that is needed
ON_PROCESSOR = ProofDevice()
LOADED = 900 * MIB  # the same with transformers and peft imported, and the activations of the fixed prompts
LAYER = 12  # bytes for each weight of a layer that is run by itself: its own, a stand-in's, and what they are made of
WIDEST = 24  # and for each of its largest tensor: the exact merge of it, in float64
NUMBERED = re.compile(r"(.*?\.\d+)\.")  # the layer that a key belongs to
LARGEST = 2  # times the machine's memory: a larger base is run layer by layer only where that is asked for by name


def make_budget(
    sources: Sources,
    shards: Sequence[Shard],
    ops: Sequence[Op],
    assets: Sequence[Asset],
    engine: str,
    model: Sequence[Op],
    form: str,
) -> Budget:
    """Predict downloads (of files not here yet), output, memory and disk. `model`: one op for each of the model's own tensors,
    of which `ops` are as they are stored, in `form` (`--quantize`)."""
    output = sum(shard.size for shard in shards) + _asset_bytes(sources, assets)
    # A and B as stored and as float32 or float64, for the tensors in work at once.
    made = [op.make if isinstance(op, Quantize) else op for op in ops]
    patches = (patch for op in made if isinstance(op, AddDelta) for patch in op.patches)
    working = sum(sorted(map(_patch_bytes, patches), reverse=True)[:WORKERS])
    if engine != "streaming":
        layers = [op for op in ops if isinstance(op, PeftMerge)]
        sizes = [prod(op.source.shape) for op in layers] or [0]
        # Float64 copies of the layer being merged and what PEFT makes of it; in memory, all of them at once as well.
        working += WITH_PEFT + 6 * 8 * max(sizes) + (8 * sum(sizes) if engine == "in-memory" else 0)
    download = _missing(sources.base, {header.file for header in sources.base.headers}) + _missing(
        sources.adapter, {header.file for header in sources.adapter.headers}
    )
    return Budget(
        download=download,
        output=output,
        peak_memory=IMPORTED + max(BLOCKS + working, _fetching([sources.base, sources.adapter])),
        disk=output + download,
        verify_memory=verify_memory([op.target for op in model]),
        verify_disk=verify_disk(
            [op.target for op in model],
            base=any(op.source is not None and op.source.packed is not None for op in model),
            result=form != "none",
        ),
    )


def verify_memory(tensors: Iterable[Stored]) -> int:
    """What the full verification holds at once: one model in float32, or in float64 where it is stored as float32."""
    sizes = [(prod(tensor.shape), tensor.dtype) for tensor in tensors]
    width = 8 if any(dtype == "F32" and numel > MIB for numel, dtype in sizes) else 4
    return LOADED + int(sum(numel for numel, _ in sizes) * width * 1.25)


def layers_memory(tensors: Iterable[Stored]) -> int:
    """What the full verification holds at once of a model that it runs layer by layer, whatever its depth."""
    layers: dict[str, list[int]] = {}
    wide = 1
    for tensor in tensors:
        numbered, numel = NUMBERED.match(tensor.key), prod(tensor.shape)
        layers.setdefault(numbered[1] if numbered else tensor.key, []).append(numel)
        wide = 2 if tensor.dtype == "F32" and numel > MIB else wide
    sizes = [LAYER * sum(layer) + WIDEST * max(layer) for layer in layers.values()]
    return LOADED + wide * max(sizes, default=0)


def verify_disk(tensors: Iterable[Stored], *, base: bool, result: bool) -> int:
    """What the full verification writes of a quantised base, and of a quantised result: each as float32, at the most."""
    return 4 * (base + result) * sum(prod(tensor.shape) for tensor in tensors)


def disk_to_prove(budget: Budget, machine: Machine) -> int:
    """What has to fit where the output goes for the full verification; 0 where that writes nothing."""
    beside = budget.disk if machine.cache_free is None else budget.output
    return budget.verify_disk and beside + budget.verify_disk


def machine_refusals(budget: Budget, machine: Machine) -> list[Refusal]:
    """What this machine lacks for the merge itself (exit 6)."""
    refusals = []
    if machine.cache_free is not None:
        refusals += _two_disks(budget, machine.disk_free, machine.cache_free)
    elif budget.disk > machine.disk_free:
        reason = f"The merge needs {readable(budget.disk)} of disk and {readable(machine.disk_free)} are free."
        remedy = "Free some, or point --output and HF_HOME at a larger disk."
        refusals.append(Refusal(code="disk", reason=reason, remedy=remedy, exit_code=6))
    if budget.peak_memory > machine.memory_available:
        reason = (
            f"The merge needs {readable(budget.peak_memory)} of memory and "
            f"{readable(machine.memory_available)} are available."
        )
        remedy = "Close other programs, or raise the container's memory limit."
        refusals.append(Refusal(code="memory", reason=reason, remedy=remedy, exit_code=6))
    return refusals


def _two_disks(budget: Budget, output_free: int, cache_free: int) -> list[Refusal]:
    """Output and downloads each by itself, where they go to disks of their own."""
    refusals = []
    if budget.output > output_free:
        reason = f"The output needs {readable(budget.output)} of disk and {readable(output_free)} are free."
        remedy = "Free some, or point --output at a larger disk."
        refusals.append(Refusal(code="disk", reason=reason, remedy=remedy, exit_code=6))
    cached = budget.disk - budget.output
    if cached > cache_free:
        reason = f"The download cache needs {readable(cached)} of disk and {readable(cache_free)} are free."
        remedy = "Free some, or point HF_HOME at a larger disk."
        refusals.append(Refusal(code="disk", reason=reason, remedy=remedy, exit_code=6))
    return refusals


@dataclass(frozen=True, kw_only=True)
class ByLayers:
    """A model that could be run layer by layer: the memory that takes, and the bytes of its weights, which are read for each of two
    models."""

    memory: int
    stored: int


def by_layers(tensors: Sequence[Stored], config: Json, is_plain: bool) -> ByLayers | None:
    """What that takes; None where it cannot be done: for a repo's own code, and what is not plain (weights that are stored
    quantised, numbers that are cut off, layers that PEFT makes of the whole base)."""
    if not is_plain or config.get("auto_map"):
        return None
    return ByLayers(memory=layers_memory(tensors), stored=sum(tensor.stop - tensor.start for tensor in tensors))


def choose_level(
    options: Options, config: Json, memory: int, machine: Machine, disk: int = 0, device: ProofDevice = ON_PROCESSOR,
    layers: ByLayers | None = None,
) -> tuple[Level, tuple[tuple[str, str], ...], list[Refusal]]:  # fmt: skip
    """(level, what will not be run and why, refusals). `auto` takes the highest level that fits this machine.

    `memory`: bytes that the full verification would hold; `disk`: that it would have written where the output goes; `device`:
    where it would run the models, which was chosen to hold them where that is a GPU, or a layer of them; `layers`: what it would take
    to run them layer by layer, None where that cannot be done.
    """
    if options.verify == "files":
        return "files", tuple((name, "--verify files was asked for") for name in ("weights", "full")), []
    if options.verify == "weights":
        return "weights", (("full", "--verify weights was asked for"),), _too_little_to_prove(machine)
    if config.get("auto_map") and not options.trust_remote_code:
        reason = "The base brings Python code of its own, which the full verification would run (auto_map)."
        remedy = "Read that code, then pass --trust-remote-code; or pass --verify weights, which runs none."
        return "weights", (), [Refusal(code="custom-code", reason=reason, remedy=remedy)]
    held = LOADED if device.gpus else memory  # weights go from the file to the GPU, a tensor at a time
    too_much = "" if layers is None else _too_much_to_read(layers, options, machine)
    lacking = [*filter(None, [device.lacks])]
    lacking += [
        f"needs {readable(wanted)} of {what}, {readable(has)} are {how}"
        for wanted, has, what, how in (
            (held, machine.memory_available, "memory", "available"),
            (disk, machine.disk_free, "disk", "free"),
        )
        if wanted > has
    ]
    if device.by_layers and too_much:
        lacking.append(f"needs {readable(memory)} of GPU memory; {too_much}")
    on_processor = device.kind == "cpu" and not device.lacks
    if (
        on_processor
        and layers is not None
        and memory > machine.memory_available >= layers.memory
        and disk <= machine.disk_free
    ):
        if not too_much:
            return "full", (), []
        lacking = [f"{lacking[0]}; {too_much}"]
    if lacking:
        needs = lacking[0]
        if options.verify == "full":
            reason = f"The full verification {needs}."
            remedy = "Use a larger machine, or pass --verify weights."
            return "full", (), [Refusal(code="verify-memory", reason=reason, remedy=remedy, exit_code=6)]
        return "weights", (("full", needs),), _too_little_to_prove(machine)
    return "full", (), []


def _too_much_to_read(layers: ByLayers, options: Options, machine: Machine) -> str:
    """Why a model is not run layer by layer, though it could be; "" where it is."""
    if options.verify == "full" or layers.stored <= LARGEST * machine.memory:
        return ""
    return f"layer by layer it would read {readable(layers.stored)}, which --verify full does"


def _too_little_to_prove(machine: Machine) -> list[Refusal]:
    """What the weights verification lacks, which is to be known before a merge and not after it."""
    if machine.memory_available >= PROVING:
        return []
    reason = (
        f"The proof of the weights needs {readable(PROVING)} of memory and "
        f"{readable(machine.memory_available)} are available."
    )
    remedy = "Close other programs, raise the container's memory limit, or pass --verify files."
    return [Refusal(code="verify-memory", reason=reason, remedy=remedy, exit_code=6)]


def readable(size: float) -> str:
    """Bytes for people: 988.1 MB. Decimal units, as the Hub shows them."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"


def _asset_bytes(sources: Sources, assets: Sequence[Asset]) -> int:
    sizes = {
        (source.role, entry.name): entry.size for source in (sources.base, sources.adapter) for entry in source.files
    }
    return sum(len(a.content) if a.content is not None else sizes.get((a.source, a.name), 0) for a in assets)


def _missing(source: Source, names: set[str]) -> int:
    return sum(entry.size for entry in source.files if entry.name in names and not entry.here)


def _fetching(sources: Sequence[Source]) -> int:
    """What the Hub's client holds of the files that are not here yet."""
    sizes = sorted((entry.size for source in sources for entry in source.files if not entry.here), reverse=True)
    return sum(min(FETCHED, 3 * size) for size in sizes[:FETCHED_AT_ONCE])


def _patch_bytes(patch: Patch) -> int:
    """What the engine holds of a patch's factors: the cut-out numbers twice as float32 or float64, and the tensor that
    they are cut from."""
    total = 0
    for term in patch.terms:
        for factor in filter(None, (term.left, term.right)):
            cut = len(range(*factor.rows)) * len(range(*factor.columns))
            total += cut * 16 + (factor.stored.stop - factor.stored.start)
    return total
