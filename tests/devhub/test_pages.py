"""The pages that a person sees who opens a printed address."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import httpx2
from huggingface_hub import HfApi
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.devhub import DevHub
from bot.devhub.web.markdown import as_html


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


def test_a_folder_and_a_file_of_a_repo_have_pages(hub: DevHub, api: HfApi, repo: str) -> None:
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="a b/config.json", repo_id=repo)
    sha = api.upload_file(path_or_fileobj=b"w", path_in_repo="other.bin", repo_id=repo).oid
    page = httpx2.get(f"{hub.url}/{repo}/tree/{sha}/a%20b")
    assert (page.status_code, "config.json" in page.text, ">other.bin<" in page.text) == (200, True, False)
    assert httpx2.get(f"{hub.url}/{repo}/tree/{sha}/a").status_code == 404
    shown = httpx2.get(f"{hub.url}/{repo}/blob/{sha}/a%20b/config.json", follow_redirects=True)
    assert (shown.status_code, shown.text) == (200, "{}")


def test_a_private_repo_has_no_page_for_strangers(hub: DevHub, api: HfApi) -> None:
    api.create_repo("demo/secret", private=True)
    assert "secret" not in httpx2.get(hub.url).text
    assert httpx2.get(f"{hub.url}/demo/secret").status_code == 401


def test_a_raw_large_file_is_its_pointer(hub: DevHub, api: HfApi, repo: str) -> None:
    api.upload_file(path_or_fileobj=b"w", path_in_repo="a.bin", repo_id=repo)
    assert httpx2.get(f"{hub.url}/{repo}/raw/main/a.bin").text.startswith("version https://git-lfs.github.com/spec/v1")


CARD = """---
license: mit
language: [en, de]
base_model: "<b>x</b>"
---
<!-- a comment -->
# A *card* <script>alert(1)</script>

| a | b |
| --- | ---: |
| `1` | **2** |

<details><summary>more</summary>

[ours](LICENSE) [theirs](https://example.com/a?b=1) [bad](javascript:alert(1)) ![pic](img/a.png) <img src=x onerror=alert(1)>

</details>
"""


def test_a_card_is_rendered_with_its_metadata_apart_and_nothing_of_a_strangers_runs(
    hub: DevHub, api: HfApi, repo: str
) -> None:
    hub.site.checks_cards = False
    put(hub, api, repo, CARD)
    answer = httpx2.get(f"{hub.url}/{repo}")
    page = answer.text
    assert "<tr><td>license<td>mit<tr><td>language<td>en, de<tr><td>base_model<td>&lt;b&gt;x&lt;/b&gt;" in page
    assert "<h1>A <em>card</em> &lt;script&gt;alert(1)&lt;/script&gt;</h1>" in page
    assert "<td><code>1</code></td>" in page
    assert "<details><summary>more</summary>" in page
    assert f'<a href="/{repo}/resolve/main/LICENSE" rel="nofollow noreferrer">ours</a>' in page
    assert f'src="/{repo}/resolve/main/img/a.png"' in page
    assert 'href="https://example.com/a?b=1"' in page
    assert "a comment" not in page
    assert not re.search(r"<script|<img src=x|href=.?javascript", page)
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "script-src" not in policy


def put(hub: DevHub, api: HfApi, repo: str, text: str) -> None:
    """A card that the client itself would not send."""
    lines = [
        {"key": "header", "value": {"summary": "x"}},
        {"key": "file", "value": {"path": "README.md", "content": text}},
    ]
    body = "\n".join(map(json.dumps, lines))
    headers = {"Authorization": f"Bearer {api.token}", "Content-Type": "application/x-ndjson"}
    assert httpx2.post(f"{hub.url}/api/models/{repo}/commit/main", headers=headers, content=body).status_code == 200


PIECES = st.sampled_from(
    ["<script>", "<!--", "-->", "<details>", "</details>", "<summary>", "[x](javascript:a)", "![x](data:text/html,a)", "&lt;", "|",
     "<a href=javascript:a>", "[x]: javascript:a\n", "[x]", "<javascript:a>", "`", "```\n", "<svg onload=a>", "---\n", "\n\n",
     "<DETAILS open ontoggle=a>", "[a](<java\nscript:a>)", "[a](&#106;avascript:a)", '"', "'", "(", ")", "text ", "\\"]
)  # fmt: skip


class Read(HTMLParser):
    """The tags of a page, each with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@settings(max_examples=300, deadline=None)
@given(pieces=st.lists(PIECES | st.text(max_size=5), max_size=12))
def test_whatever_is_written_becomes_harmless_tags_only(pieces: list[str]) -> None:
    for tag, attributes in Read(as_html("".join(pieces), "/files")).tags:
        assert tag in SAFE
        assert set(attributes) <= {"href", "src", "alt", "title", "rel", "class", "style", "start"}
        for name in ("href", "src"):
            assert re.match(r"https?:|/|#|mailto:|data:image/|[a-z+.-]+:", attributes.get(name) or "/")
            assert not re.match(r"(?i)\s*(javascript|vbscript|file|data:text)", attributes.get(name) or "")


SAFE = set(
    "p h1 h2 h3 h4 h5 h6 ul ol li blockquote pre code em strong a img br hr table thead tbody tr th td details summary s".split()
)


def test_a_pull_requests_words_are_rendered_too(hub: DevHub, api: HfApi, repo: str) -> None:
    pull = api.create_pull_request(
        repo, title="<i>t</i>", description="<!-- mark -->\n**bold** and [x](http://a.example)"
    )
    page = httpx2.get(pull.url).text
    assert "<strong>bold</strong>" in page
    assert "mark" not in page
    assert "&lt;i&gt;t&lt;/i&gt;" in page


def test_the_first_page_says_how_to_use_it_and_not_its_token(hub: DevHub) -> None:
    page = httpx2.get(hub.url).text
    assert f"export HF_ENDPOINT={hub.url}" in page
    assert "hf repos create demo/my-model" in page
    assert hub.token not in page
