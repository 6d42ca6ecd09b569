"""A stranger's regular expressions: matched as `re` does, by both sides of the house, and always with an end."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.adapters.lora_config import ENDING, read_settings, scaling_of
from bot.adapters.method_modules import is_target
from bot.checks.expected.lora import scale
from bot.errors import Refused
from bot.formats.bitsandbytes.linears import _is_converted
from bot.untrusted import patterns
from bot.untrusted.patterns import BadPattern, check, first, require_terminating
from tests.pull.given import write_adapter, write_base
from tests.untrusted.conftest import ROOT, Started

ENDLESS = "(([a-z_.0-9]+)+)+!"
MODULE = "model.layers.11.self_attn.q_proj"


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "SECONDS", 1)
    patterns._set_of.cache_clear()


def endless(call: Any) -> None:
    """It is refused, in a sentence, after about a second of work."""
    began = time.monotonic()
    with pytest.raises(Refused, match="took more than 1 seconds") as caught:
        call()
    assert "names themselves" in caught.value.remedy
    assert time.monotonic() - began < 30  # on a busy machine


@pytest.mark.parametrize(
    "call",
    [
        lambda: is_target({"target_modules": ENDLESS}, MODULE),
        lambda: is_target({"target_modules": "q_proj", "exclude_modules": ENDLESS}, MODULE),
        lambda: is_target({"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": [ENDLESS]}, MODULE),
        lambda: scaling_of(read_settings({"rank_pattern": {ENDLESS: 4}})[0], MODULE),
        lambda: scaling_of(read_settings({"alpha_pattern": {ENDLESS: 4}})[0], MODULE),
        lambda: scale(MODULE, {"r": 8, "rank_pattern": {ENDLESS: 4}}),
        lambda: _is_converted(MODULE, [ENDLESS]),
        lambda: require_terminating({"target_modules": ENDLESS}, ["fine", MODULE]),
        lambda: require_terminating({"rank_pattern": {ENDLESS: 1}}, [MODULE]),
        lambda: require_terminating({"layers_pattern": ENDLESS}, [MODULE]),
        lambda: check(["(?:a[b-d]+|e)" * 60_000]),  # endless to compile
        lambda: first(["(?=(a+)+$)x"], "a" * 60 + "b"),
    ],
)  # fmt: skip
def test_an_endless_pattern_is_refused_wherever_it_stands(call: Any) -> None:
    endless(call)


def test_so_many_patterns_are_refused_and_thousands_are_read() -> None:
    with pytest.raises(Refused, match="50,000 patterns"):
        read_settings({"rank_pattern": {f"layers.{n}.q_proj": 4 for n in range(50_000)}})
    many = {f"model.layers.{n}.self_attn.q_proj": n + 1 for n in range(2000)}
    assert scaling_of(read_settings({"rank_pattern": many})[0], MODULE)[0] == 12


PIECES = st.sampled_from(
    ["q_proj", "layers", ".", r"\.", r"\d+", "[0-9]", ".*", ".*?", "(?:q|k)_proj", "a|b", "^", "$", "(?!x)", "x?", "(a)", "{e}", "{2}",
     "[[:alpha:]]", r"\b", "(?i:Q)", "model", "1", "(?P<index>1+)", r"\w", "+", "(", ")"]
)  # fmt: skip
TEXTS = st.sampled_from(
    [MODULE, "lm_head", "model.layers.1.mlp", "", "q_proj", "xlayers.11", "a", "b", "a.b{e}", "alpha]", "Q"]
)


@given(
    st.lists(st.lists(PIECES, max_size=4).map("".join), min_size=1, max_size=4),
    TEXTS,
    st.sampled_from(["match", "fullmatch"]),
)
@settings(max_examples=60, deadline=None)
def test_it_is_re_that_matches(some: list[str], text: str, mode: Any) -> None:
    for form in ("{}", ENDING):
        try:
            ways = [getattr(re.compile(form.replace("{}", one)), mode) for one in some]
        except re.error:
            with pytest.raises(BadPattern):
                first(some, text, form, mode)
            continue
        found = first(some, text, form, mode)
        assert (found.at if found else None) == next((at for at, way in enumerate(ways) if way(text)), None)


def test_the_worker_finds_pythons_libraries_and_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\n[ "$LD_LIBRARY_PATH" = /modules/lib ] && [ -z "$HF_TOKEN" ] && exec {sys.executable} "$@"\n'
    )
    python.chmod(0o700)
    for name, value in {"LD_LIBRARY_PATH": "/modules/lib", "HF_TOKEN": "hf_secret"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "executable", str(python))
    assert first(["a.*"], "abc") is not None


def test_limits_that_the_system_has_already_set_are_kept() -> None:
    code = """if True:
        import resource
        from bot.untrusted import patterns
        for kind, most in ((resource.RLIMIT_CPU, 6), (resource.RLIMIT_AS, 1 << 29)):
            resource.setrlimit(kind, (most, most))
        print(patterns.first(["a.*"], "abc"))"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "PatternMatch(at=0, groups={})\n"


def test_a_worker_that_cannot_run_is_not_called_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(Refused, match=r"e.g. 'a\.\*', cannot be matched here: .* ended with status 1"):
        first(["a.*"], "abc")


def test_a_pattern_that_re_cannot_read_is_a_bad_config() -> None:
    for bad in ("(", "[a", "*x", "(?P<1>a)", "(" * 3000, r"\p{L}"):
        _, refusals = read_settings({"rank_pattern": {bad: 4}})
        assert [refusal.code for refusal in refusals] == ["bad-config"], bad


def test_a_hostile_plan_ends_with_a_sentence(start: Started, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", rank_pattern={ENDLESS: 4}, target_modules=ENDLESS)
    key = "base_model.model." + "a_very.long_name." * 6 + "q_proj"
    from safetensors.numpy import load_file, save_file

    pair = load_file(adapter / "adapter_model.safetensors")
    named = {
        f"{key}.{name.partition('.lora_')[1][1:]}{name.partition('.lora_')[2]}": value for name, value in pair.items()
    }
    save_file(pair | named, adapter / "adapter_model.safetensors", {"format": "pt"})
    ran = start("plan", adapter, "--base", write_base(tmp_path / "base"), timeout=100)
    assert ran.returncode == 3, ran.stderr
    assert json.loads(json.dumps(ran.stderr)).count("✗") == 1
