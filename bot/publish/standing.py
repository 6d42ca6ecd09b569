"""What the target already has: the same merge on main, or in a pull request of ours."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from bot.publish.parcel import REPORT
from bot.publish.words import mark_in, trailer_in
from bot.records import Json, Publication

if TYPE_CHECKING:
    from bot.hub import Blob, Hub, Pull, Target


def already(fingerprint: str, target: str, hub: Hub) -> Publication | None:
    """`unchanged`, where this merge is published, proposed, or was declined by the target's owner; else None.

    Cheap enough to ask before any download, and asked again just before the commit.
    """
    found = hub.target(target)
    if found is None:
        return None
    return _on_main(fingerprint, found, hub) or _in_a_pull(fingerprint, found, hub)


def _on_main(fingerprint: str, target: Target, hub: Hub) -> Publication | None:
    if REPORT not in target.files or not (_reported(fingerprint, target, hub) or _trailed(fingerprint, target, hub)):
        return None
    return Publication(
        status="unchanged",
        how="push",
        repo=target.repo,
        revision=target.sha,
        url=f"{hub.address}/{target.repo}/tree/{target.sha}",
        why="The target already holds this merge.",
    )


def _reported(fingerprint: str, target: Target, hub: Hub) -> bool:
    """Whether main's own report is of this merge and its weights are still the ones it names."""
    text = hub.target_text(target.repo, target.sha, REPORT)
    try:
        document: Json = json.loads(text or b"{}")
        claimed, files = document["merge"]["fingerprint"], dict(document["subject"]["files"])
    except (ValueError, KeyError, TypeError):
        return False
    large = {name: blob.sha256 for name, blob in target.files.items() if blob.sha256 and name in files}
    whole = files.keys() <= target.files.keys() and all(files[name] == sha256 for name, sha256 in large.items())
    return bool(claimed == fingerprint and document.get("verdict") == "verified" and whole)


def _trailed(fingerprint: str, target: Target, hub: Hub) -> bool:
    """Whether our newest commit on main is of this merge, and no large file changed since."""
    for sha, message in hub.commit_messages(target.repo):
        found = trailer_in(message)
        if found is not None:
            return found == fingerprint and _large(hub.target_files(target.repo, sha)) == _large(target.files)
    return False


def _large(files: dict[str, Blob]) -> dict[str, str | None]:
    return {name: blob.sha256 for name, blob in files.items() if blob.sha256}


def _in_a_pull(fingerprint: str, target: Target, hub: Hub) -> Publication | None:
    if not hub.signed_in(hub.outputs):
        return None
    for pull in hub.my_pulls(target.repo):
        if mark_in(pull.text) != fingerprint or pull.status not in ("open", "closed"):
            continue  # a draft is work that was cut off; a merged one counts by what main holds now
        declined = f"Pull request {pull.num} with this merge was closed; it is not opened again (--force would)."
        return Publication(
            status="unchanged",
            how="pr",
            repo=target.repo,
            revision=hub.head(target.repo, pull.ref) if pull.status == "open" else None,
            pr_url=pull.url,
            pr_number=pull.num,
            url=pull.url,
            why=declined if pull.status == "closed" else f"Pull request {pull.num} already proposes this merge.",
        )
    return None


def pull_to_update(fingerprint: str, target: Target, hub: Hub) -> Pull | None:
    """The unfinished pull request of ours that this merge belongs in: one with its mark, else the newest of ours."""
    ours = [p for p in hub.my_pulls(target.repo) if p.status in ("open", "draft") and mark_in(p.text)]
    same = [pull for pull in ours if mark_in(pull.text) == fingerprint]
    return next(iter(same or ours), None)
