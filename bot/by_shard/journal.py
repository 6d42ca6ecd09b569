"""What is known of the weight files that are finished: their sha256, and what the proof counted in them. On the disk, keyed by the
fingerprint, so that a run that was killed goes on; and, of a merge that is shared out, in the receipts of its workers.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bot.checks.elementwise.tally import Tally
from bot.checks.expected.changes import Expected
from bot.records import Json
from bot.untrusted import strict_json

FORMAT = 1  # of what is written here; another one is not read
COUNTED = "elements wrong undecided changed bad inherited unnumbered clamped arithmetic".split()
SUMMED = "kept power size".split()


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A weight file of the result that is made, proven, and on the Hub (or will be copied there by it).

    `sample`: its first 512 bytes, which the Hub's client asks for; `copied`: the Hub is to copy it from the base's repo;
    `tallies`: what the proof counted, by key.
    """

    name: str
    sha256: str
    size: int
    sample: bytes
    copied: bool
    tallies: dict[str, Json]

    @property
    def proven(self) -> bool:
        """Whether no element is other than it must be."""
        return not any(tally["wrong"] for tally in self.tallies.values())

    def to_json(self) -> Json:
        """As it is written down."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "size": self.size,
            "sample": base64.b64encode(self.sample).decode(),
            "copied": self.copied,
            "tallies": self.tallies,
        }

    @classmethod
    def of(cls, json: Any) -> Finished:
        """What was written down. Raises ValueError for anything else."""
        try:
            known = {name: json[name] for name in ("name", "sha256", "size", "copied", "tallies")}
            made = cls(sample=base64.b64decode(json["sample"], validate=True), **known)
            for tally in made.tallies.values():
                _fields_of(tally)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"no finished weight file: {error}") from error
        kinds = (made.name, str), (made.sha256, str), (made.size, int), (made.copied, bool)
        if not all(type(value) is kind for value, kind in kinds) or len(made.sha256) != 64:
            raise ValueError("no finished weight file")
        return made


def tally_json(tally: Tally) -> Json:
    """Everything of a tally but what it was held to; floats as they are, so that sums over them are the same later."""
    json: Json = {name: getattr(tally, name) for name in (*COUNTED, *SUMMED)}
    return json | {"stored": tally.stored, "example": tally.example, "keeps": sorted(tally.keeps)}


def tally_of(key: str, wanted: Expected, json: Json) -> Tally:
    """The tally again. Raises ValueError for anything else."""
    return Tally(key=key, wanted=wanted, **_fields_of(json))


def _fields_of(json: Json) -> Json:
    counts = {name: json[name] for name in (*COUNTED, *SUMMED)}
    if not all(type(value) in (int, float) for value in counts.values()):
        raise ValueError("no tally")
    return {
        **counts,
        "stored": str(json["stored"]),
        "example": str(json["example"]),
        "keeps": set(map(str, json["keeps"])),
    }


class Journal:
    """The finished weight files of one merge to one target. Whatever cannot be read counts as nothing."""

    def __init__(self, path: Path, fingerprint: str, target: str) -> None:
        self._path = path
        self._head = {"format": FORMAT, "fingerprint": fingerprint, "target": target}
        self._finished: dict[str, Finished] = {}
        with suppress(OSError, ValueError, TypeError, AttributeError):
            json = strict_json.loads(path.read_bytes())
            if {name: json.get(name) for name in self._head} == self._head:
                self._finished = {each.name: each for each in map(Finished.of, json["files"])}

    @property
    def finished(self) -> Mapping[str, Finished]:
        """By name."""
        return self._finished

    def note(self, finished: Finished) -> None:
        """Write it down. Raises OSError."""
        self._finished[finished.name] = finished
        self._write()

    def forget(self, names: frozenset[str]) -> None:
        """They have to be made again."""
        self._finished = {name: each for name, each in self._finished.items() if name not in names}
        self._write()

    def drop(self) -> None:
        """The merge is published."""
        self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        files = [each.to_json() for each in self._finished.values()]
        fresh = self._path.with_name(f"{self._path.name}.tmp")
        fresh.write_text(json.dumps({**self._head, "files": files}, allow_nan=False))
        fresh.replace(self._path)
