"""Pages of HTML: what stands on them, and how they look in Chromium, where it is installed."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed here")
FRAME = """<!doctype html>%s<pre id=seen></pre><script>
onload = () => { const seen = {};
  for (const frame of document.querySelectorAll("iframe")) { const page = frame.contentDocument, root = page.documentElement;
    for (const details of page.querySelectorAll("details")) details.open = true;
    seen[frame.width] = [root.scrollWidth, root.clientWidth, page.title]; }
  document.getElementById("seen").textContent = JSON.stringify(seen); }</script>"""


class Reader(HTMLParser):
    """What stands on a page: tags, attributes, addresses, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_data(self, text: str) -> None:
        self.words += text.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)


def browse(*options: str) -> str:
    """What Chromium prints."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@contextmanager
def site(page: str) -> Iterator[str]:
    """The address of a site with the page at /page, and at /320,1280 in a frame of each of these widths."""

    class Site(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            widths = self.path[1:].split(",") if self.path != "/page" else []
            frames = "".join(
                f'<iframe src=/page width={width} height=800 style="border:0"></iframe>' for width in widths
            )
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write((FRAME % frames if widths else page).encode())

        def log_message(self, *_: object) -> None:
            """Keep the tests quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def measured(address: str, *widths: int) -> dict[int, tuple[int, int, str]]:
    """{width: (how wide the page of a site is there with everything unfolded, how much room it has, its title)}."""
    path = ",".join(map(str, widths))
    dom = browse("--dump-dom", "--virtual-time-budget=3000", "--window-size=1600,900", f"{address}/{path}")
    shown = re.search(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)
    assert shown is not None
    return {int(width): tuple(seen) for width, seen in json.loads(shown[1]).items()}


def corner(address: str, scheme: str, shot: Path) -> tuple[int, ...]:
    """The colour of the page's corner for a reader who has it light or dark; there must be something on the page."""
    setting = {"light": 1, "dark": 0}[scheme]
    browse(
        f"--blink-settings=preferredColorScheme={setting}",
        f"--screenshot={shot}",
        "--window-size=800,600",
        f"{address}/page",
    )
    with Image.open(shot) as image:
        pixels = image.convert("RGB")
        assert len(pixels.getcolors(1 << 20) or ()) > 20
        colour = pixels.getpixel((2, 2))
    assert isinstance(colour, tuple)
    return colour
