"""Uploads and downloads of small and large files, ranges and resumption, with the LFS client."""

from __future__ import annotations

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi, HfFileSystem
from huggingface_hub.errors import HfHubHTTPError

from bot.devhub import DevHub, Fault

MB = 1_000_000


def _statuses(hub: DevHub, method: str, part: str) -> list[int]:
    return [status for m, path, status in hub.requests if m == method and part in path]


def test_a_folder_comes_back_as_it_went(api: HfApi, repo: str, tmp_path: Path, cache: Path) -> None:
    source = tmp_path / "source"
    contents = {"config.json": b"{}", "sub/tokenizer.json": b"[]", "empty": b"", "ä ö/ü#?%.txt": b"quoted"}
    contents["model.safetensors"] = os.urandom(100_000)
    contents["big.txt"] = b"x" * (11 << 20)
    for name, content in contents.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    api.upload_folder(folder_path=source, repo_id=repo)
    got = Path(api.snapshot_download(repo, cache_dir=cache))
    assert {str(p.relative_to(got)): p.read_bytes() for p in got.rglob("*") if p.is_file()} == {
        **contents,
        ".gitattributes": (got / ".gitattributes").read_bytes(),
    }
    large = {s.rfilename for s in api.model_info(repo, files_metadata=True).siblings or () if s.lfs}
    assert large == {"model.safetensors", "big.txt"}


def test_a_file_of_30_mb_goes_up_in_parts(hub: DevHub, api: HfApi, repo: str, cache: Path) -> None:
    content = os.urandom(30 * MB)
    api.upload_file(path_or_fileobj=content, path_in_repo="model.safetensors", repo_id=repo)
    assert _statuses(hub, "PUT", "/upload") == [200, 200]
    assert _statuses(hub, "POST", "/api/complete_multipart") == [200]
    got = Path(api.hf_hub_download(repo, "model.safetensors", cache_dir=cache))
    assert got.read_bytes() == content
    assert got.resolve().name == hashlib.sha256(content).hexdigest()


def test_preuploaded_shards_are_committed_at_once_on_the_parent_asked_for(hub: DevHub, api: HfApi, repo: str) -> None:
    parent = api.model_info(repo).sha
    additions = [CommitOperationAdd(f"model-{i}.safetensors", os.urandom(MB)) for i in range(3)]
    for addition in additions:
        api.preupload_lfs_files(repo, [addition])
    additions.append(CommitOperationAdd("config.json", b"{}"))
    made = api.create_commit(repo, additions, commit_message="all", commit_description="why", parent_commit=parent)
    last, *_ = api.list_repo_commits(repo)
    assert (last.commit_id, last.title, last.message) == (made.oid, "all", "why")
    assert len(_statuses(hub, "POST", "/commit/main")) == 1


def test_an_object_the_repo_holds_is_not_sent_twice(hub: DevHub, api: HfApi, repo: str) -> None:
    content = os.urandom(MB)
    api.upload_file(path_or_fileobj=content, path_in_repo="a.bin", repo_id=repo)
    api.upload_file(path_or_fileobj=content, path_in_repo="b.bin", repo_id=repo)
    assert len(_statuses(hub, "PUT", "/upload")) == 1
    # Another repo has to show that it has the bytes: a sha256 alone opens nothing.
    api.create_repo("demo/other")
    api.upload_file(path_or_fileobj=content, path_in_repo="a.bin", repo_id="demo/other")
    assert len(_statuses(hub, "PUT", "/upload")) == 2


def test_unchanged_files_make_no_commit(api: HfApi, repo: str) -> None:
    for content in (b"small", os.urandom(MB)):
        operations = [CommitOperationAdd("a.bin", content), CommitOperationAdd("a.txt", b"text")]
        first = api.create_commit(repo, operations, commit_message="one")
        operations = [CommitOperationAdd("a.bin", content), CommitOperationAdd("a.txt", b"text")]
        assert api.create_commit(repo, operations, commit_message="two").oid == first.oid


