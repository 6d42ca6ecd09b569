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
    click.echo(f"A local Hub, from {folder}, at {hub.url}")
    click.echo("To use it from another terminal:")
    click.echo(f"  export HF_ENDPOINT={hub.url} HF_TOKEN=$(cat {shlex.quote(str(folder / 'token'))})")
    if not xet:
        click.echo("  export HF_HUB_DISABLE_XET=1")
    click.echo("Ctrl-C stops it; everything stays in the folder.")
    hub.serve_forever()
