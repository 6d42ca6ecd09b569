"""What was asked for beside the merge is made with it, or put right by the next run: who may see it, gates, an open pull request."""

from __future__ import annotations

import pytest

from bot.devhub import Fault
from bot.errors import Forbidden, Moved, Outside, Refused, Usage
from bot.events import Note
from bot.hub import HubBusy
from bot.hub.pulls import CLOSED, LISTED, OPEN
from bot.hub.retries import PAUSES
from bot.publish import PublishSettings, apply_settings, find_existing
from bot.report_document import Document
from tests.publish.given import ADAPTER, BASE, TARGET, deliver, fingerprint, finished
from tests.pull.given import hub_client, two_sentences

TITLE = "Merge demo/adapter into demo/base"


def texts(notes):
    return [note.text for note in notes if isinstance(note, Note)]


def asked(document, **more):
    told = {
        "fingerprint": fingerprint(1),
        "repos": tuple(Document.of(document).inputs.repos),
        "private": "auto",
        "tag": None,
    } | more
    return PublishSettings(**told)


# --- who may see it -----------------------------------------------------------------------------------------------


def test_a_public_result_is_public_from_the_start(dev, hub, owner, folder, document):
    """Nothing is left to be done after the commit that could be missed."""
    seen = []
    dev.before_commit = lambda repo, revision: seen.append(owner.api.model_info(TARGET).private)
    deliver(folder, document, hub)
    assert seen == [False]
    assert not [path for method, path, _ in dev.requests if method == "PUT" and "settings" in path]


@pytest.mark.parametrize("gated", [False, "auto"])
def test_without_private_storage_a_public_result_starts_public(dev, hub, owner, folder, document, gated):
    owner.api.update_repo_settings(BASE, gated=gated)
    dev.set_quota(dev.user, 0)
    if gated:  # only then it would be private for a moment
        body = '{"error": "Private repository storage limit reached"}'
        dev.faults.add(Fault(path="/api/repos/create", status=403, body=body))
    assert deliver(folder, document, hub, private="false").status == "published"
    made = owner.api.model_info(TARGET)
    assert (made.private, made.gated) == (False, gated)


def test_without_private_storage_a_private_result_is_not_shown(dev, hub, owner, folder, document):
    dev.set_quota(dev.user, 0)
    with pytest.raises(Forbidden) as caught:
        deliver(folder, document, hub, private="true")
    assert "Private repository storage limit reached" in caught.value.what
    assert owner.api.model_info(TARGET).private


def test_a_gate_stands_before_anything_is_behind_it(dev, hub, owner, folder, document):
    owner.api.update_repo_settings(BASE, gated="manual")
    seen = []
    dev.before_commit = lambda repo, revision: seen.append(owner.api.model_info(TARGET).gated)
    deliver(folder, document, hub, private="false")
    assert seen == ["manual"]


def test_a_repo_that_stayed_private_is_opened_where_that_is_asked(hub, owner, folder, document):
    deliver(folder, document, hub, private="true")
    notes = []
    again = deliver(folder, document, hub, private="false", emit=notes.append)
    assert (again.status, owner.api.model_info(TARGET).private) == ("unchanged", False)
    assert "It is public now, as asked." in again.why
    assert f"{TARGET} is public now, as asked." in texts(notes)
    assert deliver(folder, document, hub, private="false").why == "The target already holds this merge."


def test_a_gate_that_was_lost_is_put_back_before_it_is_opened(hub, owner, folder, document):
    owner.api.update_repo_settings(BASE, gated="auto")
    deliver(folder, document, hub)
    owner.api.update_repo_settings(TARGET, gated=False)
    again = deliver(folder, document, hub, private="false")
    assert "It is gated and is public now" in again.why
    made = owner.api.model_info(TARGET)
    assert (made.private, made.gated) == (False, "auto")


def test_what_the_owner_made_of_it_since_is_not_undone(dev, hub, owner, folder, document):
    """Hidden by its owner, a repo is not opened by a run that was told nothing about it."""
    deliver(folder, document, hub)
    owner.api.update_repo_settings(TARGET, private=True)
    notes = []
    assert deliver(folder, document, hub, emit=notes.append).status == "unchanged"
    assert owner.api.model_info(TARGET).private
    assert any("--private false opens it" in text for text in texts(notes))