def test_bytes_that_do_not_match_their_sha256_are_refused(hub: DevHub, api: HfApi, repo: str) -> None:
    for size in (1000, 40 * MB):
        announced = {"operation": "upload", "transfers": ["basic", "multipart"], "hash_algo": "sha256"}
        announced["objects"] = [{"oid": "ab" * 32, "size": size}]
        headers = {"Authorization": f"Bearer {hub.token}"}
        answer = httpx2.post(f"{hub.url}/{repo}.git/info/lfs/objects/batch", json=announced, headers=headers).json()
        upload = answer["objects"][0]["actions"]["upload"]
        if "header" not in upload:
            assert httpx2.put(upload["href"], content=bytes(size)).status_code == 400
            continue
        step = int(upload["header"].pop("chunk_size"))
        parts = []
        for number, url in upload["header"].items():
            part = httpx2.put(url, content=bytes(min(step, size - (int(number) - 1) * step)))
            parts.append({"partNumber": int(number), "etag": part.headers["etag"]})
        refused = httpx2.post(upload["href"], json={"oid": "ab" * 32, "parts": parts})
        assert (refused.status_code, "BadDigest" in refused.text) == (400, True)
        missing = httpx2.post(upload["href"], json={"oid": "ab" * 32, "parts": parts[:-1]})
        assert (missing.status_code, "InvalidPart" in missing.text) == (400, True)


def test_a_truncated_upload_is_refused(hub: DevHub, repo: str) -> None:
    content = os.urandom(1000)
    announced = {"operation": "upload", "objects": [{"oid": hashlib.sha256(content).hexdigest(), "size": 1000}]}
    headers = {"Authorization": f"Bearer {hub.token}"}
    answer = httpx2.post(f"{hub.url}/{repo}.git/info/lfs/objects/batch", json=announced, headers=headers).json()
    href = answer["objects"][0]["actions"]["upload"]["href"]
    assert httpx2.put(href, content=content[:-1]).status_code == 400
    assert httpx2.put(href, content=content + b"x").status_code == 400
    assert httpx2.put(href.replace("signature=", "signature=00"), content=content).status_code == 403
    assert httpx2.put(href, content=content).status_code == 200


def test_large_files_come_from_another_origin_that_refuses_authorization(hub: DevHub, api: HfApi, repo: str) -> None:
    api.upload_file(path_or_fileobj=b"weights", path_in_repo="a.bin", repo_id=repo)
    answer = httpx2.get(f"{hub.url}/{repo}/resolve/main/a.bin")
    assert answer.status_code == 302
    assert answer.headers["X-Linked-Size"] == "7"
    assert answer.headers["X-Linked-Etag"].strip('"') == hashlib.sha256(b"weights").hexdigest()
    assert answer.headers["X-Repo-Commit"] == api.model_info(repo).sha
    target = answer.headers["Location"]
    assert target.startswith(hub.cdn_url)
    assert httpx2.get(target).content == b"weights"
    assert httpx2.get(target, headers={"Authorization": f"Bearer {hub.token}"}).status_code == 400
    assert httpx2.get(target.split("?")[0]).status_code == 403
    assert httpx2.get(target[:-1] + ("0" if target[-1] != "0" else "1")).status_code == 403


def test_small_files_come_by_a_relative_redirect_that_keeps_the_token(hub: DevHub, api: HfApi, repo: str) -> None:
    api.update_repo_settings(repo, private=True)
    api.upload_file(path_or_fileobj=b"hello", path_in_repo="a b.txt", repo_id=repo)
    headers = {"Authorization": f"Bearer {hub.token}"}
    answer = httpx2.get(f"{hub.url}/{repo}/resolve/main/a%20b.txt", headers=headers)
    assert answer.status_code == 307
    assert answer.headers["Location"].startswith("/api/resolve-cache/models/")
    assert httpx2.get(hub.url + answer.headers["Location"]).status_code == 401
    assert httpx2.get(hub.url + answer.headers["Location"], headers=headers).content == b"hello"


def test_ranges_are_served_exactly_on_both_origins(hub: DevHub, api: HfApi, repo: str) -> None:
    content = os.urandom(5000)
    for name in ("a.bin", "a.txt"):
        api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id=repo)

        def ask(span: str, name: str = name) -> httpx2.Response:
            url = f"{hub.url}/{repo}/resolve/main/{name}"
            return httpx2.get(url, headers={"Range": f"bytes={span}"}, follow_redirects=True)

        for span, expected in (("0-9", content[:10]), ("4990-", content[4990:]), ("-7", content[-7:])):
            answer = ask(span)
            assert (answer.status_code, answer.content) == (206, expected)
        assert ask("10-19").headers["Content-Range"] == "bytes 10-19/5000"
        assert ask("4990-9999").content == content[4990:]
        beyond = ask("5000-")
        assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, "bytes */5000")


