"""How openapi.json and events.json came to be: `npm install @octokit/openapi @octokit/webhooks-examples`, then

python -m tests.gh.trim node_modules/@octokit

Both packages are MIT (see LICENSE-octokit). Prose is dropped; schemas, limits and GitHub's own example answers stay.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REPO = "/repos/{owner}/{repo}"
USED = {
    f"{REPO}/check-runs": ("post",),
    f"{REPO}/check-runs/{{check_run_id}}": ("patch",),
    f"{REPO}/issues/{{issue_number}}/comments": ("get", "post"),
    f"{REPO}/issues/comments/{{comment_id}}": ("patch",),
    f"{REPO}/releases": ("post",),
    f"{REPO}/releases/tags/{{tag}}": ("get",),
    f"{REPO}/releases/{{release_id}}": ("patch",),
    f"{REPO}/releases/{{release_id}}/assets": ("get", "post"),
    f"{REPO}/releases/assets/{{asset_id}}": ("delete",),
    f"{REPO}/statuses/{{sha}}": ("post",),
    REPO: ("get",),
    f"{REPO}/contents/{{path}}": ("get",),
    f"{REPO}/dispatches": ("post",),
    f"{REPO}/actions/workflows/{{workflow_id}}": ("get",),
    f"{REPO}/actions/workflows/{{workflow_id}}/dispatches": ("post",),
    f"{REPO}/actions/workflows/{{workflow_id}}/runs": ("get",),
    f"{REPO}/actions/runs/{{run_id}}": ("get",),
    f"{REPO}/actions/runs/{{run_id}}/jobs": ("get",),
    f"{REPO}/actions/runs/{{run_id}}/artifacts": ("get",),
    f"{REPO}/actions/artifacts/{{artifact_id}}/{{archive_format}}": ("get",),
    f"{REPO}/actions/jobs/{{job_id}}/logs": ("get",),
}
PROSE = {"description", "summary", "externalDocs", "tags", "x-github", "servers", "deprecated"}
EVENTS = {"push": 4, "pull_request": 12, "release": 1, "workflow_dispatch": 1, "repository_dispatch": 1}


def main(octokit: Path) -> None:
    """Write both files."""
    whole = json.loads((octokit / "openapi/generated/api.github.com.json").read_bytes())
    _write("openapi.json", trim(whole, json.loads((octokit / "openapi/package.json").read_bytes())["version"]))
    events = json.loads((octokit / "webhooks-examples/api.github.com/index.json").read_bytes())
    chosen = {event["name"]: event["examples"] for event in events if event["name"] in EVENTS}
    _write("events.json", {name: found[: EVENTS[name]] for name, found in chosen.items()})


def trim(whole: dict[str, Any], version: str) -> dict[str, Any]:
    """The used paths and whatever they refer to."""
    paths = {path: {verb: whole["paths"][path][verb] for verb in verbs} for path, verbs in USED.items()}
    components: dict[str, dict[str, Any]] = {}
    waiting = sorted(_refs(paths))
    while waiting:
        _, _, kind, name = waiting.pop().split("/")
        if name in components.setdefault(kind, {}):
            continue
        found = whole["components"][kind][name]
        components[kind][name] = found
        waiting += sorted(_refs(found))
    # A time only by its schema: its own words say that it takes a range (>=2026-01-01T00:00:00Z), which is what we send.
    components["parameters"]["created"]["schema"].pop("format")
    info = {"title": "GitHub REST API, trimmed", "version": version, "license": whole["info"]["license"]}
    return {"openapi": whole["openapi"], "info": info, "paths": _plain(paths), "components": _plain(components)}


def _refs(found: Any) -> set[str]:
    if isinstance(found, list):
        return set().union(*map(_refs, found)) if found else set()
    if not isinstance(found, dict):
        return set()
    own = {found["$ref"]} if isinstance(found.get("$ref"), str) else set()
    return own.union(*(_refs(value) for value in found.values())) if found else own


def _plain(found: Any, *, names: bool = False) -> Any:
    """Without prose. `names`: the keys are names that somebody chose (a property may well be called description)."""
    if isinstance(found, list):
        return [_plain(item) for item in found]
    if not isinstance(found, dict):
        return found
    kept = {key: value for key, value in found.items() if names or key not in PROSE}
    if not names and "description" in found and ("content" in found or "headers" in found):
        kept["description"] = ""  # which a response must have
    if not names and found.get("nullable") is True and None not in found.get("enum", [None]):
        kept["enum"] = [*found["enum"], None]  # a validator takes the list by its word, GitHub does not
    if not names and set(found) == {"description"}:
        kept["description"] = ""
    inside = ("properties", "patternProperties", "schemas", "examples", "responses", "parameters", "headers", "paths")
    return {
        key: value
        if key in ("example", "value", "enum", "required")
        else _plain(value, names=not names and key in inside)
        for key, value in kept.items()
    }


def _write(name: str, found: Any) -> None:
    (HERE / name).write_text(json.dumps(found, indent=None, separators=(",", ":"), ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
