"""The house stands: imports only go down, stages never import each other, and each outside library has a room of its own."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "bot").rglob("*.py"))

# The longest name that fits counts. Rooms of one floor do not import each other; files of one room may, but never in a circle.
FLOORS = {
    "options": -1,
    "__init__": 0, "errors": 0, "events": 0, "signals": 0, "project": 0, "blas": 0, "untrusted": 0, "terminal.spelling": 0,
    "terminal.workflow_commands": 0, "terminal.plain": 0.1,
    "report_document": 0.2, "records": 0.3, "attestation": 0.4, "signing": 0.45,
    "verdict_text": 0.5,
    "untrusted.patterns": 0.5, "untrusted.links": 0.5, "metadata": 0.5,  # of the ground, but they raise its errors
    "checkpoint": 1, "numerics": 1, "hub": 1, "gh": 1, "gpus": 0.9, "machine": 1, "assets": 1, "trained_base": 1,
    "special_tokens": 1.1, "devices": 1.1, "budget": 1, "shard_needs": 1, "devhub": 1, "input_files": 1, "partial_folder": 1,
    "config_summary": 1, "report_page": 1.1, "report_text": 1.1, "report_markdown": 1.2, "evaluation": 1.5,
    "adapters": 2, "formats": 2,
    "engines": 3, "plan_text": 3,
    "checks.subject": 3.1, "checks.reading": 3.2, "checks.case": 3.3,
    "checks.finding": 3.4, "checks.expected": 3.5, "checks.folder": 3.6, "checks.elementwise": 3.7, "checks.cause": 3.75,
    "checks.behaviour": 3.8, "checks": 3.9,
    "pull": 4, "adapters.combine": 4, "plan": 4, "merge": 4, "verify": 4, "card": 4, "publish": 4, "doctor": 4, "compare": 4,
    "output_folder": 4.5, "proof": 4.5, "one_adapter": 4.5, "target": 4.6, "card_and_page": 4.7, "by_shard": 4.7,
    "pipeline_by_shard": 4.8, "pipeline": 5, "merged_folder": 5,
    "reverify": 6, "reverify_by_shard": 6.5, "share_out": 6, "run_each": 6, "dispatch": 6,
    "terminal": 6, "terminal.streams": 5, "terminal.progress": 5,
    "terminal.drawing": 5.1, "terminal.screen": 5.2, "demo": 6, "cli": 7, "action": 7, "__main__": 8,
}  # fmt: skip

# Which parts of the house may import a library, anywhere in their files.
LIBRARY_ROOMS = {
    "huggingface_hub": {"hub", "demo"},  # the demo plays the user who uploads a model
    "hf_xet": {"devhub"},
    "markdown_it": {"devhub"},
    "github": {"gh"},
    "torch": {"engines", "checks", "compare", "demo", "evaluation", "pull"},
    "transformers": {"checks", "demo", "engines"},
    "peft": {"checks", "demo", "engines"},
    "bitsandbytes": {"checks"},
    "compressed_tensors": {"checks"},
    "click": {"cli", "terminal", "demo"},
    "starlette": {"devhub", "dispatch"},
    "uvicorn": {"devhub", "dispatch"},
    "sqlite3": {"devhub", "dispatch"},
    "lm_eval": {"evaluation"},
    "model_signing": {"signing"},
    "sigstore": {"signing"},
    "jinja2": {"dispatch", "report_page"},
    "PIL": {"report_page"},
    "rich": {"terminal"},
    "prometheus_client": {"dispatch"},
}


def part(module: Path) -> str:
    """The room of the house that a file belongs to: its folder below bot/, or its own name."""
    return room_of(dotted(module)).partition(".")[0]


def dotted(module: Path) -> str:
    """`bot.checks.case` for bot/checks/case.py, `bot` for bot/__init__.py."""
    return ".".join(module.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(name: str) -> str:
    """The longest name with a floor that a module's name is, or begins with: `untrusted.links`, `checks`."""
    parts = name.split(".")[1:] or ["__init__"]
    names = [".".join(parts[:depth]) for depth in range(len(parts), 0, -1)]
    return next((one for one in names if one in FLOORS), parts[0])


