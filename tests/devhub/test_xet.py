"""The Xet client, in processes of its own: it chooses Xet by its environment, at import."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from bot.devhub import DevHub
from bot.devhub.xet import shard_files

from .conftest import Script

MB = 1_000_000
UPLOAD = """
    import sys
    from huggingface_hub import HfApi
    print(HfApi().upload_file(path_or_fileobj=sys.argv[2], path_in_repo=sys.argv[3], repo_id=sys.argv[1]).oid)
"""
DOWNLOAD = """
    import hashlib, sys
    from huggingface_hub import HfApi
    path = HfApi().hf_hub_download(sys.argv[1], sys.argv[2])
    print(hashlib.sha256(open(path, "rb").read()).hexdigest())
"""


@pytest.fixture
def hub(folder: Path) -> Iterator[DevHub]:
    """A fresh local Hub with Xet."""
    with DevHub(folder, xet=True) as served:
        yield served


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file large enough for several chunks."""
    path = tmp_path / "weights.bin"
    path.write_bytes(os.urandom(12 * MB))
    return path


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _count(hub: DevHub, part: str) -> int:
    return sum(part in path for _, path, _ in hub.requests)


def test_an_upload_by_xet_is_read_by_xet_and_plain_clients(
    hub: DevHub, api: HfApi, repo: str, weights: Path, script: Script
) -> None:
    script(UPLOAD, hub, repo, weights, "a.bin")
    assert (_count(hub, "/xet-write-token/"), _count(hub, "/info/lfs/")) == (1, 0)
    (item,) = api.get_paths_info(repo, "a.bin")
    assert item.lfs.sha256 == _digest(weights)
    assert len(item.xet_hash) == 64
    assert script(DOWNLOAD, hub, repo, "a.bin").stdout.strip() == _digest(weights)
    assert (_count(hub, "/xet-read-token/"), _count(hub, item.lfs.sha256)) == (1, 0)
    assert script(DOWNLOAD, hub, repo, "a.bin", xet=False).stdout.strip() == _digest(weights)
    assert (_count(hub, "/xet-read-token/"), _count(hub, item.lfs.sha256)) == (1, 1)


def test_an_upload_by_lfs_is_read_by_xet_clients_too(
    hub: DevHub, api: HfApi, repo: str, weights: Path, script: Script
) -> None:
    api.upload_file(path_or_fileobj=weights, path_in_repo="a.bin", repo_id=repo)
    assert script(DOWNLOAD, hub, repo, "a.bin").stdout.strip() == _digest(weights)
    assert _count(hub, "/xet-read-token/") == 1


def test_xet_clients_in_many_processes_work_at_the_same_time(
    hub: DevHub, api: HfApi, repo: str, tmp_path: Path, script: Script
) -> None:
    code = """
        import os, sys, time
        from huggingface_hub import HfApi
        api = HfApi()
        api.hf_hub_download(sys.argv[1], "first.bin")
        api.upload_file(path_or_fileobj=os.urandom(3_000_000), path_in_repo=sys.argv[2], repo_id=sys.argv[1])
        api.hf_hub_download(sys.argv[1], sys.argv[2])
        time.sleep(1)  # a process that lives on keeps the lock on the folder it was given
    """
    api.upload_file(path_or_fileobj=os.urandom(3 * MB), path_in_repo="first.bin", repo_id=repo)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda n: script(code, hub, repo, f"{n}.bin"), range(3)))
    assert len(api.list_repo_files(repo)) == 5


def test_shards_preuploaded_by_xet_are_committed_to_a_draft_pull_request(
    hub: DevHub, api: HfApi, repo: str, script: Script, cache: Path
) -> None:
    code = """
        import os, sys
        from huggingface_hub import CommitOperationAdd, HfApi
        api, repo = HfApi(), sys.argv[1]
        pull = api.create_pull_request(repo, "Merged weights")
        parent = api.model_info(repo, revision=pull.git_reference).sha
        additions = [CommitOperationAdd(f"model-{i}.safetensors", bytes([i]) * 3_000_000) for i in range(3)]
        for addition in additions:
            api.preupload_lfs_files(repo, [addition], revision=pull.git_reference)
        additions.append(CommitOperationAdd("config.json", b"{}"))
        api.create_commit(
            repo, additions, commit_message="all", revision=pull.git_reference, parent_commit=parent
        )
        api.change_discussion_status(repo, pull.num, "open")
        api.merge_pull_request(repo, pull.num)
    """
    script(code, hub, repo)
    got = Path(api.snapshot_download(repo, cache_dir=cache))
    assert (got / "model-2.safetensors").read_bytes() == b"\x02" * 3_000_000
    assert api.get_discussion_details(repo, 1).status == "merged"


