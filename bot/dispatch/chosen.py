"""Which backend runs the merges, and what is asked of it: every option once, as the command line has them. To add a backend, add its
line to BACKENDS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bot.dispatch.backends import Backend
from bot.options import option

if TYPE_CHECKING:
    from bot.hub import Hub


@dataclass(frozen=True, kw_only=True)
class BackendOptions:
    """Where runs run."""

    backend: Literal["local"] = option("Where merges run: on this machine, one at a time.", "local")


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a backend may need besides its options. `environment`: where its token stands."""

    state: Path
    hub: Hub
    environment: Mapping[str, str]


def _local(options: BackendOptions, around: Surroundings) -> Backend:
    from bot.dispatch.backends.local import LocalBackend

    return LocalBackend(around.state.with_name(f"{around.state.name}.runs"))


BACKENDS: dict[str, Callable[[BackendOptions, Surroundings], Backend]] = {"local": _local}


def backend_of(options: BackendOptions, around: Surroundings) -> Backend:
    """The backend, checked: raises Usage, Refused or Outside where a request could not be sent."""
    backend = BACKENDS[options.backend](options, around)
    backend.check()
    return backend


def state_file(environment: Mapping[str, str]) -> Path:
    """Where the state lies if nobody says: XDG's folder for what outlives a restart (specifications.freedesktop.org/basedir)."""
    home = environment.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(home) / "adapter-merge" / "bot.db"
