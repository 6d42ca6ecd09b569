"""The publications that there are, each with what must come of it, whatever goes wrong on the way and is passing.

All of them go to one local Hub, each run to a target of its own; what is published are finished folders, made once.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bot.devhub import DevHub
from bot.hub import Hub
from bot.hub.retries import PAUSES
from bot.publish.messages import mark_in, trailer_in
from bot.records import Json, Publication
from tests.publish.given import ADAPTER, BASE, Owner, deliver, fingerprint, finished
from tests.pull.given import hub_client

GATED = "demo/gated-base"
UPDATED = "Updated: this pull request now holds"


@dataclass(kw_only=True)
class Place:
    """A local Hub with the inputs, two finished merges, and the repos that were published to."""

    dev: DevHub
    tmp: Path
    owner: Owner = field(init=False)
    folders: dict[str, Path] = field(default_factory=dict)
    documents: dict[str, Json] = field(default_factory=dict)
    waits: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.owner = Owner(self.dev)
        self._numbers = itertools.count()
        for repo in (BASE, ADAPTER, GATED):
            self.owner.put("config.json", b"{}", repo)
        self.owner.api.update_repo_settings(GATED, gated="manual")
        inputs = {"base": {"repo": GATED, "sha": "0" * 40}, "adapter": {"repo": ADAPTER, "sha": "0" * 40}}
        for name, more in {"first": {"seed": 1}, "second": {"seed": 2}, "gated": {"seed": 1, "inputs": inputs}}.items():
            self.folders[name] = self.tmp / name
            self.documents[name] = finished(self.folders[name], **more)

    def target(self) -> str:
        """A repo that nobody has published to yet."""
        return f"demo/merged-{next(self._numbers)}"

    def hub(self) -> Hub:
        """A new process's client of the Hub: it has asked nothing yet, and does not really wait."""
        return hub_client(self.dev, self.tmp, patience=PAUSES, sleep=self.waits.append)

    def deliver(self, name: str, repo: str, **asked: Any) -> Publication:
        """Publish one of the folders."""
        return deliver(self.folders[name], self.documents[name], self.hub(), target=repo, **asked)


def nothing(place: Place, repo: str) -> None:
    """The target does not exist."""


def a_model(place: Place, repo: str) -> None:
    """Somebody's model is there."""
    place.owner.existing(repo)


def an_open_pull_request(place: Place, repo: str) -> None:
    """Somebody's model, and our pull request of an earlier merge."""
    a_model(place, repo)
    place.deliver("first", repo)


def the_merge(place: Place, repo: str) -> None:
    """The merge itself, pushed without its tag and private."""
    place.deliver("second", repo, private="true")


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """`before` is what is there, `asked` how to publish, `revision` where the one commit must be then."""

    name: str
    before: Callable[[Place, str], None]
    folder: str = "second"
    asked: dict[str, Any]
    revision: str = "main"
    gated: str | bool = False

    def publish(self, place: Place, repo: str) -> Publication:
        """Do it."""
        return place.deliver(self.folder, repo, **self.asked)

    def hold(self, place: Place, repo: str) -> None:
        """Assert that what was asked for is there, once."""
        owner, mark = place.owner, fingerprint({"first": 1, "second": 2, "gated": 1}[self.folder])
        commits = owner.api.list_repo_commits(repo, revision=self.revision)
        ours = [commit for commit in commits if trailer_in(commit.message) == mark]
        assert [commit.commit_id for commit in ours] == [commits[0].commit_id]
        assert owner.files(self.revision, repo) == {path.name for path in place.folders[self.folder].iterdir()}
        seen = owner.api.model_info(repo)
        assert (seen.private, seen.gated) == (False, self.gated)
        tags = {tag.name: tag.target_commit for tag in owner.api.list_repo_refs(repo).tags}
        assert tags == ({"v1": commits[0].commit_id} if self.revision == "main" else {})
        pulls = [owner.api.get_discussion_details(repo, pull.num) for pull in owner.pulls(repo)]
        if self.revision == "main":
            assert pulls == []
            return
        [pull] = pulls
        words = [event.content for event in pull.events if event.type == "comment"]
        assert (pull.status, mark_in(words[0])) == ("open", mark)
        assert owner.files(repo=repo) == {"model.safetensors"}
        updates = [text for text in words if text.startswith(UPDATED)]
        assert len(updates) == (self.before is an_open_pull_request)


SCENARIOS = (
    Scenario(name="a new repo", before=nothing, asked={"tag": "v1"}),
    Scenario(
        name="a new repo that is gated", before=nothing, folder="gated", asked={"tag": "v1", "private": "false"},
        gated="manual",
    ),
    Scenario(name="a push", before=a_model, asked={"tag": "v1", "how": "push"}),
    Scenario(name="a pull request", before=a_model, asked={"tag": "v1"}, revision="refs/pr/1"),
    Scenario(name="an update", before=an_open_pull_request, asked={"tag": "v1"}, revision="refs/pr/1"),
    Scenario(name="unchanged", before=the_merge, asked={"tag": "v1", "private": "false"}),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, order=True)
class Call:
    """One request of a publication: the `nth` of this method and route."""

    method: str
    route: str
    nth: int

    @property
    def changes(self) -> bool:
        """Whether it leaves something behind."""
        return self.method != "GET" and not re.search(
            r"preupload|validate-yaml|objects/batch|objects/verify", self.route
        )

    def pattern(self, repo: str) -> str:
        """A regex for its path, where the target is `repo`."""
        quoted = re.escape(self.route).replace(r"\{repo\}", re.escape(repo))
        return "^" + quoted.replace(r"\{sha\}", "[0-9a-f]{40}").replace(r"\{id\}", "[0-9a-f]{24}") + r"(\?|$)"

    def __str__(self) -> str:
        return f"{self.method} {self.route} {self.nth}"


def route_of(path: str, repo: str) -> str:
    """A path without what differs from run to run."""
    return re.sub(r"\b[0-9a-f]{24}\b", "{id}", re.sub(r"\b[0-9a-f]{40}\b", "{sha}", path.replace(repo, "{repo}")))


def calls_of(scenario: Scenario, place: Place) -> list[Call]:
    """What a publication asks the Hub, in order, when nothing goes wrong."""
    repo = place.target()
    scenario.before(place, repo)
    began = len(place.dev.requests)
    scenario.publish(place, repo)
    asked = place.dev.requests[began:]
    scenario.hold(place, repo)
    seen: Counter[tuple[str, str]] = Counter()
    found = []
    for method, path, _ in asked:
        key = (method, route_of(path, repo))
        seen[key] += 1
        found.append(Call(method=key[0], route=key[1], nth=seen[key]))
    return found
