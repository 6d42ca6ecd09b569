"""What is done with a merged folder or repo besides proving it: list its files, read its report, publish it, compare it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from bot.card import retarget
from bot.compare import compare_folders
from bot.errors import NotFound, NotVerified
from bot.events import Emit
from bot.hub import Hub
from bot.input_files import holding
from bot.publish import plain_files
from bot.pull import merged_files, repo_files, require_usable, with_sound_files
from bot.records import Held, Json, Publication, Ref, Request
from bot.report_document import NAME, Document, read_report
from bot.target import publish_made, target_of


def complete_folder(ref: Ref, hub: Hub) -> tuple[Path, tuple[Held, ...]]:
    """A repo or folder with every file of a merged model, and what those must be.

    Raises NotFound, and Refused for a link that leads out of the folder.
    """
    if ref.folder is not None:
        if not ref.folder.is_dir():
            raise NotFound(f"There is no folder {ref.text}.", remedy="Check the path.")
        require_usable(ref.folder, hidden=True)
        return ref.folder, merged_files(ref)
    assert ref.repo is not None
    pinned = hub.pin(ref.repo, ref.revision)
    folder = hub.download(pinned.repo, pinned.sha, [entry.name for entry in pinned.files])
    return folder, repo_files(pinned, folder)


def recorded_report(merged: Ref, hub: Hub) -> Document:
    """The verification.json of a merged repo or folder, or that file itself, as it is. Raises NotFound, and Refused where it is none
    of ours."""
    path = merged.folder
    if path is None:
        assert merged.repo is not None
        pinned = hub.pin(merged.repo, merged.revision)
        named = [entry.name for entry in pinned.files if entry.name == NAME]
        path = hub.download(pinned.repo, pinned.sha, named)
    document = read_report(path if path.is_dir() else path.parent, NAME if path.is_dir() else path.name)
    if document is None:
        raise NotFound(
            f"{merged.text} has no {NAME}.", remedy="`adapter-merge verify` makes one, and draws it with --report FILE."
        )
    return document


def compare_models(first: Ref, second: Ref, hub: Hub, emit: Emit) -> Json:
    """Compare two checkpoints; what is damaged in the Hub's cache is fetched once more. See `compare_folders` for the rest."""

    def attempt() -> Json:
        (a, a_files), (b, b_files) = complete_folder(first, hub), complete_folder(second, hub)
        with holding((*a_files, *b_files)) as keeper:
            keeper.follow(held.path for held in (*a_files, *b_files))
            return compare_folders(a, b)

    return with_sound_files(attempt, hub, emit)


def publish_folder(folder: Path, request: Request, hub: Hub, emit: Emit) -> Publication:
    """Publish a folder that an earlier merge finished, with the report that lies in it, to the request's target."""
    require_usable(folder, hidden=True)
    files = plain_files(folder)  # before anything of it is read: a link would lead to files outside of it
    document = read_report(folder)
    if document is None:
        raise NotVerified(
            f"{folder} has no verification.json.", remedy="Publish a folder that adapter-merge merge made."
        )
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as upload:
        # Links, and a card of its own: the folder stays as it is, for other targets too.
        for name, path in files.items():
            link = Path(upload) / name
            link.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, link, follow_symlinks=False)
        _retarget(Path(upload) / "README.md", document, target_of(request))
        return publish_made(Path(upload), document, request, hub, emit)


def _retarget(readme: Path, document: Document, target: str) -> None:
    """Let the card name its new repo. A folder without a card is refused by the publisher, with its reason."""
    if readme.exists():
        text = readme.read_text(encoding="utf-8")
        readme.unlink()
        readme.write_text(retarget(text, document.merge.target, target), encoding="utf-8")
