"""A target that exists gets one pull request: a draft until it is proven, updated instead of doubled."""

from __future__ import annotations

import pytest

from bot.devhub import Fault
from bot.errors import Outside
from bot.events import Note
from bot.project import REPOSITORY
from bot.publish import find_existing
from bot.publish.messages import trailer_in
from tests.publish.given import ADAPTER, SHA, TARGET, deliver, fingerprint, finished
from tests.pull.given import hub_client


@pytest.fixture(autouse=True)
def existing(owner):
    return owner.existing()


def first_comment(owner, num=1):
    return owner.api.get_discussion_details(TARGET, num).events[0].content


def test_an_existing_target_gets_a_pull_request(dev, hub, owner, folder, document):
    done = deliver(folder, document, hub)
    assert (done.status, done.how, done.pr_number) == ("published", "pr", 1)
    assert done.pr_url == f"{dev.url}/{TARGET}/discussions/1"
    [pull] = owner.pulls()
    assert (pull.status, pull.title) == ("open", "Merge demo/adapter into demo/base")
    assert owner.files("refs/pr/1") == {path.name for path in folder.iterdir()}
    assert owner.files() == {"model.safetensors"}
    assert owner.titles("refs/pr/1")[0] == "Merge demo/adapter into demo/base"
    assert len(owner.titles("refs/pr/1")) == len(owner.titles()) + 1
    assert done.revision == owner.api.model_info(TARGET, revision="refs/pr/1").sha


def test_the_pull_request_says_what_it_is(hub, owner, folder, document):
    deliver(folder, document, hub, tag="v1.0")
    text = first_comment(owner)
    assert f"<!-- adapter-merge:fingerprint={fingerprint(1)} -->" in text
    assert f"[adapter-merge]({REPOSITORY})" in text
    assert "| touched | 0 of 64 elements differ | 0 | pass |" in text
    assert "removes 1 file(s)" in text
    assert "`model.safetensors`" in text
    assert "`v1.0`" in text
    assert "Feel free to close" in text


def test_its_title_and_links_have_the_adapters_tag_whatever_git_allows_in_one(dev, hub, owner, tmp_path):
    tagged = finished(tmp_path / "tagged", tag="lora@1.0.0")
    deliver(tmp_path / "tagged", tagged, hub, tag="lora@1.0.0")
    assert owner.pulls()[0].title == "Merge demo/adapter (lora@1.0.0) into demo/base"
    text = first_comment(owner)
    assert f"**[{ADAPTER}]({dev.url}/{ADAPTER})** @ [{SHA[:12]}]({dev.url}/{ADAPTER}/tree/{SHA})" in text
    assert f"([lora@1.0.0]({dev.url}/{ADAPTER}/tree/lora%401.0.0))" in text
    assert "https://huggingface.co" not in text


def test_it_says_what_it_replaces(dev, hub, owner, tmp_path):
    for seed in (1, 2, 3):
        document = finished(tmp_path / str(seed), seed=seed, tag=f"v{seed}")
        deliver(tmp_path / str(seed), document, hub)
        if seed == 1:
            assert "It replaces the model on main, which is no merge by adapter-merge." in first_comment(owner)
            owner.api.merge_pull_request(TARGET, 1)
    held = first_comment(owner, 2).partition("It replaces what main holds: ")[2].partition("\n")[0]
    assert held.startswith(f"**[{ADAPTER}]({dev.url}/{ADAPTER})** @ [{SHA[:12]}]")
    assert f"([v1]({dev.url}/{ADAPTER}/tree/v1)) merged into" in held
    # The third version updated the second one's pull request, its title included.
    assert owner.pulls()[0].title == "Merge demo/adapter (v3) into demo/base"
    assert len(owner.pulls()) == 2


