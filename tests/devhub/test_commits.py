"""What a commit refuses, and races between commits."""

from __future__ import annotations

import json
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

from bot.devhub import DevHub


def _post(hub: DevHub, repo: str, *lines: tuple[str, dict[str, object]], revision: str = "main") -> httpx2.Response:
    body = "\n".join(json.dumps({"key": key, "value": value}) for key, value in lines)
    headers = {"Authorization": f"Bearer {hub.token}", "Content-Type": "application/x-ndjson"}
    return httpx2.post(f"{hub.url}/api/models/{repo}/commit/{revision}", content=body, headers=headers)


def test_a_stale_parent_commit_is_refused_with_412(api: HfApi, repo: str) -> None:
    parent = api.model_info(repo).sha
    api.upload_file(path_or_fileobj=b"1", path_in_repo="a.txt", repo_id=repo)
    for create_pr in (False, True):
        with pytest.raises(HfHubHTTPError, match="The branch was updated since you opened this page") as refused:
            api.upload_file(
                path_or_fileobj=b"2", path_in_repo="a.txt", repo_id=repo, parent_commit=parent, create_pr=create_pr
            )
        assert refused.value.response.status_code == 412


def test_a_fresh_parent_commit_may_be_short(api: HfApi, repo: str) -> None:
    parent = api.model_info(repo).sha or ""
    api.upload_file(path_or_fileobj=b"1", path_in_repo="a.txt", repo_id=repo, parent_commit=parent[:8])
    assert api.file_exists(repo, "a.txt")


def test_a_commit_that_races_in_between_is_seen(hub: DevHub, api: HfApi, repo: str) -> None:
    parent = api.model_info(repo).sha
    raced: list[tuple[str, str]] = []

    def race(name: str, revision: str) -> None:
        raced.append((name, revision))
        api.upload_file(path_or_fileobj=b"theirs", path_in_repo="theirs.txt", repo_id=repo)

    hub.before_commit = race
    with pytest.raises(HfHubHTTPError) as refused:
        api.upload_file(path_or_fileobj=b"ours", path_in_repo="ours.txt", repo_id=repo, parent_commit=parent)
    assert refused.value.response.status_code == 412
    assert raced == [(repo, "main")]
    assert set(api.list_repo_files(repo)) == {".gitattributes", "theirs.txt"}


def test_a_commit_onto_a_sha_a_tag_or_nothing_is_refused(api: HfApi, repo: str) -> None:
    sha = api.model_info(repo).sha
    api.create_tag(repo, tag="v1")
    for revision in (sha, "v1", "nothing", "refs/pr/9"):
        with pytest.raises(RevisionNotFoundError):
            api.upload_file(path_or_fileobj=b"1", path_in_repo="a.txt", repo_id=repo, revision=revision)


@pytest.mark.parametrize("path", ["../a", "a//b", "a/./b", ".git/config", "a/../b", "", "a\\b", "a\nb"])
def test_a_path_that_git_could_not_hold_is_422(hub: DevHub, repo: str, path: str) -> None:
    answer = _post(hub, repo, ("header", {"summary": "bad"}), ("file", {"path": path, "content": "x"}))
    assert answer.status_code == 422


def test_a_file_cannot_stand_where_a_folder_is(hub: DevHub, api: HfApi, repo: str) -> None:
    api.upload_file(path_or_fileobj=b"1", path_in_repo="a/b.txt", repo_id=repo)
    for path in ("a", "a/b.txt/c"):
        answer = _post(hub, repo, ("header", {"summary": "bad"}), ("file", {"path": path, "content": "x"}))
        assert answer.status_code == 422


def test_a_large_file_that_was_never_uploaded_is_400(hub: DevHub, repo: str) -> None:
    large = {"path": "a.bin", "algo": "sha256", "oid": "cd" * 32, "size": 5}
    answer = _post(hub, repo, ("header", {"summary": "bad"}), ("lfsFile", large))
    assert answer.status_code == 400
    assert "does not exist" in answer.json()["error"]


def test_a_refused_commit_changes_nothing(hub: DevHub, api: HfApi, repo: str) -> None:
    before = api.model_info(repo).sha
    good = ("file", {"path": "good.txt", "content": "eA==", "encoding": "base64"})
    answers = [
        _post(hub, repo, ("header", {"summary": "bad"}), good, ("deletedFile", {"path": "nothing"})),
        _post(hub, repo, ("header", {"summary": "bad"}), good, ("nonsense", {"path": "x"})),
        _post(hub, repo, good),
        _post(hub, repo, ("header", {"summary": "bad"}), ("file", {"path": "a", "content": "*", "encoding": "base64"})),
    ]
    assert [answer.status_code for answer in answers] == [404, 400, 400, 400]
    assert api.model_info(repo).sha == before


def test_deleting_a_folder_as_a_file_is_accepted(hub: DevHub, api: HfApi, repo: str) -> None:
    api.create_commit(repo, [CommitOperationAdd(f"d/{i}", b"x") for i in "ab"], commit_message="add")
    assert _post(hub, repo, ("header", {"summary": "go"}), ("deletedFile", {"path": "d"})).status_code == 200
    assert api.list_repo_files(repo) == [".gitattributes"]


def test_the_answer_names_commit_and_pull_request_on_this_hub(hub: DevHub, api: HfApi, repo: str) -> None:
    made = api.upload_file(path_or_fileobj=b"1", path_in_repo="a.txt", repo_id=repo)
    assert made.commit_url == f"{hub.url}/{repo}/commit/{made.oid}"
    proposed = api.upload_file(path_or_fileobj=b"2", path_in_repo="a.txt", repo_id=repo, create_pr=True)
    assert (proposed.pr_url, proposed.pr_revision) == (f"{hub.url}/{repo}/discussions/1", "refs/pr/1")


def test_every_answer_has_a_request_id_and_errors_show_it(hub: DevHub, api: HfApi) -> None:
    with pytest.raises(HfHubHTTPError) as refused:
        api.model_info("demo/nothing")
    number = refused.value.response.headers["X-Request-Id"]
    assert number in str(refused.value)
    assert httpx2.get(hub.url).headers["X-Request-Id"] != number


def test_thousand_files_in_one_commit_are_quick(api: HfApi, repo: str, tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / f"{number}.txt").write_text(str(number))
    api.upload_folder(folder_path=tmp_path, repo_id=repo, allow_patterns="*.txt")
    assert len(api.list_repo_files(repo)) == 1001
