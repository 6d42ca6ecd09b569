"""A Hub webhook's Job: for each tag that is new on the adapter, one repository_dispatch to the GitHub repository RELAY_TO.

Environment: WEBHOOK_PAYLOAD (from the Hub), RELAY_TO (owner/name), GITHUB_TOKEN (may write that repository's contents).
"""

import json
import os
import urllib.request
from typing import Any

TAG = "refs/tags/"


def dispatches(payload: dict[str, Any]) -> list[dict[str, Any]]:
    """The bodies to send. A payload also comes for commits, pull requests and deleted tags: for those, none."""
    repo = payload.get("repo") or {}
    if repo.get("type") != "model" or not str((payload.get("event") or {}).get("scope", "")).startswith("repo"):
        return []
    new = [
        str(updated["ref"]).removeprefix(TAG)
        for updated in payload.get("updatedRefs") or []
        if str(updated.get("ref", "")).startswith(TAG) and not updated.get("oldSha") and updated.get("newSha")
    ]
    return [{"event_type": "adapter-tag", "client_payload": {"adapter": repo["name"], "revision": tag}} for tag in new]


def send(body: dict[str, Any], to: str, token: str) -> None:
    """GitHub answers 204, or this raises."""
    request = urllib.request.Request(
        f"https://api.github.com/repos/{to}/dispatches",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {token}", "Accept": "application/vnd.github+json"},
    )
    urllib.request.urlopen(request, timeout=30).close()


if __name__ == "__main__":
    for body in dispatches(json.loads(os.environ["WEBHOOK_PAYLOAD"])):
        send(body, os.environ["RELAY_TO"], os.environ["GITHUB_TOKEN"])
        print("sent", body["client_payload"])
