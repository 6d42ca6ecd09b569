"""The page: what strangers wrote stays text, nothing runs, nothing secret shows, and it fits every screen."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from bot.dispatch.page import SHOWN, render_page
from bot.dispatch.records import Delivery, Fate, Order, Run
from bot.dispatch.server import make_app
from bot.dispatch.store import Store
from bot.errors import Outside
from tests.browser import Reader, corner, in_a_browser, measured, site
from tests.dispatch.test_intake import SETTINGS

HUB = "https://hub.example"
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


def add(
    store: Store, number: int, repo: str = "alice/x", tag: str = "v1", fate: Fate | None = None, url: str = ""
) -> None:
    order = Order(key=f"{number}", adapter=repo, revision=tag, sha="a" * 40, origin="webhook")
    event = Delivery(id=f"{number}", received=store.clock(), event=tag[:50], repo=repo, verdict=f"accepted: {tag}")
    store.accept([(event, [order])])
    if fate is not None:
        request = store.claim()
        assert request is not None
        store.sent(request, "github", Run(id="1", url=url))
        followed = store.claim_followed(15.0)
        assert followed is not None
        store.follow(followed, fate)


def test_an_empty_store_says_so(store: Store) -> None:
    page = render_page(store, HUB)
    assert "nobody has pushed a tag" in page
    assert "the webhook has not been called" in page


def test_what_strangers_wrote_is_text(store: Store) -> None:
    fate = Fate(status="failed", reason=EVIL, remedy=EVIL, verdict=EVIL, url="javascript:alert(3)")
    add(store, 1, repo=f"alice/{EVIL}", tag=EVIL, fate=fate, url=" JavaScript:alert(4)")
    page = render_page(store, HUB)
    read = Reader(page)
    assert "script" not in read.tags
    assert "img" not in read.tags
    assert not [name for name in read.attributes if name.startswith("on")]
    assert all(link.startswith(("https://", "http://")) for link in read.links)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "data:text/html,x", "//evil.example/x", "", "vbscript:x", "\x01javascript:x"]
)
def test_only_addresses_of_the_web_become_links(store: Store, url: str) -> None:
    add(store, 1, fate=Fate(status="published", url=url), url=url)
    assert Reader(render_page(store, HUB)).links == [f"{HUB}/alice/x"]


def test_results_and_runs_are_links(store: Store) -> None:
    add(
        store,
        1,
        fate=Fate(status="published", url=f"{HUB}/alice/x-merged/discussions/1"),
        url="https://github.example/runs/1",
    )
    assert Reader(render_page(store, HUB)).links == [
        f"{HUB}/alice/x",
        f"{HUB}/alice/x-merged/discussions/1",
        "https://github.example/runs/1",
    ]


def test_no_secret_shows(store: Store) -> None:
    token = "hf_" + "abcdefghijklmnopqrstuvwxyz012345"
    add(store, 1)
    request = store.claim()
    assert request is not None
    store.fail(request, Outside(f"The token {token} was refused.", remedy=f"Replace {token}."))
    page = render_page(store, HUB)
    assert token not in page
    assert "was refused" in page
    assert SETTINGS.secret not in page


def test_many_rows_are_cut_and_counted(store: Store) -> None:
    for number in range(SHOWN + 30):
        add(store, number, tag=f"v{number}")
    page = render_page(store, HUB)
    assert page.count('data-name="Adapter"') == page.count('data-name="Repo"') == SHOWN
    assert f"{SHOWN + 30} waiting" in page
    assert "@ v79" in page


def test_a_request_that_waits_says_why_and_until_when(store: Store) -> None:
    add(store, 1)
    request = store.claim()
    assert request is not None
    store.wait(request, Outside("The Hub cannot be reached.", remedy="It is tried again."), 600.0)
    page = render_page(store, HUB)
    assert "The Hub cannot be reached. It is tried again." in page
    assert "1 try; next at" in page


def test_its_headers_let_nothing_load_run_or_frame_it(store: Store) -> None:
    with TestClient(make_app(store, SETTINGS, lambda comment: (), lambda: None)) as client:
        headers = client.get("/").headers
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"


def test_it_loads_nothing_and_has_a_name_for_every_cell(store: Store) -> None:
    add(store, 1)
    page = render_page(store, HUB)
    read = Reader(page)
    assert not read.tags & {"script", "link", "img", "iframe", "form", "input", "button", "object"}
    assert "url(" not in page
    assert re.search(r"<html lang=.en.>", page)
    assert all("data-name=" in cell for cell in re.findall(r"<td[^>]*>", page))


# --- in a browser ------------------------------------------------------------------------------------------------------


@pytest.fixture
def full(store: Store) -> Store:
    """A store with something of everything, long names among it."""
    long = "alice/" + "a-very-long-name-of-an-adapter" * 3
    add(
        store,
        1,
        repo=long,
        fate=Fate(status="published", url=f"{HUB}/{long}-merged/discussions/1", verdict="verified (full)"),
    )
    add(store, 2, repo=f"alice/{EVIL}", tag="x" * 100, fate=Fate(status="refused", reason="w" * 300, remedy=EVIL))
    add(store, 3, fate=Fate(status="running"), url="https://github.example/" + "r" * 200)
    add(store, 4)
    return store


@pytest.fixture
def served(full: Store) -> Iterator[str]:
    with site(render_page(full, HUB)) as address:
        yield address


@in_a_browser
@pytest.mark.slow
def test_nothing_is_wider_than_the_screen(served: str) -> None:
    widths = (320, 380, 720, 1280)
    assert measured(served, *widths) == {width: (width, width, "adapter-merge bot") for width in widths}


@in_a_browser
@pytest.mark.slow
def test_it_is_light_or_dark_as_the_reader_has_it(served: str, tmp_path: Path) -> None:
    corners = {scheme: corner(served, scheme, tmp_path / f"{scheme}.png") for scheme in ("light", "dark")}
    assert corners == {"light": (255, 255, 255), "dark": (13, 17, 23)}
