"""adapter-merge demo: the main job from start to end, offline. A model is trained, tuned, merged, proven and published.

Everything goes the way it goes in earnest: the real huggingface_hub client over HTTP, and the real command in a process
of its own. Only the Hub is local.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from bot.devhub import DevHub
from bot.errors import AdapterMergeError, Usage

BASE = "demo/pydoc-llama"
ADAPTER = "demo/pydoc-answers"
MERGED = f"{ADAPTER}-merged"


class DemoFailed(AdapterMergeError):
    """The demo's own run did not end as it must: our bug."""


def tell(keep: Path | None) -> None:
    """Run the demo; with `keep`, leave the local Hub's folder there. Raises Usage when that folder is not empty."""
    began = time.monotonic()
    with _folder(keep) as root, _local_hub(root) as hub:
        from bot.demo.model import make_adapter, make_base

        click.echo(f"A local Hub at {hub.url} plays the Hugging Face Hub; nothing leaves this machine.")
        _heading("1  A small language model, trained on Python's own documentation")
        make_base(root / "base", progress=_progress)
        _heading("2  A LoRA adapter that teaches it to answer, uploaded and tagged v1")
        make_adapter(root / "base", root / "v1", version=1, base_repo=BASE, progress=_progress)
        _upload(hub, BASE, root / "base", tag=None)
        _upload(hub, ADAPTER, root / "v1", tag="v1")
        _heading("3  Merge, prove, publish: a new repo")
        _command(hub, root, "run", f"{ADAPTER}@v1")
        _heading("4  The same question, three times")
        _answers(hub, root)
        _heading("5  The adapter gets a v2: the same command opens a pull request")
        make_adapter(root / "base", root / "v2", version=2, base_repo=BASE, progress=_progress)
        _upload(hub, ADAPTER, root / "v2", tag="v2")
        _command(hub, root, "run", f"{ADAPTER}@v2")
        _heading("6  Once more: nothing to do")
        _command(hub, root, "run", f"{ADAPTER}@v2")
        _ending(hub, keep, time.monotonic() - began)


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """Where models, cache and the Hub's own folder lie while the demo runs."""
    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise Usage(f"{keep} is not empty.", remedy="Name a new folder with --keep.")
    with tempfile.TemporaryDirectory(prefix="adapter-merge-demo-") as root:
        yield Path(root)
        if keep is not None:
            shutil.copytree(Path(root) / "hub", keep, dirs_exist_ok=True)


@contextmanager
def _local_hub(root: Path) -> Iterator[DevHub]:
    """The Hub, and an environment in which this process and its children know no other."""
    with DevHub(root / "hub") as hub:
        os.environ |= hub.environment() | {"HF_HOME": str(root / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        for name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_READ_TOKEN"):
            os.environ.pop(name, None)
        yield hub


def _upload(hub: DevHub, repo: str, folder: Path, *, tag: str | None) -> None:
    from huggingface_hub import HfApi  # only now: it reads its endpoint from the environment when imported

    api = HfApi(endpoint=hub.url, token=hub.token)
    api.create_repo(repo, exist_ok=True)
    api.upload_folder(repo_id=repo, folder_path=folder, commit_message=f"Upload {tag or 'the model'}")
    if tag:
        api.create_tag(repo, tag=tag)
    click.echo(f"  uploaded {hub.url}/{repo}{f', tag {tag}' if tag else ''}")


def _command(hub: DevHub, root: Path, *arguments: str) -> None:
    """The real command, in a process of its own, its output passed through."""
    click.echo(click.style(f"$ adapter-merge {shlex.join(arguments)}", bold=True))
    done = subprocess.run([sys.executable, "-m", "bot", *arguments], check=False)
    if done.returncode:
        raise DemoFailed(f"adapter-merge ended with exit code {done.returncode}.", remedy="Please report this.")


def _answers(hub: DevHub, root: Path) -> None:
    from huggingface_hub import snapshot_download

    from bot.demo.model import QUESTIONS, ask

    merged = Path(snapshot_download(MERGED, endpoint=hub.url, token=hub.token))
    for question in QUESTIONS:
        click.echo(click.style(f"  {question}", bold=True))
        _answer("base", ask(root / "base", question))
        _answer("base + adapter", ask(root / "base", question, adapter=root / "v1"))
        _answer("merged, no PEFT", _ask_without_peft(merged, question))


def _ask_without_peft(folder: Path, question: str) -> str:
    """The published model's answer, in a process in which PEFT cannot be imported."""
    program = (
        "import sys; sys.modules['peft'] = None\n"
        "from pathlib import Path; from bot.demo.model import ask\n"
        "print(ask(Path(sys.argv[1]), sys.argv[2]))"
    )
    asked = subprocess.run([sys.executable, "-c", program, str(folder), question], capture_output=True, text=True)
    if asked.returncode:
        raise DemoFailed(f"The merged model does not load: {asked.stderr[-500:]}", remedy="Please report this.")
    return asked.stdout.strip()


def _answer(who: str, text: str) -> None:
    indent = " " * 20
    click.echo(textwrap.fill(f"    {who:<16}{' '.join(text.split())}", 100, subsequent_indent=indent))


def _heading(text: str) -> None:
    click.echo("\n" + click.style(text, bold=True))


def _progress(what: str, step: int, steps: int) -> None:
    """A line that redraws itself on a terminal; four lines in a log."""
    if sys.stdout.isatty():
        click.echo(f"\r\x1b[K  {what}: {step} of {steps} steps", nl=step == steps)
    elif step == steps or step * 4 // steps != (step - 1) * 4 // steps:
        click.echo(f"  {what}: {step} of {steps} steps")


def _ending(hub: DevHub, keep: Path | None, seconds: float) -> None:
    _heading(f"Done in {seconds:.0f} s")
    click.echo(f"  the merged model  {hub.url}/{MERGED}")
    click.echo(f"  the pull request  {hub.url}/{MERGED}/discussions/1")
    if keep is None:
        click.echo("  The local Hub ends here; `adapter-merge demo --keep DIR` keeps its folder.")
    else:
        click.echo(f"  Kept in {keep}. Serve it again with: adapter-merge hub {shlex.quote(str(keep))}")
