"""Names are the field's own: one word for one thing, and no word that was given up."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = next(folder for folder in (Path(__file__).parents[2], Path.cwd()) if (folder / "bot" / "records.py").is_file())
MODULES = sorted((ROOT / "bot").rglob("*.py"))

# Given up as a part of any name, split at underscores and capitals. What the code says instead stands beside it.
OLD_WORDS = {
    "turned": "transposed", "flipped": "transposed", "twins": "must_be_equal", "retold": "plan_for_all_adapters",
    "settle": "resolve_…, with_defaults, select_…", "respelled": "adapter_for_peft", "widened": "float64_mode",
    "papers": "report_dir", "parcel": "upload",
}  # fmt: skip

# Given up as the whole name of a module, class, function or field: ordinary words, which say nothing out of their sentence.
OLD_NAMES = {
    "in_by_out": "transposed", "is_transposed": "transposed", "piece": "Rectangle, WorkItem, RowRange",
    "places": "nearest_level_indices", "place": "TensorRef, locked_partial_dir", "joined": "predict_combined",
    "as_one": "with_combined_adapter", "given": "adapter_input", "rebuilt": "logical_tensor", "nested": "double_quant",
    "grid": "scale_grid", "traced": "symbolic", "touch": "changes", "asked": "ProbedParameter", "carried": "saved_tensors",
    "basis": "EffectiveBase", "told": "ReportedFailure", "book": "StateStore", "standing": "existing", "stale": "stale_files",
    "door": "client", "gate": "translate_errors", "again": "reverify", "each": "run_each", "way": "naming_scheme",
    "written": "quantized_result", "bnb_written": "bitsandbytes/writer", "fp8_own": "writer_same", "fp8_rows": "writer_channel",
    "meant": "a noun", "whose": "a noun", "beyond": "a noun", "apart": "a noun",
}  # fmt: skip

# Locals (and parameters) that hide what they are.
EMPTY_NAMES = {"found", "one", "said", "place", "told", "way"}

# What stays, and why.
KEPT = {
    "bot/devhub/records.py: gate": "the Hub's own word",
    "bot/checks/behaviour/expert_choices.py: flipped": "a router's choice flips",
    "bot/checks/behaviour/findings.py: flipped": "a router's choice flips",
}

# What is still to be renamed: `path: name`. It only gets shorter.
LEFT: frozenset[str] = frozenset()

# Classes that still share their name with another of the same side: also only fewer.
LEFT_TWICE: frozenset[str] = frozenset()


class Name(NamedTuple):
    """Something that a module gives a name to; a definition is a module, class, function or field."""

    path: str
    line: int
    name: str
    definition: bool = False

    @property
    def room(self) -> str:
        """The folder below bot/; of the verifier, the one below bot/checks/."""
        parts = self.path.split("/")[1:-1]
        return "/".join(parts[: 2 if parts[:1] == ["checks"] else 1]) or "bot"

    @property
    def entry(self) -> str:
        return f"{self.path}: {self.name}"


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def names_in(path: Path) -> Iterator[Name]:
    """The module's own name, and every class, function, parameter, variable and attribute that it defines or assigns."""
    where = path.relative_to(ROOT).as_posix()
    yield Name(where, 1, path.parent.name if path.stem == "__init__" else path.stem, True)
    for node in ast.walk(parsed(path)):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield Name(where, node.lineno, name, True)
                if isinstance(node, ast.ClassDef):
                    fields = (part.target for part in node.body if isinstance(part, ast.AnnAssign))
                    yield from (
                        Name(where, node.lineno, field.id, True) for field in fields if isinstance(field, ast.Name)
                    )
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield Name(where, node.lineno, name)
            case ast.alias(asname=str(name)):
                yield Name(where, 0, name)
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield Name(where, node.lineno, name)


NAMES = [name for path in MODULES for name in names_in(path)]


def words(name: str) -> list[str]:
    """`BnbPiece_of` is bnb, piece, of."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().split("_")


def by_room(names: list[Name], instead: dict[str, str]) -> str:
    """What is to be renamed, for a person: by room, each line with the names to take instead."""
    rooms = defaultdict(list)
    for name in sorted(names):
        rooms[name.room].append(name)
    lines = []
    for room, members in sorted(rooms.items()):
        lines.append(f"\n{room}: {len(members)}")
        for path, line, name, _ in members:
            hints = {instead.get(word) for word in [name.strip("_").lower(), *words(name)]} - {None}
            lines.append(f"  {path}:{line}: {name}" + (f"  → {'; '.join(map(str, hints))}" if hints else ""))
    return "\n".join(lines)


def is_old(name: Name) -> bool:
    own = name.definition and name.name.strip("_").lower() in OLD_NAMES
    return own or bool(OLD_WORDS.keys() & set(words(name.name)))


def offenders() -> list[Name]:
    return [name for name in NAMES if (name.name in EMPTY_NAMES or is_old(name)) and name.entry not in KEPT]


def new(names: list[Name]) -> list[Name]:
    return [name for name in names if name.entry not in LEFT]


def test_no_word_that_was_given_up_comes_back() -> None:
    back = new([name for name in offenders() if name.name not in EMPTY_NAMES])
    assert not back, by_room(back, OLD_WORDS | OLD_NAMES)


def test_a_variable_says_what_it_holds() -> None:
    empty = new([name for name in offenders() if name.name in EMPTY_NAMES])
    assert not empty, by_room(empty, {})


def class_names_that_stand_twice() -> dict[str, list[str]]:
    """Where, by `name (side)`: each side of the border between merger and verifier has a name once."""
    lines = defaultdict(list)
    for path in MODULES:
        where = path.relative_to(ROOT).as_posix()
        side = "verifier" if where.startswith("bot/checks/") else "merger"
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                lines[f"{node.name} ({side})"].append(f"{where}:{node.lineno}")
    return {name: at for name, at in sorted(lines.items()) if len(at) > 1}


def test_a_class_name_stands_once_on_each_side_of_the_border_between_merger_and_verifier() -> None:
    twice = {name: at for name, at in class_names_that_stand_twice().items() if name not in LEFT_TWICE}
    assert not twice, "\n" + "\n".join(f"{name}: {', '.join(at)}" for name, at in twice.items())


def test_what_is_left_to_rename_is_still_there_and_what_is_kept_too() -> None:
    renamed = LEFT - {name.entry for name in offenders()} | LEFT_TWICE - class_names_that_stand_twice().keys()
    assert not renamed, "take these from LEFT and LEFT_TWICE"
    assert KEPT.keys() <= {name.entry for name in NAMES}, "take from KEPT what is gone"
