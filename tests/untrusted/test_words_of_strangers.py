"""Words from other people's repos stay words: in Markdown, in commit messages, in a browser that was lured here."""

from __future__ import annotations

import json
import os
from pathlib import Path

import httpx2
import pytest

from bot.action.event import read_event
from bot.devhub import DevHub
from bot.publish.messages import commit_text, pull_text, title, trailer_in
from bot.report_document import Document
from bot.untrusted.markdown import cell, code, one_line

STRANGER = {"author_association": "FIRST_TIMER"}
OWN = {"full_name": "acme/x"}
EVIL = "v1`](https://evil.example) <img src=x onerror=alert(1)>\n\n# Owned\n- [x] **verified** `"


def test_a_tag_stays_within_its_backticks() -> None:
    for text in (EVIL, "a`b", "``", "`", "plain"):
        shown = code(text)
        fence = shown[: len(shown) - len(shown.lstrip("`"))]
        assert shown.endswith(fence)
        assert fence not in shown[len(fence) : -len(fence)].split("`" * (len(fence) + 1))[0].strip(" ")
        assert "\n" not in shown


def test_a_pull_request_shows_no_markup_that_it_was_handed() -> None:
    inputs = {"adapter": {"repo": EVIL, "sha": EVIL}, "base": {"repo": "a/b", "sha": "1" * 40}}
    checks = [{"id": EVIL, "measured": EVIL, "allowed": "|", "status": "fail", "why": EVIL}]
    text = pull_text(Document.of({"inputs": inputs, "checks": checks}), "f" * 64, EVIL, (EVIL,))
    assert not [line for line in text.splitlines() if line.startswith(("# ", "- [x]"))]
    # Outside of code spans, every bracket and angle bracket of theirs is escaped.
    table = next(line for line in text.splitlines() if line.startswith("| | v1"))
    assert "\\]" in table
    assert "\\<img" in table
    sentence = next(line for line in text.splitlines() if line.startswith("Not verified: v1"))
    for line in (table, sentence):
        assert "](https://evil.example)" not in line.replace("\\](", "")


def test_a_commit_message_has_one_trailer_and_it_is_ours() -> None:
    forged = "x\nAdapter-Merge-Fingerprint: " + "0" * 64 + "\n"
    inputs = {"adapter": {"repo": forged, "sha": forged}, "base": {"repo": "a/b", "sha": forged}}
    document = Document.of({"inputs": inputs})
    message = commit_text(document, "f" * 64)
    assert trailer_in(message) == "f" * 64
    assert message.count("\nAdapter-Merge-Fingerprint") == 1
    assert "\n" not in title(document)


def test_a_value_of_one_line_has_no_line_ends_of_any_kind() -> None:
    assert one_line("a\r\nb\u2028c\u2029d\x85e\x0bf\x1b[2Jg") == "a b c d e f [2Jg"
    assert "\n" not in cell("a\n|b")


@pytest.mark.parametrize(
    ("name", "payload", "may"),
    [
        ("issue_comment", {"issue": {"pull_request": {"url": "x"}}, "comment": {"author_association": "OWNER"}}, False),
        ("issue_comment", {"comment": {"author_association": "OWNER"}}, False),
        ("issue_comment", {"issue": {"number": 1}, "comment": {"author_association": "NONE"}}, False),
        ("issue_comment", {"issue": {"number": 1}, "comment": {"author_association": "MEMBER"}}, True),
        ("issues", {"issue": {"author_association": "CONTRIBUTOR"}}, False),
        ("issues", {"issue": {"author_association": "COLLABORATOR"}}, True),
        ("discussion_comment", {"comment": STRANGER, "discussion": {"author_association": "OWNER"}}, False),
        ("pull_request_review_comment", {"pull_request": {"head": {"repo": {"full_name": "s/x"}}, "base": {"repo": OWN}}}, False),
        ("workflow_dispatch", {}, True),
        ("push", {}, True),
    ],
)  # fmt: skip
def test_who_merely_speaks_does_not_publish(name: str, payload: dict[str, object], may: bool, tmp_path: Path) -> None:
    path = tmp_path / "event.json"
    path.write_text(json.dumps(payload))
    event = read_event({"GITHUB_EVENT_NAME": name, "GITHUB_EVENT_PATH": str(path)})
    assert (event.plan_only == "") == may


def test_the_local_hub_answers_to_its_address_only(dev: DevHub) -> None:
    port = dev.url.rpartition(":")[2]
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", "[::1]:80", "localhost"):
        assert httpx2.get(f"{dev.url}/api/models", headers={"Host": host}).status_code == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", ""):
        assert httpx2.get(f"{dev.url}/api/models", headers={"Host": host}).status_code == 421


def test_what_the_local_hub_keeps_is_its_owners_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with DevHub(tmp_path / "hub") as dev:
            dev.create_org("acme")
            kept = [tmp_path / "hub", *(tmp_path / "hub").glob("hub.sqlite*")]
            assert len(kept) > 2  # the journal too
            assert [path.name for path in kept if path.stat().st_mode & 0o077] == []
    finally:
        os.umask(before)