def test_it_is_a_draft_until_its_checksums_are_read_back(dev, hub, owner, folder, document):
    deliver(folder, document, hub)
    steps = [(method, path) for method, path, _ in dev.requests]
    commit = next(i for i, step in enumerate(steps) if step[1].endswith("/commit/refs/pr/1"))
    opened = next(i for i, step in enumerate(steps) if step[1].endswith("/discussions/1/status"))
    read_back = [i for i, step in enumerate(steps) if "/tree/" in step[1] and commit < i < opened]
    assert read_back
    kinds = [event.type for event in owner.api.get_discussion_details(TARGET, 1).events]
    assert kinds == ["comment", "commit", "status-change"]


def test_merging_twice_opens_one_pull_request(hub, owner, folder, document):
    first = deliver(folder, document, hub)
    again = deliver(folder, document, hub)
    assert (again.status, again.how, again.pr_number) == ("unchanged", "pr", 1)
    assert (again.revision, again.pr_url) == (first.revision, first.pr_url)
    assert len(owner.pulls()) == 1
    assert find_existing(fingerprint(1), TARGET, hub).status == "unchanged"


def test_another_merge_updates_the_open_pull_request(hub, owner, folder, document, tmp_path):
    deliver(folder, document, hub)
    other = finished(tmp_path / "other", seed=2, shards=3)
    done = deliver(tmp_path / "other", other, hub)
    assert (done.status, done.pr_number) == ("published", 1)
    assert len(owner.pulls()) == 1
    assert owner.files("refs/pr/1") == {path.name for path in (tmp_path / "other").iterdir()}
    assert f"fingerprint={fingerprint(2)}" in first_comment(owner)
    assert "Updated" in owner.api.get_discussion_details(TARGET, 1).events[-1].content
    assert find_existing(fingerprint(2), TARGET, hub).status == "unchanged"
    assert find_existing(fingerprint(1), TARGET, hub) is None


def test_a_pull_request_whose_weights_somebody_changed_gets_ours_again(hub, owner, folder, document):
    deliver(folder, document, hub)
    name = "model-00001-of-00002.safetensors"
    owner.api.upload_file(path_or_fileobj=b"other", path_in_repo=name, repo_id=TARGET, revision="refs/pr/1")
    notes = []
    done = deliver(folder, document, hub, emit=notes.append)
    assert (done.status, done.pr_number) == ("published", 1)
    assert owner.titles("refs/pr/1")[0] == "Merge demo/adapter into demo/base"
    assert any("has the mark of this merge, but other weights" in note.text for note in notes if isinstance(note, Note))
    assert deliver(folder, document, hub).proof is not None


