"""What a person may write for a model: REF."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from bot.errors import Usage
from bot.hub import is_repo_id
from bot.hub.names import REVISION
from bot.records import Ref

# A folder in a repo, or several within each other: no way out of it, nothing hidden, and no sign that a URL or `@` needs.
SUBFOLDER = re.compile(r"(?:[\w+=(][\w .+=,()~-]*/)*[\w+=(][\w .+=,()~-]*(?<! )")
LONGEST = 500  # letters of a subfolder
HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")  # pasted without https://, they look like an owner
PAGES = ("tree", "blob", "resolve", "raw")  # what stands behind a repo's name in the address of one of its pages
HUB_URL = re.compile(
    r"(?:https?://[^/]+/|hf://|(?:www\.)?(?:huggingface|hf)\.co/)(?:models/)?(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<at>[^/?#]+))?"
    rf"(?:/(?P<page>{'|'.join(PAGES)})/(?P<revision>[^/?#]+))?(?:/(?P<path>[^?#]+?))?/?(?:[?#].*)?"
)
NO_MODEL = ("datasets/", "spaces/", "buckets/", "papers/", "collections/", "docs/")


def parse_ref(text: str, *, deeper: bool = False) -> Ref:
    """`owner/name`, `owner/name@revision`, or a folder (`./x`, `/x`, `~/x`, or a path that exists). `deeper`: for adapters,
    which may lie in a folder of their repo, `owner/name/folder[@revision]`. Raises Usage."""
    text = text.strip()
    if text.startswith(("/", "./", "../", "~")) or text in (".", ".."):
        return Ref(text=text, folder=Path(text).expanduser())
    if "://" not in text and text and Path(text).exists():
        return Ref(text=text, folder=Path(text))
    path, at, revision = text.partition("@")
    repo, subfolder = _split(path)
    good = REVISION.fullmatch(revision) if at else True
    if good and is_repo_id(repo) and (subfolder is None or is_subfolder(subfolder)):
        url = repo.partition("/")[0] in HOSTS or (subfolder or "").partition("/")[0] in PAGES
        if subfolder is None and not url:
            return Ref(text=text, repo=repo, revision=revision or None)
        if not url:
            return _deeper(text, repo, str(subfolder), revision, allowed=deeper)
    instead = _instead(text, deeper) or "owner/name, owner/name@revision or ./folder"
    raise Usage(f"{text!r} is neither a Hub repo nor a folder.", remedy=f"Write {instead}.")


def is_subfolder(text: object) -> bool:
    """Whether a folder of a repo may be called so."""
    return isinstance(text, str) and len(text) <= LONGEST and SUBFOLDER.fullmatch(text) is not None


def _split(path: str) -> tuple[str, str | None]:
    """owner/name, and what stands behind it."""
    owner, slash, rest = path.removesuffix("/").partition("/")
    name, deeper, subfolder = rest.partition("/")
    return f"{owner}{slash}{name}", subfolder if deeper else None


def _deeper(text: str, repo: str, subfolder: str, revision: str, *, allowed: bool) -> Ref:
    if allowed:
        return Ref(text=text, repo=repo, subfolder=subfolder, revision=revision or None)
    raise Usage(
        f"{text!r} is no folder here, and on the Hub only an adapter can lie in a folder of a repo.",
        remedy=f"Write {repo}, or name a folder that exists: ./{subfolder.rpartition('/')[2]}.",
    )


def _instead(text: str, deeper: bool) -> str | None:
    """What to write for the address of one of the Hub's pages."""
    if re.match(r"[\w.-]+/[\w.-]+/(tree|blob|resolve|raw)/", text):
        text = f"hf://{text}"
    url = HUB_URL.fullmatch(text)
    if url is None or url["repo"].startswith(NO_MODEL):
        return None
    subfolder, revision = unquote(url["path"] or ""), unquote(url["revision"] or url["at"] or "")
    if url["page"] not in (None, "tree"):  # the page of a file
        subfolder = subfolder.rpartition("/")[0]
    below = f"/{subfolder}" if deeper and is_subfolder(subfolder) else ""
    return f"{url['repo']}{below}" + (f"@{revision}" if REVISION.fullmatch(revision) else "")
