"""A subject under examination, with everything that is read of it read once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar, cast

from bot.checks.reading.checkpoint import Checkpoint, SlabCache, quantization_of, read_checkpoint, read_input
from bot.checks.reading.folders import list_files, read_json
from bot.checks.subject import Subject
from bot.errors import Refused
from bot.events import Emit
from bot.records import Json
from bot.untrusted import strict_json

T = TypeVar("T")


class Case:
    """Lazy, memoised readings; the checks share one Case and change nothing in it.

    `slabs`: what was dequantised of base and result. What the rooms above make of a case is asked for by `once`.
    """

    def __init__(self, subject: Subject, emit: Emit) -> None:
        self.subject = subject
        self.emit = emit
        self.slabs = SlabCache()
        self._hashed: dict[str, str] = {}
        self.base_hashed: dict[str, str] = {}  # those of `unhashed` that were read whole since
        self.weights_gone = False  # they were here one file at a time, and are not any more
        self._results: dict[Callable[[Case], Any], Any] = {}

    @cached_property
    def files(self) -> tuple[str, ...]:
        """Every file of the merged folder, as posix paths, sorted."""
        return list_files(self.subject.folder)

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
        if self.subject.quantize == "none" or self.unread is not None:
            return self.merged, None
        from bot.checks.reading.quantised import as_model

        try:
            return as_model(self.merged, self.merged_config or {}, "merged model", self.slabs), None
        except Refused as refused:
            return self.merged, refused.what

    @property
    def base(self) -> Checkpoint:
        """The base's weights, as the merge took them. Raises Refused when they cannot be read."""
        return self._base[0]

    @property
    def unread(self) -> str | None:
        """Why a base whose own form the result keeps is not read in that form; then base and result are taken as they are
        stored, and the form's tensors are so many bytes. None where it is read."""
        return self._base[1]

    @cached_property
    def _base(self) -> tuple[Checkpoint, str | None]:
        stored = read_input(self.subject.base, "base")
        if quantization_of(self.base_config) is None and self.subject.base_weights != "simulate-nf4":
            return stored, None
        from bot.checks.reading.quantised import as_model, as_stored

        if self.subject.as_stored:
            return as_stored(stored, self.base_config), "Its weight files come by one at a time."

        if self.subject.base_weights == "simulate-nf4":
            from bot.checks.reading.simulated import as_simulated

            return as_simulated(stored, self.subject, self.slabs), None
        try:
            return as_model(stored, self.base_config, "base", self.slabs), None
        except Refused as refused:
            if self.subject.quantize != "same":
                raise
            return as_stored(stored, self.base_config), refused.what

    @cached_property
    def base_config(self) -> Json:
        """The base's config.json. Raises Refused when it cannot be read."""
        config = read_json(self.subject.base / "config.json")
        if config is None:
            raise Refused("The base has no readable config.json.", remedy="Name a transformers model as the base.")
        return config

    @cached_property
    def merged_config(self) -> Json | None:
        """The merged config.json, or None where there is none that can be read."""
        config = read_json(self.subject.folder / "config.json")
        return None if strict_json.misfit("config.json", config) else config

    @property
    def hashed(self) -> dict[str, str]:
        """{name: sha256} of the merged files that somebody has read whole: while they were written, or compared."""
        return self.subject.hashed | self._hashed

    def note_sha256(self, name: str, sha256: str) -> None:
        """All that was read of this file has this hash."""
        self._hashed[name] = sha256

    def once(self, read: Callable[[Case], T]) -> T:
        """What `read` makes of the case, made when it is first asked for."""
        if read not in self._results:
            self._results[read] = read(self)
        return cast(T, self._results[read])

    def know(self, read: Callable[[Case], T], result: T) -> None:
        """What `read` would make of the case, made elsewhere: of weight files that were here one at a time."""
        self._results[read] = result

    def known(self, read: Callable[[Case], T]) -> T | None:
        """The same where it was made already, else None; asking does not make it."""
        return cast("T | None", self._results.get(read))
