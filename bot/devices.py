"""Where a merge multiplies its deltas, and where its full proof runs the models: on a GPU or on the processor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from bot.budget import ByLayers, readable
from bot.records import AddDelta, Gpu, Machine, Op, Options, ProofDevice, Refusal

Device = Literal["cpu", "cuda"]
GPU_RANK = 128  # from here on a processor core takes longer for its product than a bus for the result
CONTEXT = 600 << 20  # bytes of each GPU that CUDA itself, its libraries and cuBLAS's workspace take; not measured here
NOT_BUILT = "device: cpu, since the installed torch is not built for this machine's GPU; the bytes are the same."


def device_refusals(options: Options, machine: Machine) -> list[Refusal]:
    """What forbids `--device cuda` (exit 6); it insists."""
    if options.device != "cuda":
        return []
    if not machine.cuda:
        reason = "--device cuda was asked for, and the installed torch is not built for GPUs."
        remedy = "Install torch with CUDA, or leave --device at auto."
        return [Refusal(code="no-cuda", reason=reason, remedy=remedy, exit_code=6)]
    if not machine.gpus:
        reason, remedy = "--device cuda was asked for, and this machine has no GPU.", "Leave --device at auto."
        return [Refusal(code="no-gpu", reason=reason, remedy=remedy, exit_code=6)]
    return []


def choose_device(options: Options, ops: Iterable[Op], machine: Machine) -> tuple[Device, list[str]]:
    """(where the deltas are multiplied, notes). `auto` takes a GPU only for ranks at which the processor would be slower than
    the way to the GPU and back, and only one that torch can use: the bytes are the same."""
    if options.device == "cpu" or not machine.gpus:
        return "cpu", []
    patches = (patch for op in ops if isinstance(op, AddDelta) for patch in op.patches)
    rank = max((term.rank for patch in patches for term in patch.terms), default=0)
    if options.device == "auto" and rank < GPU_RANK:
        return "cpu", []
    return ("cuda", []) if machine.cuda else ("cpu", [*_not_built(options)])


def choose_proof_device(
    options: Options, memory: int, machine: Machine, layers: ByLayers | None = None
) -> tuple[ProofDevice, list[str]]:
    """(where the full proof runs its models, notes). `memory`: bytes that it holds at once; `layers`: what it takes to run them layer
    by layer, of the GPU's memory and of the machine's, by way of which each is read; None where that cannot be done.

    The GPU with the most free memory, where that suffices; else several together, over which each model is spread; else the one with
    the most, layer by layer. `auto` goes to the processor where the GPUs are too small for that, too; `cuda` insists, and then the
    proof lacks what they lack.
    """
    if options.verify in ("files", "weights") or options.device == "cpu" or not machine.gpus:
        return ProofDevice(), []
    if not machine.cuda:
        return ProofDevice(), [*_not_built(options)]
    insists, fits_cpu = options.device == "cuda", memory <= machine.memory_available
    chosen, free = _with_room(machine.gpus, memory)
    if chosen:
        uuids = tuple(gpu.uuid for gpu in chosen)
        return ProofDevice(gpus=uuids, insists=insists, fits_cpu=fits_cpu), []
    if free is None and insists:  # nobody can tell: it will be seen
        return ProofDevice(gpus=(machine.gpus[0].uuid,), insists=True, fits_cpu=fits_cpu), []
    if free is None:
        return ProofDevice(), ["device: cpu for the proof, since the driver does not tell this GPU's free memory."]
    roomiest = max(machine.gpus, key=lambda gpu: gpu.free or 0)
    lacks = f"{readable(memory)} of GPU memory, {readable(free)} are free"
    if layers is not None and layers.memory <= (roomiest.free or 0) - CONTEXT:
        if layers.memory <= machine.memory_available:
            return ProofDevice(gpus=(roomiest.uuid,), insists=insists, by_layers=True), []
        has = readable(machine.memory_available)
        lacks += f"; and layer by layer {readable(layers.memory)} of memory, {has} are available"
    if insists:
        return ProofDevice(insists=True, lacks=f"needs {lacks}"), []
    return ProofDevice(), [f"device: cpu for the proof, which would need {lacks}."]


def _not_built(options: Options) -> Iterator[str]:
    """Of `cuda`, which insists, a refusal says it."""
    if options.device == "auto":
        yield NOT_BUILT


def _with_room(gpus: tuple[Gpu, ...], memory: int) -> tuple[list[Gpu], int | None]:
    """(those that hold so much: one, else all of one name together, else none; the free bytes of the roomiest choice, None where
    the driver does not tell). CUDA's own part is left out of what is free."""
    known = [(gpu, max(0, gpu.free - CONTEXT)) for gpu in gpus if gpu.free is not None]
    if not known:
        return [], None
    single, most = max(known, key=lambda pair: pair[1])
    if most >= memory:
        return [single], most
    # Of one kind only: two kinds of GPU may add in different orders, and the slower one would set the pace.
    alike = [pair for pair in known if pair[0].name == single.name]
    together = sum(room for _, room in alike)
    return ([gpu for gpu, _ in alike] if len(alike) > 1 and together >= memory else []), max(most, together)
