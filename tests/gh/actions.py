"""GitHub Actions for tests, a part of the fake GitHub: a workflow that is started, its runs, and what they leave."""

from __future__ import annotations

import base64
import io
import json
import re
import time
import zipfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml

WORKFLOWS = Path(__file__).parents[2] / ".github" / "workflows"
EVENT_TYPES = ("workflow_dispatch", "repository_dispatch")


@dataclass
class FakeRun:
    """One run. `created`: seconds since the epoch, by the fake's clock. `shown`: when it is listed, by ours."""

    id: int
    event: str
    title: str
    inputs: dict[str, Any]
    created: float
    shown: float
    status: str = "queued"
    conclusion: str | None = None
    artifacts: dict[str, bytes] = field(default_factory=dict)
    log: str = ""
    log_lasts: bool = True


@dataclass
class FakeActions:
    """`texts`: a workflow's file by ref. `details`: "given" (of each run that is started), "none", or "unknown" (a server that does
    not know the parameter). `hidden`: seconds that a new run is not listed for. `redirected`: the repo's new name. `refused`:
    answers for the next requests, as (verb, pattern of a path, status, headers, message). `dropped`: answers to lose, after the
    work is done. `slow`: seconds before each answer that starts something."""

    name: str = "merge.yml"
    state: str = "active"
    archived: bool = False
    texts: dict[str, str] = field(default_factory=dict)
    details: str = "given"
    hidden: float = 0.0
    renamed: str = ""
    dropped: int = 0
    slow: float = 0.0
    refused: list[tuple[str, str, int, dict[str, str], str]] = field(default_factory=list)
    runs: list[FakeRun] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.texts.setdefault("main", (WORKFLOWS / "merge.yml").read_text())

    def document(self, ref: str = "main") -> dict[str, Any]:
        return dict(yaml.load(self.texts[ref], Loader=yaml.BaseLoader))

    def start(self, id: int, event: str, inputs: dict[str, Any], payload: dict[str, Any], skew: float) -> FakeRun:
        """A new run of the workflow."""
        title = run_name(self.document()["run-name"], {"inputs": inputs, "client_payload": payload})
        now = time.time()
        run = FakeRun(
            id=id, event=event, title=title, inputs=inputs or payload, created=now + skew, shown=now + self.hidden
        )
        self.runs.append(run)
        return run

    def finish(
        self, run: FakeRun, outcome: dict[str, str] | None = None, *, conclusion: str = "success", log: str = ""
    ) -> None:
        """The run's end, with the outcome that the workflow uploads."""
        run.status, run.conclusion, run.log = "completed", conclusion, log
        if outcome is not None:
            name = f"adapter-merge-outcome-{run.title.split()[-1]}"
            run.artifacts[name] = packed({"outcome.json": json.dumps(outcome).encode()})


def packed(files: dict[str, bytes]) -> bytes:
    """A zip."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return whole.getvalue()


def run_name(template: str, context: dict[str, dict[str, Any]]) -> str:
    """A run-name's text: `${{ a || b || 'text' }}`, each the first that is not empty."""

    def value(expression: re.Match[str]) -> str:
        for term in re.split(r"\s*\|\|\s*", expression[1].strip()):
            if term.startswith("'"):
                return term.strip("'")
            owner, _, name = term.removeprefix("github.event.").partition(".")
            if answer := context.get(owner, {}).get(name):
                return str(answer)
        return ""

    return re.sub(r"\$\{\{(.*?)\}\}", value, template).strip()


# --- answers ------------------------------------------------------------------------------------------------------


def _workflow(self: Any, request: Any, body: Any, name: str) -> Any:
    actions: FakeActions = self.actions
    if unquote(name) != actions.name:
        return self.refused(404, "Not Found")
    made = self.example("/actions/workflows/{workflow_id}", "get", 200)
    made |= {"name": "merge", "path": f".github/workflows/{actions.name}", "state": actions.state}
    return self.json(made | {"url": self.address(request, f"/actions/workflows/{actions.name}")})


def _dispatch(self: Any, request: Any, body: Any, name: str) -> Any:
    actions: FakeActions = self.actions
    if unquote(name) != actions.name:
        return self.refused(404, "Not Found")
    if "return_run_details" in body and actions.details == "unknown":
        return self.refused(422, 'Invalid request.\n\n"return_run_details" is not a permitted key.')
    if body["ref"] not in actions.texts:
        return self.refused(422, f"No ref found for: {body['ref']}")
    if actions.state != "active":
        return self.refused(422, "Cannot trigger a 'workflow_dispatch' on a disabled workflow")
    on = actions.document(body["ref"])["on"]
    if not isinstance(on, dict) or "workflow_dispatch" not in on:
        return self.refused(422, "Workflow does not have 'workflow_dispatch' trigger")
    known = on["workflow_dispatch"]["inputs"]
    if unknown := [key for key in body["inputs"] if key not in known]:
        return self.refused(422, f"Unexpected inputs provided: {json.dumps(unknown)}")
    for key, asked in known.items():
        if asked.get("required") == "true" and not body["inputs"].get(key):
            return self.refused(422, f"Required input '{key}' not provided")
    run = actions.start(self.number(), "workflow_dispatch", body["inputs"], {}, self.skew)
    if not (body.get("return_run_details") and actions.details == "given"):
        return self.empty()
    address = self.address(request, f"/actions/runs/{run.id}")
    return self.json({"workflow_run_id": run.id, "run_url": address, "html_url": _page(run)})


def _event(self: Any, request: Any, body: Any) -> Any:
    actions: FakeActions = self.actions
    types = actions.document()["on"].get("repository_dispatch", {}).get("types", [])
    if body["event_type"] in types and actions.state == "active":
        actions.start(self.number(), "repository_dispatch", {}, body["client_payload"], self.skew)
    return self.empty()  # also where nobody listens


