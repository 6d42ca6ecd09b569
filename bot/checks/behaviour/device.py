"""The device that a worker runs its models on: what it needs of the environment and the sandbox, its arithmetic, its name.

On a GPU everything is computed as on the processor: in float32 without TF32, or in float64 where the job says so (every
CUDA device has it; a consumer's has little, and is still no slower than a processor). Kernels are the deterministic ones. Where an
operation has none, torch warns and goes on: its order of summation moves a result by float32's own rounding, a
millionth of what K measures, and an error there would leave the merge without its proof.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bot.checks.behaviour.job import WorkerJob

if TYPE_CHECKING:
    import torch

# What a CUDA program opens to write: the driver's devices (/dev/dxg: on WSL). What it reads beside the system's folders.
DRIVER_DEVICES = ("nvidia*", "nvidia-caps/*", "dxg")
DRIVER_FOLDERS = (Path("/run/opengl-driver"),)  # NixOS
NO_DEVICE = "this torch finds no CUDA device"
LOST = ("CUDA error", "CUDA out of memory", "CUBLAS_STATUS", "cuDNN error", "CUDNN_STATUS", "NVIDIA driver")


class NoDevice(Exception):
    """The GPU that the job is to run on cannot be had."""


def environment(job: WorkerJob) -> dict[str, str]:
    """The variables that a worker must start with."""
    if job.device == "cpu":
        return {"CUDA_VISIBLE_DEVICES": ""}
    chosen = {"CUDA_VISIBLE_DEVICES": ",".join(job.gpus)} if job.gpus else {}
    # cuBLAS adds in one order only with a workspace of its own for each stream; NVIDIA's switch for TF32 outdoes torch's.
    # https://docs.nvidia.com/cuda/cublas/#results-reproducibility
    return {**chosen, "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NVIDIA_TF32_OVERRIDE": "0"}


def driver_files(job: WorkerJob) -> tuple[list[Path], list[Path]]:
    """(to write, to read) of the system, for a worker that is confined."""
    if job.device == "cpu":
        return [], []
    devices = [path for pattern in DRIVER_DEVICES for path in Path("/dev").glob(pattern)]
    return [path for path in devices if path.is_char_device()], list(DRIVER_FOLDERS)


def prepare(job: WorkerJob) -> None:
    """Set up the job's device, before anything is computed and before the worker is confined: at its first use the driver may make
    its devices. Raises NoDevice."""
    if job.device == "cpu":
        return
    import torch

    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    if not torch.cuda.is_available():
        raise NoDevice(NO_DEVICE)
    torch.zeros(1, device=job.device)


def placing(job: WorkerJob) -> dict[str, Any]:
    """How transformers is to load a model of this job: `from_pretrained`'s arguments. Weights go from the file to the device.

    Over several GPUs by their free memory, as accelerate lays a model out; never to the processor, nor to a disk.
    """
    if job.device == "cpu":
        return {}
    if len(job.gpus) < 2:
        return {"device_map": {"": job.device}}
    import torch

    free = {number: torch.cuda.mem_get_info(number)[0] for number in range(torch.cuda.device_count())}
    return {"device_map": "auto", "max_memory": free}


def to_model(inputs: dict[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    """The inputs where the model's first weights are."""
    first = next(model.parameters(), None)
    return inputs if first is None else {name: value.to(first.device) for name, value in inputs.items()}


def failed(error: BaseException | None) -> str | None:
    """How the device failed, where it did: it is gone, or full; None where something else went wrong."""
    while error is not None:
        if isinstance(error, NoDevice):
            return str(error)
        words = " ".join(str(error).split())
        if type(error).__name__ == "OutOfMemoryError" or any(sign in words for sign in LOST):
            return words[:160]
        error = error.__cause__
    return None


class DevicesUsed:
    """The devices that models of this process have run on."""

    def __init__(self) -> None:
        self._devices: set[torch.device] = set()

    def add(self, *devices: torch.device) -> None:
        """A model, or a part of it, has run there."""
        self._devices |= {*devices}

    def of(self, model: Any) -> None:
        """A whole model has run, where its weights are."""
        self.add(*{parameter.device for parameter in model.parameters()})

    @property
    def names(self) -> str | None:
        """`cpu`, `NVIDIA H200`, `2 × NVIDIA H200`; None before anything has run."""
        counts = Counter(map(_name, self._devices))
        return ", ".join(f"{count} × {name}" if count > 1 else name for name, count in sorted(counts.items())) or None


def _name(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    import torch

    return torch.cuda.get_device_name(device)


DEVICES = DevicesUsed()  # of this process
