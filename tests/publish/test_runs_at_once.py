"""Two runs at once, of the same merge or of two: nobody's work is closed or lost, and what is there is not told as a failure."""

from __future__ import annotations

from dataclasses import replace

import httpx2
import pytest
from huggingface_hub import HfApi

from bot.devhub import Fault
from bot.errors import Forbidden, Moved, Outside
from bot.events import Note
from bot.hub.pulls import PullRequestClient
from bot.hub.retries import PAUSES
from bot.publish import deliver as delivering
from bot.publish.messages import mark_in, trailer_in
from tests.publish.given import TARGET, deliver, fingerprint, finished
from tests.pull.given import hub_client, two_sentences


@pytest.fixture(autouse=True)
def existing(owner):
    return owner.existing()


@pytest.fixture
def at_once(dev, tmp_path, monkeypatch):
    """`at_once(where, name, run)`: the first call of `where.name` is followed (or, `before`, preceded) by what another run does."""

    def meet(where, name, run, *, before=False):
        real, turns, done = getattr(where, name), [], []

        def met(*args, **kwargs):
            first = not turns
            turns.append(1)
            if first and before:
                done.append(run(hub_client(dev, tmp_path / "elsewhere")))
            found = real(*args, **kwargs)
            if first and not before:
                done.append(run(hub_client(dev, tmp_path / "elsewhere")))
            return found

        monkeypatch.setattr(where, name, met)
        return done

    return meet


def pulls(owner):
    """(number, status, mark) of each, the newest first."""
    found = [owner.api.get_discussion_details(TARGET, pull.num) for pull in owner.pulls()]
    return [(pull.num, pull.status, mark_in(pull.events[0].content)) for pull in found]


def ours(owner, revision):
    """The fingerprints that were committed there, the newest first."""
    found = [trailer_in(commit.message) for commit in owner.api.list_repo_commits(TARGET, revision=revision)]
    return [mark for mark in found if mark]


# --- of the same merge --------------------------------------------------------------------------------------------


def test_a_push_that_a_faster_run_made_is_there(hub, owner, folder, document, at_once):
    """It comes after this run has looked for the last time whether main holds the merge."""
    others = at_once(
        delivering, "commit_verified", lambda other: deliver(folder, document, other, how="push", tag="v1"), before=True
    )
    done = deliver(folder, document, hub, how="push", tag="v1")
    assert (done.status, done.how, done.tag) == ("published", "push", "v1")
    assert done.revision == others[0].revision
    assert ours(owner, "main") == [fingerprint(1)]


def test_a_proposal_that_was_pushed_by_a_faster_run_is_unchanged(hub, owner, folder, document, at_once):
    at_once(delivering, "latest_parent", lambda other: deliver(folder, document, other, how="push"), before=True)
    done = deliver(folder, document, hub, how="pr")
    assert (done.status, done.how) == ("unchanged", "push")
    assert pulls(owner) == []


def test_a_draft_that_a_second_run_takes_up_is_the_pull_request_of_both(hub, owner, folder, document, at_once):
    others = at_once(PullRequestClient, "open_draft", lambda other: deliver(folder, document, other))
    done = deliver(folder, document, hub)
    assert [(one.status, one.pr_number, one.revision) for one in (done, *others)] == [
        ("published", 1, done.revision)
    ] * 2
    assert pulls(owner) == [(1, "open", fingerprint(1))]
    assert ours(owner, "refs/pr/1") == [fingerprint(1)]


def test_a_draft_whose_run_was_killed_a_moment_ago_is_taken_up(hub, owner, folder, document, at_once):
    """It was not there yet when this run looked, and nobody will finish it."""
    mark = f"<!-- adapter-merge:fingerprint={fingerprint(1)} -->"
    at_once(PullRequestClient, "open_draft", lambda other: other.open_draft(TARGET, "Merge", mark), before=True)
    done = deliver(folder, document, hub)
    assert (done.status, done.pr_number) == ("published", 1)
    assert pulls(owner) == [(2, "closed", None), (1, "open", fingerprint(1))]
    assert ours(owner, "refs/pr/1") == [fingerprint(1)]
    assert deliver(folder, document, hub).status == "unchanged"


