"""Which files are large, and which are ignored: the repo's own `.gitattributes` and `.gitignore`."""

from __future__ import annotations

from pathspec import GitIgnoreSpec

LFS_THRESHOLD = 10 << 20
"""Bytes above which the Hub takes a file as LFS whatever its name."""

LARGE_FILE_PATTERNS = (
    "*.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.mlmodel *.model *.msgpack *.npy *.npz *.onnx "
    "*.ot *.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors saved_model/**/* *.tar.* *.tar *.tflite *.tgz "
    "*.wasm *.xz *.zip *.zst *tfevents*"
).split()

DEFAULT_GITATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LARGE_FILE_PATTERNS)


class LargeFiles:
    """The LFS rule of one `.gitattributes` text."""

    def __init__(self, gitattributes: str) -> None:
        self._rules: list[tuple[GitIgnoreSpec, bool]] = []
        for line in gitattributes.splitlines():
            pattern, *attributes = line.split() or [""]
            if not pattern or pattern.startswith("#"):
                continue
            spec = GitIgnoreSpec.from_lines([pattern])
            if "filter=lfs" in attributes:
                self._rules.append((spec, True))
            elif {"-filter", "!filter"} & set(attributes):
                self._rules.append((spec, False))

    def take(self, path: str, size: int) -> bool:
        """Whether a file goes to large-file storage; the last matching line decides, as in git."""
        if size > LFS_THRESHOLD:
            return True
        verdicts = [large for spec, large in self._rules if spec.match_file(path)]
        return bool(verdicts) and verdicts[-1] and size > 0


def ignores(gitignore: str, path: str) -> bool:
    """Whether a `.gitignore` text leaves the file out."""
    return GitIgnoreSpec.from_lines(gitignore.splitlines()).match_file(path)
