"""adapter-merge demo: the main job from start to end, offline. A model is trained, tuned, merged, proven and published.

Everything goes the way it goes in earnest: the real huggingface_hub client over HTTP, and the real command in a process
of its own. Only the Hub is local.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from bot.demo.listening import DemoFailed, listening, strong
from bot.devhub import DevHub
from bot.errors import Usage
from bot.hub.names import scratch_folder
from bot.terminal.screen import Screen

BASE = "demo/pydoc-llama"
ADAPTER = "demo/pydoc-answers"
MERGED = f"{ADAPTER}-merged"
PORT = 5999  # of `adapter-merge hub`


def tell(keep: Path | None) -> None:
    """Run the demo and leave the local Hub's folder in `keep`, else in our own place, instead of the last demo's. Raises Usage
    when `keep` is not empty."""
    began = time.monotonic()
    with _folder(keep) as (root, kept), _local_hub(root) as hub:
        from bot.demo.model import make_adapter, make_base

        click.echo(f"A local Hub at {hub.url} plays the Hugging Face Hub; nothing leaves this machine.")
        _heading("1  A small language model, trained on Python's own documentation")
        make_base(root / "base", progress=_progress)
        _heading("2  A LoRA adapter that teaches it to answer, uploaded and tagged v1")
        make_adapter(root / "base", root / "v1", version=1, base_repo=BASE, progress=_progress)
        _upload(hub, BASE, root / "base", tag=None)
        _upload(hub, ADAPTER, root / "v1", tag="v1")
        _heading("3  Merge, prove, publish: a new repo")
        _command("run", f"{ADAPTER}@v1")
        _heading("4  The same question, three times")
        _answers(hub, root)
        _heading("5  The adapter gets a v2: the same command opens a pull request")
        make_adapter(
            root / "base", root / "v2", version=2, base_repo=BASE, start=root / "v1", steps=60, progress=_progress
        )
        _upload(hub, ADAPTER, root / "v2", tag="v2")
        _command("run", f"{ADAPTER}@v2")
        _heading("6  Once more: nothing to do")
        _command("run", f"{ADAPTER}@v2")
        _heading("7  A v3, and nobody runs anything: the bot hears of its tag")
        make_adapter(root / "base", root / "v3", version=3, base_repo=BASE, start=root / "v1", steps=20)
        with listening(hub, root / "bot.db", ADAPTER) as bot:
            _upload(hub, ADAPTER, root / "v3", tag="v3")
            bot.tell_of_the_merge()
    _ending(kept, time.monotonic() - began)


@contextmanager
def _folder(keep: Path | None) -> Iterator[tuple[Path, Path]]:
    """Where models, cache and the Hub's own folder lie while the demo runs, and where the last of these stays."""
    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise Usage(f"{keep} is not empty.", remedy="Name a new folder with --keep.")
    kept = keep or _demo_folder()
    with tempfile.TemporaryDirectory(prefix="adapter-merge-demo-") as root:
        yield Path(root), kept
        if keep is None:  # the last demo's: ours to replace
            shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(Path(root) / "hub", kept, dirs_exist_ok=True)


def _demo_folder() -> Path:
    """Background the user's own download cache; where that cannot be written, a new folder of the system's."""
    folder = scratch_folder() / "demo"  # asked for now: the demo has a HF_HOME of its own
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="adapter-merge-demo-hub-"))
    return folder


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


def _command(*arguments: str) -> None:
    """The real command, in a process of its own, its output passed through."""
    strong(f"$ adapter-merge {shlex.join(arguments)}")
    done = subprocess.run([sys.executable, "-m", "bot", *arguments], check=False)
    if done.returncode:
        raise DemoFailed(f"adapter-merge ended with exit code {done.returncode}.", remedy="Please report this.")


def _answers(hub: DevHub, root: Path) -> None:
    from huggingface_hub import snapshot_download

    from bot.demo.model import QUESTIONS, ask_all

    merged = Path(snapshot_download(MERGED, endpoint=hub.url, token=hub.token))
    given = {
        "base": ask_all(root / "base", QUESTIONS),
        "base + adapter": ask_all(root / "base", QUESTIONS, adapter=root / "v1"),
        "merged, no PEFT": _ask_without_peft(merged, QUESTIONS),
    }
    for number, question in enumerate(QUESTIONS):
        strong(f"  {question}")
        for who, answers in given.items():
            _answer(who, answers[number])


def _ask_without_peft(folder: Path, questions: Sequence[str]) -> list[str]:
    """The published model's answers, in a process in which PEFT cannot be imported."""
    program = (
        "import json, sys; sys.modules['peft'] = None\n"
        "from pathlib import Path; from bot.demo.model import ask_all\n"
        "print(json.dumps(ask_all(Path(sys.argv[1]), sys.argv[2:])))"
    )
    asked = subprocess.run([sys.executable, "-c", program, str(folder), *questions], capture_output=True, text=True)
    if asked.returncode:
        raise DemoFailed(f"The merged model does not load: {asked.stderr[-500:]}", remedy="Please report this.")
    return [str(answer) for answer in json.loads(asked.stdout)]


def _answer(who: str, text: str) -> None:
    indent = " " * 20
    click.echo(textwrap.fill(f"    {who:<16}{' '.join(text.split())}", 100, subsequent_indent=indent))


def _heading(text: str) -> None:
    strong(f"\n{text}")


def _progress(what: str, step: int, steps: int) -> None:
    """A line that redraws itself on a terminal; four lines in a log."""
    screen = Screen(sys.stdout)
    if screen.interactive and step < steps:
        screen.redraw(step / steps, f"{what}: {step} of {steps} steps")
    elif screen.interactive:
        screen.erase()
        click.echo(f"  {what}: {step} of {steps} steps")
    elif step == steps or step * 4 // steps != (step - 1) * 4 // steps:
        click.echo(f"  {what}: {step} of {steps} steps")


def _ending(kept: Path, seconds: float) -> None:
    """What is left of it, and the command that serves it again: the Hub of the demo itself ends here."""
    _heading(f"Done in {seconds:.0f} s")
    click.echo(f"  The local Hub stops here; its folder stays, {kept}. To look at what was published:")
    click.echo(f"    {_own_command()} hub {shlex.quote(str(kept))}")
    click.echo("  and, while that runs, in a browser:")
    click.echo(f"    the merged model, with its evidence  http://127.0.0.1:{PORT}/{MERGED}")
    click.echo(f"    the pull request                     http://127.0.0.1:{PORT}/{MERGED}/discussions/1")
    click.echo(f"    what the bot wrote on the adapter    http://127.0.0.1:{PORT}/{ADAPTER}/discussions/1")


def _own_command() -> str:
    """How this program is started from where the user stands."""
    own = Path(sys.argv[0])
    if own.name != "adapter-merge":
        return f"{shlex.quote(sys.executable)} -m bot"
    path = shutil.which(own.name)
    return own.name if path and Path(path).resolve() == own.resolve() else shlex.quote(str(own))
