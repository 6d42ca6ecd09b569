"""Every file that a stranger writes is read by a gate: junk of any kind is one sentence, and never a crash or a long wait."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bot.checkpoint import header as header_module
from bot.checkpoint.header import parse_header
from bot.checks.expected.layer_replication import ReplicatedLayers
from bot.errors import AdapterMergeError, Refused
from bot.events import silent
from bot.hub import Hub
from bot.pipeline import plan_merge
from bot.plan.layer_replication import find_replicas
from bot.pull.listing import require_usable
from bot.pull.texts import card_of, check
from bot.records import Options, Ref, Request
from bot.report_document import Document
from bot.untrusted import strict_json
from tests.pull.given import CONFIG, INDEX, write_adapter, write_base

QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
NUMBERS = st.sampled_from([0, -1, 1, 2**31, 2**64, 10**39, -(10**39), 1.5, float("inf"), float("nan"), 1e308])
WORDS = st.sampled_from(
    ["", "x", "lora", "a/b", "é\u2028\x1b[2J", "[", "all-linear", ".*", "q_proj", "float64", "😀" * 50]
)
LEAVES = st.none() | st.booleans() | NUMBERS | WORDS
JUNK = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=6
)
CONFIG_FIELDS = (
    "architectures model_type text_config vision_config quantization_config auto_map dtype torch_dtype tie_word_embeddings "
    "vocab_size num_hidden_layers num_labels id2label label2id layer_types n_layer rope_scaling hidden_size"
).split()
ADAPTER_FIELDS = (
    "peft_type r lora_alpha target_modules exclude_modules modules_to_save rank_pattern alpha_pattern layers_to_transform "
    "layers_pattern layer_replication target_parameters trainable_token_indices use_dora use_rslora bias lora_bias revision "
    "init_lora_weights base_model_name_or_path task_type auto_mapping peft_version ensure_weight_tying feedforward_modules"
).split()
TYPES = ("LORA", "LORA", "LORA", "IA3", "LOHA", "OFT", "VERA", "ADALORA", "TRAINABLE_TOKENS", "LN_TUNING", "UNILORA")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("pair")
    return write_base(root / "base", shards=2), write_adapter(root / "adapter")


def planned(pair: tuple[Path, Path], **options: Any) -> None:
    """There is a plan, or a reason that is a sentence and has a way out. Anything else is a failure."""
    base, adapter = (Ref(text=str(folder), folder=folder) for folder in pair)
    hub = Hub(endpoint="http://127.0.0.1:9", cache_dir=pair[0].parent / "cache" / "hub", patience=())
    request = Request(adapter=adapter, base=base, options=Options(**options))
    found, refused = attempt(lambda: plan_merge(request, hub, silent)[1])
    if refused is None:
        json.dumps([refusal.reason for refusal in found.refusals])
        return
    assert refused.exit_code in (2, 3, 5, 6)
    assert len(refused.what) < 1000
    assert refused.remedy
    str(refused).encode()


def attempt(call: Callable[[], Any]) -> tuple[Any, AdapterMergeError | None]:
    try:
        return call(), None
    except AdapterMergeError as error:
        return None, error


@QUICK
@given(fields=st.dictionaries(st.sampled_from(CONFIG_FIELDS), JUNK, min_size=1, max_size=3), full=st.booleans())
def test_any_config_is_planned_or_refused(fields: dict[str, Any], full: bool, pair: tuple[Path, Path]) -> None:
    (pair[0] / "config.json").write_text(json.dumps(CONFIG | fields))
    try:
        planned(pair, verify="auto" if full else "weights")
    finally:
        (pair[0] / "config.json").write_text(json.dumps(CONFIG))


@QUICK
@given(fields=st.dictionaries(st.sampled_from(ADAPTER_FIELDS), JUNK, max_size=3), kind=st.sampled_from(TYPES))
def test_any_adapter_config_is_planned_or_refused(fields: dict[str, Any], kind: str, pair: tuple[Path, Path]) -> None:
    told = {
        "peft_type": kind,
        "r": 2,
        "lora_alpha": 4,
        "base_model_name_or_path": "demo/base",
        "target_modules": ["layer.0"],
    }
    (pair[1] / "adapter_config.json").write_text(json.dumps(told | fields))
    try:
        planned(pair, verify="weights")
    finally:
        write_adapter(pair[1])


@QUICK
@given(
    name=st.sampled_from(["tokenizer_config.json", "generation_config.json", "special_tokens_map.json",
    "processor_config.json", INDEX]),
    found=st.dictionaries(st.sampled_from(["auto_map", "chat_template", "eos_token_id", "weight_map", "metadata", "x"]), JUNK),
    whose=st.sampled_from([0, 1]),
)  # fmt: skip
def test_any_other_json_is_planned_or_refused(name: str, found: Any, whose: int, pair: tuple[Path, Path]) -> None:
    path = pair[whose] / name
    before = path.read_bytes() if path.exists() else None
    path.write_text(json.dumps(found))
    try:
        planned(pair, verify="weights")
    finally:
        path.unlink() if before is None else path.write_bytes(before)


@pytest.mark.parametrize(
    "text",
    [b"[" * 100_000, b'{"a":' * 5000 + b"1" + b"}" * 5000, b'{"r": ' + b"9" * 4000 + b"}", b'{"r": ' + b"9" * 5000 + b"}",
     b'{"a": "\\ud800"}', b'{"\\udfff": 1}', b"\xff\xfe{", b"", b"null", b"[1]", b'{"a": 1' + b"0" * 39 + b"0}"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["config.json", "adapter_config.json", "tokenizer_config.json", INDEX])
def test_json_without_measure_is_refused(name: str, text: bytes) -> None:
    with pytest.raises(Refused, match=f"{name} of x is not") as caught:
        check({name: text}, "x")
    assert len(str(caught.value)) < 500
    str(caught.value).encode()


def test_the_largest_numbers_that_are_in_use_are_read() -> None:
    assert strict_json.loads(b'{"model_max_length": 1000000000000000019884624838656}')["model_max_length"] > 10**29


@pytest.mark.parametrize("name", ["num_hidden_layers", "n_layer", "num_labels", "num_local_experts", "encoder_layers"])
@pytest.mark.parametrize("inside", [False, True])
def test_a_config_of_ten_million_layers_is_refused_before_any_library_builds_them(name: str, inside: bool) -> None:
    found = {"text_config": {name: 10**7}} if inside else {name: 10**7}
    with pytest.raises(Refused, match=f"{name} is 10000000"):
        check({"config.json": json.dumps(found).encode()}, "x")


def test_replicated_layers_without_end_are_refused_by_both_sides() -> None:
    for ranges in ([(0, 10**9)], [(0, 4)] * 100_000):
        began = time.process_time()
        _, (refusal,) = find_replicas(ranges, {"num_hidden_layers": 4}, ["model.layers.0.x"])
        assert (refusal.code, "more than 10,000" in refusal.reason) == ("layer-replication", True)

        class Names:
            skeleton = None

        assert "more than 10,000" in ReplicatedLayers.of(tuple(ranges), Names()).problems[0]  # type: ignore[arg-type]
        assert time.process_time() - began < 1


# --- headers ------------------------------------------------------------------------------------------------------


def header(text: bytes, size: int = 0) -> bytes:
    return struct.pack("<Q", len(text)) + text + bytes(size)


def refused_header(entries: Any) -> str:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    with pytest.raises(Refused) as caught:
        parse_header(header(text), file="x.safetensors", file_size=8 + len(text))
    assert len(str(caught.value)) < 600
    str(caught.value).encode()
    return caught.value.what


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [10**41], "data_offsets": [0, 4]}, {"dtype": "F32", "shape": [2**62] * 9, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2**62] * 64, "data_offsets": [0, 4]}, {"dtype": "F32", "shape": [1] * 65, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2**70], "data_offsets": [0, 2**72]}, {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]},
        {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}, {"dtype": "F32", "shape": [1], "data_offsets": {"a": 1, "b": 2}},
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}, {"dtype": "F32", "shape": [1.0],
        "data_offsets": [0, 4]}, 5, None, [],
    ],
)  # fmt: skip
def test_an_entry_without_measure_is_refused(entry: Any) -> None:
    refused_header({"w": entry})


def test_digits_names_and_tensors_without_measure_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = b'{"w": {"dtype": "F32", "shape": [%s], "data_offsets": [0, 4]}}'
    assert "4200 digits" in refused_header(digits % (b"9" * 4200))
    assert "is not JSON" in refused_header(digits % (b"9" * 9000))
    assert "no name of a tensor" in refused_header({"w" * 2000: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
    assert "is not JSON" in refused_header(b'{"\\ud800": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}')
    many = {f"w{n}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for n in range(11)}
    monkeypatch.setattr(header_module, "MOST_TENSORS", 10)
    assert "11 tensors" in refused_header(many)


@settings(max_examples=200, deadline=None)
@given(
    entries=st.dictionaries(WORDS, st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets"]), JUNK)) | JUNK
)
def test_any_header_is_read_or_refused(entries: Any) -> None:
    text = json.dumps(entries).encode()
    try:
        parse_header(header(text), file="x", file_size=8 + len(text))
    except Refused as refused:
        str(refused).encode()


# --- cards --------------------------------------------------------------------------------------------------------


def card(block: str) -> dict[str, Any]:
    return card_of({"README.md": f"---\n{block}\n---\n# x\n".encode("utf-8", "surrogatepass")})


def test_a_metadata_block_of_six_megabytes_is_refused_at_once() -> None:
    began = time.process_time()
    with pytest.raises(Refused, match="metadata block of 6,") as caught:
        card("a: b\n" * 1_200_001)
    assert "Shorten" in caught.value.remedy
    assert time.process_time() - began < 2


def test_a_card_that_unfolds_without_end_is_none() -> None:
    laughs = "a: &a [x]\n" + "".join(
        f"{b}: &{b} [*{a},*{a},*{a},*{a},*{a},*{a},*{a}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
    )
    began = time.process_time()
    assert [
        card(block) for block in (laughs, "[" * 200_000, "a:\n" + "".join(" " * n + "- a:\n" for n in range(1, 900)))
    ] == [{}] * 3
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("line", "license"),
    [
        ("license: cc-by-nc-4.0", {"license": "cc-by-nc-4.0"}),
        ("license: 'mit'\nlicense_link: LICENSE", {"license": "mit", "license_link": "LICENSE"}),
        ("license:\n- mit\n- gemma", {"license": "unknown"}),
        ("license: *a", {"license": "unknown"}),
        ("x: |\n  license: mit", {}),
    ],
)
def test_a_card_that_cannot_be_read_still_has_its_license(line: str, license: dict[str, str]) -> None:
    assert card(f"a: &a [x]\nb: *a\n{line}\nc: [") == license
    assert card(f"a: &a [x]\nb: *a\n{line}") == license


SCALARS = st.sampled_from(
    ["2020-01-01", "2020-01-01T00:00:00Z", "!!binary aGk=", ".inf", ".nan", "0x" + "f" * 60, "0x" + "f" * 5000,
    "1:2:3", "!!set {a, b}",
     "!!timestamp 5", "!!int x", "!!python/object/apply:os.system [x]", "2020-13-45", '"\\ud800"', "? [a]\n : b",
     "no", "~", "[[], {}]", "!!omap [a: b]"]
)  # fmt: skip
KEYS = st.sampled_from(
    [
        "license",
        "language",
        "tags",
        "datasets",
        "pipeline_tag",
        "base_model",
        "license_name",
        "license_link",
        "1",
        "2020-01-01",
        "~",
    ]
)


@settings(max_examples=80, deadline=None)
@given(fields=st.dictionaries(KEYS, SCALARS | JUNK.map(json.dumps), max_size=4))
def test_any_card_is_plain_json_or_nothing(fields: dict[str, str]) -> None:
    from bot.card import preview
    from bot.devhub import derived as hubs
    from tests.publish.given import source

    found = card("\n".join(f"{key}: {value}" for key, value in fields.items()))
    assert strict_json.loads(json.dumps(found, allow_nan=False)) == found
    both = source("base", "a/b", card=found), source("adapter", "a/c", card=found)
    text = preview(*both, (), None)
    text.encode()
    assert hubs.problems(text) == ([], [])


# --- reports ------------------------------------------------------------------------------------------------------

REPORT_PATHS = (
    "subject inputs merge checks not_run comparison verdict environment noise_floor subject.files inputs.base inputs.adapter "
    "inputs.adapters inputs.combination merge.options merge.options.dtype merge.options.quantize merge.options.quantization "
    "merge.tensors merge.ranks merge.tag noise_floor.ratio noise_floor.limit noise_floor.top1_agreement noise_floor.positions "
    "cause cause.sentence delta prompts probe answers"
).split()


def with_value(path: str, value: Any) -> dict[str, Any]:
    """A report of ours with one value replaced."""
    from tests.publish.given import report

    document = report({"config.json": "0" * 64})
    *parents, name = path.split(".")
    place = document
    for parent in parents:
        place[parent] = place.get(parent) or {}
        place = place[parent]
    place[name] = value
    return document


@settings(max_examples=150, deadline=None)
@given(path=st.sampled_from(REPORT_PATHS), value=JUNK)
def test_any_report_is_read_whole_or_refused(path: str, value: Any) -> None:
    from bot import verdict_text
    from bot.card import evidence
    from bot.publish.messages import commit_text, pull_text, title
    from bot.reverify import _recorded_combination, _recorded_ref, form_of

    document, _ = attempt_of(lambda: Document.read(json.dumps(with_value(path, value)).encode()), ValueError)
    if document is None:
        return
    inputs, merge = document.inputs, document.merge
    attempt(lambda: _recorded_combination(inputs))
    attempt(lambda: [_recorded_ref(pin, "adapter") for pin in inputs.adapters])
    form_of(merge, Options())
    evidence.section(document)
    for each in (document, replace(document, verdict="verified")):
        assert verdict_text.sentence(each)
        assert len(verdict_text.figures(each)) == 6
        verdict_text.cause(each)
    for text in (title(document), commit_text(document, "0" * 64), pull_text(document, "0" * 64, merge.tag, ())):
        text.encode()


def test_a_report_of_ours_is_read() -> None:
    from tests.publish.given import report

    document = report({"config.json": "0" * 64})
    assert Document.read(json.dumps(document).encode()).json == document


def attempt_of(call: Callable[[], Any], kind: type[Exception]) -> tuple[Any, Exception | None]:
    try:
        return call(), None
    except kind as error:
        return None, error


# --- folders ------------------------------------------------------------------------------------------------------


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A folder in which others lie 1,000 deep, made and removed step by step: no path to its end is short enough."""
    import os

    root = tmp_path / "deep"
    root.mkdir()
    home = Path.cwd()
    os.chdir(root)
    for _ in range(1000):
        Path("d").mkdir()
        os.chdir("d")
    os.chdir(home)
    yield root
    os.chdir(root)
    depth = 0
    while Path("d").is_dir():
        os.chdir("d")
        depth += 1
    for _ in range(depth):
        os.chdir("..")
        Path("d").rmdir()
    os.chdir(home)


def test_a_folder_a_thousand_deep_is_refused(deep: Path, pair: tuple[Path, Path]) -> None:
    write_adapter(deep)
    with pytest.raises(Refused, match="more than 40 deep"):
        require_usable(deep)
    planned((pair[0], deep))


def test_a_name_that_is_no_text_is_refused_in_text(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    import os

    adapter = write_adapter(tmp_path / "adapter")
    os.close(os.open(os.fsencode(adapter) + b"/\xff\xfe.txt", os.O_CREAT))
    with pytest.raises(Refused, match="not UTF-8") as caught:
        require_usable(adapter)
    assert str(caught.value).isascii()
    planned((pair[0], adapter))


def test_what_lies_in_an_inputs_hidden_folders_is_nobodys_business(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    (adapter / ".venv" / "/".join("d" * 50)).mkdir(parents=True)
    require_usable(adapter)
    with pytest.raises(Refused, match="more than 40 deep"):
        require_usable(adapter, hidden=True)


def test_an_ordinary_folder_is_usable(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "ädapter 模型")
    (adapter / ".git" / "a" / "b").mkdir(parents=True)
    require_usable(adapter)
