"""A merge goes to a new repo, or straight to main, as one commit."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from huggingface_hub import HfApi

from bot.devhub import Fault
from bot.errors import Forbidden, NotVerified, Outside, Refused, Usage
from bot.events import Note
from bot.publish import find_existing
from bot.publish.repo_settings import carry_tag
from tests.publish.given import ADAPTER, BASE, TARGET, deliver, fingerprint, finished
from tests.pull.given import hub_client, two_sentences

COMMIT = "/commit/"


def commits(dev):
    return [path for method, path, status in dev.requests if method == "POST" and COMMIT in path and TARGET in path]


def test_a_missing_target_is_created_and_pushed_to(dev, hub, owner, folder, document):
    done = deliver(folder, document, hub)
    assert (done.status, done.how, done.repo) == ("published", "push", TARGET)
    assert owner.files() == {path.name for path in folder.iterdir()}
    assert done.revision == owner.api.model_info(TARGET).sha
    assert done.url == f"{dev.url}/{TARGET}/tree/{done.revision}"
    assert owner.titles() == ["Merge demo/adapter into demo/base", "initial commit"]
    assert not owner.api.model_info(TARGET).private
    assert len(commits(dev)) == 1
    message = owner.api.list_repo_commits(TARGET)[0].message
    assert message.splitlines()[-1] == f"Adapter-Merge-Fingerprint: {fingerprint(1)}"


def test_what_was_proven_is_what_arrives(hub, owner, folder, document):
    deliver(folder, document, hub)
    expected = document["subject"]["files"]
    for item in owner.api.list_repo_tree(TARGET, recursive=True):
        if item.lfs:
            assert item.lfs.sha256 == expected[item.path]


def test_the_second_run_changes_nothing(dev, hub, owner, folder, document):
    first = deliver(folder, document, hub)
    again = deliver(folder, document, hub)
    assert (again.status, again.revision, again.url) == ("unchanged", first.revision, first.url)
    assert again.why
    assert len(commits(dev)) == 1
    assert find_existing(fingerprint(1), TARGET, hub).status == "unchanged"
    assert find_existing(fingerprint(2), TARGET, hub) is None


def test_a_new_card_on_main_does_not_hide_that_the_merge_is_there(hub, owner, folder, document):
    deliver(folder, document, hub)
    owner.put("README.md", b"# My own words")
    assert deliver(folder, document, hub).status == "unchanged"


def test_other_weights_on_main_are_not_that_merge_any_more(hub, owner, folder, document):
    deliver(folder, document, hub)
    owner.put("model-00001-of-00002.safetensors", b"something else")
    assert find_existing(fingerprint(1), TARGET, hub) is None


DRIFTS = {
    "config.json": (b'{"model_type": "gpt2"}', "config.json has other bytes"),
    "model.safetensors": (b"a stray file", "model.safetensors was added"),
    "adapter_config.json": (b"{}", "adapter_config.json was added"),
    "adapter_model.safetensors": (b"applied twice", "adapter_model.safetensors was added"),
    "pytorch_model.bin": (b"a pickle", "pytorch_model.bin was added"),
    "tokenizer.json": (None, "tokenizer.json is missing"),
    "model-00002-of-00002.safetensors": (b"not in LFS", "model-00002-of-00002.safetensors has other bytes"),
}


@pytest.mark.parametrize("name", DRIFTS)
@pytest.mark.parametrize("history", ["kept", "squashed"])
def test_a_target_that_drifted_is_said_and_repaired_by_a_pull_request(hub, owner, folder, document, name, history):
    deliver(folder, document, hub)
    content, said = DRIFTS[name]
    if content is None:
        owner.api.delete_file(name, TARGET)
    else:
        owner.put(name, content, lfs=name != "model-00002-of-00002.safetensors")
    if history == "squashed":
        owner.squash()
    drifted = owner.api.model_info(TARGET).sha
    notes = []
    done = deliver(folder, document, hub, emit=notes.append, tag="v1")
    assert (done.status, done.how, done.tag) == ("published", "pr", None)
    assert any(
        f"was changed since this merge was published: {said}." in note.text for note in notes if isinstance(note, Note)
    )
    assert owner.files(f"refs/pr/{done.pr_number}") == {path.name for path in folder.iterdir()}
    assert owner.api.model_info(TARGET).sha == drifted
    owner.api.merge_pull_request(TARGET, done.pr_number)
    again = deliver(folder, document, hub, tag="v1")
    assert (again.status, again.how, again.tag) == ("unchanged", "push", "v1")


def test_what_the_owner_adds_beside_a_merge_is_no_drift(hub, owner, folder, document):
    deliver(folder, document, hub)
    owner.put("eval/results.json", b"{}")
    owner.put("picture.png", b"a picture")
    owner.squash()
    assert deliver(folder, document, hub).status == "unchanged"


def test_a_faster_run_of_the_same_merge_is_no_bad_commit(dev, hub, owner, folder, document, tmp_path):
    """Its report says other seconds; everything that it proves is the same."""
    owner.existing()

    def race(repo, revision):
        dev.before_commit = None
        faster = json.loads(json.dumps(document))
        faster["checks"][0]["seconds"] = 99.9
        shutil.copytree(folder, tmp_path / "faster")
        (tmp_path / "faster" / "verification.json").write_text(json.dumps(faster))
        deliver(tmp_path / "faster", faster, hub_client(dev, tmp_path / "other"), how="push")

    dev.before_commit = race
    assert deliver(folder, document, hub, how="push").revision == owner.api.model_info(TARGET).sha
    assert len(owner.titles()) == len(set(owner.titles()))


def test_the_trailer_is_enough_where_the_report_was_edited(hub, owner, folder, document):
    deliver(folder, document, hub)
    owner.put("verification.json", b"{}")
    assert find_existing(fingerprint(1), TARGET, hub).status == "unchanged"


def test_force_publishes_again(hub, owner, folder, document):
    deliver(folder, document, hub)
    owner.put("README.md", b"# My own words")
    assert deliver(folder, document, hub, force=True, how="push").status == "published"
    assert b"My own words" not in owner.api.hf_hub_download(TARGET, "README.md", local_dir=folder.parent / "x").encode()


def test_pushing_removes_what_would_mislead_a_loader(hub, owner, folder, document):
    owner.existing()
    owner.put("adapter_config.json", b"{}")
    owner.put("added_tokens.json", b"{}")
    owner.put("eval/results.json", b"{}")
    owner.put("LICENSE", b"mine")
    done = deliver(folder, document, hub, how="push")
    assert done.status == "published"
    assert owner.files() == {path.name for path in folder.iterdir()} | {"eval/results.json", "LICENSE"}


def test_weights_of_an_older_merge_elsewhere_are_pointed_out(hub, owner, folder, document):
    owner.existing()
    owner.put("model-q4.gguf", b"older")
    notes = []
    deliver(folder, document, hub, how="push", emit=notes.append)
    assert any("model-q4.gguf" in note.text for note in notes if isinstance(note, Note) and note.level == "warning")
    assert "model-q4.gguf" in owner.files()


def test_the_same_merge_pushed_by_a_faster_run_is_unchanged(dev, hub, owner, folder, document, tmp_path):
    owner.existing()
    twin = finished(tmp_path / "twin")

    def emit(event):
        if type(event).__name__ == "StepProgress" and not emit.done:
            emit.done = True
            deliver(tmp_path / "twin", twin, hub_client(dev, tmp_path / "other"), how="push")

    emit.done = False
    assert deliver(folder, document, hub, how="push", emit=emit).status == "unchanged"
    assert owner.titles().count("Merge demo/adapter into demo/base") == 1


def test_a_lost_answer_to_the_commit_is_not_a_second_commit(dev, owner, folder, document, tmp_path):
    patient = hub_client(dev, tmp_path, patience=(0.0,))
    dev.faults.add(Fault(path=f"/api/models/{TARGET}/commit/", method="POST", cut_after=0))
    assert deliver(folder, document, patient).status == "published"
    assert owner.titles() == ["Merge demo/adapter into demo/base", "initial commit"]


def test_a_commit_that_failed_is_tried_again(dev, owner, folder, document, tmp_path):
    patient = hub_client(dev, tmp_path, patience=(0.0, 0.0))
    dev.faults.add(Fault(path=f"/api/models/{TARGET}/commit/", method="POST", status=503, times=2))
    assert deliver(folder, document, patient).status == "published"


def test_a_read_only_token_uploads_nothing(dev, owner, folder, document, tmp_path):
    owner.existing()
    reader = hub_client(dev, tmp_path, token=dev.create_token("demo", "read"))
    for how in ("push", "pr"):
        with pytest.raises(Forbidden) as caught:
            deliver(folder, document, reader, how=how)
        assert "token" in caught.value.what
    with pytest.raises(Forbidden):
        deliver(folder, document, reader, target="demo/other")
    assert not [path for method, path, _ in dev.requests if method == "PUT" and "upload" in path and "merged" in path]
    assert owner.files() == {"model.safetensors"}
    assert owner.pulls() == []


def test_a_failed_first_push_says_what_is_left(dev, hub, owner, folder, document):
    dev.faults.add(Fault(path=f"/api/models/{TARGET}/commit/", method="POST", status=500, times=None))
    with pytest.raises(Outside) as caught:
        deliver(folder, document, hub)
    two_sentences(caught.value, what="failed with 500", do=f"The new repo {TARGET} is left")
    assert owner.files() == set()
    dev.faults.clear()
    done = deliver(folder, document, hub)
    assert (done.status, done.how) == ("published", "push")


def test_files_that_arrive_changed_are_reported(dev, hub, owner, folder, document, monkeypatch):
    from bot.hub import Blob

    real = type(hub).target_files

    def tampered(self, repo, revision):
        tree = real(self, repo, revision)
        return {name: Blob(size=b.size, oid=b.oid, sha256="0" * 64 if b.sha256 else None) for name, b in tree.items()}

    monkeypatch.setattr(type(hub), "target_files", tampered)
    with pytest.raises(Outside) as caught:
        deliver(folder, document, hub)
    two_sentences(caught.value, what="are not the ones that were verified", do="Do not use that commit")
    assert owner.api.model_info(TARGET).private


# --- what may be published ----------------------------------------------------------------------------------------


def test_nothing_unverified_is_published(dev, hub, folder):
    document = finished(folder, verdict="not-verified")
    with pytest.raises(NotVerified) as caught:
        deliver(folder, document, hub)
    two_sentences(caught.value, what="touched failed", do="nothing is published")
    assert not any(TARGET in path for _, path, _ in dev.requests)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "config.json").write_text("{}"), "config.json has other bytes"),
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda f: (f / "old.safetensors").write_bytes(b"x"), "old.safetensors is not in the report"),
        (lambda f: (f / ".secret").write_text("x"), ".secret is not in the report"),
        (lambda f: (f / "link").symlink_to("/etc/passwd"), "is a link"),
        (lambda f: (f / "README.md").unlink(), "has no README.md"),
        (lambda f: (f / "verification.json").write_text(json.dumps({"verdict": "verified"})), "no fingerprint"),
    ],
)  # fmt: skip
def test_a_folder_that_changed_since_it_was_verified_is_not_published(hub, folder, document, change, words):
    change(folder)
    with pytest.raises(NotVerified) as caught:
        deliver(folder, document, hub)
    assert words in caught.value.what
    assert "Merge again" in caught.value.remedy


@pytest.mark.parametrize("name", ["tokenizer.json", "model-00001-of-00002.safetensors", "README.md"])
@pytest.mark.parametrize("when", ["before it is sent", "after it was sent"])
@pytest.mark.parametrize("large", [True, False])
def test_what_changes_while_it_is_sent_is_not_committed(
    name, when, large, dev, hub, owner, folder, document, monkeypatch
):
    from bot.hub import upload

    if large:
        monkeypatch.setattr(upload, "SMALL", 0)
    victim = folder / name

    def change(event):
        # A note says that the repo was created, after the folder was looked at.
        if type(event).__name__ == ("StepProgress" if when == "after it was sent" else "Note"):
            before = victim.stat()
            victim.write_bytes(victim.read_bytes()[:-1] + b" ")
            os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))

    with pytest.raises(NotVerified) as caught:
        deliver(folder, document, hub, emit=change)
    two_sentences(caught.value, what=f"changed while it was sent: {name}", do="Nothing was committed")
    assert not commits(dev)


def test_two_publications_of_one_folder_do_not_stand_in_each_others_way(dev, hub, folder, document):
    def link(event):  # as `publish` does, and takes away again
        if type(event).__name__ == "Note":
            os.link(folder / "tokenizer.json", folder.parent / "twin")
            (folder.parent / "twin").unlink()

    before = (folder / "tokenizer.json").stat().st_ctime_ns
    assert deliver(folder, document, hub, emit=link).status == "published"
    assert (folder / "tokenizer.json").stat().st_ctime_ns != before


def test_another_report_than_the_folders_is_not_published(hub, folder, document):
    with pytest.raises(NotVerified) as caught:
        deliver(folder, document | {"inputs": {}}, hub)
    assert "not the report of this run" in caught.value.what


def test_a_card_that_the_hub_does_not_accept_stops_before_the_upload(dev, hub, folder, document):
    (folder / "README.md").write_text("---\nlicense: [1, 2]\n---\n")
    with pytest.raises(Outside) as caught:
        deliver(folder, document, hub)
    two_sentences(caught.value, what="does not accept the model card", do="--license")
    assert not any(TARGET in path for _, path, _ in dev.requests if "api/models" in path and "preupload" in path)


@pytest.mark.parametrize("target", ["merged", "a/b/c", "no--way/x", ""])
def test_a_target_must_be_a_repo(hub, folder, document, target):
    with pytest.raises(Usage):
        deliver(folder, document, hub, target=target)


def test_none_publishes_nothing(dev, hub, folder, document):
    assert deliver(folder, document, hub, how="none").status == "none"


def test_a_dry_run_says_what_would_happen_and_writes_nothing(dev, hub, owner, folder, document):
    done = deliver(folder, document, hub, dry_run=True, tag="v1")
    assert (done.status, done.how) == ("dry-run", "push")
    assert "create demo/merged (public)" in done.why
    assert not owner.api.repo_exists(TARGET)
    owner.existing()
    done = deliver(folder, document, hub, dry_run=True)
    assert (done.status, done.how) == ("dry-run", "pr")
    assert "remove model.safetensors" in done.why
    assert owner.pulls() == []


# --- who may see it -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repo", [BASE, ADAPTER])
def test_a_private_input_makes_a_private_output(hub, owner, folder, document, repo):
    owner.api.update_repo_settings(repo, private=True)
    deliver(folder, document, hub)
    assert owner.api.model_info(TARGET).private


def test_a_gated_base_makes_a_private_and_gated_output(hub, owner, folder, document):
    owner.api.update_repo_settings(BASE, gated="manual")
    deliver(folder, document, hub)
    made = owner.api.model_info(TARGET)
    assert made.private
    assert made.gated == "manual"


@pytest.mark.parametrize("how", ["pr", "push"])
def test_a_gated_base_does_not_go_to_a_target_that_is_open_to_everyone(hub, owner, folder, document, how):
    owner.existing()
    owner.api.update_repo_settings(BASE, gated="auto")
    with pytest.raises(Refused) as caught:
        deliver(folder, document, hub, how=how)
    two_sentences(caught.value, what=f"{TARGET} is open to everyone, and {BASE} is gated", do="--private false")
    assert owner.pulls() == []
    owner.api.update_repo_settings(TARGET, gated="auto")
    assert deliver(folder, document, hub, how=how).status == "published"


def test_public_must_be_asked_for_and_stays_gated(hub, owner, folder, document):
    owner.api.update_repo_settings(BASE, gated="auto")
    deliver(folder, document, hub, private="false")
    made = owner.api.model_info(TARGET)
    assert not made.private
    assert made.gated == "auto"


def test_a_local_adapter_makes_a_private_output_unless_asked(hub, owner, tmp_path):
    inputs = {"base": {"repo": BASE, "sha": "0" * 40}, "adapter": {"repo": None, "sha": "sha256:" + "0" * 64}}
    notes = []
    deliver(tmp_path / "a", finished(tmp_path / "a", inputs=inputs), hub, emit=notes.append)
    assert owner.api.model_info(TARGET).private
    assert any("the adapter is a local folder" in note.text for note in notes if isinstance(note, Note))
    other = finished(tmp_path / "b", inputs=inputs, seed=2)
    deliver(tmp_path / "b", other, hub, target="demo/open", private="false")
    assert not owner.api.model_info("demo/open").private


def test_private_may_be_asked_for(hub, owner, folder, document):
    deliver(folder, document, hub, private="true")
    assert owner.api.model_info(TARGET).private


def test_an_input_that_cannot_be_seen_counts_as_private(hub, owner, folder, document):
    owner.api.delete_repo(ADAPTER)
    deliver(folder, document, hub)
    assert owner.api.model_info(TARGET).private


def test_a_private_input_never_goes_to_a_public_target_unasked(hub, owner, folder, document):
    owner.existing()
    owner.api.update_repo_settings(ADAPTER, private=True)
    for how in ("pr", "push"):
        with pytest.raises(Refused) as caught:
            deliver(folder, document, hub, how=how)
        two_sentences(caught.value, what="demo/adapter is private", do="--private false")
    assert owner.pulls() == []
    assert deliver(folder, document, hub, private="false").status == "published"


def test_gating_that_fails_leaves_the_repo_private(dev, hub, owner, folder, document):
    owner.api.update_repo_settings(BASE, gated="auto")
    dev.faults.add(Fault(path=f"/api/models/{TARGET}/settings", status=403, times=None))
    notes = []
    assert deliver(folder, document, hub, private="false", emit=notes.append).status == "published"
    assert owner.api.model_info(TARGET).private
    assert any("stays private" in note.text for note in notes if isinstance(note, Note))


# --- tags ---------------------------------------------------------------------------------------------------------


def tags(api: HfApi) -> dict[str, str]:
    return {tag.name: tag.target_commit for tag in api.list_repo_refs(TARGET).tags}


def test_the_adapters_tag_is_carried(hub, owner, folder, document):
    done = deliver(folder, document, hub, tag="v1.0")
    assert done.tag == "v1.0"
    assert tags(owner.api) == {"v1.0": done.revision}


def test_a_tag_that_a_cut_run_left_out_is_made_up_for(hub, owner, folder, document):
    deliver(folder, document, hub)
    again = deliver(folder, document, hub, tag="v1.0")
    assert (again.status, again.tag) == ("unchanged", "v1.0")
    assert tags(owner.api) == {"v1.0": again.revision}
    assert carry_tag(again, "v1.0", fingerprint(1), hub, lambda event: None) == again


def test_a_tag_is_never_moved(hub, owner, folder, document, tmp_path):
    first = deliver(folder, document, hub, tag="v1.0")
    other = finished(tmp_path / "other", seed=2)
    notes = []
    done = deliver(tmp_path / "other", other, hub, how="push", tag="v1.0", emit=notes.append)
    assert (done.status, done.tag) == ("published", None)
    assert tags(owner.api) == {"v1.0": first.revision}
    assert any("was not moved" in note.text for note in notes if isinstance(note, Note))
