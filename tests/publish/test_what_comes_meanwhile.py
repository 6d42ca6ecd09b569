"""What others commit while we work: where it touches nothing of ours, our commit goes on top of it; else nothing is committed."""

from __future__ import annotations

import pytest

from bot.errors import Moved
from bot.events import Note
from bot.publish.commit import ROUNDS
from tests.publish.given import TARGET, deliver, finished
from tests.pull.given import two_sentences

TITLE = "Merge demo/adapter into demo/base"
OURS = {
    "config.json": b'{"changed": 1}',  # our commit writes it
    "README.md": b"# My own words",
    "model.safetensors": b"a newer model",  # our commit deletes it
    "pytorch_model.bin": b"a pickle",  # our commit would have to delete it now
    ".gitattributes": b"*.json filter=lfs",  # says how ours are stored
}
THEIRS = {"notes.txt": b"I was faster", "eval/results.json": b"{}", "LICENSE": b"mine"}


@pytest.fixture(autouse=True)
def existing(owner):
    owner.existing()
    return owner.put("LICENSE", b"older")


def during_the_upload(owner, name, content):
    """An `emit` that commits when the first bytes are up."""
    seen = []

    def emit(event):
        if type(event).__name__ == "StepProgress" and event.done and not seen:
            seen.append(owner.put(name, content))

    return emit


@pytest.mark.parametrize("how", ["push", "pr"])
@pytest.mark.parametrize("name", THEIRS)
def test_a_commit_beside_ours_is_built_upon(hub, owner, folder, document, how, name):
    done = deliver(folder, document, hub, how=how, emit=during_the_upload(owner, name, THEIRS[name]))
    revision = "main" if how == "push" else "refs/pr/1"
    assert (done.status, done.how) == ("published", how)
    assert owner.titles(revision)[:2] == [TITLE, f"Upload {name} with huggingface_hub"]
    assert owner.files(revision) == {path.name for path in folder.iterdir()} | {name, "LICENSE"}
    assert deliver(folder, document, hub, how=how).status == "unchanged"


@pytest.mark.parametrize("how", ["push", "pr"])
@pytest.mark.parametrize("name", OURS)
def test_a_commit_to_what_is_ours_stops_the_run(hub, owner, folder, document, how, name):
    with pytest.raises(Moved) as caught:
        deliver(folder, document, hub, how=how, emit=during_the_upload(owner, name, OURS[name]))
    two_sentences(caught.value, what="changed while this run was working", do="Run it again")
    assert caught.value.exit_code == 5
    assert TITLE not in owner.titles()
    assert all(pull.status == "closed" for pull in owner.pulls())
    assert deliver(folder, document, hub, how=how).status == "published"


@pytest.mark.parametrize("how", ["push", "pr"])
def test_a_commit_in_the_last_moment_is_built_upon_too(dev, hub, owner, folder, document, how):
    """After our last look, before the Hub takes our commit: it refuses, and we look again."""

    def race(repo, revision):
        dev.before_commit = None
        if how == "push":
            owner.put("notes.txt", b"I was faster")
        else:
            owner.api.upload_file(
                path_or_fileobj=b"faster", path_in_repo="notes.txt", repo_id=TARGET, revision="refs/pr/1"
            )

    dev.before_commit = race
    notes = []
    done = deliver(folder, document, hub, how=how, emit=notes.append)
    assert owner.titles("main" if how == "push" else "refs/pr/1")[0] == TITLE
    assert "notes.txt" in owner.files(done.revision)
    assert any("it goes on from there" in note.text for note in notes if isinstance(note, Note))


def test_a_target_that_never_rests_is_given_up(dev, hub, owner, folder, document):
    numbers = iter(range(100))

    def race(repo, revision):  # the owner's own commits come by here too
        dev.before_commit = None
        owner.put(f"notes-{next(numbers)}.txt", b"faster")
        dev.before_commit = race

    dev.before_commit = race
    with pytest.raises(Moved):
        deliver(folder, document, hub, how="push")
    dev.before_commit = None
    assert next(numbers) == ROUNDS
    assert TITLE not in owner.titles()


def test_a_pull_request_that_others_work_on_is_built_upon(hub, owner, folder, document, tmp_path):
    deliver(folder, document, hub)
    other = finished(tmp_path / "other", seed=2)

    def emit(event):
        if type(event).__name__ == "StepProgress" and event.done and not emit.done:
            emit.done = True
            owner.api.upload_file(path_or_fileobj=b"x", path_in_repo="notes.txt", repo_id=TARGET, revision="refs/pr/1")

    emit.done = False
    done = deliver(tmp_path / "other", other, hub, emit=emit)
    assert (done.status, done.pr_number) == ("published", 1)
    assert "notes.txt" in owner.files("refs/pr/1")
