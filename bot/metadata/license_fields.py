"""The license that a merged model's card states: its fields, and the words about them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from bot.metadata.licenses import Terms, forbids_derivatives, require, slug, strictest, terms_of
from bot.records import Asset, Json, Source

IN_PLACE = ("LICENSE", "LICENSE.md")  # what `license_link` may name inside the repo; else it takes an address
ADDRESS = re.compile(r"https?://[A-Za-z0-9.\[\]:-]+(/[^\s<>\"'`\\]*)?")
PATH = re.compile(r"(?!.*\.\.)[\w .-]+(/[\w .-]+)*")


@dataclass(frozen=True, kw_only=True)
class Stated:
    """`fields` of the metadata, and `words` for a reader, as plain text; both may be empty."""

    fields: Json
    words: str
    notes: tuple[str, ...] = ()


def state(
    base: Source,
    adapters: Sequence[Source],
    asked: str | None,
    *,
    assets: Sequence[Asset] = (),
    home: str = "",
    hub: str = "",
) -> Stated:
    """What the card states. `asked`: by --license, which wins. `home`: the result's address on the Hub; `hub`: the Hub's.

    Raises Usage where `asked` is no license id.
    """
    given = [(source, terms) for source in (base, *adapters) for terms in terms_of(source)]
    all_terms = [terms for _, terms in given]
    of_inputs = "; ".join(_of_inputs(base, adapters))
    wanted = require(asked)
    link = _Link(assets=assets, home=home, hub=hub)
    if wanted not in (None, "other"):
        words = f"{wanted}, as asked for ({of_inputs})" if of_inputs else str(wanted)
        return Stated(fields={"license": wanted}, words=words, notes=tuple(_forbidden(all_terms)))
    if not given:
        other = {"license": "other", "license_name": "custom", **link.anywhere()} if wanted else {}
        return Stated(fields=other, words="other" if wanted else "")
    strict = None if wanted else strictest(all_terms)
    if strict is None:
        names = dict.fromkeys(terms.name or slug(terms.id) for terms in all_terms)
        fields = {"license": "other", "license_name": slug("-and-".join(names)) or "custom", **link.anywhere()}
        why = "as asked for" if wanted else "all of them apply, and none stands for the others"
        notes = [] if wanted else [f"The card's license is `other`: {of_inputs}; {why}. --license states another."]
        return Stated(fields=fields, words=f"{of_inputs}: {why}", notes=(*notes, *_forbidden(all_terms)))
    source = next(source for source, terms in given if terms is strict)
    fields = {"license": strict.id}
    if strict.id == "other":
        fields |= {"license_name": strict.name, **link.to(strict, source)}
    differ = len({terms.key for terms in all_terms}) > 1
    words = _license_name(strict) + (f" ({of_inputs})" if differ else _unstated(base, adapters))
    notes = list(_notes(strict, all_terms, of_inputs, differ))
    if not terms_of(base):  # an adapter that states none is nothing rare, and then the base's is all that is known
        notes.append(f"The base states no license; the card's is {_license_name(strict)}. --license states another.")
    return Stated(fields=fields, words=words, notes=tuple(notes))


def _notes(chosen: Terms, all_terms: Sequence[Terms], of_inputs: str, differ: bool) -> Iterator[str]:
    if differ:
        yield f"The card's license is {_license_name(chosen)}, the stricter one ({of_inputs}). --license states another."
    elif chosen.id == "other" and chosen.stated.lower() != "other":
        yield f"The Hub lists no license {chosen.stated[:60]!r}: the card's is `other`, named {chosen.name}. --license states another."
    yield from _forbidden(all_terms)


def _forbidden(all_terms: Sequence[Terms]) -> Iterator[str]:
    if license_id := forbids_derivatives(all_terms):
        yield f"{license_id} does not let a changed work be shared, and a merged model is one: publishing it needs its owner's leave."


def _of_inputs(base: Source, adapters: Sequence[Source]) -> Iterator[str]:
    """`the base's is cc-by-nc-4.0`; of those that state one."""
    for source, owner in ((base, "the base's"), *((adapter, _owner(adapter, adapters)) for adapter in adapters)):
        if terms := terms_of(source):
            yield f"{owner} is {' and '.join(map(_license_name, terms))}"


def _owner(adapter: Source, adapters: Sequence[Source]) -> str:
    return "the adapter's" if len(adapters) == 1 else f"that of {adapter.called if adapter.repo else 'an adapter'}"


def _license_name(terms: Terms) -> str:
    if terms.id != "other":
        return terms.id
    return f"other ({terms.link if terms.name == 'other' and terms.link else terms.name})"


def _unstated(base: Source, adapters: Sequence[Source]) -> str:
    """Who states no license, while another does."""
    quiet = [] if terms_of(base) else ["the base"]
    if any(not terms_of(adapter) for adapter in adapters):
        quiet.append("the adapter" if len(adapters) == 1 else "an adapter")
    return f" ({' and '.join(quiet)} states none)" if quiet else ""


@dataclass(frozen=True, kw_only=True)
class _Link:
    """Where a license's text can be read from the result's page."""

    assets: Sequence[Asset]
    home: str
    hub: str

    def anywhere(self) -> Json:
        """The first license file that goes along."""
        name = next((asset.name for asset in self.assets if asset.why == "license"), None)
        return self._inside(name)

    def to(self, terms: Terms, source: Source) -> Json:
        """An address as it is; a file as the result has it, else where the source has it."""
        if terms.link and ADDRESS.fullmatch(terms.link) and len(terms.link) <= 500:
            return {"license_link": terms.link}
        ours = [asset for asset in self.assets if asset.why == "license" and asset.source == source.role]
        named = next((asset for asset in ours if asset.origin == terms.link), None)
        if named or (ours and not terms.link):
            return self._inside((named or ours[0]).name)
        if terms.link and source.repo and PATH.fullmatch(terms.link):
            return {"license_link": f"{self.hub}/{source.repo}/blob/{source.sha}/{quote(terms.link)}"}
        return self._inside(ours[0].name) if ours else {}

    def _inside(self, name: str | None) -> Json:
        if name is None:
            return {}
        return {"license_link": name if name in IN_PLACE else f"{self.home}/blob/main/{quote(name)}"}
