"""How many elements of one checkpoint differ from another's, bit for bit. Usage: differences.py ONE OTHER

Tensors are compared by name; one that OTHER lacks counts whole. Prints the count and the number of elements compared.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

WIDTHS = {"BF16": np.uint16, "F16": np.uint16, "F32": np.uint32}


def tensors(folder: Path) -> dict[str, np.ndarray]:
    """Name → the bits of each tensor, mapped from its file."""
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        content = np.memmap(path, dtype=np.uint8, mode="r")
        begin = 8 + int.from_bytes(content[:8].tobytes(), "little")
        header = json.loads(content[8:begin].tobytes())
        header.pop("__metadata__", None)
        for name, entry in header.items():
            first, last = entry["data_offsets"]
            found[name] = content[begin + first : begin + last].view(WIDTHS[entry["dtype"]])
    return found


def differing(one: np.ndarray, other: np.ndarray | None) -> int:
    """Elements that differ; all of them where dtype or size does."""
    if other is None or other.dtype != one.dtype or other.shape != one.shape:
        return int(one.size)
    step = 1 << 24
    return sum(int(np.count_nonzero(one[at : at + step] != other[at : at + step])) for at in range(0, one.size, step))


if __name__ == "__main__":
    ours, theirs = tensors(Path(sys.argv[1])), tensors(Path(sys.argv[2]))
    print(
        sum(differing(bits, theirs.get(name)) for name, bits in ours.items()), sum(bits.size for bits in ours.values())
    )
