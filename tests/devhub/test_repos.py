"""Repos, refs and history, through the real client."""

from __future__ import annotations

import datetime
import subprocess
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from bot.devhub import DevHub


def test_a_new_repo_has_the_hubs_first_commit_with_gitattributes(api: HfApi, repo: str, cache: Path) -> None:
    commits = api.list_repo_commits(repo)
    assert [c.title for c in commits] == ["initial commit"]
    assert api.list_repo_files(repo) == [".gitattributes"]
    assert "*.safetensors filter=lfs" in Path(api.hf_hub_download(repo, ".gitattributes", cache_dir=cache)).read_text()


def test_creating_a_repo_again_is_409_with_its_url_so_that_exist_ok_works(api: HfApi, repo: str) -> None:
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_repo(repo)
    assert refused.value.response.status_code == 409
    assert api.create_repo(repo, exist_ok=True).repo_id == repo
    assert api.create_repo("model", exist_ok=True).repo_id == repo


def test_repo_ids_do_not_depend_on_case(api: HfApi, repo: str) -> None:
    assert api.model_info("Demo/MODEL").id == "demo/model"


def test_datasets_and_spaces_live_beside_a_model_of_the_same_name(api: HfApi, repo: str, cache: Path) -> None:
    for kind, extra in (("dataset", {}), ("space", {"space_sdk": "static"})):
        api.create_repo(repo, repo_type=kind, **extra)
        api.upload_file(path_or_fileobj=kind.encode(), path_in_repo="a.txt", repo_id=repo, repo_type=kind)
        path = api.hf_hub_download(repo, "a.txt", repo_type=kind, cache_dir=cache)
        assert Path(path).read_text() == kind
    assert not api.file_exists(repo, "a.txt")


def test_a_missing_repo_is_a_repository_not_found_error_over_plain_http(hub: DevHub, api: HfApi, cache: Path) -> None:
    for client in (api, HfApi(endpoint=hub.url, token=False)):
        with pytest.raises(RepositoryNotFoundError):
            client.model_info("demo/nothing")
        with pytest.raises(RepositoryNotFoundError):
            client.model_info("gpt2")
        with pytest.raises(RepositoryNotFoundError):
            client.hf_hub_download("demo/nothing", "config.json", cache_dir=cache)
        assert not client.repo_exists("demo/nothing")


def test_missing_revisions_and_files_have_their_own_errors(api: HfApi, repo: str, cache: Path) -> None:
    with pytest.raises(RevisionNotFoundError):
        api.model_info(repo, revision="nothing")
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download(repo, "config.json", revision="nothing", cache_dir=cache)
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(repo, "config.json", cache_dir=cache)
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(repo, "no/such/folder"))
    absent = list((cache / "models--demo--model" / ".no_exist").rglob("config.json"))
    assert len(absent) == 1


def test_a_deleted_repo_is_gone(api: HfApi, repo: str) -> None:
    api.delete_repo(repo)
    assert not api.repo_exists(repo)
    api.delete_repo(repo, missing_ok=True)
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo(repo)
    api.create_repo(repo)
    assert len(api.list_repo_commits(repo)) == 1


def test_a_moved_repo_answers_to_both_names(api: HfApi, repo: str) -> None:
    api.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id=repo)
    api.move_repo(repo, "demo/renamed")
    assert api.model_info("demo/renamed").id == api.model_info(repo).id == "demo/renamed"
    api.create_repo("demo/other")
    with pytest.raises(HfHubHTTPError, match="already exists"):
        api.move_repo("demo/other", "demo/renamed")


def test_names_that_the_hub_would_not_take_are_refused(api: HfApi, hub: DevHub) -> None:
    headers = {"Authorization": f"Bearer {hub.token}"}
    for name in ("a..b", "-a", "a.git", "", "a b"):
        answer = httpx2.post(f"{hub.url}/api/repos/create", json={"name": name}, headers=headers)
        assert answer.status_code == 400, name


def test_model_info_tells_what_the_card_and_the_files_say(api: HfApi, repo: str) -> None:
    card = "---\nlicense: mit\nlibrary_name: transformers\ntags: [merge]\nbase_model: demo/base\n---\n# Hello\n"
    api.upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id=repo)
    tensor = b'{"w":{"dtype":"BF16","shape":[3,5],"data_offsets":[0,30]}}'
    content = len(tensor).to_bytes(8, "little") + tensor + bytes(30)
    api.upload_file(path_or_fileobj=content, path_in_repo="model.safetensors", repo_id=repo)
    info = api.model_info(repo, files_metadata=True)
    assert info.card_data is not None
    assert info.card_data.license == "mit"
    assert info.library_name == "transformers"
    assert {"merge", "license:mit", "base_model:demo/base", "base_model:finetune:demo/base"} <= set(info.tags or ())
    assert info.safetensors is not None
    assert info.safetensors.parameters == {"BF16": 15}
    files = {s.rfilename: s for s in info.siblings or ()}
    lfs = files["model.safetensors"].lfs
    assert lfs is not None
    assert (lfs.size, len(lfs.sha256)) == (len(content), 64)
    assert files["README.md"].size == len(card)
    assert isinstance(info.last_modified, datetime.datetime)
    assert api.model_info(repo, expand=["gated"]).gated is False


