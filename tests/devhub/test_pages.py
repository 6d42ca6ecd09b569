"""The pages that a person sees who opens a printed address."""

from __future__ import annotations

import httpx2
from huggingface_hub import HfApi

from bot.devhub import DevHub


def test_the_pages_show_repos_card_files_and_pull_requests(hub: DevHub, api: HfApi, repo: str) -> None:
    card = b"---\nlicense: mit\n---\n# Hello <script>alert(1)</script>\n"
    api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=repo)
    made = api.upload_file(path_or_fileobj=b"w", path_in_repo="a.bin", repo_id=repo, create_pr=True)
    assert f'href="/{repo}"' in httpx2.get(hub.url).text
    page = httpx2.get(f"{hub.url}/{repo}").text
    assert "&lt;script&gt;" in page
    assert "<script>" not in page
    assert "README.md" in page
    assert f'href="/{repo}/discussions/1"' in page
    pull = httpx2.get(made.pr_url or "")
    assert (pull.status_code, made.oid in pull.text) == (200, True)
    for path in (f"tree/{made.oid}", "tree/refs%2Fpr%2F1", f"commit/{made.oid}"):
        answer = httpx2.get(f"{hub.url}/{repo}/{path}")
        assert (answer.status_code, "a.bin" in answer.text) == (200, True), path
    assert httpx2.get(f"{hub.url}/{repo}/discussions").status_code == 200


def test_a_private_repo_has_no_page_for_strangers(hub: DevHub, api: HfApi) -> None:
    api.create_repo("demo/secret", private=True)
    assert "secret" not in httpx2.get(hub.url).text
    assert httpx2.get(f"{hub.url}/demo/secret").status_code == 401


def test_a_raw_large_file_is_its_pointer(hub: DevHub, api: HfApi, repo: str) -> None:
    api.upload_file(path_or_fileobj=b"w", path_in_repo="a.bin", repo_id=repo)
    assert httpx2.get(f"{hub.url}/{repo}/raw/main/a.bin").text.startswith("version https://git-lfs.github.com/spec/v1")
