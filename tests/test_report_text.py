"""A report for a person: what decides, or everything."""

from __future__ import annotations

from typing import Any

from bot.report_document import Document
from bot.report_text import block, by_group, everything, summary
from bot.terminal.plain import plain


def check(id: str, group: str, status: str = "pass", measured: str = "1", **more: Any) -> dict[str, Any]:
    return {
        "id": id,
        "group": group,
        "status": status,
        "measured": measured,
        "allowed": "1",
        "why": f"Of {id}.",
        "worst": [],
    } | more


CHECKS = [
    check("headers", "files"),
    check("license", "files", "warn", worst=["LICENSE is lost"]),
    check("config", "config"),
    check("own-code", "files", measured="none"),
    check("touched", "weights", "fail", "3 of 64 differ", worst=["a.weight: 3 of 64 differ"]),
    check("behaviour", "behaviour", "skip", why="Not run: touched did not pass."),
]
CAUSE = {"kind": "scaling", "sentence": "the adapter was added twice.", "tensors": [], "figures": {}}


def document(**changes: Any) -> Document:
    return Document.of({"verdict": "not-verified", "checks": CHECKS, "cause": CAUSE} | changes)


def test_what_decides_comes_first_then_what_did_not_pass_and_a_count_of_the_rest():
    lines = plain(summary(document())).splitlines()
    assert lines[0].startswith("Not verified: touched failed (3 of 64 differ)")
    assert lines[1] == "Most likely: the adapter was added twice."
    open_checks = [line.split()[:2] for line in lines if line.startswith(("  FAIL", "  not run", "  remark"))]
    assert open_checks == [["FAIL", "touched"], ["not", "run"], ["remark", "license"]]
    assert any(line.strip() == "a.weight: 3 of 64 differ" for line in lines)
    assert "config" not in plain(summary(document()))
    assert lines[-1] == "6 checks: 3 passed (1 had nothing to look at), 1 with a remark, 1 failed, 1 not run."


def test_everything_has_every_check_below_its_group():
    text = plain(everything(document(not_run=[{"id": "full", "reason": "it was not asked for"}])))
    lines = [
        line.split()[0] for line in text.partition("\ncheck ")[2].splitlines() if line and not line.startswith(" ")
    ]
    of_groups = [
        "files",
        "headers",
        "license",
        "own-code",
        "config",
        "config",
        "weights",
        "touched",
        "behaviour",
        "behaviour",
    ]
    assert lines[-12:-1] == [*of_groups, "full"]


def test_a_report_without_groups_is_shown_whole():
    old = [{name: value for name, value in each.items() if name != "group"} for each in CHECKS]
    assert [(group, len(checks)) for group, checks in by_group(document(checks=old).checks)] == [("", 6)]
    assert "touched" in plain(everything(document(checks=old)))


def test_details_are_for_those_who_ask():
    shown = block(document())
    assert shown.parts == summary(document())
    assert shown.details == everything(document())


def test_a_comparison_stands_in_both():
    rows = [{"id": "re-quantised", "what": "nf4", "published": True, "kl_ratio": 0.031, "bytes": 1000},
            {"id": "original", "what": "16 bits", "published": False, "bytes": None, "not_run": "it is not here"}]  # fmt: skip
    for parts in (summary(document(comparison=rows)), everything(document(comparison=rows))):
        text = plain(parts)
        assert "nf4 (this model)  0.031" in text
        assert "original: not run, it is not here" in text