def test_listing_models_filters_by_author_search_and_tag(hub: DevHub, api: HfApi) -> None:
    hub.create_org("org", members=["demo"])
    for name in ("demo/one", "demo/two", "org/one"):
        api.create_repo(name)
    card = b"---\nbase_model: demo/one\nlibrary_name: peft\n---\n"
    api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id="org/one")
    assert {m.id for m in api.list_models(author="demo")} == {"demo/one", "demo/two"}
    assert {m.id for m in api.list_models(search="one")} == {"demo/one", "org/one"}
    assert {m.id for m in api.list_models(filter="peft")} == {"org/one"}
    assert len(list(api.list_models(limit=2))) == 2
    assert [m.id for m in api.list_models(author="org", cardData=True)] == ["org/one"]


def test_branches_come_and_go(api: HfApi, repo: str) -> None:
    api.create_branch(repo, branch="dev/one")
    with pytest.raises(HfHubHTTPError, match="Reference refs/heads/dev/one already exists"):
        api.create_branch(repo, branch="dev/one")
    api.create_branch(repo, branch="dev/one", exist_ok=True)
    api.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id=repo, revision="dev/one")
    assert api.file_exists(repo, "a.txt", revision="dev/one")
    assert not api.file_exists(repo, "a.txt")
    assert {b.name for b in api.list_repo_refs(repo).branches} == {"main", "dev/one"}
    api.delete_branch(repo, branch="dev/one")
    assert [b.name for b in api.list_repo_refs(repo).branches] == ["main"]
    with pytest.raises(HfHubHTTPError, match="Cannot delete refs/heads/main"):
        api.delete_branch(repo, branch="main")


def test_tags_pin_a_commit(api: HfApi, repo: str, cache: Path) -> None:
    first = api.upload_file(path_or_fileobj=b"1", path_in_repo="a.txt", repo_id=repo)
    api.create_tag(repo, tag="v1.0", tag_message="the first")
    api.upload_file(path_or_fileobj=b"2", path_in_repo="a.txt", repo_id=repo)
    assert Path(api.hf_hub_download(repo, "a.txt", revision="v1.0", cache_dir=cache)).read_bytes() == b"1"
    (tag,) = api.list_repo_refs(repo).tags
    assert (tag.name, tag.ref, tag.target_commit) == ("v1.0", "refs/tags/v1.0", first.oid)
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_tag(repo, tag="v1.0")
    assert refused.value.response.status_code == 409
    api.create_tag(repo, tag="v1.0", exist_ok=True)
    with pytest.raises(RevisionNotFoundError):
        api.create_tag(repo, tag="v 2", revision="nothing")
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_tag(repo, tag="v 2")
    assert refused.value.response.status_code == 400
    api.delete_tag(repo, tag="v1.0")
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag(repo, tag="v1.0")


def test_a_revision_may_be_a_full_or_a_short_sha(api: HfApi, repo: str) -> None:
    oid = api.upload_file(path_or_fileobj=b"1", path_in_repo="a.txt", repo_id=repo).oid
    assert api.model_info(repo, revision=oid).sha == oid
    assert api.model_info(repo, revision=oid[:7]).sha == oid
    with pytest.raises(RevisionNotFoundError):
        api.model_info(repo, revision=oid[:6])


def test_history_lists_the_latest_commit_first_over_several_pages(api: HfApi, repo: str) -> None:
    for number in range(55):
        api.upload_file(
            path_or_fileobj=b"%d" % number, path_in_repo="a.txt", repo_id=repo, commit_message=f"change {number}"
        )
    titles = [c.title for c in api.list_repo_commits(repo, formatted=True)]
    assert titles == [f"change {number}" for number in reversed(range(55))] + ["initial commit"]


def test_ids_are_those_that_git_would_give(api: HfApi, repo: str, tmp_path: Path, cache: Path) -> None:
    files = {"a.txt": b"a", "b/c.txt": b"c", "b/d/e.txt": b"e", "b.txt": b"b", "b-a/x": b"x"}
    work = tmp_path / "git"
    for path, content in files.items():
        (work / path).parent.mkdir(parents=True, exist_ok=True)
        (work / path).write_bytes(content)
    api.upload_folder(folder_path=work, repo_id=repo, delete_patterns="*")
    rules = Path(api.hf_hub_download(repo, ".gitattributes", cache_dir=cache))
    (work / ".gitattributes").write_bytes(rules.read_bytes())

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=work, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    git("add", ".")
    git("write-tree")
    listed = {item.path: item for item in api.list_repo_tree(repo, recursive=True)}
    assert listed["b"].tree_id == git("write-tree", "--prefix=b")
    assert listed["b/d"].tree_id == git("write-tree", "--prefix=b/d")
    assert listed["a.txt"].blob_id == git("hash-object", "a.txt")


def test_card_metadata_is_validated_like_on_the_hub(
    hub: DevHub, api: HfApi, repo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"Invalid metadata in README\.md"):
        api.upload_file(path_or_fileobj=b"---\ntags: one\n---\n", path_in_repo="README.md", repo_id=repo)
    with pytest.raises(ValueError, match=r"Invalid metadata in README\.md"):
        api.upload_file(path_or_fileobj=b"---\na: [\n---\n", path_in_repo="README.md", repo_id=repo)
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        api.upload_file(path_or_fileobj=b"# Hi\n", path_in_repo="README.md", repo_id=repo)
    monkeypatch.setattr("huggingface_hub.repocard.get_session", lambda: _Rerouted(hub.url))
    ModelCard("---\nlicense: mit\n---\n# ok\n").validate()


class _Rerouted:
    """RepoCard.validate knows only the global endpoint (HF_ENDPOINT at import)."""

    def __init__(self, url: str) -> None:
        self._url = url

    def post(self, url: str, **options: object) -> httpx2.Response:
        return httpx2.post(f"{self._url}/api/validate-yaml", **options)
