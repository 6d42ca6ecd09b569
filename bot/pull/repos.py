"""A source on the Hub."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from bot.errors import NotFound
from bot.events import Emit, Note
from bot.input_files import is_stated, not_the_repos
from bot.pull import subfolders, texts
from bot.pull.damage import fetched_again
from bot.records import FileEntry, Ref, Role, Source

if TYPE_CHECKING:
    from bot.hub import Hub, Pinned


def pin_repo(role: Role, ref: Ref, hub: Hub, emit: Emit) -> Source:
    """The commit that the revision means now, its file list and its small files; of an adapter that lies deeper in its repo,
    those of its folder."""
    assert ref.repo is not None
    pinned = hub.pin(ref.repo, ref.revision)
    if not pinned.online:
        text = f"The Hub cannot be reached; {pinned.repo} is taken from the cache, at commit {pinned.sha[:8]}."
        emit(Note(text=text, level="warning"))
    source = Source(
        role=role,
        ref=ref,
        repo=pinned.repo,
        revision=ref.revision,
        sha=pinned.sha,
        files=pinned.files,
        headers=(),
        texts={},
        private=pinned.private,
        gated=pinned.gated,
        # Only the adapter's tag is carried to the merged repo.
        tags=_tags(pinned, hub, emit) if role == "adapter" and pinned.online else (),
    )
    if ref.subfolder is not None:
        return _deeper(source, ref.subfolder, pinned, hub, emit)
    contents = _texts(source, pinned, hub, emit)
    return replace(source, texts=contents, card=texts.card_of(contents))


def _tags(pinned: Pinned, hub: Hub, emit: Emit) -> tuple[str, ...]:
    """The tags of the commit; none where a mirror of the Hub does not tell them, which is said."""
    from bot.hub import Unserved

    try:
        return hub.tags_at(pinned.repo, pinned.sha)
    except Unserved as unserved:
        emit(
            Note(
                text=f"{unserved.what} Whether that commit has a tag is not known, and none is carried over.",
                level="warning",
            )
        )
        return ()


def _deeper(source: Source, subfolder: str, pinned: Pinned, hub: Hub, emit: Emit) -> Source:
    """The source in a folder of its repo. Raises NotFound where that has no adapter."""
    others = subfolders.adapters_in(pinned.files)
    if subfolder not in others:
        there = any(entry.name.startswith(f"{subfolder}/") for entry in pinned.files)
        what = "holds no adapter_config.json" if there else "is not there"
        at = f"@{source.revision}" if source.revision else ""
        raise NotFound(
            f"The folder {subfolder} of {pinned.repo}{at} {what}, so it names no PEFT adapter.",
            remedy=_instead(source, others, pinned.files),
        )
    source = replace(source, files=subfolders.below(pinned.files, subfolder), subfolder=subfolder)
    contents = _texts(source, pinned, hub, emit)
    above = [
        name for name in subfolders.cards_above(pinned.files, subfolder) if name != source.in_repo(subfolders.CARD)
    ]
    if not pinned.online:
        above = [name for name in above if hub.cached(pinned.repo, pinned.sha, name)]
    cards = _sound_texts(pinned, {name: name for name in above}, hub, emit)
    card = subfolders.with_cards(
        texts.card_of(contents), (texts.card_of({subfolders.CARD: cards[name]}) for name in above)
    )
    # What the repo's card says of the training holds for its checkpoints.
    own = [contents[subfolders.CARD]] if subfolders.CARD in contents else []
    if own or cards:
        contents[subfolders.CARD] = b"\n\n".join([*own, *cards.values()])
    return replace(source, texts=contents, card=card)


def _instead(source: Source, folders: list[str], files: tuple[FileEntry, ...]) -> str:
    """What to name where a folder has no adapter."""
    if folders:
        last = subfolders.named(source, folders[-1])
        return f"The repo has adapters in these folders: {subfolders.listed(folders)}; name one of them: {last}."
    if any(entry.name == subfolders.CONFIG for entry in files):
        return f"The repo's only adapter lies at its root: write {source.called}."
    return "The repo has none in any of its folders: check its name, or name another revision."


def _texts(source: Source, pinned: Pinned, hub: Hub, emit: Emit) -> dict[str, bytes]:
    """The small files that planning reads, by name. Raises Damaged, Refused."""
    names = texts.wanted(source.files)
    if not pinned.online:
        names = [name for name in names if hub.cached(pinned.repo, pinned.sha, source.in_repo(name))]
    contents = _sound_texts(pinned, {name: source.in_repo(name) for name in names}, hub, emit)
    texts.check(contents, source.called)
    return contents


def _sound_texts(pinned: Pinned, paths: dict[str, str], hub: Hub, emit: Emit) -> dict[str, bytes]:
    """Small files by name, as the repo states them; what is damaged in the cache is fetched anew. `paths`: by name, where each
    lies in the repo. Raises Damaged."""
    stated = {entry.name: (entry.sha256, entry.oid) for entry in pinned.files}
    for last in (False, True):
        folder = hub.download(pinned.repo, pinned.sha, paths.values())
        contents = {name: (folder / path).read_bytes() for name, path in paths.items()}
        wrong = [
            name for name in contents if not is_stated([contents[name]], len(contents[name]), *stated[paths[name]])
        ]
        for name in wrong:
            hub.drop(pinned.repo, pinned.sha, paths[name])
        if not wrong:
            return contents
        if last:
            raise not_the_repos(paths[wrong[0]], pinned.repo)
        emit(fetched_again(paths[wrong[0]], pinned.repo))
    raise AssertionError("unreachable")
