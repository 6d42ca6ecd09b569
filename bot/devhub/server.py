"""The local Hub as an object: a folder, two ports, a thread."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import uvicorn

from . import access, accounts, repos
from .database import Database
from .deliveries import Deliveries, WebhookDelivery
from .faults import Faults
from .jobs import Job, Jobs
from .objects import Objects
from .records import RepoKind, Scope, TokenRole
from .site import Site

DEFAULT_USER = "demo"
PART_SIZE = 16 << 20


class DevHub:
    """Serves a folder as a Hugging Face Hub: `with DevHub(folder) as hub: HfApi(hub.url, hub.token)`."""

    def __init__(
        self,
        folder: str | Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        cdn_port: int = 0,
        xet: bool = False,
        user: str = DEFAULT_USER,
        part_size: int = PART_SIZE,
        prefix: str = "",
        mirror: int = 0,
        tls: tuple[Path, Path] | None = None,
        public: str = "",
    ) -> None:
        """`prefix`: the path that the Hub lies under, as below a company's Artifactory. `mirror`: serve only what reading a
        model takes (info, revision, tree, resolve), and answer the rest with this status and a web page. `tls`: a certificate
        and its key, to serve https. `public`: the address that answers name as the Hub's own, where it is not this one."""
        self._folder = Path(folder)
        self._host, self._ports = host, (port, cdn_port)
        self._wants_xet = xet
        self._part_size = part_size
        self._public = public
        self._tls: dict[str, Any] = {"ssl_certfile": tls[0], "ssl_keyfile": tls[1]} if tls else {}
        self._prefix, self._mirror = prefix.rstrip("/"), mirror
        self.user = user
        self.faults = Faults()
        self._site: Site | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> DevHub:
        """Start serving in a background thread."""
        self.open()
        server = self._server
        assert server is not None
        self._thread = threading.Thread(target=server.run, args=(self._sockets,), name="devhub", daemon=True)
        self._thread.start()
        while not server.started and self._thread.is_alive():
            time.sleep(0.002)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; what was committed stays in the folder."""
        self.close()

    def serve_forever(self) -> None:
        """Serve in this thread until Ctrl-C or SIGTERM; call `open()` first to know the address."""
        self.open()
        assert self._server is not None
        try:
            self._server.run(self._sockets)
        except KeyboardInterrupt:
            pass
        finally:
            self.close()

    def open(self) -> DevHub:
        """Bind the ports, so that `url` and `token` can be printed before `serve_forever`."""
        if self._site is not None:
            return self
        self._sockets = [_listen(self._host, port) for port in self._ports]
        self._site = _open_site(self._folder, self.faults, xet=self._wants_xet, part_size=self._part_size)
        self._site.user = self.user
        self._site.cdn_port = self._sockets[1].getsockname()[1]
        self._site.prefix, self._site.mirror, self._site.public = self._prefix, self._mirror, self._public
        accounts.add_account(self._site.db, self.user)
        self._site.deliveries.start()
        # A Job finds this Hub as one on the Hub's own machines finds that: without being told.
        self._site.jobs.environment = self._settings()
        from .web.app import Front

        config = uvicorn.Config(
            Front(self._site), lifespan="off", access_log=False, log_config=None, server_header=False, date_header=False,
            log_level=logging.CRITICAL, timeout_graceful_shutdown=2, timeout_keep_alive=30, **self._tls,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        return self

    def close(self) -> None:
        """Stop serving; harmless when already stopped."""
        if self._server is not None:
            self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(timeout=10)
        for sock in self._sockets:
            sock.close()
        if self._site is not None:
            self._site.deliveries.stop()
            self._site.jobs.stop()
            self._site.db.close()
            if self._site.xet is not None:
                self._site.xet.close()
        self._site, self._server, self._thread, self._sockets = None, None, None, []

    @property
    def site(self) -> Site:
        """What is being served; only while it is."""
        if self._site is None:
            raise RuntimeError("The local Hub is not running: use it as a context manager, or call open() first.")
        return self._site

    @property
    def url(self) -> str:
        """The hub's address, for HF_ENDPOINT."""
        return self._address(0) + self._prefix

    @property
    def cdn_url(self) -> str:
        """The second origin, which serves and takes large files by signed URLs."""
        return self._address(1)

    def _address(self, which: int) -> str:
        if not self._sockets:
            raise RuntimeError("The local Hub has no address yet: use it as a context manager, or call open() first.")
        host = "127.0.0.1" if self._host in ("0.0.0.0", "") else self._host
        host = f"[{host}]" if ":" in host else host
        return f"http{'s' if self._tls else ''}://{host}:{self._sockets[which].getsockname()[1]}"

    @property
    def token(self) -> str:
        """The default user's write token, the same on every run of this folder."""
        path = self._folder / "token"
        if not path.exists():
            token = accounts.issue_token(self.site.db, self.user, role="write", scope=Scope(), name="default")
            # Readable by its owner only: it is the one token that is not kept as a digest.
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(token)
        return path.read_text()

    def environment(self, token: str | None = None) -> dict[str, str]:
        """What a client process needs in its environment to use this hub and nothing else."""
        return {"HF_TOKEN": token or self.token} | self._settings()

    def _settings(self) -> dict[str, str]:
        settings = {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_TELEMETRY": "1"}
        # The client decides alone between Xet and LFS; a hub without Xet can only say so here.
        return settings if self._wants_xet else settings | {"HF_HUB_DISABLE_XET": "1"}

    def models(self) -> list[str]:
        """The names of all model repos, the latest changed first."""
        return [repo.name for repo in repos.every(self.site.db, "model")]

    def create_user(self, name: str) -> str:
        """A user (its name, for create_token)."""
        accounts.add_account(self.site.db, name)
        return name

    def create_org(self, name: str, *, members: dict[str, str] | Sequence[str] = ()) -> str:
        """An organization; members by role (read, contributor, write, admin), or a list of writers."""
        accounts.add_account(self.site.db, name, is_org=True)
        roles = members if isinstance(members, dict) else dict.fromkeys(members, "write")
        for member, role in roles.items():
            accounts.add_member(self.site.db, name, member, role)
        return name

    def create_token(
        self,
        user: str,
        role: TokenRole = "write",
        repos: Sequence[str] | None = None,
        lifetime: float | None = None,
        **more: Any,
    ) -> str:
        """A token of the user; `repos` (names, or `owner/*`) restricts it, whatever its role. It lasts `lifetime` seconds.
        `more`: see records.Scope."""
        more |= {} if lifetime is None else {"until": time.time() + lifetime}
        scope = Scope(repos=None if repos is None else tuple(repos), **more)
        return accounts.issue_token(self.site.db, user, role=role, scope=scope)

    def revoke_token(self, token: str) -> None:
        """Make a token invalid."""
        accounts.revoke_token(self.site.db, token)

    def grant(self, repo: str, user: str, *, kind: RepoKind = "model") -> None:
        """Let a user past a repo's gate."""
        self._set_access(repo, user, kind, "accepted")

    def revoke(self, repo: str, user: str, *, kind: RepoKind = "model") -> None:
        """Shut a repo's gate before a user again."""
        self._set_access(repo, user, kind, "rejected")

    def request(self, repo: str, user: str, *, kind: RepoKind = "model") -> None:
        """Let a user's request to pass a repo's gate await its review."""
        self._set_access(repo, user, kind, "pending")

    def set_quota(self, owner: str, size: int) -> None:
        """Let an account keep so many bytes in private repos."""
        access.set_quota(self.site.db, owner, size)

    def _set_access(self, name: str, user: str, kind: RepoKind, status: str) -> None:
        repo = repos.find(self.site.db, kind, name)
        if repo is None:
            raise ValueError(f"There is no {kind} repo {name} on this hub.")
        access.set_access(self.site.db, repo, user, status)

    @property
    def requests(self) -> list[tuple[str, str, int]]:
        """(method, unquoted path, status) of every answered request, both origins, in order."""
        return self.site.requests

    @property
    def deliveries(self) -> list[WebhookDelivery]:
        """What was sent to webhooks, and what came of it."""
        return self.site.deliveries.log

    def drain_webhooks(self, timeout: float = 10.0) -> list[WebhookDelivery]:
        """Wait until every queued payload was sent, or was given up; all tries so far."""
        self.site.deliveries.drain(timeout)
        return self.deliveries

    def replay(self, delivery: str) -> None:
        """Send a past delivery once more, by its id: what the button on the webhook's page does."""
        self.site.deliveries.replay(delivery)

    def jobs(self, owner: str | None = None) -> list[Job]:
        """An account's Jobs, the newest first; the default user's if nobody is named."""
        return self.site.jobs.every(owner or self.user)

    def drain_jobs(self, timeout: float = 120.0) -> list[Job]:
        """Wait until all Jobs so far have ended; the default user's."""
        self.site.jobs.drain(timeout)
        return self.jobs()

    @property
    def before_commit(self) -> Callable[[str, str], None] | None:
        """Called with (repo, revision) after a commit's body was read and before it is applied: for racing commits."""
        return self.site.before_commit

    @before_commit.setter
    def before_commit(self, hook: Callable[[str, str], None] | None) -> None:
        self.site.before_commit = hook


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio sets TCP_NODELAY only where it is: else every answer waits 40 ms for an ACK.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    sock.listen(512)
    return sock


def _open_site(folder: Path, faults: Faults, *, xet: bool, part_size: int) -> Site:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    store = None
    if xet:
        from .xet import Xet

        store = Xet(folder)
    objects = Objects(folder)
    objects.sweep()
    db = Database(folder / "hub.sqlite")
    jobs = Jobs(db, folder / "jobs")
    return Site(
        folder=folder, db=db, objects=objects, faults=faults, deliveries=Deliveries(db, jobs), jobs=jobs, xet=store,
        part_size=part_size,
    )  # fmt: skip
