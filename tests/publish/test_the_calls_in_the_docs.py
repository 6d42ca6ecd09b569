"""docs/publishing.md says which calls a publication makes, and how many: it is counted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from bot.hub.pulls import CLOSED, LISTED, OPEN
from bot.hub.retries import BRIEF, MOST, PAUSES
from bot.hub.session import LIMITS, QUICK
from bot.publish.commit import ROUNDS
from tests.publish.scenarios import SCENARIOS, calls_of

PAGE = Path(__file__).parents[2] / "docs" / "publishing.md"
WHAT_FOR = {
    "GET /api/models/{repo}": "look at the target",
    "GET /api/models/{repo}/tree/{sha}": "its files; and the committed ones, read back",
    "GET /api/models/{input}": "is an input renamed, private, gated?",
    "GET /api/models/{repo}/commits/{ref}": "is the newest commit ours?",
    "GET /{repo}/resolve/{sha}/{file}": "its report",
    "GET /api/resolve-cache/models/{repo}/{sha}/{file}": "the same, where the Hub sends on",
    "GET /api/whoami-v2": "whose pull requests are ours",
    "GET /api/models/{repo}/discussions": "our pull requests, open or closed",
    "GET /api/models/{repo}/discussions/{n}": "one of them",
    "GET /api/models/{repo}/auth-check/write": "may the token write?",
    "GET /api/models/{repo}/revision/{ref}": "is it still what was looked at?",
    "GET /api/models/{repo}/refs": "its tags",
    "POST /api/validate-yaml": "the card's metadata; once more by the client",
    "POST /api/repos/create": "the new repo",
    "PUT /api/models/{repo}/settings": "its gate, who may see it",
    "POST /api/models/{repo}/preupload/{ref}": "which files are large",
    "POST /{repo}.git/info/lfs/objects/batch": "where to send them",
    "PUT /upload": "send one (to the storage)",
    "POST /{repo}.git/info/lfs/objects/verify": "has it arrived?",
    "POST /api/models/{repo}/discussions": "a draft",
    "POST /api/models/{repo}/commit/{ref}": "the one commit",
    "POST /api/models/{repo}/discussions/{n}/comment": "that it was updated",
    "POST /api/models/{repo}/discussions/{n}/comment/{id}/edit": "what it holds now",
    "POST /api/models/{repo}/discussions/{n}/status": "out of draft",
    "POST /api/models/{repo}/tag/{sha}": "the adapter's tag",
}


def said(call):
    """A call as the page has it."""
    route = call.route.replace("/refs/pr/1", "/{ref}").replace("/discussions/1", "/discussions/{n}")
    for before, after in (("/commits/main", "/commits/{ref}"), ("/revision/main", "/revision/{ref}")):
        route = route.replace(before, after)
    for step in ("preupload", "commit"):
        route = route.replace(f"/{step}/main", f"/{step}/{{ref}}")
    for repo in ("demo/base", "demo/adapter", "demo/gated-base"):
        route = route.removesuffix(f"/{repo}") + "/{input}" if route.endswith(f"/models/{repo}") else route
    return f"{call.method} {route.replace('verification.json', '{file}')}"


def table(place):
    """The page's table, as it must be."""
    counts = [Counter(map(said, calls_of(scenario, place))) for scenario in SCENARIOS]
    met = set().union(*counts)
    assert met == WHAT_FOR.keys(), met ^ WHAT_FOR.keys()
    names = [scenario.name for scenario in SCENARIOS]
    lines = [f"| call | what for | {' | '.join(names)} |", "| --- | --- |" + " --: |" * len(names)]
    for call, why in WHAT_FOR.items():
        numbers = (str(count[call] or "") for count in counts)
        lines.append(f"| `{call}` | {why} | {' | '.join(numbers)} |".replace("|  |", "| |").replace("|  |", "| |"))
    totals = (str(count.total()) for count in counts)
    return "\n".join([*lines, f"| all | | {' | '.join(totals)} |"])


def test_the_page_has_the_table_of_calls(place):
    wanted = table(place)
    assert wanted in PAGE.read_text(), f"put into {PAGE.name}:\n{wanted}"


def test_the_page_has_the_bounds():
    text = " ".join(PAGE.read_text().split())  # a phrase may run over a line's end
    seconds = [f"{pause:.0f}" for pause in PAUSES]
    assert f"after {', '.join(seconds[:-1])} and {seconds[-1]} seconds" in text
    assert (BRIEF, MOST, ROUNDS, len(PAUSES)) == (3, 330, 5, 6)
    assert "the first three" in text
    assert "five and a half minutes" in text
    assert "up to five times" in text
    assert (QUICK.read, QUICK.write, LIMITS.read, LIMITS.write) == (60, 60, 300, 300)
    assert "silence for a minute, for five where it is an upload or a commit" in text
    assert LIMITS.read + 1.25 * PAUSES[0] < MOST < 2 * LIMITS.read  # one is survived
    assert f"the newest {LISTED} are listed (and {LISTED} open ones, where there are more)" in text
    assert f"at most {OPEN} open and {CLOSED} closed ones read" in text
