"""The demo's last step: the bot, `adapter-merge serve` in a process of its own, a webhook of the local Hub that calls it, and
what came of a tag."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from bot.devhub import DevHub
from bot.errors import AdapterMergeError
from bot.events import TextLine
from bot.terminal.screen import Screen

LONGEST = 600.0  # seconds that a merge may take, on a machine that has much else to do
STATE = re.compile(r'^adapter_merge_requests\{state="(\w+)"\} [1-9]', re.MULTILINE)

OUTCOME = re.compile(r"^The merge of `v3` .*\b(published|unchanged|refused|not verified|failed|not run)\b")


class DemoFailed(AdapterMergeError):
    """The demo's own run did not end as it must: our bug."""


class Listening:
    """A bot that listens at `url`, and merges `adapter` on this machine."""

    def __init__(self, hub: DevHub, url: str, adapter: str) -> None:
        self.hub, self.url, self.adapter = hub, url, adapter

    def tell_of_the_merge(self) -> None:
        """Wait for what the bot writes on the adapter when the merge has ended, and print it. Raises DemoFailed."""
        began = time.monotonic()
        click.echo("  The Hub told the bot of the tag; it merges, proves and publishes.")
        while (comment := self._comment()) is None:
            if "dropped" in (state := self._state()) or time.monotonic() - began > LONGEST:
                raise DemoFailed(f"The bot's merge is {state or 'not begun'}.", remedy="Please report this.")
            time.sleep(0.5)
        number, text = comment
        click.echo(
            f"  After {time.monotonic() - began:.0f} s it says, at {self.hub.url}/{self.adapter}/discussions/{number}:"
        )
        for line in filter(None, text.splitlines()):
            click.echo(f"    {line}")
        if "published" not in text:
            raise DemoFailed("The bot's merge was not published.", remedy="Please report this.")

    def _state(self) -> str:
        """Of the request, as the bot's metrics have it; "" before there is one."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as answer:
            return ", ".join(STATE.findall(answer.read().decode()))

    def _comment(self) -> tuple[int, str] | None:
        """(number of the discussion, what a reader sees of the bot's comment), once it bears the merge's end."""
        from huggingface_hub import DiscussionComment, HfApi

        api = HfApi(endpoint=self.hub.url, token=self.hub.token)
        for discussion in api.get_repo_discussions(self.adapter):
            for event in api.get_discussion_details(self.adapter, discussion.num).events:
                if isinstance(event, DiscussionComment) and re.search(OUTCOME, event.content):
                    return discussion.num, re.sub(r"<!--.*?-->", "", event.content, flags=re.DOTALL)
        return None


@contextmanager
def listening(hub: DevHub, state: Path, adapter: str) -> Iterator[Listening]:
    """The bot with its state in `state`, and a webhook for `adapter` that calls it."""
    from huggingface_hub import HfApi

    owner, secret = adapter.partition("/")[0], secrets.token_urlsafe(32)
    arguments = ["serve", "--allow", f"{owner}/*", "--backend", "local", "--announce"]
    strong(f"$ adapter-merge {shlex.join(arguments)}")
    process = subprocess.Popen(
        [sys.executable, "-m", "bot", *arguments, "--port", "0", "--state", str(state)],
        env=os.environ | {"ADAPTER_MERGE_WEBHOOK_SECRET": secret, "ADAPTER_MERGE_HUB_TOKEN": hub.token},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        first = process.stdout.readline().strip() if process.stdout else ""
        address = re.search(r"http://\S+(?=/webhook)", first)
        if not address:
            raise DemoFailed("The bot does not listen.", remedy="Please report this.")
        click.echo(f"  {first}")
        HfApi(endpoint=hub.url, token=hub.token).create_webhook(
            url=f"{address[0]}/webhook", watched=[{"type": "model", "name": adapter}], domains=["repo"], secret=secret
        )
        yield Listening(hub, address[0], adapter)
    finally:
        process.terminate()
        process.wait()


def strong(text: str) -> None:
    """A line that stands out on a terminal."""
    Screen(sys.stdout).show((TextLine(text=text, tone="strong"),))
