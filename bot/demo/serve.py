"""adapter-merge hub: serve a local Hub from a folder until Ctrl-C."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from bot.devhub import DevHub
from bot.errors import Usage


def serve(folder: Path, *, port: int, xet: bool) -> None:
    """Serve `folder` and say how a client reaches it. Raises Usage when the port is taken."""
    hub = DevHub(folder, port=port, xet=xet)
    try:
        hub.open()
    except OSError as error:
        raise Usage(f"Port {port} cannot be used: {error.strerror}.", remedy="Choose another with --port.") from error
    _ = hub.token  # written to the folder on first use
    click.echo("\n".join(_welcome(hub, folder.resolve(), xet)))
    hub.serve_forever()


def _welcome(hub: DevHub, folder: Path, xet: bool) -> list[str]:
    """Where it is, who its user is, and lines to copy that make a repo and point every tool at it."""
    held = hub.models()
    return [
        f"A local Hub at {hub.url}, from {folder}: nothing leaves this machine.",
        f"It holds {', '.join(held[:5])}{' …' if len(held) > 5 else ''}." if held else "It is empty.",
        "",
        f"Its user is {hub.user}; the token lies in that folder. To be {hub.user}, in another terminal:",
        "",
        f"  export HF_ENDPOINT={hub.url}",
        f"  export HF_TOKEN=$(cat {shlex.quote(str(folder / 'token'))})",
        *([] if xet else ["  export HF_HUB_DISABLE_XET=1"]),
        "",
        "From then on every tool that knows the Hub uses this one:",
        "",
        "  hf auth whoami",
        f"  hf repos create {hub.user}/my-model                  # a new repo",
        f"  hf upload {hub.user}/my-model ./folder               # files into it",
        f"  hf repos tag create {hub.user}/my-adapter v1         # a tag",
        f"  adapter-merge run {hub.user}/my-adapter --base {hub.user}/my-model",
        "",
        "Its pages are at the same address. Ctrl-C stops it; everything stays in the folder.",
    ]
