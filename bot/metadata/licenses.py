"""Which license a merged model's card may name: what is merged is under the base's license and the adapters' at once.

No legal advice, and no cleverness: an id stands for both only where who keeps to it, and keeps the license files and notices
that go along with a merge, keeps to both. Everything else is `other`, with both named. The reasons for the order:

* Dedications to the public ask nothing.
* ISC and MIT, BSD-2, BSD-3, Apache-2.0 let a derivative as a whole be under other terms, as long as their notices stay; each of them
  asks at least what those before it ask. Background a license that restricts more, that one is named.
* Creative Commons' own chart for adapters
  (https://creativecommons.org/faq/#can-i-combine-material-under-different-creative-commons-licenses-in-my-work) lets BY go into BY-NC,
  BY-SA and BY-NC-SA, and BY-NC into BY-NC-SA, of the same version.
* The GNU project's list (https://www.gnu.org/licenses/license-list.html) lets the notices above go into GPL-3 and AGPL-3; into
  GPL-2 not Apache-2.0, for its terms on patents. CC BY and Apache-2.0 are left without an order for the same reason.
* Use-restricted and community licenses (RAIL, Llama, Gemma, `other` …) bind whatever is derived from their model; public, notice and
  BY licenses stand back behind them. Two different ones are never in order.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from bot.errors import Usage
from bot.metadata import hub_lists
from bot.records import Json, Source
from bot.untrusted.markdown import one_line

PUBLIC = ("cc0-1.0", "unlicense", "wtfpl", "pddl")
NOTICE = (("isc", "mit"), ("bsd-2-clause",), ("bsd-3-clause",), ("apache-2.0",))  # each asks more than those before it
BY = tuple(f"cc-by-{version}" for version in ("2.0", "2.5", "3.0", "4.0"))
COPYLEFT = ("gpl-3.0", "agpl-3.0")
BINDING = (
    "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bigscience-bloom-rail-1.0", "bigcode-openrail-m",
    "openrail++", "h-research", "intel-research", "apple-amlr", "deepfloyd-if-license",
    "fair-noncommercial-research-license", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4",
    "grok2-community", "gemma",
)  # fmt: skip
NO_DERIVATIVES = re.compile(r"cc-by-(nc-)?nd-.*")
EMPTY_WORDS = re.compile(r"\b(the|licen[sc]e|version|community|agreement|terms|of|use|v|only|public domain)\b|[\"'(),]")
SPELLED = {  # canonical spelling → id, where the Hub's own name does not lead there
    "bsd3": "bsd-3-clause", "bsd2": "bsd-2-clause",
    "gpl3": "gpl-3.0", "gpl2": "gpl-2.0", "agpl3": "agpl-3.0", "lgpl3": "lgpl-3.0", "mpl2": "mpl-2.0", "cc0": "cc0-1.0",
    "expat": "mit", "mitexpat": "mit",
}  # fmt: skip
NAME = re.compile(r"[^a-z0-9.-]+")


@dataclass(frozen=True, kw_only=True)
class Terms:
    """A license as a card states it. `id`: one of the Hub's; `name`, `link`: what goes with `other`; `stated`: as it was written."""

    id: str
    stated: str
    name: str | None = None
    link: str | None = None

    @property
    def key(self) -> tuple[str | None, ...]:
        """What makes it the same license as another one; two that have no name are told apart by where they lead."""
        if self.id != "other":
            return (self.id,)
        return self.id, self.name, self.link if self.name == "other" else None


def require(given: str | None) -> str | None:
    """The Hub's id for what `--license` says. Raises Usage where there is none."""
    if given is None:
        return None
    known = known_id(given)
    if known is None:
        near = difflib.get_close_matches(given.lower(), hub_lists.licenses(), n=3, cutoff=0.5)
        like = f" such as {', '.join(near)}," if near else ""
        raise Usage(
            f"{one_line(given)[:60]!r} is no license id that the Hub knows.",
            remedy=f"Write one of {hub_lists.LICENSES_PAGE},{like} or other.",
        )
    return known