def test_a_token_that_may_not_change_settings_is_told_and_no_more(dev, hub, owner, folder, document):
    deliver(folder, document, hub, private="true")
    dev.faults.add(Fault(path=f"/api/models/{TARGET}/settings", status=403, times=None))
    notes = []
    assert deliver(folder, document, hub, private="false", emit=notes.append).status == "unchanged"
    assert any("see to it on the Hub" in text for text in texts(notes))


def test_a_gate_that_its_owner_took_away_is_missed_and_not_put_back(hub, owner, folder, document):
    """A run that is cut off before the gate stands leaves a private repo, so that this was somebody's choice."""
    owner.api.update_repo_settings(BASE, gated="auto")
    deliver(folder, document, hub, private="false")
    owner.api.update_repo_settings(TARGET, gated=False)
    notes = []
    assert deliver(folder, document, hub, emit=notes.append).status == "unchanged"
    assert owner.api.model_info(TARGET).gated is False
    assert f"{TARGET} is open to everyone, though {BASE} is gated; gate it on the Hub, if that is not meant." in texts(
        notes
    )


def test_a_private_repo_that_stayed_without_its_gate_gets_it(dev, hub, owner, folder, document):
    owner.api.update_repo_settings(BASE, gated="auto")
    dev.faults.add(Fault(path=f"/api/models/{TARGET}/settings", status=503, times=None))
    deliver(folder, document, hub)
    dev.faults.clear()
    assert "It is gated now" in deliver(folder, document, hub).why
    made = owner.api.model_info(TARGET)
    assert (made.private, made.gated) == (True, "auto")


def test_a_private_target_that_is_pushed_to_is_opened_where_that_is_asked(hub, owner, folder, document):
    owner.existing()
    owner.api.update_repo_settings(TARGET, private=True)
    foreseen = deliver(folder, document, hub, how="push", private="false", dry_run=True)
    assert "show it to everyone" in foreseen.why
    assert owner.api.model_info(TARGET).private
    done = deliver(folder, document, hub, how="push", private="false", tag="v1")
    assert (done.status, done.tag, done.why) == ("published", "v1", "It is public now, as asked.")
    assert not owner.api.model_info(TARGET).private
    assert deliver(folder, document, hub, how="push", private="false").why == "The target already holds this merge."


def test_settings_that_failed_for_long_are_made_up_for(dev, hub, owner, folder, document):
    owner.api.update_repo_settings(BASE, gated="auto")
    dev.faults.add(Fault(path=f"/api/models/{TARGET}/settings", status=503, times=None))
    notes = []
    assert deliver(folder, document, hub, private="false", emit=notes.append).status == "published"
    assert any("stays private" in text for text in texts(notes))
    dev.faults.clear()
    assert deliver(folder, document, hub, private="false").status == "unchanged"
    made = owner.api.model_info(TARGET)
    assert (made.private, made.gated) == (False, "auto")


def test_a_repo_that_came_to_be_meanwhile_is_not_written_over(dev, hub, owner, folder, document, tmp_path, monkeypatch):
    real, turns = type(hub).create, []

    def late(self, repo, **how):
        if not turns:
            turns.append(1)
            other = finished(tmp_path / "other", seed=2)
            deliver(tmp_path / "other", other, hub_client(dev, tmp_path / "elsewhere"))
        return real(self, repo, **how)

    monkeypatch.setattr(type(hub), "create", late)
    with pytest.raises(Moved) as caught:
        deliver(folder, document, hub)
    two_sentences(caught.value, what="came to be while this run was working", do="Run it again")
    assert owner.titles().count(TITLE) == 1
    assert deliver(folder, document, hub).how == "pr"


def test_a_private_input_never_goes_into_a_public_repo_that_somebody_made_a_moment_before(
    hub, owner, folder, document, monkeypatch
):
    """An empty repo of that name is there when ours is created: the Hub says so as it would of our own lost answer."""
    owner.api.update_repo_settings(ADAPTER, private=True)
    real, turns = type(hub).create, []

    def late(self, repo, **how):
        if not turns:
            turns.append(owner.api.create_repo(repo, private=False))
        return real(self, repo, **how)

    monkeypatch.setattr(type(hub), "create", late)
    with pytest.raises(Moved) as caught:
        deliver(folder, document, hub)
    two_sentences(caught.value, what="came to be while this run was working", do="Run it again")
    assert owner.files() == set()
    with pytest.raises(Refused):
        deliver(folder, document, hub)
    assert owner.files() == set()


