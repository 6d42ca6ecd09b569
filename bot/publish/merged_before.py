"""Which commits of an adapter a target has seen the merge of: on main, or in a pull request, whatever became of that.

Unlike `find_existing` this asks for no plan, and does not look whether the weights are still those: it says what needs no new
run, however the options or the base have changed since.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from bot.publish.messages import adapter_in
from bot.report_document import NAME as REPORT
from bot.report_document import Document

if TYPE_CHECKING:
    from bot.hub import Hub, Target

PULLS = 50  # of our account's, the newest ones; one call each, and only as long as something is still looked for
COMMITS = 20  # of a pull request


def merged_before(target: str, adapters: Collection[str], hub: Hub) -> set[str]:
    """Those of the shas in `adapters` that were merged into `target` by themselves (not with other adapters).

    Only pull requests of this token's account count; without a token, only main does.
    """
    there = hub.target(target)
    if there is None:
        return set()
    wanted = set(adapters)
    seen = {sha for _, message in hub.commit_messages(target) if (sha := adapter_in(message))}
    seen |= _of_the_report(there, hub)
    if not wanted <= seen:
        seen |= _in_pulls(target, wanted - seen, hub)
    return seen & wanted


def _of_the_report(target: Target, hub: Hub) -> set[str]:
    """A merged pull request need not leave its commit's message in the history of main; the report is there all the same."""
    text = hub.target_text(target.repo, target.sha, REPORT) if REPORT in target.files else None
    try:
        document = Document.read(text or b"{}")
    except ValueError:
        return set()
    adapters = document.inputs.adapters
    return {str(adapters[0].sha)} if document.verdict == "verified" and len(adapters) == 1 else set()


def _in_pulls(target: str, wanted: set[str], hub: Hub) -> set[str]:
    from bot.hub import NoDiscussions

    if not hub.signed_in(hub.outputs):
        return set()
    seen: set[str] = set()
    try:
        for number in hub.my_finished_pulls(target)[:PULLS]:
            messages = hub.commit_messages(target, f"refs/pr/{number}", most=COMMITS)
            seen |= {sha for _, message in messages if (sha := adapter_in(message))}
            if wanted <= seen:
                break
    except NoDiscussions:  # nothing was ever proposed there
        return set()
    return seen
