"""Stamp an image into action.yml: it becomes the default of the `image` input. Usage: stamp_image.py FILE IMAGE@sha256:…

A line edit, so that comments and layout stay. Ends with an error where there is not exactly one place to stamp.
"""

import re
import sys
from pathlib import Path

PINNED = re.compile(r"[a-z0-9./_-]+@sha256:[0-9a-f]{64}")
DEFAULT = re.compile(r"(?m)^(  image:\n(?:    .*\n|\n)*?    default:[ ]*)(.*)$")


def stamped(text: str, image: str) -> str:
    """The text of action.yml with the image as the `image` input's default."""
    if not PINNED.fullmatch(image):
        raise SystemExit(f"{image!r} is not an image pinned by digest.")
    found = DEFAULT.findall(text)
    if len(found) != 1:
        raise SystemExit(f"Found {len(found)} defaults of an input `image`; expected one.")
    return DEFAULT.sub(lambda match: f'{match[1]}"{image}"', text)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(stamped(path.read_text(encoding="utf-8"), sys.argv[2]), encoding="utf-8")
