"""What the runner reads: commands, outputs and the summary hold no more than was meant."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from bot.action.commands import MOST, WorkflowCommands
from bot.action.input_names import as_inputs
from bot.action.outputs import write_outputs
from bot.action.summary import MOST as MOST_BYTES
from bot.action.summary import write_summary
from bot.terminal.workflow_commands import defused
from bot.untrusted.markdown import fenced
from tests.action.conftest import parse_outputs


def spoken(*, on: bool = True) -> tuple[WorkflowCommands, io.StringIO]:
    stream = io.StringIO()
    return WorkflowCommands(on=on, stream=stream), stream


def test_an_annotation_is_one_line_whatever_it_says() -> None:
    commands, stream = spoken()
    commands.annotate("error", "50%\r\n::set-env::", title="a:b,c%", file="x,y.json")
    assert stream.getvalue() == "::error title=a%3Ab%2Cc%25,file=x%2Cy.json::50%25%0D%0A::set-env::\n"


def test_more_annotations_than_github_keeps_become_lines() -> None:
    commands, stream = spoken()
    for number in range(MOST + 3):
        commands.annotate("warning", f"number {number}", title="x")
    assert stream.getvalue().count("::warning ") == MOST
    assert "\nwarning: number 12\n" in stream.getvalue()


@pytest.mark.parametrize(
    "text", ["::stop-commands::x", "  ::add-path::/x", "a\n::error::b", "a ##[command]b", "##[error]x", "a\r::debug::x"]
)
def test_a_strangers_text_is_no_command(text: str) -> None:
    shown = defused(text)
    assert "##[" not in shown
    assert not [line for line in shown.splitlines() if line.strip().startswith("::")]
    assert "\r" not in shown


def test_one_module_spells_the_commands() -> None:
    spelled = re.compile(r"""["']::(?=[a-z{])""")
    bot = Path(__file__).parents[2] / "bot"
    assert [path.name for path in bot.rglob("*.py") if spelled.search(path.read_text())] == ["workflow_commands.py"]


def test_a_token_of_several_lines_is_masked_line_by_line() -> None:
    commands, stream = spoken()
    commands.mask(["first\nsecond", ""])
    assert stream.getvalue() == "::add-mask::first\n::add-mask::second\n"


def test_without_a_runner_no_token_is_printed() -> None:
    commands, stream = spoken(on=False)
    commands.mask(["hf_secret"])
    commands.annotate("error", "No.", title="x")
    assert stream.getvalue() == "error: No.\n"


def test_groups_never_nest() -> None:
    commands, stream = spoken()
    commands.group("one")
    commands.group("two")
    commands.annotate("warning", "x", title="t")
    commands.end_group()
    lines = [line.partition(" ")[0].rstrip(":") for line in stream.getvalue().splitlines()]
    assert lines == ["::group::one", "::endgroup", "::group::two", "::endgroup", "::warning"]


def test_an_output_cannot_end_itself_and_add_another(tmp_path: Path) -> None:
    path = tmp_path / "output"
    values = {"status": "refused", "tag": "v1\nend_\nverified<<end_\ntrue\nend_", "verified": "false"}
    write_outputs(path, values)
    assert parse_outputs(path.read_text()) == values


def test_the_summary_stays_below_githubs_limit(tmp_path: Path) -> None:
    path = tmp_path / "summary"
    path.write_text("x" * 1000)
    write_summary(path, "é" * 1_000_000)
    assert path.stat().st_size <= MOST_BYTES < 1 << 20
    assert path.read_text().rstrip().endswith("`report-path`.")


def test_a_fence_is_longer_than_any_inside() -> None:
    assert fenced("a\n```\n````\nb").splitlines()[0] == "`````text"


SENTENCES = {
    "pass --verify weights, which runs none": "pass `verify: weights`, which runs none",
    "pass --allow-pickle: it is": "pass `allow-pickle: true`: it is",
    "Name the base with --base owner/name.": "Name the base with `base-model: owner/name`.",
    "named with --base.": "named with `base-model`.",
    "Name the target with --to owner/name.": "Name the target with `target-repo: owner/name`.",
    "(--force would)": "(`force: true` would)",
    "a token as HF_TOKEN.": "a token as hf-token.",
    "Unset HF_HUB_OFFLINE.": "Unset HF_HUB_OFFLINE.",
    "pass --device cpu.": "pass `device: cpu`.",
    "order: --weights 0.7,0.3.": "order: `weights: 0.7,0.3`.",
    "Leave --base-weights at auto": "Leave `base-weights` at auto",
    "or --base-weights original, to": "or `base-weights: original`, to",
    "or --quantize nf4.": "or `quantize: nf4`.",
    "--majority-sign has no use": "`majority-sign` has no use",
    "above 0 and up to 1: --density 0.5 keeps": "above 0 and up to 1: `density: 0.5` keeps",
    "or point --output and HF_HOME at a larger disk.": "or point ADAPTER_MERGE_WORK and `cache-dir` at a larger disk.",
    "a larger disk (`HF_HOME`).": "a larger disk (`cache-dir`).",
    "by `--output`, with `HF_TOKEN`.": "by ADAPTER_MERGE_WORK, with hf-token.",
    "--output-like stays": "--output-like stays",
}


@pytest.mark.parametrize("said", SENTENCES)
def test_remedies_name_the_actions_inputs(said: str) -> None:
    assert as_inputs(said) == SENTENCES[said]
