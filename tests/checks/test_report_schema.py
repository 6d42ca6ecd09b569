"""verification.json is what docs/verification.schema.json says: every kind of report that is written, and the fields that a
report may have. (tests/conftest.py holds every other report of the tests to it as well.)"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from bot.checks import CHECKS
from bot.events import silent
from bot.hub import Hub
from bot.pipeline import run
from bot.project import REPOSITORY
from bot.records import Combination, Options, Ref, Report, Request
from bot.report_document import SCHEMA, Document
from bot.reverify import reverify
from tests.factory import save_adapter, save_base
from tests.report_schema import EXAMPLE, misfits, published, validator

Json = dict[str, Any]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("llama", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [save_adapter(base, "llama", tmp_path_factory.mktemp("adapter"), seed=seed) for seed in (1, 2)]


def folder(path: Path) -> Ref:
    return Ref(text=str(path), folder=path)


def merged(base: Path, adapters: list[Path], output: Path, *, combine: bool = False, **options: Any) -> Path:
    """A folder as `merge` makes it, at level weights."""
    first, *more = map(folder, adapters)
    request = Request(
        adapter=first, more=tuple(more), base=folder(base), output=output, publish="none",
        combination=Combination(kind="ties", weights=(0.7, 0.3), density=0.5) if combine else None,
        options=Options(**{"verify": "weights", **options}),
    )  # fmt: skip
    outcome = run(request, Hub(), silent)
    assert outcome.folder is not None
    return outcome.folder


def written(of: Path) -> bytes:
    return (of / "verification.json").read_bytes()


def test_the_schema_is_one_and_names_itself_by_its_page():
    Draft202012Validator.check_schema(published())
    assert published()["$id"] == f"{REPOSITORY}/blob/main/docs/verification.schema.json"
    assert published()["properties"]["schema"] == {"const": SCHEMA}
    groups = published()["$defs"]["check"]["properties"]["group"]["enum"]
    assert {check.group for check in CHECKS} == {*groups}


@pytest.mark.parametrize("level", ["files", "weights"])
def test_a_merge_of_one_adapter(base: Path, adapters: list[Path], tmp_path: Path, level: str):
    text = written(merged(base, adapters[:1], tmp_path / "merged", verify=level))
    assert not misfits(text)
    groups = [check["group"] for check in json.loads(text)["checks"]]
    assert set(groups) == {"files", "config", "tokenizer", *(["weights"] if level == "weights" else [])}


def test_a_merge_of_several_adapters(base: Path, adapters: list[Path], tmp_path: Path):
    text = written(merged(base, adapters, tmp_path / "merged", combine=True))
    assert not misfits(text)
    assert json.loads(text)["inputs"]["combination"]["density"] == "0.5"


def test_a_merge_that_is_stored_quantised(base: Path, adapters: list[Path], tmp_path: Path):
    assert not misfits(written(merged(base, adapters[:1], tmp_path / "merged", quantize="nf4")))


def again(merged: Path, base: Path, adapter: Path) -> Report:
    return reverify(folder(merged), folder(base), [folder(adapter)], Options(verify="weights"), Hub(), silent)


def test_a_merge_that_fails_and_one_of_nobodys(base: Path, adapters: list[Path], tmp_path: Path):
    made = merged(base, adapters[:1], tmp_path / "merged")
    weights = made / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-2] + b"\x00\x00")
    failed = again(made, base, adapters[0])
    assert failed.verdict == "not-verified"
    assert not misfits(failed.document.canonical())
    (made / "verification.json").unlink()
    foreign = again(made, base, adapters[0])
    assert foreign.document.json["merge"] == {}
    assert not misfits(foreign.document.canonical())


@pytest.mark.slow
def test_a_merge_proven_at_level_full(base: Path, adapters: list[Path], tmp_path: Path):
    text = written(merged(base, adapters[:1], tmp_path / "merged", verify="full"))
    assert not misfits(text)
    assert json.loads(text)["noise_floor"]["metric"] == "KL, nats per token"


# --- what a report may have ------------------------------------------------------------------------------------------


def document(**changes: Any) -> Json:
    checks = [{"id": "touched", "group": "weights", "status": "fail", "measured": "1 of 64 differ", "allowed": "0 differ",
               "why": "No.", "worst": ["a"], "seconds": 0.1}]  # fmt: skip
    given = {"schema": SCHEMA, "subject": {"files": {"model.safetensors": "0" * 64}}, "inputs": EXAMPLE, "checks": checks,
             "environment": {"adapter-merge": "1", "python": "3.11", "platform": "Linux", "torch": None}, "merge": {},
             "noise_floor": None, "not_run": [], "verdict": "not-verified"}  # fmt: skip
    return given | changes


def as_read(of: Json) -> bytes:
    """The document as it is written, after it was read."""
    return Document.read(Document.of(of).canonical()).canonical()


FIELDS = {
    "cause": {"kind": "scaling", "sentence": "added twice.", "tensors": ["a.weight"], "figures": {"scale": 2.0}},
    "delta": [{"layer": None, "module": "lm_head", "tensors": 1, "relative": 0.01, "retention": None},
              {"layer": 0, "module": "self_attn.q_proj", "tensors": 1, "relative": 0.01, "retention": 0.99}],
    "prompts": [{"tokens": 60, "adapter": 0.1, "control": 1e-7, "merged": 5e-8}],
    "probe": [{"module": "model.layers.0", "control": 1e-7, "merged": 5e-8}],
    "answers": [{"prompt": "Hi", "base": "a", "unmerged": "b", "merged": "b"}],
}  # fmt: skip


@pytest.mark.parametrize("name", FIELDS)
def test_an_optional_field_is_read_and_written(name: str):
    assert not misfits(as_read(document()))
    text = as_read(document(**{name: FIELDS[name]}))
    assert not misfits(text)
    assert json.loads(text)[name] == FIELDS[name]


@pytest.mark.parametrize(
    "changes",
    [
        {"cause": {"kind": "scaling"}},
        {"delta": [{"layer": "0"}]},
        {"probe": [{"module": "a", "control": "much", "merged": 0}]},
        {"verdict": "perhaps"},
        {"schema": SCHEMA + 1},
        {"inputs": {**EXAMPLE, "base": {"repo": "o/base", "sha": "main"}}},
        {"hostname": "a machine of ours"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_the_schema_does_not_say_is_a_fault(changes: Json):
    assert misfits(Document.of(document(**changes)).canonical())


def test_a_reader_of_the_published_schema_takes_later_fields():
    later = document(hostname="nothing that this version knows")
    assert Draft202012Validator(published()).is_valid(later)
    assert not validator().is_valid(later)


def test_a_report_from_before_checks_had_groups_is_read():
    old = document()
    del old["checks"][0]["group"]
    assert not misfits(as_read(old))
    assert Document.of(old).checks[0].group is None
