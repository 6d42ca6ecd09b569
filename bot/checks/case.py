"""A subject under examination, with everything that is read of it read once."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from bot.checks.reading.checkpoint import Checkpoint, quantization_of, read_checkpoint, read_input
from bot.checks.subject import Subject
from bot.errors import Refused
from bot.events import Emit
from bot.records import Json
from bot.untrusted import strict_json

if TYPE_CHECKING:
    from bot.checks.behaviour.answers import Trial
    from bot.checks.elementwise.quantised_result import Written
    from bot.checks.elementwise.tally import Swept
    from bot.checks.expected.claims import Claims

BOOKKEEPING = {".git", ".cache"}  # a clone's and a download's own folders; they are never uploaded


class Case:
    """Lazy, memoised readings; the checks share one Case and change nothing in it."""

    def __init__(self, subject: Subject, emit: Emit) -> None:
        self.subject = subject
        self.emit = emit

    @cached_property
    def files(self) -> tuple[str, ...]:
        """Every file of the merged folder, as posix paths, sorted."""
        return list_files(self.subject.folder)

    @cached_property
    def sha256(self) -> dict[str, str]:
        """The sha256 of every file that the document vouches for."""
        from bot.checks.folder.hashing import sha256_of, vouched

        hashed = self.subject.hashed
        fresh = sha256_of(self.subject.folder, [name for name in vouched(self.files) if name not in hashed], self.emit)
        return {
            name: hashed.get(name) or fresh[name] for name in vouched(self.files) if name in hashed or name in fresh
        }

    @cached_property
    def merged(self) -> Checkpoint:
        """The merged folder's weights; faults in them are findings, not errors."""
        return read_checkpoint(self.subject.folder)

    @cached_property
    def model(self) -> Checkpoint:
        """The merged weights as the model's own: where they are stored quantised, every weight under its plain key."""
        return self._model[0]

    @property
    def unreadable(self) -> str | None:
        """Why the merged weights cannot be read in the form that config.json says."""
        return self._model[1]

    @cached_property
    def _model(self) -> tuple[Checkpoint, str | None]:
        if self.subject.quantize == "none":
            return self.merged, None
        from bot.checks.reading.quantised import as_model

        try:
            return as_model(self.merged, self.merged_config or {}, "merged model"), None
        except Refused as refused:
            return self.merged, refused.what

    @cached_property
    def base(self) -> Checkpoint:
        """The base's weights, as the merge took them. Raises Refused when they cannot be read."""
        found = read_input(self.subject.base, "base")
        if quantization_of(self.base_config) is None and self.subject.base_weights != "simulate-nf4":
            return found
        from bot.checks.reading.quantised import as_model

        if self.subject.base_weights == "simulate-nf4":
            from bot.checks.reading.simulated import as_simulated

            return as_simulated(found, self.subject)
        return as_model(found, self.base_config, "base")

    @cached_property
    def base_config(self) -> Json:
        """The base's config.json. Raises Refused when it cannot be read."""
        found = read_json(self.subject.base / "config.json")
        if found is None:
            raise Refused("The base has no readable config.json.", remedy="Name a transformers model as the base.")
        return found

    @cached_property
    def merged_config(self) -> Json | None:
        """The merged config.json, or None where there is none that can be read."""
        found = read_json(self.subject.folder / "config.json")
        return None if strict_json.misfit("config.json", found) else found

    @cached_property
    def claims(self) -> Claims:
        """What the adapter says should happen to which base key."""
        from bot.checks.expected.claims import read_claims

        return read_claims(self.subject, self.base, self.model.tensors.keys())

    @cached_property
    def swept(self) -> Swept:
        """Every byte of the merged weights, compared."""
        from bot.checks.elementwise.sweep import sweep

        return sweep(self.model, self.claims, self.subject.clamps, self.emit, foreign=not self.subject.ours)

    @cached_property
    def written(self) -> Written:
        """What is stored quantised, held to the exact merge."""
        from bot.checks.elementwise.quantised_result import written

        return written(self)

    @cached_property
    def trial(self) -> Trial:
        """The models, loaded and run in processes of their own."""
        from bot.checks.behaviour.trial import hold_trial

        return hold_trial(self)

    @property
    def noise_floor(self) -> Json | None:
        """What the trial measured, if it was held; asking does not hold it."""
        return self.trial.noise_floor if "trial" in self.__dict__ else None

    @property
    def beyond(self) -> str | None:
        """Why the models cannot be run here at all, if a trial was tried."""
        return self.trial.beyond if "trial" in self.__dict__ else None

    @property
    def comparison(self) -> list[Json] | None:
        """The ways to use a quantised base or result, if the trial was held; asking does not hold it."""
        rows = self.trial.comparison if "trial" in self.__dict__ else None
        return rows if isinstance(rows, list) else None


def list_files(folder: Path) -> tuple[str, ...]:
    """Files below a folder as sorted posix paths; links count as the files they lead to."""
    found = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if relative.parts[0] not in BOOKKEEPING and (path.is_file() or path.is_symlink()):
            found.append(relative.as_posix())
    return tuple(found)


def read_json(path: Path) -> Json | None:
    """A JSON object from a file, or None where there is no such thing."""
    try:
        found = strict_json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