def test_a_pull_request_with_our_mark_and_another_merge_in_it_is_put_right(hub, owner, folder, document, tmp_path):
    """The run of another merge was killed between its commit and the words that say so."""
    deliver(folder, document, hub)
    with pytest.MonkeyPatch.context() as killed:
        for step in ("comment", "rewrite", "rename"):
            killed.setattr(type(hub), step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            deliver(tmp_path / "other", finished(tmp_path / "other", seed=2), hub)
    done = deliver(folder, document, hub)
    assert (done.status, done.pr_number) == ("published", 1)
    assert trailer_in(owner.api.list_repo_commits(TARGET, revision="refs/pr/1")[0].message) == fingerprint(1)
    assert deliver(folder, document, hub).proof is not None
    assert len(owner.pulls()) == 1


def interrupted(*args, **more):
    raise KeyboardInterrupt


def test_a_closed_pull_request_is_not_reopened(hub, owner, folder, document, tmp_path):
    deliver(folder, document, hub)
    owner.api.change_discussion_status(TARGET, 1, "closed")
    again = deliver(folder, document, hub)
    assert (again.status, again.pr_number) == ("unchanged", 1)
    assert "closed" in again.why
    assert [pull.status for pull in owner.pulls()] == ["closed"]
    other = finished(tmp_path / "other", seed=2)
    assert deliver(tmp_path / "other", other, hub).pr_number == 2
    assert deliver(folder, document, hub, force=True).pr_number == 2


def test_a_merged_pull_request_is_what_main_holds(hub, owner, folder, document):
    deliver(folder, document, hub)
    owner.api.merge_pull_request(TARGET, 1)
    again = deliver(folder, document, hub)
    assert (again.status, again.how) == ("unchanged", "push")


def test_a_merged_pull_request_gets_its_tag_on_the_next_run(hub, owner, folder, document):
    deliver(folder, document, hub, tag="v1")
    owner.api.merge_pull_request(TARGET, 1)
    assert deliver(folder, document, hub, tag="v1").tag == "v1"


def test_a_cut_run_is_taken_up_again(dev, hub, owner, folder, document):
    dev.faults.add(Fault(path="/commit/refs%2Fpr%2F1", status=500, times=None))
    dev.faults.add(Fault(path="/discussions/1/comment/.*/edit", status=500, times=None))
    with pytest.raises(Outside):
        deliver(folder, document, hub)
    assert [pull.status for pull in owner.pulls()] == ["draft"]
    dev.faults.clear()
    assert find_existing(fingerprint(1), TARGET, hub) is None
    done = deliver(folder, document, hub)
    assert (done.status, done.pr_number) == ("published", 1)
    assert [pull.status for pull in owner.pulls()] == ["open"]


def test_a_failed_commit_leaves_no_draft_behind(dev, hub, owner, folder, document):
    dev.faults.add(Fault(path="/commit/refs%2Fpr%2F1", status=500, times=None))
    with pytest.raises(Outside):
        deliver(folder, document, hub)
    assert [pull.status for pull in owner.pulls()] == ["closed"]
    assert "fingerprint" not in first_comment(owner)
    dev.faults.clear()
    done = deliver(folder, document, hub)
    assert (done.status, done.pr_number) == ("published", 2)


def test_two_runs_at_once_leave_one_pull_request(dev, hub, owner, folder, document, tmp_path, monkeypatch):
    twin = finished(tmp_path / "twin")
    real = type(hub).open_draft
    turns = []

    def slow(self, repo, title, text):
        if not turns:
            turns.append(1)
            deliver(tmp_path / "twin", twin, hub_client(dev, tmp_path / "other"))
        return real(self, repo, title, text)

    monkeypatch.setattr(type(hub), "open_draft", slow)
    done = deliver(folder, document, hub)
    assert (done.status, done.pr_number) == ("unchanged", 1)
    assert [pull.status for pull in owner.pulls()] == ["closed", "open"]


def test_somebody_without_write_access_may_propose(dev, owner, folder, document, tmp_path):
    eve = hub_client(dev, tmp_path, token=dev.create_token(dev.create_user("eve")))
    done = deliver(folder, document, eve)
    assert (done.status, done.pr_number) == ("published", 1)
    assert owner.pulls()[0].author == "eve"
    assert deliver(folder, document, eve).status == "unchanged"


def test_a_stranger_with_our_mark_does_not_stop_us(dev, hub, owner, folder, document):
    eve = dev.create_token(dev.create_user("eve"))
    mark = f"<!-- adapter-merge:fingerprint={fingerprint(1)} -->"
    owner.api.create_pull_request(TARGET, title="Trust me", description=mark, token=eve)
    done = deliver(folder, document, hub)
    assert (done.status, done.pr_number) == ("published", 2)


def test_a_repo_that_only_the_hub_has_written_to_is_pushed_to(hub, owner, folder, document):
    owner.api.create_repo("demo/empty")
    assert deliver(folder, document, hub, target="demo/empty").how == "push"


def test_a_pull_request_may_be_asked_for_on_a_new_repo(hub, owner, folder, document):
    done = deliver(folder, document, hub, target="demo/new", how="pr")
    assert (done.how, done.pr_number) == ("pr", 1)
    assert owner.files(repo="demo/new") == set()


def test_the_targets_gitignore_drops_nothing(hub, owner, folder, document):
    owner.put(".gitignore", b"*.safetensors\n*.json\n")
    deliver(folder, document, hub)
    assert owner.files("refs/pr/1") == {path.name for path in folder.iterdir()} | {".gitignore"}
