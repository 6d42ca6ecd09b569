"""Receipts: what a worker that made some of a merge's weight files hands to whoever makes the commit.

A receipt is JSON: what was asked for, with the inputs at their commits; the merge's fingerprint and target; and of every
weight file its sha256, size and what the proof counted in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from bot import __version__
from bot.by_shard.journal import Finished
from bot.errors import NotVerified, Refused, Usage
from bot.options import Combination, Options, Request, options_of
from bot.pull import parse_ref
from bot.records import Json, Source, Sources
from bot.untrusted import strict_json

FORMAT = 1
LARGEST = 1 << 28  # bytes of a receipt
PART = re.compile(r"([1-9][0-9]{0,4})/([1-9][0-9]{0,4})")


@dataclass(frozen=True, kw_only=True)
class Part:
    """The `number`-th of `of` parts, from 1."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """From `K/N`. Raises Usage."""
        match = PART.fullmatch(text)
        if match is None or int(match[1]) > int(match[2]):
            raise Usage(
                f"{text!r} is no part of a merge.", remedy="Write the part and how many there are: --shard 2/8."
            )
        return cls(number=int(match[1]), of=int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What one part came to. `request`: what was asked for, as `request_json` writes it; `revisions`: the inputs' as asked."""

    part: Part
    fingerprint: str
    target: str
    request: Json
    files: tuple[Finished, ...]
    name: str = ""  # of the file that it was read from

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each weight file."""
        return {each.name: each.size for each in self.files}

    def write(self, path: Path) -> None:
        """Whole, or not at all. Raises OSError."""
        document = {
            "receipt": FORMAT,
            "adapter-merge": __version__,
            "part": [self.part.number, self.part.of],
            "fingerprint": self.fingerprint,
            "target": self.target,
            "request": self.request,
            "files": [each.to_json() for each in self.files],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.tmp")
        fresh.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        fresh.replace(path)

    @classmethod
    def read(cls, path: Path) -> Receipt:
        """Raises Usage where there is no such file, Refused where it is no receipt."""
        try:
            if path.stat().st_size > LARGEST:
                raise ValueError("too large")
            document = strict_json.loads(path.read_bytes())
            number, of = document["part"]
            made = cls(
                part=Part.parse(f"{number}/{of}"),
                fingerprint=document["fingerprint"],
                target=document["target"],
                request=document["request"],
                files=tuple(map(Finished.of, document["files"])),
                name=path.name,
            )
            words = (made.fingerprint, made.target, *made.request["adapters"], made.request["base"])
            if document["receipt"] != FORMAT or not all(isinstance(word, str) for word in words):
                raise ValueError("another format")
        except OSError as error:
            raise Usage(
                f"{path} cannot be read: {error.strerror}.", remedy="Name the receipts of all parts."
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError, Usage) as error:
            raise Refused(f"{path.name} is no receipt of this version.", remedy="Make that part again.") from error
        return made


def request_json(request: Request, sources: Sources) -> Json:
    """What was asked for, the inputs at the commits that they were pinned to."""
    asked = {each.field: getattr(request, each.field) for each in options_of(Request) if each.field in KEPT}
    options = {each.field: getattr(request.options, each.field) for each in options_of(Options)}
    combination = request.combination
    return {
        **asked,
        "base": _pinned(sources.base),
        "adapters": [_pinned(source) for source in sources.adapters],
        "revisions": [source.revision for source in (sources.base, *sources.adapters)],
        "options": options,
        "combination": combination and {item.name: getattr(combination, item.name) for item in fields(Combination)},
    }


KEPT = ("publish", "private", "license", "force")


def request_from(receipt: Receipt) -> Request:
    """The request again. Raises Refused where a receipt names what no option takes."""
    json = receipt.request
    try:
        adapter, *more = (parse_ref(text, deeper=True) for text in json["adapters"])
        options = {each.field: json["options"][each.field] for each in options_of(Options)}
        options["quantization"] = tuple((str(name), value) for name, value in options["quantization"])
        given = json["combination"]
        combination = given and Combination(**{**given, "weights": tuple(given["weights"])})
        return Request(
            adapter=adapter,
            more=tuple(more),
            base=parse_ref(json["base"]),
            combination=combination or None,
            target=receipt.target,
            options=Options(**options),
            **{name: json[name] for name in KEPT},
        )
    except (KeyError, TypeError, ValueError, Usage) as error:
        raise Refused(f"{receipt.name} is no receipt of this version.", remedy="Make that part again.") from error


def with_revisions_asked_for(sources: Sources, receipt: Receipt) -> Sources:
    """The inputs, pinned by their commits, under the revisions that they were asked for by."""
    base, *adapters = [
        replace(source, revision=asked if isinstance(asked, str) else None)
        for source, asked in zip((sources.base, *sources.adapters), receipt.request["revisions"], strict=True)
    ]
    return replace(sources, base=base, adapter=adapters[0], more=tuple(adapters[1:]))


def _pinned(source: Source) -> str:
    if source.repo is None:
        return source.ref.text
    return f"{source.called}@{source.sha}"


def of_one_merge(receipts: Sequence[Receipt]) -> Receipt:
    """One of them, that speaks for all. Raises Refused where they are of several merges, or a part is missing or there twice."""
    first = receipts[0]
    for other in receipts:
        if (other.fingerprint, other.target, other.part.of) != (first.fingerprint, first.target, first.part.of):
            raise Refused(
                f"{other.name} and {first.name} are not of one merge.",
                remedy="Make all parts with the same inputs, options, target and number of parts.",
            )
        if other.request != first.request:
            raise Refused(f"{other.name} and {first.name} were asked for differently.", remedy="Make all parts alike.")
    numbers = sorted(receipt.part.number for receipt in receipts)
    missing = sorted(set(range(1, first.part.of + 1)) - set(numbers))
    if missing:
        parts = ", ".join(f"{number}/{first.part.of}" for number in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise Refused(f"No receipt is of part {parts}{more}.", remedy="Make it, with --shard, and run finish again.")
    if len(numbers) != len(set(numbers)):
        raise Refused("Two receipts are of one part.", remedy="Name each part's receipt once.")
    return first


def proven_files(receipts: Iterable[Receipt], names: Sequence[str]) -> list[Finished]:
    """The weight files of this merge, in their order. Raises Refused where one is missing, foreign or there twice, and NotVerified
    where one is not proven."""
    files: dict[str, Finished] = {}
    for receipt in receipts:
        for each in receipt.files:
            if each.name in files or each.name not in names:
                raise Refused(
                    f"{receipt.name} names {each.name[:80]}, which is no file of its part.",
                    remedy="Make that part again.",
                )
            files[each.name] = each
            if not each.proven:
                raise NotVerified(
                    f"{each.name} is not base plus adapter, by {receipt.name}.",
                    remedy="Make that part again; where it stays so, please report it.",
                )
    for name in names:
        if name not in files:
            raise Refused(f"No receipt holds {name}.", remedy="Make the part that it is of again.")
    return [files[name] for name in names]
