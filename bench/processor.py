"""The processor that a figure is from, and how to run Python as on one without AVX-512."""

from __future__ import annotations

import platform
from pathlib import Path

# numpy, torch's own loops, oneDNN and MKL: each looks at the processor by itself.
AVX2_ENVIRONMENT = {
    "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
}
# Run in place of `-m bot`: our compiled loops as they would be chosen there.
AVX2_MAIN = (
    "from bot.numerics import _exact; _exact.CLONES = tuple(name for name in _exact.CLONES if name != 'avx512'); "
    "from bot.checks.elementwise import rederive; rederive.FASTEST = next(kind for kind in rederive.KINDS if kind != 'avx512'); "
    "from bot.cli import main; main()"
)


def name() -> str:
    """As in "AMD EPYC (AVX-512)"."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), "")
    widest = next((word for flag, word in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if f" {flag}" in text), "")
    return f"{model or platform.processor() or platform.machine()}{f' ({widest})' if widest else ''}"