def test_the_file_system_reads_ranges(hub: DevHub, api: HfApi, repo: str) -> None:
    content = os.urandom(200_000)
    api.upload_file(path_or_fileobj=content, path_in_repo="sub/a.bin", repo_id=repo)
    files = HfFileSystem(endpoint=hub.url, token=hub.token, skip_instance_cache=True)
    assert files.ls(f"{repo}/sub", detail=False) == [f"{repo}/sub/a.bin"]
    with files.open(f"{repo}/sub/a.bin", "rb", block_size=1024) as file:
        file.seek(150_000)
        assert file.read(1000) == content[150_000:151_000]
    assert files.cat_file(f"{repo}/sub/a.bin", start=10, end=20) == content[10:20]
    assert files.info(f"{repo}/sub/a.bin")["size"] == len(content)
    with pytest.raises(FileNotFoundError):
        files.info(f"{repo}/nothing")


def test_a_cut_download_is_resumed_where_it_broke(hub: DevHub, api: HfApi, repo: str, cache: Path) -> None:
    content = os.urandom(25 * MB)
    api.upload_file(path_or_fileobj=content, path_in_repo="a.bin", repo_id=repo)
    cut = hub.faults.add(Fault(method="GET", path=".", origin="cdn", cut_after=12 * MB))
    got = api.hf_hub_download(repo, "a.bin", cache_dir=cache)
    assert Path(got).read_bytes() == content
    assert hub.faults.hits(cut) == 1
    assert _statuses(hub, "GET", hashlib.sha256(content).hexdigest()) == [200, 206]


def test_many_uploads_and_downloads_run_side_by_side(hub: DevHub, api: HfApi, repo: str, tmp_path: Path) -> None:
    contents = {f"{i}.bin": os.urandom(2 * MB) for i in range(8)}

    def send(item: tuple[str, bytes]) -> CommitOperationAdd:
        addition = CommitOperationAdd(*item)
        api.preupload_lfs_files(repo, [addition], free_memory=False)
        return addition

    with ThreadPoolExecutor(8) as pool:
        api.create_commit(repo, list(pool.map(send, contents.items())), commit_message="all")
        texts = list(pool.map(lambda i: api.upload_file(
            path_or_fileobj=b"%d" % i, path_in_repo=f"{i}.txt", repo_id=repo), range(8)))  # fmt: skip
        downloads = pool.map(lambda n: api.hf_hub_download(repo, n, cache_dir=tmp_path / f"cache-{n}"), contents)
        assert [Path(path).read_bytes() for path in downloads] == list(contents.values())
    assert len({commit.oid for commit in texts}) == 8
    assert len(api.list_repo_files(repo)) == 17


def test_one_object_sent_by_many_at_once_is_stored_whole(hub: DevHub, api: HfApi, repo: str, cache: Path) -> None:
    content = os.urandom(20 * MB)
    start = threading.Barrier(3)

    def send(_: int) -> None:
        start.wait()
        api.preupload_lfs_files(repo, [CommitOperationAdd("a.bin", content)])

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(send, range(3)))
    api.upload_file(path_or_fileobj=content, path_in_repo="a.bin", repo_id=repo)
    assert Path(api.hf_hub_download(repo, "a.bin", cache_dir=cache)).read_bytes() == content


def test_files_and_folders_are_copied_and_deleted_in_one_commit(api: HfApi, repo: str, cache: Path) -> None:
    weights = os.urandom(1000)
    adds = [CommitOperationAdd(p, c) for p, c in (("a.bin", weights), ("t.txt", b"t"), ("d/x.txt", b"x"))]
    api.create_commit(repo, adds, commit_message="add")
    operations = [CommitOperationCopy("a.bin", "b.bin"), CommitOperationCopy("t.txt", "u.txt")]
    operations += [CommitOperationDelete("a.bin"), CommitOperationDelete("d/")]
    api.create_commit(repo, operations, commit_message="shuffle")
    assert set(api.list_repo_files(repo)) == {".gitattributes", "b.bin", "t.txt", "u.txt"}
    assert Path(api.hf_hub_download(repo, "b.bin", cache_dir=cache)).read_bytes() == weights
    with pytest.raises(HfHubHTTPError) as refused:
        api.delete_file("a.bin", repo)
    assert refused.value.response.status_code == 404


