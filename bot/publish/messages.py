"""What we write on the Hub: the commit's message, the pull request, and the marks by which we recognise our own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote

from bot.project import NAME, REPOSITORY
from bot.report_document import Document, Pin, short_sha
from bot.report_markdown import checks_table, opening
from bot.untrusted.markdown import cell, code, one_line

MARK = "<!-- adapter-merge:fingerprint={} -->"
MARKED = re.compile(r"<!-- adapter-merge:fingerprint=([0-9a-f]+) -->")
TRAILER = "Adapter-Merge-Fingerprint"
ADAPTER_TRAILER = "Adapter-Merge-Adapter"
ADAPTER_TRAILED = re.compile(rf"^{ADAPTER_TRAILER}: (\S+)@(\S+)\s*$", re.MULTILINE)
TRAILED = re.compile(rf"^{TRAILER}: ([0-9a-f]+)\s*$", re.MULTILINE)
PROJECT = f"[{NAME}]({REPOSITORY})"
LINKABLE = re.compile(r"[\w.-]+(/[\w.-]+)?")


def mark_in(text: str) -> str | None:
    """The fingerprint that a pull request's text carries."""
    mark = MARKED.search(text)
    return mark[1] if mark else None


def trailer_in(message: str) -> str | None:
    """The fingerprint that a commit message carries."""
    trailers = TRAILED.findall(message)
    return trailers[-1] if trailers else None


def adapter_in(message: str) -> str | None:
    """The sha of the adapter whose merge a commit message tells of; None for other commits, and for several adapters in one."""
    adapters = ADAPTER_TRAILED.findall(message) if trailer_in(message) else []
    return adapters[0][1] if len(adapters) == 1 else None


@dataclass(frozen=True, kw_only=True)
class ModelOnMain:
    """What main holds, where it holds a model. `document`: its report, None for a model that is no merge of ours."""

    document: Document | None


def title(document: Document) -> str:
    """The commit's and the pull request's title (the Hub allows 200 characters), with the adapter's tag."""
    tag = _tag(document)
    version = f" ({tag})" if tag else ""
    return f"Merge {_name(document, 'adapter')}{version} into {_name(document, 'base')}"[:200]


def commit_text(document: Document, fingerprint: str) -> str:
    """The commit's description; the last line is the trailer that makes re-runs idempotent."""
    return "\n".join(
        (
            f"Merged and verified by {NAME} ({REPOSITORY}); {_tally(document)}. The proof is verification.json.",
            "",
            *(f"{ADAPTER_TRAILER}: {_pin(pin, 'adapter')}" for pin in _inputs(document, "adapter")),
            f"Adapter-Merge-Base: {_pinned(document, 'base')}",
            f"{TRAILER}: {fingerprint}",
        )
    )


def pull_text(
    document: Document,
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
        f"{merged} by {PROJECT}.",
        "",
        opening(document),
        "",
        *_replaced(before, hub),
        checks_table(document),
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
    lines += ["Feel free to close this pull request: it is then not opened again for the same adapter and base."]
    return "\n".join(lines)


def _replaced(before: ModelOnMain | None, hub: str) -> list[str]:
    """What the pull request replaces."""
    if before is None:
        return []
    if before.document is None:
        return [f"It replaces the model on main, which is no merge by {NAME}.", ""]
    named = f"{_linked(before.document, 'adapter', hub)} merged into {_linked(before.document, 'base', hub)}"
    return [f"It replaces what main holds: {named}.", ""]


def updated_text(document: Document) -> str:
    """The comment that tells of a new commit on an open pull request."""
    return (
        f"Updated: this pull request now holds {cell(_pinned(document, 'adapter', short=True))} merged into "
        f"{cell(_pinned(document, 'base', short=True))}; {_tally(document)}, and the uploaded files' checksums match."
    )


def abandoned_text(why: str) -> str:
    """The first comment of a draft that did not come to be; it carries no mark, so that it does not count as declined."""
    return f"{PROJECT} closed this draft unfinished: {cell(why)}"


def _tally(document: Document) -> str:
    statuses = [check.status for check in document.checks]
    warned = statuses.count("warn")
    return f"{statuses.count('pass')} checks passed" + (f", {warned} gave a warning" if warned else "")


def _inputs(document: Document, role: str) -> list[Pin]:
    """The base's pin, or those of all adapters."""
    return document.inputs.adapters if role == "adapter" else [document.inputs.base]


def _name(document: Document, role: str) -> str:
    return " and ".join(_repo(pin, role) for pin in _inputs(document, role))


def _pinned(document: Document, role: str, *, short: bool = False) -> str:
    return " and ".join(_pin(pin, role, short=short) for pin in _inputs(document, role))


def _tag(document: Document) -> str | None:
    """The adapter's tag, as the report has it."""
    tag = document.merge.tag
    return one_line(tag)[:60] if isinstance(tag, str) and tag.strip() else None


def _linked(document: Document, role: str, hub: str) -> str:
    """Every input of a role, linked: its repo, its commit, and of one adapter its tag."""
    pins = _inputs(document, role)
    tag = _tag(document) if role == "adapter" and len(pins) == 1 else None
    return " and ".join(_link(pin, role, tag, hub) for pin in pins)


def _link(pin: Pin, role: str, tag: str | None, hub: str) -> str:
    repo, sha = pin.repo, one_line(str(pin.sha or "?"))
    digits, short = sha.rpartition(":")[2], short_sha(sha)
    version = f" ({cell(tag)})" if tag else ""
    if not isinstance(repo, str) or not LINKABLE.fullmatch(repo) or not digits.isalnum():
        return f"**{cell(_repo(pin, role))}**@{cell(short)}{version}"
    inside = f"/{quote(str(pin.subfolder))}" if pin.subfolder else ""
    if tag:
        version = f" ([{cell(tag)}]({hub}/{repo}/tree/{quote(tag, safe='')}{inside}))"
    named = f"**[{cell(_repo(pin, role))}]({hub}/{repo})**"
    return f"{named} @ [{short}]({hub}/{repo}/tree/{digits}{inside}){version}"


def _repo(pin: Pin, role: str) -> str:
    return one_line(pin.name(f"a local {role}"))


def _pin(pin: Pin, role: str, *, short: bool = False) -> str:
    sha = one_line(str(pin.sha or "?"))
    return f"{_repo(pin, role)}@{short_sha(sha) if short else sha}"
