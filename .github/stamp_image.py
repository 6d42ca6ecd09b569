"""Stamp a release's two images into action.yml: the default of the `image` input, and the one with CUDA.

Usage: stamp_image.py FILE IMAGE@sha256:… CUDA_IMAGE@sha256:…

A line edit, so that comments and layout stay. Ends with an error where there is not exactly one place to stamp.
"""

import re
import sys
from pathlib import Path

PINNED = re.compile(r"[a-z0-9./_-]+@sha256:[0-9a-f]{64}")
DEFAULT = re.compile(r"(?m)^(  image:\n(?:    .*\n|\n)*?    default:[ ]*)(.*)$")
WITH_CUDA = re.compile(r"(?m)^( +CUDA_IMAGE:[ ]*)(.*)$")


def stamped(text: str, image: str, with_cuda: str) -> str:
    """The text of action.yml with the images in their two places."""
    for pattern, wanted, place in (
        (DEFAULT, image, "defaults of an input `image`"),
        (WITH_CUDA, with_cuda, "variables CUDA_IMAGE"),
    ):
        if not PINNED.fullmatch(wanted):
            raise SystemExit(f"{wanted!r} is not an image pinned by digest.")
        found = pattern.findall(text)
        if len(found) != 1:
            raise SystemExit(f"Found {len(found)} {place}; expected one.")
        text = pattern.sub(lambda match, wanted=wanted: f'{match[1]}"{wanted}"', text)
    return text


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(stamped(path.read_text(encoding="utf-8"), *sys.argv[2:4]), encoding="utf-8")