def imports(module: Path) -> set[str]:
    """Every module named by an import statement in a file, relative ones spelled out."""
    package = ["bot", *module.relative_to(ROOT / "bot").parts[:-1]]
    found: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*above, *([node.module] if node.module else [])])
            names = {f"{prefix}.{alias.name}" for alias in node.names}
            # `from bot.a import b` is of bot.a.b where that is a module, and of bot.a where b is a name in it.
            found |= (names & NAMES) | ({prefix} if names - NAMES else set())
    return found


def rooms(module: Path) -> set[str]:
    """The rooms of the house that a file imports, at its top, inside of functions or for types only."""
    return {room_of(name) for name in modules_of(module)}


def modules_of(module: Path) -> set[str]:
    """The modules of the house that a file imports, wherever it does; not itself."""
    return {name for name in imports(module) if name in NAMES} - {dotted(module)}


NAMES = {dotted(module) for module in MODULES}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_only_go_down(module: Path) -> None:
    here = room_of(dotted(module))
    assert here in FLOORS, f"give {here} a floor"
    for room in rooms(module) - {here, "__init__"}:
        assert FLOORS[room] < FLOORS[here], f"{here} (floor {FLOORS[here]}) imports {room} (floor {FLOORS[room]})"


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Imports inside of functions and for types count too."""
    imported = {dotted(module): modules_of(module) for module in MODULES}
    try:
        TopologicalSorter(imported).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("library", LIBRARY_ROOMS)
def test_a_library_is_imported_by_its_own_room_only(library: str) -> None:
    users = {part(m) for m in MODULES if any(name.split(".")[0] == library for name in imports(m))}
    assert users <= LIBRARY_ROOMS[library], f"{library} is imported by {sorted(users - LIBRARY_ROOMS[library])}"


MERGER = {"plan", "plan_text", "engines", "adapters", "adapters.combine", "formats", "numerics"}


def test_the_verifier_shares_no_name_mapping_and_no_scaling_with_the_merger() -> None:
    for module in MODULES:
        if part(module) in ("checks", "verify"):
            assert not rooms(module) & MERGER, module
            assert {name for name in modules_of(module) if name.startswith("bot.checkpoint")} <= {
                "bot.checkpoint.header"
            }


@pytest.mark.parametrize("package", [m for m in MODULES if m.name == "__init__.py"], ids=dotted)
def test_no_name_of_a_package_is_that_of_a_module_in_it(package: Path) -> None:
    """Importing the module, sooner or later, would put it in the place of the function."""
    inside = {path.stem for path in package.parent.glob("*.py")} | {
        path.parent.name for path in package.parent.glob("*/*.py")
    }
    tree = ast.parse(package.read_text())
    named = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert not named & inside


HEAVY = ("torch", "transformers", "peft", "numpy", "rich")


def heavy_imports(arguments: list[str]) -> str:
    """Which heavy libraries a command has imported when it ends."""
    program = f"import sys; from bot.cli import _guarded; _guarded({arguments!r}); "
    program += f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    return ran.stdout.splitlines()[-1]


def test_help_starts_without_torch() -> None:
    assert heavy_imports(["--help"]) == "HEAVY []"


def test_plan_starts_without_torch(tmp_path: Path) -> None:
    from tests.factory import save_adapter, save_base

    base = save_base("llama", tmp_path / "base")
    adapter = save_adapter(base, "llama", tmp_path / "adapter")
    assert heavy_imports(["plan", str(adapter), "--base", str(base)]) == "HEAVY []"


def test_only_the_worker_of_the_full_proof_loads_torch(tmp_path: Path) -> None:
    from tests.factory import save_adapter, save_base

    base = save_base("llama", tmp_path / "base")
    adapter = save_adapter(base, "llama", tmp_path / "adapter")
    inputs = [str(adapter), "--base", str(base), "--output", str(tmp_path / "merged")]
    assert heavy_imports(["merge", *inputs, "--verify", "full", "--quiet"]) == "HEAVY ['numpy']"
    assert json.loads((tmp_path / "merged" / "verification.json").read_text())["noise_floor"]


def test_somebody_elses_merge_is_judged_without_torch(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from tests.factory import save_adapter, save_base

    base = save_base("llama", tmp_path / "base")
    adapter = save_adapter(base, "llama", tmp_path / "adapter")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    model.merge_and_unload().save_pretrained(tmp_path / "theirs")
    given = [str(tmp_path / "theirs"), "--base", str(base), "--adapter", str(adapter), "--verify", "weights", "--quiet"]
    assert heavy_imports(["verify", *given]) == "HEAVY ['numpy']"
