"""The machines that Jobs may ask for, as the Hub lists them: some of its own, with their prices. Here each is this machine.

Source: https://huggingface.co/docs/hub/jobs-pricing"""

from __future__ import annotations

from typing import Any

MINUTES = 60


def _machine(
    name: str, shown: str, cpu: int, ram: int, disk: int, hourly: float, gpu: tuple[str, int] | None = None
) -> dict[str, Any]:
    """`ram` and `disk` in GB, `hourly` in dollars, `gpu`: (model, GB of its memory)."""
    cost = hourly / MINUTES
    return {
        "name": name,
        "prettyName": shown,
        "cpu": f"{cpu} vCPU",
        "ram": f"{ram} GB",
        "ephemeralStorage": f"{disk} GB",
        "accelerator": gpu
        and {"type": "gpu", "model": gpu[0], "quantity": "1", "vram": f"{gpu[1]} GB", "manufacturer": "Nvidia"},
        "unitCostMicroUSD": round(1e6 * cost),
        "unitCostUSD": round(cost, 6),
        "unitLabel": "minute",
    }


HARDWARE = (
    _machine("cpu-basic", "CPU Basic", 2, 16, 50, 0.01),
    _machine("cpu-upgrade", "CPU Upgrade", 8, 32, 50, 0.03),
    _machine("cpu-xl", "CPU XL", 16, 124, 1000, 1.00),
    _machine("cpu-performance", "CPU Performance", 32, 256, 1024, 1.90),
    _machine("t4-small", "Nvidia T4 - small", 4, 15, 50, 0.40, ("T4", 16)),
    _machine("t4-medium", "Nvidia T4 - medium", 8, 30, 100, 0.60, ("T4", 16)),
)
