"""What a run writes on GitHub: the real PyGithub against a GitHub that keeps to its own description."""

from __future__ import annotations

from pathlib import Path

import pytest

from bot.errors import Forbidden, Outside
from bot.gh import Annotation, CheckRun, GitHub
from tests.gh.fake import TOKEN, FakeGitHub

SHA = "a" * 40
MARK = "<!-- adapter-merge:report:x -->"


def check_run(annotations: int = 0, text: str = "All of it.") -> CheckRun:
    remark = Annotation(path="adapter/adapter_config.json", level="warning", title="finite", message="A NaN.")
    return CheckRun(
        name="adapter-merge", sha=SHA, conclusion="success", title="Verified", summary="8 checks passed.", text=text,
        annotations=(remark,) * annotations, details_url="https://example.org/run", external_id="f" * 64,
    )  # fmt: skip


def test_a_check_run_is_made_with_its_findings(fake: FakeGitHub, github: GitHub) -> None:
    assert github.add_check_run(check_run(3)).startswith("https://github.com/octo/adapters/runs/")
    (kept,) = fake.kept.checks
    assert (kept["head_sha"], kept["conclusion"], kept["status"]) == (SHA, "success", "completed")
    assert len(kept["output"]["annotations"]) == 3
    assert kept["requests"] == 1


def test_more_than_fifty_findings_take_more_requests(fake: FakeGitHub, github: GitHub) -> None:
    github.add_check_run(check_run(120))
    (kept,) = fake.kept.checks
    assert kept["requests"] == 3
    assert len(kept["output"]["annotations"]) == 120


def test_a_text_that_is_too_long_is_cut_where_one_sees_it(fake: FakeGitHub, github: GitHub) -> None:
    github.add_check_run(check_run(text="x" * 100_000))
    text = fake.kept.checks[0]["output"]["text"]
    assert len(text) == 65_535
    assert "cut: GitHub takes no more" in text[-40:]


def test_the_comment_is_one_and_is_edited_in_place(fake: FakeGitHub, github: GitHub) -> None:
    fake.add_comment("Nice!", user="somebody")
    github.put_comment(7, MARK, "first")
    github.put_comment(7, MARK, "second")
    ours = [comment for comment in fake.kept.comments if comment["body"].startswith(MARK)]
    assert [(comment["body"], comment["edits"]) for comment in ours] == [(f"{MARK}\nsecond", 1)]


def test_the_same_comment_is_not_written_again(fake: FakeGitHub, github: GitHub) -> None:
    github.put_comment(7, MARK, "same")
    github.put_comment(7, MARK, "same")
    assert [method for method, _, _ in fake.requests].count("PATCH") == 0


def test_a_strangers_comment_with_our_mark_is_not_taken_over(fake: FakeGitHub, github: GitHub) -> None:
    theirs = fake.add_comment(f"{MARK}\nI am you", user="stranger")
    github.put_comment(7, MARK, "ours")
    assert theirs["body"].endswith("I am you")
    assert fake.kept.comments[-1]["body"] == f"{MARK}\nours"


def test_a_tag_without_a_release_gets_one_with_its_assets(fake: FakeGitHub, github: GitHub, tmp_path: Path) -> None:
    report = tmp_path / "verification.json"
    report.write_text('{"verdict": "verified"}')
    github.put_release("v1/rc.1", MARK, "The merge.", {"verification.json": report})
    (release,) = fake.kept.releases
    assert release["tag_name"] == "v1/rc.1"
    assert "The merge." in release["body"]
    assert fake.kept.files["verification.json"] == report.read_bytes()


def test_a_release_that_is_there_keeps_its_own_words(fake: FakeGitHub, github: GitHub, tmp_path: Path) -> None:
    release = fake.add_release("v1", "What is new: everything.")
    sums = tmp_path / "sums"
    for note in ("first", "second"):
        sums.write_text(note)
        github.put_release("v1", MARK, note, {"SHA256SUMS": sums})
    assert release["body"].startswith("What is new: everything.\n\n" + MARK)
    assert "second" in release["body"]
    assert "first" not in release["body"]
    assert [asset["name"] for asset in fake.kept.assets[release["id"]]] == ["SHA256SUMS"]
    assert fake.kept.files["SHA256SUMS"] == b"second"


def test_a_commit_status_is_short(fake: FakeGitHub, github: GitHub) -> None:
    github.set_status(SHA, "failure", context="adapter-merge", text="Refused. " * 40, url=None)
    (kept,) = fake.kept.statuses
    assert (kept["sha"], kept["state"], len(kept["description"])) == (SHA, "failure", 140)


WRITES = {
    "checks": lambda github: github.add_check_run(check_run()),
    "pull-requests": lambda github: github.put_comment(7, MARK, "x"),
    "contents": lambda github: github.put_release("v1", MARK, "x", {}),
    "statuses": lambda github: github.set_status(SHA, "success", context="x", text="x", url=None),
}


@pytest.mark.parametrize("permission", WRITES)
def test_a_missing_permission_is_named(permission: str, fake: FakeGitHub, github: GitHub) -> None:
    fake.denied.add(permission)
    with pytest.raises(Forbidden, match=f"permissions: {permission}: write"):
        WRITES[permission](github)


def test_a_token_that_is_not_one_is_said_so(fake: FakeGitHub) -> None:
    with pytest.raises(Forbidden, match="does not accept the token") as caught:
        GitHub(token="ghs_another", repo="octo/adapters", api_url=fake.url).set_status(
            SHA, "success", context="x", text="x", url=None
        )
    assert "ghs_another" not in str(caught.value)


def test_a_github_that_fails_is_outside(fake: FakeGitHub, github: GitHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib3.util.retry.time.sleep", lambda seconds: None)
    fake.broken = 502
    with pytest.raises(Outside, match="GitHub"):
        github.put_comment(7, MARK, "x")


def test_a_github_that_is_away_is_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib3.util.retry.time.sleep", lambda seconds: None)
    with pytest.raises(Outside, match="cannot be reached"):
        GitHub(token=TOKEN, repo="octo/adapters", api_url="http://127.0.0.1:9").put_comment(7, MARK, "x")


def test_what_github_refuses_is_told_in_its_words(fake: FakeGitHub, github: GitHub) -> None:
    remark = Annotation(path="x", level="urgent", title="x", message="x")  # type: ignore[arg-type]
    with pytest.raises(Outside, match="422"):
        github.add_check_run(CheckRun(
            name="x", sha=SHA, conclusion="success", title="x", summary="x", text="x", annotations=(remark,)
        ))  # fmt: skip
    assert "urgent" in fake.violations.pop()