def _runs(self: Any, request: Any, body: Any, name: str) -> Any:
    actions: FakeActions = self.actions
    query = request.query_params
    since = datetime.strptime(query["created"], ">=%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
    shown = [
        run for run in reversed(actions.runs)
        if run.event == query["event"] and run.created >= since and run.shown <= time.time()
    ]  # fmt: skip
    size, page = int(query.get("per_page", 30)), int(query.get("page", 1))
    part = shown[(page - 1) * size : page * size]
    return self.json({"total_count": len(shown), "workflow_runs": [_as_json(self, request, run) for run in part]})


def _as_json(self: Any, request: Any, run: FakeRun) -> dict[str, Any]:
    made = self.example("/actions/runs/{run_id}", "get", 200)
    address = self.address(request, f"/actions/runs/{run.id}")
    return made | {
        "id": run.id, "event": run.event, "display_title": run.title, "name": "merge", "status": run.status,
        "conclusion": run.conclusion, "url": address, "html_url": _page(run), "artifacts_url": f"{address}/artifacts",
        "jobs_url": f"{address}/jobs", "created_at": datetime.fromtimestamp(run.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }  # fmt: skip


def _page(run: FakeRun) -> str:
    return f"https://github.com/octo/adapters/actions/runs/{run.id}"


def _one(self: Any, number: str) -> FakeRun | None:
    return next((run for run in self.actions.runs if run.id == int(number)), None)


def _run(self: Any, request: Any, body: Any, number: str) -> Any:
    run = _one(self, number)
    return self.refused(404, "Not Found") if run is None else self.json(_as_json(self, request, run))


def _artifacts(self: Any, request: Any, body: Any, number: str) -> Any:
    run = _one(self, number)
    assert run is not None
    listed = []
    for index, (name, content) in enumerate(run.artifacts.items()):
        made = self.example("/actions/runs/{run_id}/artifacts", "get", 200)["artifacts"][0]
        address = self.address(request, f"/actions/artifacts/{run.id * 100 + index}")
        listed.append(made | {
            "id": run.id * 100 + index, "name": name, "size_in_bytes": len(content), "url": address, "expired": False,
            "archive_download_url": f"{address}/zip",
        })  # fmt: skip
    return self.json({"total_count": len(listed), "artifacts": listed})


def _zip(self: Any, request: Any, body: Any, number: str) -> Any:
    run = _one(self, str(int(number) // 100))
    assert run is not None
    return self.elsewhere(list(run.artifacts.values())[int(number) % 100])


def _jobs(self: Any, request: Any, body: Any, number: str) -> Any:
    run = _one(self, number)
    assert run is not None
    if run.conclusion == "startup_failure":
        return self.json({"total_count": 0, "jobs": []})
    made = self.example("/actions/runs/{run_id}/jobs", "get", 200)["jobs"][0]
    made |= {"id": run.id, "url": self.address(request, f"/actions/jobs/{run.id}"), "conclusion": run.conclusion}
    made["created_at"] = made["started_at"]  # which GitHub's own example lacks
    return self.json({"total_count": 1, "jobs": [made | {"status": run.status}]})


def _log(self: Any, request: Any, body: Any, number: str) -> Any:
    run = _one(self, number)
    assert run is not None
    if run.status != "completed" or not run.log_lasts:
        return self.refused(404, "Not Found")
    stamped = "".join(f"2026-11-29T20:00:00.1234567Z {line}\n" for line in run.log.splitlines())
    return self.elsewhere(stamped.encode())


def _repo(self: Any, request: Any, body: Any) -> Any:
    made = self.example("", "get", 200)
    for key in ("source", "parent", "template_repository"):  # whose examples break GitHub's own description
        made.pop(key, None)
    made |= {
        "language": None,
        "archived": self.actions.archived,
        "default_branch": "main",
        "url": self.address(request, ""),
    }
    return self.json(made | {"full_name": "/".join(request.url.path.split("/")[2:4])})


def _content(self: Any, request: Any, body: Any, path: str) -> Any:
    ref = request.query_params.get("ref", "main")
    text = self.actions.texts.get(ref)
    if text is None:
        return self.refused(404, f"No commit found for the ref {ref}")
    content = base64.b64encode(text.encode()).decode()
    return self.json({
        "type": "file", "encoding": "base64", "size": len(text), "name": self.actions.name, "path": unquote(path), "content": content,
        "sha": "3d21ec53a331a6f037a91c368710b99387d012c1", "url": self.address(request, f"/contents/{path}"), "git_url": None,
        "html_url": None,
        "download_url": None, "_links": {"git": None, "html": None, "self": self.address(request, f"/contents/{path}")},
    })  # fmt: skip


STARTS = r"/dispatches|/actions/workflows/[^/]+/dispatches"
ACTIONS_ROUTES: tuple[tuple[str, str, Any], ...] = (
    ("GET", r"", _repo),
    ("GET", r"/contents/(.+)", _content),
    ("POST", r"/dispatches", _event),
    ("GET", r"/actions/workflows/([^/]+)", _workflow),
    ("POST", r"/actions/workflows/([^/]+)/dispatches", _dispatch),
    ("GET", r"/actions/workflows/([^/]+)/runs", _runs),
    ("GET", r"/actions/runs/(\d+)", _run),
    ("GET", r"/actions/runs/(\d+)/artifacts", _artifacts),
    ("GET", r"/actions/runs/(\d+)/jobs", _jobs),
    ("GET", r"/actions/artifacts/(\d+)/zip", _zip),
    ("GET", r"/actions/jobs/(\d+)/logs", _log),
)