def test_a_faster_run_of_the_same_merge_made_the_repo_too(dev, hub, owner, folder, document, tmp_path, monkeypatch):
    real, turns = type(hub).create, []

    def late(self, repo, **how):
        if not turns:
            turns.append(1)
            deliver(folder, document, hub_client(dev, tmp_path / "elsewhere"))
        return real(self, repo, **how)

    monkeypatch.setattr(type(hub), "create", late)
    done = deliver(folder, document, hub, tag="v1")
    assert (done.status, done.how, done.tag) == ("unchanged", "push", "v1")
    assert owner.titles().count(TITLE) == 1


def test_a_hub_that_is_busy_makes_no_result_private(dev, owner, folder, document, tmp_path):
    patient = hub_client(dev, tmp_path, patience=PAUSES, sleep=lambda seconds: None)
    fault = dev.faults.add(Fault(path=f"/api/models/{BASE}$", status=503, times=len(PAUSES)))
    assert deliver(folder, document, patient).status == "published"
    assert dev.faults.hits(fault) == len(PAUSES)
    assert not owner.api.model_info(TARGET).private


def test_a_hub_that_stays_away_is_told_instead(dev, hub, owner, folder, document):
    dev.faults.add(Fault(path=f"/api/models/{BASE}$", status=503, times=None))
    with pytest.raises(HubBusy):
        deliver(folder, document, hub)
    assert not owner.api.repo_exists(TARGET)


def test_a_hub_that_is_busy_hides_no_input_behind_its_new_name(dev, hub, owner, folder, document):
    owner.api.move_repo(BASE, "demo/base-2")
    dev.faults.add(Fault(path=f"/api/models/{BASE}$", status=503, times=None))
    with pytest.raises(HubBusy):
        deliver(folder, document, hub, target="demo/base-2", how="push")
    dev.faults.clear()
    assert TITLE not in owner.titles(repo="demo/base-2")
    with pytest.raises(Usage):
        deliver(folder, document, hub, target="demo/base-2", how="push")


# --- its tag --------------------------------------------------------------------------------------------------------


def test_who_proposed_and_may_not_tag_is_told_and_no_more(dev, owner, folder, document, tmp_path):
    owner.existing()
    eve = hub_client(dev, tmp_path, token=dev.create_token(dev.create_user("eve")))
    deliver(folder, document, eve, tag="v1")
    owner.api.merge_pull_request(TARGET, 1)
    notes = []
    done = deliver(folder, document, eve, tag="v1", emit=notes.append)
    assert (done.status, done.how, done.tag) == ("unchanged", "push", None)
    assert any(f"{TARGET} is published, but not tagged v1: Could not tag" in text for text in texts(notes))


def test_a_tag_stays_ours_when_others_commit_after_it(hub, owner, folder, document, tmp_path):
    deliver(folder, document, hub, tag="v1")
    owner.put("notes.txt", b"mine")
    notes = []
    done = deliver(folder, document, hub, tag="v1", emit=notes.append)
    assert (done.status, done.tag, texts(notes)) == ("unchanged", "v1", [])
    deliver(tmp_path / "other", finished(tmp_path / "other", seed=2), hub, how="push", tag="v1", emit=notes.append)
    assert any("has the tag v1 on another commit" in text for text in texts(notes))


# --- pull requests ------------------------------------------------------------------------------------------------


def test_a_draft_that_holds_the_merge_already_is_opened_without_another_merge(dev, hub, owner, folder, document):
    owner.existing()
    dev.faults.add(Fault(path="/discussions/1/status", status=403, times=None))
    dev.faults.add(Fault(path="/edit", status=403, times=None))
    with pytest.raises(Outside):
        deliver(folder, document, hub)
    dev.faults.clear()
    known = find_existing(fingerprint(1), TARGET, hub)
    assert (known.status, known.pr_number) == ("unchanged", 1)
    assert (
        "It was still a draft, and is open now." in apply_settings(known, asked(document), hub, lambda event: None).why
    )
    assert [pull.status for pull in owner.pulls()] == ["open"]
    assert owner.titles("refs/pr/1").count(TITLE) == 1