def test_files_are_copied_between_repos_without_sending_them(hub: DevHub, api: HfApi, repo: str, cache: Path) -> None:
    weights = os.urandom(1000)
    api.upload_file(path_or_fileobj=weights, path_in_repo="a.bin", repo_id=repo)
    api.upload_file(path_or_fileobj=b"text", path_in_repo="a.txt", repo_id=repo)
    api.create_repo("demo/copy")
    sent = len(_statuses(hub, "PUT", "/upload"))
    copies = [CommitOperationCopy(n, n, src_repo_id=repo, src_repo_type="model") for n in ("a.bin", "a.txt")]
    api.create_commit("demo/copy", copies, commit_message="copy")
    assert Path(api.hf_hub_download("demo/copy", "a.bin", cache_dir=cache)).read_bytes() == weights
    assert len(_statuses(hub, "PUT", "/upload")) == sent


def test_a_tree_of_more_than_a_page_is_listed_whole(api: HfApi, repo: str) -> None:
    adds = [CommitOperationAdd(f"d{i % 7}/f{i:04}.txt", b"%d" % i) for i in range(1100)]
    api.create_commit(repo, adds, commit_message="many")
    assert len(list(api.list_repo_tree(repo, recursive=True))) == 1100 + 7 + 1
    assert len(list(api.list_repo_tree(repo))) == 8
    assert len(list(api.list_repo_tree(repo, "d3", expand=True))) == 157


def test_paths_info_leaves_out_what_is_missing(hub: DevHub, api: HfApi, repo: str) -> None:
    api.upload_file(path_or_fileobj=b"x", path_in_repo="d/a.bin", repo_id=repo, commit_message="one")
    api.upload_file(path_or_fileobj=b"y", path_in_repo="b.txt", repo_id=repo, commit_message="two")
    found = api.get_paths_info(repo, ["d/a.bin", "d", "nothing"], expand=True)
    assert [item.path for item in found] == ["d/a.bin", "d"]
    assert {item.last_commit.title for item in found if item.last_commit} == {"one"}
    as_json = httpx2.post(f"{hub.url}/api/models/{repo}/paths-info/main", json={"paths": ["b.txt"], "expand": False})
    assert [item["path"] for item in as_json.json()] == ["b.txt"]


def test_gitignore_and_gitattributes_of_the_repo_are_obeyed(api: HfApi, repo: str) -> None:
    api.upload_file(path_or_fileobj=b"*.log\n", path_in_repo=".gitignore", repo_id=repo)
    rules = b"*.weights filter=lfs diff=lfs merge=lfs -text\n"
    api.upload_file(path_or_fileobj=rules, path_in_repo=".gitattributes", repo_id=repo)
    adds = [CommitOperationAdd(name, b"x") for name in ("a.log", "a.weights", "a.safetensors")]
    api.create_commit(repo, adds, commit_message="add")
    assert set(api.list_repo_files(repo)) == {".gitattributes", ".gitignore", "a.weights", "a.safetensors"}
    large = {item.path: bool(item.lfs) for item in api.get_paths_info(repo, ["a.weights", "a.safetensors"])}
    assert large == {"a.weights": True, "a.safetensors": False}


def test_file_metadata_names_commit_etag_and_size(hub: DevHub, api: HfApi, repo: str) -> None:
    api.upload_file(path_or_fileobj=b"weights", path_in_repo="a.bin", repo_id=repo)
    api.upload_file(path_or_fileobj=b"text", path_in_repo="a.txt", repo_id=repo)
    large = api.get_hf_file_metadata(url=f"{hub.url}/{repo}/resolve/main/a.bin")
    assert (large.size, large.etag) == (7, hashlib.sha256(b"weights").hexdigest())
    small = api.get_hf_file_metadata(url=f"{hub.url}/{repo}/resolve/main/a.txt")
    assert (small.size, small.commit_hash) == (4, api.model_info(repo).sha)


def test_safetensors_headers_are_read_by_range(hub: DevHub, api: HfApi, repo: str) -> None:
    header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    content = len(header).to_bytes(8, "little") + header + bytes(8)
    api.upload_file(path_or_fileobj=content, path_in_repo="model.safetensors", repo_id=repo)
    found = api.get_safetensors_metadata(repo)
    assert found.parameter_count == {"F32": 2}
    index = b'{"metadata": {"total_size": 8}, "weight_map": {"w": "model.safetensors"}}'
    api.upload_file(path_or_fileobj=index, path_in_repo="model.safetensors.index.json", repo_id=repo)
    assert api.get_sharded_safetensors_metadata(repo).weight_map == {"w": "model.safetensors"}
