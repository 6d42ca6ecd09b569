"""LoRA on every architecture: tried one by one, and told in docs/support-matrix.md, below the table of methods.

python -m tests.oracle.write_architectures FILE            all of them; goes on from FILE, a line of JSON each
python -m tests.oracle.write_architectures --quick         a few, for CI: nothing is written, exit 1 unless all are right
"""

from __future__ import annotations

import collections
import dataclasses
import json
import sys
import tempfile
import textwrap
from importlib import metadata
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs" / "support-matrix.md"
BEGIN = "## LoRA on every architecture"
QUICK = ("llama", "gpt2", "qwen3_moe", "t5", "bert", "vit", "llava", "kimi_k25", "dots1", "whisper")
PREDICATES = {
    "wrong": "have the weights of PEFT's own merge, and PEFT's unmerged model answers otherwise than either",
    "not proven": "are refused by the proof: the model reads weights past PEFT's layers, so that no merge answers as it does",
    "refused": "are refused by name",
    "no layers": "PEFT itself finds no layers in, or cannot adapt",
    "not built": "were not built: a library is missing, or no small config makes one",
}


def main() -> int:
    """Try what is asked for. Returns the exit code."""
    from tests.oracle.one_architecture import try_one
    from tools.small_models import every_type

    if sys.argv[1:] == ["--quick"]:
        with tempfile.TemporaryDirectory() as folder:
            found = {name: try_one(name, Path(folder) / "one") for name in QUICK}
        bad = {name: one for name, one in found.items() if one.kind != "right"}
        print(
            f"{len(found) - len(bad)} of {len(found)} are right",
            *(f"{name}: {one}" for name, one in bad.items()),
            sep="\n",
        )
        return int(bool(bad))
    results = Path(sys.argv[1])
    known = read(results)
    with tempfile.TemporaryDirectory() as folder, results.open("a") as lines:
        for name in every_type():
            if name not in known:
                known[name] = dataclasses.asdict(try_one(name, Path(folder) / "one"))
                lines.write(json.dumps({"t": name, **known[name]}) + "\n")
                lines.flush()
    DOCS.write_text(with_section(DOCS.read_text(), section(known)), encoding="utf-8")
    return 0


def read(results: Path) -> dict[str, dict[str, object]]:
    """{model type: its outcome}; where one was tried again, the last."""
    lines = results.read_text().splitlines() if results.exists() else []
    return {str(one["t"]): one for one in map(json.loads, lines)}


def with_section(page: str, text: str) -> str:
    """The page with its last section replaced."""
    return page.partition(BEGIN)[0].rstrip("\n") + "\n\n" + text


def section(known: dict[str, dict[str, object]]) -> str:
    """What came of it, in words and lists."""
    kinds = collections.defaultdict(list)
    for name, one in sorted(known.items()):
        kinds[str(one["kind"])].append(name)
    asked = sum(len(names) for kind, names in kinds.items() if kind not in ("not built", "no layers"))
    answered = sum(known[name]["answers"] is not None for name in kinds["right"])
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("peft", "transformers", "torch"))
    paragraphs = [
        BEGIN,
        "<!-- Written by `python -m tests.oracle.write_architectures`. Do not edit. -->",
        f"Every model type of transformers that builds small: {len(known)} tried, with {versions}. LoRA on `all-linear` by "
        f"PEFT in float32, merged and proven at `weights`. **{len(kinds['right'])} of {asked}** that PEFT adapts are right: "
        "every parameter is that of PEFT's own merge (but of a block at several depths, whose changes PEFT's merge adds up), "
        "and where the model answered to made-up inputs "
        f"({answered} of them), its answers are the unmerged model's within 1e-5.",
        listed("Right", kinds["right"]),
        *(
            listed(f"{len(kinds[kind])} {predicate}", kinds[kind])
            for kind, predicate in PREDICATES.items()
            if kinds[kind]
        ),
    ]
    return "\n\n".join(map(wrapped, paragraphs)) + "\n"


def listed(what: str, names: list[str]) -> str:
    return f"{what}: " + ", ".join(f"`{name}`" for name in names) + "."


def wrapped(paragraph: str) -> str:
    return textwrap.fill(paragraph, 120, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    sys.exit(main())
