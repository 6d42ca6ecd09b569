"""Writing files: which way each goes, and the commit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.routing import BaseRoute

from .. import access, commits, discussions, repos, trees
from ..errors import HttpError
from ..gitattributes import LargeFiles, ignores
from ..notices import tell_discussion, tell_refs
from ..records import Commit, Entry, Repo
from .call import Answer, Call, route, streaming_route

PREUPLOAD_LIMIT = 1000


def _target(call: Call, what: str) -> tuple[Repo, str]:
    """The repo and the ref a commit would start from; a pull request needs no write access."""
    repo = call.repo()
    revision = call.params["rev"]
    ref = repos.branch_ref(call.site.db, repo, revision)
    if call.query.get("create_pr") or ref.startswith("refs/pr/"):
        discussions.require_on(call.site.db, repo)
    if call.query.get("create_pr"):
        access.require_discussion_write(call.site.db, call.viewer, repo, "open a pull request")
    elif ref.startswith("refs/pr/"):
        access.require_discussion_write(call.site.db, call.viewer, repo, what)
        pull = discussions.get(call.site.db.read, repo, int(ref.rpartition("/")[2]))
        if pull.author != call.viewer.user:
            access.require_write(call.site.db, call.viewer, repo, what)
        if pull.status in ("merged", "closed"):
            raise HttpError(403, f"This pull request is {pull.status}: nothing can be committed to it")
    else:
        access.require_write(call.site.db, call.viewer, repo, what)
    return repo, ref


def preupload(call: Call) -> Answer:
    """POST …/preupload/{rev}: regular or large, ignored or not, and what is there now."""
    repo, ref = _target(call, "upload to it")
    head = repos.resolve(call.site.db, repo, ref)
    present = trees.entries(call.site.db.read, head.tree)
    body = call.json
    files = body.get("files", [])
    if len(files) > PREUPLOAD_LIMIT:
        raise HttpError(413, f"At most {PREUPLOAD_LIMIT} files a request")
    rule = LargeFiles(_text(call, present.get(".gitattributes")))
    gitignore = body.get("gitIgnore")
    gitignore = _text(call, present.get(".gitignore")) if gitignore is None else str(gitignore)
    return {"files": [_mode(file, rule, gitignore, present) for file in files], "commitOid": head.oid}


def _mode(file: dict[str, Any], rule: LargeFiles, gitignore: str, present: dict[str, Entry]) -> dict[str, Any]:
    path = str(file.get("path"))
    answer: dict[str, Any] = {
        "path": path,
        "uploadMode": "lfs" if rule.take(path, int(file.get("size", 0))) else "regular",
        "shouldIgnore": ignores(gitignore, path),
    }
    if path in present:
        # What the client compares with its own file, to send only what changed.
        answer["oid"] = present[path].sha256 if present[path].lfs else present[path].blob
    return answer


def _text(call: Call, entry: Entry | None) -> str:
    return "" if entry is None else call.site.objects.read(entry.sha256).decode("utf-8", "replace")


async def commit(call: Call, request: Request) -> Answer:
    """POST …/commit/{rev}: the body goes to disk first, then line by line into the store."""
    await run_in_threadpool(_target, call, "commit to it")
    body = call.site.objects.temporary()
    try:
        with body.open("wb") as file:
            async for chunk in request.stream():
                file.write(chunk)
        return await run_in_threadpool(_commit, call, body)
    finally:
        body.unlink(missing_ok=True)


def _commit(call: Call, body: Path) -> Answer:
    repo, ref = _target(call, "commit to it")
    with body.open("rb") as lines:
        proposal = commits.parse(call.site, repo, lines)
    access.require_quota(call.site.db, repo, 0)
    call.site.call_before_commit(repo.name, call.params["rev"])
    pull = None
    with call.site.db.write() as rows:
        old = repos.head(rows, repo.id, ref)
        target = ref
        if call.query.get("create_pr"):
            pull = discussions.start(
                rows, repo, title=proposal.title[:200].ljust(3, "."), description=proposal.message, author=call.user,
                status="open", base=old,
            )  # fmt: skip
            target = discussions.pr_ref(pull.num)
        made = commits.land(rows, repo, ref, target, proposal, call.user)
        if target.startswith("refs/pr/"):
            discussions.add_commit_event(rows, repo, int(target.rpartition("/")[2]), made)
    moved = commits.RefUpdate(ref=target, old=None if pull else old, new=made.oid)
    tell_refs(call.site, call.origin, repo, [moved])
    if pull is not None:
        tell_discussion(call.site, call.origin, repo, pull, "create")
    return _committed(call, repo, made, None if pull is None else pull.num)


def _committed(call: Call, repo: Repo, made: Commit, num: int | None) -> dict[str, Any]:
    web = f"{call.public}/{repo.web_path}"
    answer: dict[str, Any] = {
        "success": True,
        "commitOid": made.oid,
        "commitUrl": f"{web}/commit/{made.oid}",
        "hookOutput": "",
    }
    if num is not None:
        answer["pullRequestUrl"] = f"{web}/discussions/{num}"
    return answer


ROUTES: list[BaseRoute] = [
    route("/api/{kind:kind}/{repo:repo}/preupload/{rev}", preupload, "POST"),
    streaming_route("/api/{kind:kind}/{repo:repo}/commit/{rev}", commit, "POST"),
]