def test_upload_folder_with_create_pr_opens_a_draft(
    hub: DevHub, api: HfApi, repo: str, weights: Path, script: Script
) -> None:
    code = """
        import sys
        from huggingface_hub import HfApi
        print(HfApi().upload_folder(folder_path=sys.argv[2], repo_id=sys.argv[1], create_pr=True).pr_url)
    """
    folder = weights.parent / "upload"
    folder.mkdir()
    weights.rename(folder / "weights.bin")
    said = script(code, hub, repo, folder).stdout
    assert said.strip() == f"{hub.url}/{repo}/discussions/1"
    assert api.get_discussion_details(repo, 1).status == "draft"
    assert api.file_exists(repo, "weights.bin", revision="refs/pr/1")


def test_create_commit_with_create_pr_uploads_for_someone_without_write_access(
    hub: DevHub, api: HfApi, repo: str, weights: Path, script: Script
) -> None:
    code = """
        import sys
        from huggingface_hub import HfApi
        HfApi().upload_file(path_or_fileobj=sys.argv[2], path_in_repo="a.bin", repo_id=sys.argv[1], create_pr=True)
    """
    token = hub.create_token(hub.create_user("stranger"))
    script(code, hub, repo, weights, token=token)
    assert api.get_discussion_details(repo, 1).status == "open"
    assert api.file_exists(repo, "a.bin", revision="refs/pr/1")
    reader = hub.create_token("demo", "read")
    refused = script(UPLOAD, hub, repo, weights, "b.bin", token=reader, check=False)
    assert refused.returncode != 0


def test_a_snapshot_needs_no_head_per_file(hub: DevHub, api: HfApi, repo: str, script: Script) -> None:
    for name in ("a.bin", "b.bin"):
        api.upload_file(path_or_fileobj=os.urandom(MB), path_in_repo=name, repo_id=repo)
    code = """
        import sys
        from huggingface_hub import snapshot_download
        snapshot_download(sys.argv[1], allow_patterns="*.bin")
    """
    script(code, hub, repo)
    assert not [path for method, path, _ in hub.requests if method == "HEAD"]


def test_files_are_copied_between_repos_by_their_xet_hash(
    hub: DevHub, api: HfApi, repo: str, weights: Path, script: Script, cache: Path
) -> None:
    script(UPLOAD, hub, repo, weights, "a.bin")
    code = """
        import sys
        from huggingface_hub import CommitOperationCopy, HfApi
        api = HfApi()
        api.create_repo("demo/copy")
        copy = CommitOperationCopy("a.bin", "b.bin", src_repo_id=sys.argv[1], src_repo_type="model")
        api.create_commit("demo/copy", [copy], commit_message="copy")
    """
    script(code, hub, repo)
    assert _digest(Path(api.hf_hub_download("demo/copy", "b.bin", cache_dir=cache))) == _digest(weights)


def test_xet_files_are_there_after_a_restart(folder: Path, weights: Path, script: Script) -> None:
    with DevHub(folder, xet=True) as hub:
        HfApi(endpoint=hub.url, token=hub.token).create_repo("demo/model")
        script(UPLOAD, hub, "demo/model", weights, "a.bin")
    with DevHub(folder, xet=True) as hub:
        assert script(DOWNLOAD, hub, "demo/model", "a.bin").stdout.strip() == _digest(weights)
        assert _count(hub, "/xet-read-token/") == 1
    with DevHub(folder) as hub:
        assert script(DOWNLOAD, hub, "demo/model", "a.bin").stdout.strip() == _digest(weights)


def test_a_hub_without_xet_tells_a_xet_client_what_to_set(tmp_path: Path, weights: Path, script: Script) -> None:
    with DevHub(tmp_path / "plain") as hub:
        HfApi(endpoint=hub.url, token=hub.token).create_repo("demo/model")
        failed = script(UPLOAD, hub, "demo/model", weights, "a.bin", check=False)
        assert failed.returncode != 0
        assert hub.environment()["HF_HUB_DISABLE_XET"] == "1"


def test_a_file_that_is_no_shard_has_no_files() -> None:
    for content in (b"", bytes(48), bytes(48) + b"\xff" * 48, os.urandom(30)):
        assert list(shard_files(content)) == []