def test_a_draft_with_other_files_is_work_to_be_taken_up(dev, hub, owner, folder, document):
    owner.existing()
    deliver(folder, document, hub)
    owner.api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=TARGET, revision="refs/pr/1")
    with dev.site.db.write() as rows:
        rows.execute("UPDATE discussion SET status = 'draft'")
    assert find_existing(fingerprint(1), TARGET, hub) is None


def test_pushing_does_not_stop_at_our_pull_request(hub, owner, folder, document):
    """It was proposed; now it is to be pushed. The pull request of the same merge is closed, and that is said."""
    owner.existing()
    deliver(folder, document, hub)
    assert find_existing(fingerprint(1), TARGET, hub, how="push") is None
    notes = []
    done = deliver(folder, document, hub, how="push", emit=notes.append)
    assert (done.status, done.how) == ("published", "push")
    assert owner.titles().count(TITLE) == 1
    assert [pull.status for pull in owner.pulls()] == ["closed"]
    assert any("Pull request 1 proposed this merge; it is closed" in text for text in texts(notes))
    assert "fingerprint" not in owner.api.get_discussion_details(TARGET, 1).events[0].content
    assert deliver(folder, document, hub, how="push").status == "unchanged"


def test_pushing_leaves_the_pull_request_of_another_merge(hub, owner, folder, document, tmp_path):
    owner.existing()
    deliver(folder, document, hub)
    notes = []
    deliver(tmp_path / "other", finished(tmp_path / "other", seed=2), hub, how="push", emit=notes.append)
    assert [pull.status for pull in owner.pulls()] == ["open"]
    assert any("Pull request 1 proposes another merge; it is left open" in text for text in texts(notes))


def test_pushing_overrules_a_pull_request_that_was_closed(hub, owner, folder, document):
    owner.existing()
    deliver(folder, document, hub)
    owner.api.change_discussion_status(TARGET, 1, "closed")
    assert deliver(folder, document, hub, how="push").how == "push"


# --- however long the history is ----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["open", "closed"])
@pytest.mark.parametrize("old", [0, 40, 120])
def test_old_pull_requests_cost_a_bounded_number_of_calls(dev, owner, folder, document, tmp_path, old, status):
    owner.existing()
    for number in range(old):
        text = f"<!-- adapter-merge:fingerprint={fingerprint(1000 + number)} -->"
        pull = owner.api.create_pull_request(TARGET, title=f"Merge {number}", description=text)
        if status == "closed":
            owner.api.change_discussion_status(TARGET, pull.num, "closed")
    began = len(dev.requests)
    assert deliver(folder, document, hub_client(dev, tmp_path)).how == "pr"
    asked = [path for _, path, _ in dev.requests[began:]]
    lists = sum(path.endswith("/discussions") for path in asked)
    read = sum("/discussions/" in path for path in asked)
    assert lists <= 6 + 4 * (LISTED // 10) * 2
    assert read <= 4 * OPEN + CLOSED + 3
    assert len(asked) <= 100
    if not old:
        assert len(asked) <= 35


@pytest.mark.parametrize("status", ["open", "closed"])
def test_ours_is_found_among_many_other_pull_requests_of_the_account(hub, owner, folder, document, status):
    owner.existing()
    deliver(folder, document, hub)
    if status == "closed":
        owner.api.change_discussion_status(TARGET, 1, "closed")
    for number in range(LISTED - 1):
        pull = owner.api.create_pull_request(TARGET, title=f"Correct a word ({number})", description="by hand")
        if status == "closed":
            owner.api.change_discussion_status(TARGET, pull.num, "closed")
    again = deliver(folder, document, hub)
    assert (again.status, again.pr_number) == ("unchanged", 1)


def test_a_pull_request_that_was_closed_is_known_among_many(hub, owner, folder, document):
    owner.existing()
    deliver(folder, document, hub)
    owner.api.change_discussion_status(TARGET, 1, "closed")
    for number in range(CLOSED - 1):
        pull = owner.api.create_pull_request(TARGET, title=f"Merge {number}", description="another")
        owner.api.change_discussion_status(TARGET, pull.num, "closed")
    again = deliver(folder, document, hub)
    assert (again.status, again.pr_number) == ("unchanged", 1)
