"""The package says of itself what is so: what it imports, where its source lives, which Pythons it was tested on."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from bot.project import REPOSITORY

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = {"bot", "tests", "bench", "docs", "tools"}


def canonical(name: str) -> str:
    """A distribution's name as an index spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(requirements: list[str]) -> set[str]:
    return {canonical(found[0]) for one in requirements if (found := re.match(r"[\w.-]+", one))}


def imported(folder: str) -> dict[str, str]:
    """{outside module: one file that imports it}, the imports inside functions included."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        if path.name.startswith("make_"):  # run by hand, with what they say themselves
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in (name.partition(".")[0] for name in names):
                if name not in sys.stdlib_module_names and name not in OURS:
                    found.setdefault(name, path.relative_to(ROOT).as_posix())
    return found


DECLARED = declared(PROJECT["dependencies"])
EXTRAS = declared([*PROJECT["optional-dependencies"]["signing"], *PROJECT["optional-dependencies"]["eval"]]) | {
    "sigstore"
}  # which model-signing brings
TESTED = DECLARED | declared(PROJECT["optional-dependencies"]["test"])


@pytest.mark.parametrize(("folder", "allowed"), [("bot", DECLARED | EXTRAS), ("tests", TESTED)], ids=["bot", "tests"])
def test_what_is_imported_is_declared(folder: str, allowed: set[str]) -> None:
    owners = packages_distributions()
    missing = {
        name: path
        for name, path in imported(folder).items()
        if not {canonical(owner) for owner in owners.get(name, [name])} & allowed
    }
    assert not missing, "declare in pyproject.toml, or do without"


def test_what_is_declared_is_imported() -> None:
    owners = packages_distributions()
    used = {canonical(owner) for name in imported("bot") for owner in owners.get(name, [name])}
    assert used >= DECLARED


def test_the_packages_addresses_are_below_the_one_in_the_code() -> None:
    assert PROJECT["urls"]["Source"] == REPOSITORY
    for address in PROJECT["urls"].values():
        assert address.startswith(REPOSITORY)
        _, _, file = address.partition("/blob/main/")
        assert not file or (ROOT / file).is_file()


def test_the_pythons_in_the_classifiers_are_those_that_ci_tests() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"].values()
    matrices = [job["strategy"]["matrix"] for job in jobs if "matrix" in job.get("strategy", {})]
    tested = {version for matrix in matrices for version in matrix.get("python", [])}
    said = {found[1] for one in PROJECT["classifiers"] if (found := re.search(r":: (3\.\d+)$", one))}
    assert said == tested
    assert min(said, key=lambda one: int(one.partition(".")[2])) == PROJECT["requires-python"].removeprefix(">=")


def test_a_wheel_has_every_file_that_the_package_reads_and_says_that_it_is_typed(tmp_path: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    copy = tmp_path / "source"  # setuptools leaves a build folder where it builds
    for name in tracked:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, copy]
    done = subprocess.run(command, capture_output=True, text=True)
    if "No matching distribution found for setuptools" in done.stderr:
        pytest.skip("pip cannot reach an index to build with")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    left_out = {".c", ".h", ".sh"}  # what the compiler reads, and the action's launcher
    wanted = {name for name in tracked if name.startswith("bot/") and Path(name).suffix not in left_out}
    assert "bot/py.typed" in inside
    assert wanted <= inside
    assert not {name for name in inside if name.startswith(("tests", "bench", "docs"))}
