"""Whose tags count: patterns match whole names, and nothing like them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.dispatch.allow import Allowed
from bot.errors import Usage

ONE = Allowed.of(["alice/x"])


@pytest.mark.parametrize("name", ["alice/x", "Alice/X", "ALICE/x"])
def test_a_name_is_matched_whatever_its_case(name: str) -> None:
    assert ONE.repo(name)


@pytest.mark.parametrize(
    "name",
    [
        "xalice/x", "alice/x-evil", "alice/xx", "alice/x/y", "y/alice/x", "alice/x\n", "\nalice/x", "alice/x\r", "alice /x", "alice",
        "alice/", "/x", "", "alice/x ", "alice/x\x00", "alice/x@v1", "alice//x", "álice/x",
    ],
)  # fmt: skip
def test_a_name_that_only_contains_the_pattern_does_not_count(name: str) -> None:
    assert not ONE.repo(name)


def test_a_letter_whose_lower_case_is_another_name_does_not_count() -> None:
    assert not Allowed.of(["alice/k"]).repo("alice/\N{KELVIN SIGN}")


def test_a_star_stands_for_any_name_but_not_for_a_slash() -> None:
    allowed = Allowed.of(["alice/*", "bob/lora-*"])
    assert allowed.repo("alice/anything")
    assert allowed.repo("bob/lora-1")
    assert not allowed.repo("xalice/anything")
    assert not allowed.repo("bob/x-lora-1")
    assert not allowed.repo("alice/x/y")
    assert not Allowed.of(["*/x"]).repo("alice/y/x")


def test_a_dot_in_a_pattern_is_a_dot() -> None:
    assert not Allowed.of(["alice/v.1"]).repo("alice/vx1")


@given(st.text())
def test_no_text_but_the_name_itself_is_allowed(text: str) -> None:
    assert ONE.repo(text) == (text.isascii() and text.lower() == "alice/x")


def test_a_tags_pattern_is_matched_as_a_whole_and_in_its_case() -> None:
    allowed = Allowed.of(["*/*"], ["v*", "release"])
    assert allowed.tag("v1")
    assert allowed.tag("release")
    assert allowed.tag("v/1")
    assert not any(map(allowed.tag, ("V1", "xv1", "release-2", "v1\n", "v\nrelease", "", "releas")))


def test_every_tag_counts_where_no_pattern_is_given() -> None:
    assert Allowed.of(["a/b"]).tag("anything at all")


@pytest.mark.parametrize(
    "repos", [[], ["alice"], [""], ["alice/"], ["/x"], ["a/b/c"], ["alice/x y"], ["alice/[x]"], ["alice/x\n"]]
)
def test_a_list_that_is_empty_or_holds_no_pattern_is_refused(repos: list[str]) -> None:
    with pytest.raises(Usage):
        Allowed.of(repos)


def test_an_empty_pattern_of_tags_is_refused() -> None:
    with pytest.raises(Usage, match="empty pattern"):
        Allowed.of(["a/b"], ["v*", ""])