def known_id(text: str) -> str | None:
    """The Hub's id for a license, however it is written; None where that is not certain. `Apache 2.0` is `apache-2.0`."""
    word = " ".join(text.lower().split())
    if word in hub_lists.licenses():
        return word
    return SPELLED.get(_canonical(word)) or _spellings().get(_canonical(word))


@cache
def _spellings() -> dict[str, str]:
    ids: dict[str, str | None] = {}
    for name, full in hub_lists.licenses().items():
        for spelled in {_canonical(name), _canonical(full)}:
            ids[spelled] = None if spelled in ids and ids[spelled] != name else name
    return {spelled: name for spelled, name in ids.items() if spelled and name}


def _canonical(text: str) -> str:
    """Without words that say nothing, signs, and the `.0` of a version: `apache2` for `Apache License, Version 2.0`."""
    bare = EMPTY_WORDS.sub(" ", re.sub(r"\bv(?=\d)", "", text.lower()))
    bare = re.sub(r"(\d)\.0\b", r"\1", bare)
    return re.sub(r"[^a-z0-9.+]", "", bare).strip(".")


def terms_of(source: Source) -> list[Terms]:
    """Every license that the source's card states; [] where it states none."""
    given = source.card.get("license")
    words = [one_line(word)[:200] for word in (given if isinstance(given, list) else [given]) if isinstance(word, str)]
    return [_terms(word, source.card) for word in dict.fromkeys(words) if word]


def _terms(word: str, card: Json) -> Terms:
    known = known_id(word)
    if known not in (None, "other"):
        return Terms(id=str(known), stated=word)
    license_name, link = card.get("license_name"), card.get("license_link")
    name = license_name if isinstance(license_name, str) and slug(license_name) else word
    return Terms(
        id="other", stated=word, name=slug(name) or "custom", link=one_line(link) if isinstance(link, str) else None
    )


def slug(text: str) -> str:
    """A license's name as the Hub wants it: `my-license-1.0`."""
    return re.sub(r"-{2,}", "-", NAME.sub("-", text.lower()))[:60].strip("-.")


def stricter(first: Terms, second: Terms) -> Terms | None:
    """The one of the two whose terms ask all that the other's ask; None where there is no safe order."""
    if first.key == second.key:
        return first
    if _asks_all_of(first.id, second.id):
        return first
    return second if _asks_all_of(second.id, first.id) else None


def strictest(all_terms: Sequence[Terms]) -> Terms | None:
    """The one license that stands for all; None where there is none, or nothing is stated."""
    for candidate in all_terms:
        if all(stricter(candidate, other) == candidate for other in all_terms):
            return candidate
    return None


@cache
def _asks_all_of(strict: str, mild: str) -> bool:
    """Whether who keeps to `strict` keeps to `mild` too. Both are the Hub's ids, and not the same."""
    steps: list[str] = [name for step in NOTICE for name in step]
    if mild in PUBLIC:
        return strict != "unknown"
    if strict in steps:
        return mild in steps and _step(mild) <= _step(strict)
    if mild in steps:
        if strict in BY or strict == "gpl-2.0":
            return mild != "apache-2.0"  # for its terms on patents
        return strict in (*COPYLEFT, *BINDING, "other") or strict.startswith("cc-by-")
    if mild in BY and strict in (*BINDING, "other"):
        return True
    return _in_chart(strict, mild)


def _step(name: str) -> int:
    return next(number for number, step in enumerate(NOTICE) if name in step)


def _in_chart(strict: str, mild: str) -> bool:
    """Creative Commons' chart, of one version. A license without derivatives stands for what may go into its work."""
    strict_kind, _, version = strict.removeprefix("cc-by").rpartition("-")
    mild_kind, _, other = mild.removeprefix("cc-by").rpartition("-")
    if not (strict.startswith("cc-by") and mild.startswith("cc-by")) or version != other:
        return False
    return strict_kind in {"": ("-nc", "-sa", "-nc-sa", "-nd", "-nc-nd"), "-nc": ("-nc-sa", "-nc-nd")}.get(
        mild_kind, ()
    )


def forbids_derivatives(all_terms: Iterable[Terms]) -> str | None:
    """The first license that does not let a changed work be shared."""
    return next((terms.id for terms in all_terms if NO_DERIVATIVES.fullmatch(terms.id)), None)