def test_a_draft_of_a_lost_answer_that_is_listed_late_is_not_left_empty(
    dev, owner, folder, document, tmp_path, monkeypatch
):
    patient = hub_client(dev, tmp_path, patience=PAUSES, sleep=lambda seconds: None)
    create, listed, calls = HfApi.create_pull_request, PullRequestClient.open_pulls, []

    def lost(self, *args, **kwargs):
        calls.append(1)
        made = create(self, *args, **kwargs)
        if len(calls) == 1:
            raise httpx2.ReadTimeout("lost")
        return made

    monkeypatch.setattr(HfApi, "create_pull_request", lost)
    monkeypatch.setattr(
        PullRequestClient, "open_pulls", lambda self, repo: () if len(calls) == 1 else listed(self, repo)
    )
    done = deliver(folder, document, patient)
    assert (done.status, done.pr_number) == ("published", 1)
    assert pulls(owner) == [(2, "closed", None), (1, "open", fingerprint(1))]
    assert ours(owner, "refs/pr/1") == [fingerprint(1)]


# --- of two merges ------------------------------------------------------------------------------------------------


def test_a_draft_that_another_merge_has_taken_up_is_not_closed(hub, owner, folder, document, tmp_path, at_once):
    newer = finished(tmp_path / "newer", seed=2)
    others = at_once(PullRequestClient, "open_draft", lambda other: deliver(tmp_path / "newer", newer, other))
    with pytest.raises(Moved) as caught:
        deliver(folder, document, hub)
    two_sentences(caught.value, what="changed while this run was working", do="Run it again")
    assert [(one.status, one.pr_number) for one in others] == [("published", 1)]
    assert pulls(owner) == [(1, "open", fingerprint(2))]
    again = deliver(folder, document, hub)
    assert (again.status, again.pr_number) == ("published", 1)


def test_a_draft_that_nobody_took_up_is_closed_though_main_has_moved(dev, hub, owner, folder, document, at_once):
    dev.faults.add(Fault(path="/commit/refs%2Fpr%2F1", status=403))
    at_once(PullRequestClient, "open_draft", lambda other: owner.put("notes.txt", b"beside it"), before=True)
    with pytest.raises(Forbidden):
        deliver(folder, document, hub)
    assert pulls(owner) == [(1, "closed", None)]


def test_a_draft_in_which_other_bytes_arrived_is_closed_with_its_commit(hub, owner, folder, document, monkeypatch):
    real = type(hub).target_files

    def tampered(self, repo, revision):
        found = real(self, repo, revision)
        return {name: replace(blob, sha256=blob.sha256 and "0" * 64) for name, blob in found.items()}

    monkeypatch.setattr(type(hub), "target_files", tampered)
    with pytest.raises(Outside) as caught:
        deliver(folder, document, hub)
    two_sentences(caught.value, what="are not the ones that were verified", do="Do not use that commit")
    assert ours(owner, "refs/pr/1") == [fingerprint(1)]
    assert pulls(owner) == [(1, "closed", None)]


def test_a_draft_that_cannot_be_closed_does_not_hide_why(dev, hub, owner, folder, document):
    dev.faults.add(Fault(path="/commit/", method="POST", status=403, times=None, body='{"error": "the real reason"}'))
    dev.faults.add(Fault(path="/comment/.*/edit", status=503, times=None))
    notes = []
    with pytest.raises(Forbidden) as caught:
        deliver(folder, document, hub, emit=notes.append)
    assert "the real reason" in caught.value.what
    told = [note.text for note in notes if isinstance(note, Note) and note.level == "warning"]
    assert any(text.endswith(f"/{TARGET}/discussions/1 by hand.") for text in told)


# --- and the owner ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["merged", "closed"])
def test_a_pull_request_that_its_owner_is_done_with_meanwhile_is_followed_by_another(
    hub, owner, folder, document, tmp_path, what
):
    deliver(folder, document, hub)
    newer, notes = finished(tmp_path / "newer", seed=2), []

    def emit(event):
        notes.append(event)
        if type(event).__name__ == "StepProgress" and event.done and not emit.done:
            emit.done = True
            if what == "merged":
                owner.api.merge_pull_request(TARGET, 1)
            else:
                owner.api.change_discussion_status(TARGET, 1, "closed")

    emit.done = False
    done = deliver(tmp_path / "newer", newer, hub, emit=emit)
    assert (done.status, done.pr_number) == ("published", 2)
    assert pulls(owner) == [(2, "open", fingerprint(2)), (1, what, fingerprint(1))]
    assert any(f"Pull request 1 was {what}" in note.text for note in notes if isinstance(note, Note))
    assert deliver(tmp_path / "newer", newer, hub).status == "unchanged"


def test_a_draft_that_its_owner_closes_is_not_opened(hub, owner, folder, document, at_once):
    at_once(delivering, "commit_verified", lambda other: owner.api.change_discussion_status(TARGET, 1, "closed"))
    done = deliver(folder, document, hub)
    assert (done.status, done.pr_number, done.revision) == ("unchanged", 1, None)
    assert "was closed" in done.why
    assert pulls(owner) == [(1, "closed", fingerprint(1))]
    assert deliver(folder, document, hub).why == done.why
