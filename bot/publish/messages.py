"""What we write on the Hub: the commit's message, the pull request, and the marks by which we know our own again."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote

from bot.project import NAME, REPOSITORY
from bot.records import Json
from bot.untrusted.markdown import cell, code, one_line

MARK = "<!-- adapter-merge:fingerprint={} -->"
MARKED = re.compile(r"<!-- adapter-merge:fingerprint=([0-9a-f]+) -->")
TRAILER = "Adapter-Merge-Fingerprint"
TRAILED = re.compile(rf"^{TRAILER}: ([0-9a-f]+)\s*$", re.MULTILINE)
PROJECT = f"[{NAME}]({REPOSITORY})"
LINKABLE = re.compile(r"[\w.-]+(/[\w.-]+)?")
SHOWN = 12  # digits of a sha that a reader needs


def mark_in(text: str) -> str | None:
    """The fingerprint that a pull request's text carries."""
    found = MARKED.search(text)
    return found[1] if found else None


def trailer_in(message: str) -> str | None:
    """The fingerprint that a commit message carries."""
    found = TRAILED.findall(message)
    return found[-1] if found else None


@dataclass(frozen=True, kw_only=True)
class ModelOnMain:
    """What main holds, where it holds a model. `document`: its report, None for a model that is no merge of ours."""

    document: Json | None


def title(document: Json) -> str:
    """The commit's and the pull request's title (the Hub allows 200 characters), with the adapter's tag."""
    tag = _tag(document)
    version = f" ({tag})" if tag else ""
    return f"Merge {_name(document, 'adapter')}{version} into {_name(document, 'base')}"[:200]


def commit_text(document: Json, fingerprint: str) -> str:
    """The commit's description; the last line is the trailer that makes re-runs idempotent."""
    return "\n".join(
        (
            f"Merged and verified by {NAME} ({REPOSITORY}); {_tally(document)}. The proof is verification.json.",
            "",
            *(f"Adapter-Merge-Adapter: {_pin(pin, 'adapter')}" for pin in _inputs(document, "adapter")),
            f"Adapter-Merge-Base: {_pinned(document, 'base')}",
            f"{TRAILER}: {fingerprint}",
        )
    )


def pull_text(
    document: Json,
    fingerprint: str,
    tag: str | None,
    deleted: tuple[str, ...],
    *,
    before: ModelOnMain | None = None,
    hub: str = "https://huggingface.co",
) -> str:
    """The pull request's first comment. `before`: what main holds now; `hub`: the address that links lead to."""
    merged = f"{_linked(document, 'adapter', hub)} merged into {_linked(document, 'base', hub)}"
    lines = [
        MARK.format(fingerprint),
        f"{merged} by {PROJECT}, and proven: {_tally(document)}.",
        "",
        *_replaced(before, hub),
        "| check | measured | allowed | |",
        "| --- | --- | --- | --- |",
        *(_row(check) for check in document.get("checks", [])),
        "",
        "The whole evidence, with the sha256 of every file, is `verification.json` in this pull request. "
        "It stayed a draft until the checksums of the uploaded files were compared with it.",
        "",
    ]
    if deleted:
        names = ", ".join(map(code, deleted[:10])) + (" …" if len(deleted) > 10 else "")
        lines += [f"It removes {len(deleted)} file(s) that would be stale beside the new weights: {names}.", ""]
    if tag:
        lines += [f"The adapter's commit is tagged {code(tag)}; tag this repo the same way once it is merged.", ""]
    lines += [
        "Feel free to close this pull request: it is then not opened again for the same adapter and base.",
    ]
    return "\n".join(lines)


def _replaced(before: ModelOnMain | None, hub: str) -> list[str]:
    """What the pull request takes the place of."""
    if before is None:
        return []
    if before.document is None:
        return [f"It replaces the model on main, which is no merge by {NAME}.", ""]
    named = f"{_linked(before.document, 'adapter', hub)} merged into {_linked(before.document, 'base', hub)}"
    return [f"It replaces what main holds: {named}.", ""]


def updated_text(document: Json) -> str:
    """The comment that tells of a new commit on an open pull request."""
    return (
        f"Updated: this pull request now holds {cell(_pinned(document, 'adapter', short=True))} merged into "
        f"{cell(_pinned(document, 'base', short=True))}; {_tally(document)}, and the uploaded files' checksums match."
    )


def abandoned_text(why: str) -> str:
    """The first comment of a draft that did not come to be; it carries no mark, so that it stops nothing."""
    return f"{PROJECT} closed this draft unfinished: {cell(why)}"


def _row(check: Json) -> str:
    return f"| {' | '.join(cell(str(check.get(key, ''))) for key in ('id', 'measured', 'allowed', 'status'))} |"


def _tally(document: Json) -> str:
    statuses = [check.get("status") for check in document.get("checks", [])]
    warned = statuses.count("warn")
    return f"{statuses.count('pass')} checks passed" + (f", {warned} gave a warning" if warned else "")


def _inputs(document: Json, role: str) -> list[Json]:
    """The base's pin, or those of all adapters; one that says nothing where there is none."""
    inputs = document.get("inputs") or {}
    found = inputs.get(f"{role}s") or inputs.get(role)
    pins: list[Json] = [pin for pin in (found if isinstance(found, list) else [found]) if isinstance(pin, dict)]
    return pins or [{}]


def _name(document: Json, role: str) -> str:
    return " and ".join(_repo(pin, role) for pin in _inputs(document, role))


def _pinned(document: Json, role: str, *, short: bool = False) -> str:
    return " and ".join(_pin(pin, role, short=short) for pin in _inputs(document, role))


def _tag(document: Json) -> str | None:
    """The adapter's tag, as the report has it."""
    found = (document.get("merge") or {}).get("tag")
    return one_line(found)[:60] if isinstance(found, str) and found.strip() else None


def _linked(document: Json, role: str, hub: str) -> str:
    """Every input of a role, linked: its repo, its commit, and of one adapter its tag."""
    pins = _inputs(document, role)
    tag = _tag(document) if role == "adapter" and len(pins) == 1 else None
    return " and ".join(_link(pin, role, tag, hub) for pin in pins)


def _link(pin: Json, role: str, tag: str | None, hub: str) -> str:
    repo, sha = pin.get("repo"), one_line(str(pin.get("sha") or "?"))
    kind, colon, digits = sha.rpartition(":")
    short = kind + colon + digits[:SHOWN]
    version = f" ({cell(tag)})" if tag else ""
    if not isinstance(repo, str) or not LINKABLE.fullmatch(repo) or not digits.isalnum():
        return f"**{cell(_repo(pin, role))}**@{cell(short)}{version}"
    inside = f"/{quote(str(pin['subfolder']))}" if pin.get("subfolder") else ""
    if tag:
        version = f" ([{cell(tag)}]({hub}/{repo}/tree/{quote(tag, safe='')}{inside}))"
    named = f"**[{cell(_repo(pin, role))}]({hub}/{repo})**"
    return f"{named} @ [{short}]({hub}/{repo}/tree/{digits}{inside}){version}"


def _repo(pin: Json, role: str) -> str:
    return one_line("/".join(map(str, filter(None, (pin.get("repo") or f"a local {role}", pin.get("subfolder"))))))


def _pin(pin: Json, role: str, *, short: bool = False) -> str:
    sha = one_line(str(pin.get("sha") or "?"))
    if short:
        kind, colon, digits = sha.rpartition(":")
        sha = kind + colon + digits[:SHOWN]
    return f"{_repo(pin, role)}@{sha}"
