"""Faults on demand, and what the client makes of them."""

from __future__ import annotations

import time
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import DisabledRepoError, HfHubHTTPError

from bot.devhub import DevHub, Fault


def test_a_passing_503_is_retried_where_the_client_retries(hub: DevHub, api: HfApi, repo: str) -> None:
    fault = hub.faults.add(Fault(method="POST", path="/preupload/", status=503))
    api.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id=repo)
    assert hub.faults.hits(fault) == 1
    asked = [status for _, path, status in hub.requests if "/preupload/" in path]
    assert asked == [503, 200]


def test_a_503_on_an_upload_is_retried_with_the_same_bytes(hub: DevHub, api: HfApi, repo: str, cache: Path) -> None:
    content = bytes(range(256)) * 100_000
    hub.faults.add(Fault(method="PUT", path="/upload", status=500, origin="cdn", skip=1))
    api.upload_file(path_or_fileobj=content, path_in_repo="a.bin", repo_id=repo)
    assert Path(api.hf_hub_download(repo, "a.bin", cache_dir=cache)).read_bytes() == content


def test_a_503_on_the_commit_is_not_retried(hub: DevHub, api: HfApi, repo: str) -> None:
    hub.faults.add(Fault(method="POST", path="/commit/main", status=503))
    with pytest.raises(HfHubHTTPError):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id=repo)
    assert api.list_repo_files(repo) == [".gitattributes"]


def test_a_commit_whose_answer_is_lost_was_made(hub: DevHub, api: HfApi, repo: str) -> None:
    hub.faults.add(Fault(method="POST", path="/commit/main", cut_after=0))
    with pytest.raises(httpx2.RemoteProtocolError):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id=repo)
    assert api.file_exists(repo, "a.txt")


def test_rate_limits_are_explained(hub: DevHub, api: HfApi, repo: str) -> None:
    limits = {"RateLimit": '"api";r=0;t=55', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}
    hub.faults.add(Fault(path=f"/api/models/{repo}$", status=429, headers=limits))
    with pytest.raises(HfHubHTTPError, match="Retry after 55 seconds"):
        api.model_info(repo)
    hub.faults.add(Fault(path="/tree/", status=429, headers={"Retry-After": "1"}))
    assert api.list_repo_files(repo) == [".gitattributes"]
    assert [status for _, path, status in hub.requests if "/tree/" in path] == [429, 200]


def test_a_fault_may_wait_skip_and_last(hub: DevHub, api: HfApi, repo: str) -> None:
    slow = hub.faults.add(Fault(path="/whoami", delay=0.3, times=1))
    started = time.monotonic()
    api.whoami()
    assert time.monotonic() - started >= 0.3
    hub.faults.add(Fault(path=f"models/{repo}$", status=500, skip=1, times=2))
    for expected in (200, 500, 500, 200):
        assert httpx2.get(f"{hub.url}/api/models/{repo}").status_code == expected
    always = hub.faults.add(Fault(path=f"models/{repo}$", status=418, times=None))
    assert [httpx2.get(f"{hub.url}/api/models/{repo}").status_code for _ in range(3)] == [418] * 3
    hub.faults.clear()
    assert httpx2.get(f"{hub.url}/api/models/{repo}").status_code == 200
    assert (hub.faults.hits(slow), hub.faults.hits(always)) == (0, 0)


def test_a_fault_can_say_anything_that_a_hub_would(hub: DevHub, api: HfApi, repo: str) -> None:
    said = {"X-Error-Message": "Access to this resource is disabled."}
    hub.faults.add(Fault(path="/resolve/", status=403, headers=said, times=None))
    with pytest.raises(DisabledRepoError):
        api.get_hf_file_metadata(url=f"{hub.url}/{repo}/resolve/main/.gitattributes")


def test_a_header_can_be_added_to_a_true_answer(hub: DevHub, repo: str) -> None:
    hub.faults.add(Fault(path="/api/models/", headers={"X-HF-Warning": "topic; Mind the gap"}))
    answers = [httpx2.get(f"{hub.url}/api/models/{repo}") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert [answer.headers.get("X-HF-Warning") for answer in answers] == ["topic; Mind the gap", None]


def test_a_connection_cut_in_the_body_is_a_short_body(hub: DevHub, api: HfApi, repo: str) -> None:
    api.create_commit(repo, [CommitOperationAdd("a.txt", b"x" * 10_000)], commit_message="add")
    hub.faults.add(Fault(path="/resolve-cache/", cut_after=500))
    with pytest.raises(httpx2.RemoteProtocolError):
        httpx2.get(f"{hub.url}/{repo}/resolve/main/a.txt", follow_redirects=True)


def test_a_dropped_request_does_nothing(hub: DevHub, api: HfApi, repo: str) -> None:
    hub.faults.add(Fault(method="POST", path="/tag/", dropped=True))
    with pytest.raises(httpx2.RemoteProtocolError):
        api.create_tag(repo, tag="v1")
    assert api.list_repo_refs(repo).tags == []


def test_an_answer_without_a_body_can_be_lost_too(hub: DevHub, api: HfApi, repo: str) -> None:
    fault = hub.faults.add(Fault(method="PUT", path="/upload", origin="cdn", cut_after=0))
    api.upload_file(path_or_fileobj=b"x" * 100, path_in_repo="a.bin", repo_id=repo)
    assert hub.faults.hits(fault) == 1
    assert [status for method, path, status in hub.requests if method == "PUT" and path == "/upload"] == [200, 200]
