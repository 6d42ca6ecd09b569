"""A poll dispatches what nobody has merged: once, however often it runs, and whatever it remembers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from bot.devhub import DevHub
from bot.dispatch.allow import Allowed
from bot.dispatch.dispatcher import Dispatcher
from bot.dispatch.poll import Poll, dispatch_missing, look
from bot.dispatch.records import Fate, Order, tag_key
from bot.dispatch.resolve import resolver
from bot.dispatch.store import Store
from bot.errors import Outside, Usage
from bot.hub import Hub
from bot.publish.merged_before import merged_before
from tests.dispatch.conftest import Notebook

MAKE = Callable[..., str]
EVERYTHING = Allowed.of(["demo/*"])


def polled(hub: Hub, store: Store, notebook: Notebook, allowed: Allowed = EVERYTHING) -> Poll:
    dispatcher = Dispatcher(store, notebook, resolver(hub, allowed))
    return dispatch_missing(look(hub, allowed, store), store, dispatcher)


def statuses(poll: Poll) -> dict[str, str]:
    return {f"{tag.adapter}@{tag.tag}": tag.status for tag in poll.tags}


def message(sha: str, *more: str) -> str:
    adapters = "\n".join(f"Adapter-Merge-Adapter: demo/lora@{each}" for each in (sha, *more))
    return f"Merged\n\n{adapters}\nAdapter-Merge-Fingerprint: 0123abcd"


def publish(api: HfApi, repo: str, text: str, *, pull: bool = False) -> int | None:
    """A commit with this message on main, or in a pull request; its number."""
    api.create_repo(repo, exist_ok=True)
    title, _, body = text.partition("\n\n")
    made = api.create_commit(
        repo,
        [CommitOperationAdd("model.safetensors", b"weights")],
        commit_message=title,
        commit_description=body,
        create_pr=pull,
    )
    return made.pr_num


def test_every_tag_of_an_owners_adapters_is_dispatched_once(
    hub: Hub, store: Store, notebook: Notebook, new_adapter: MAKE, api: HfApi
) -> None:
    new_adapter("demo/lora", "v1", "v2")
    new_adapter("demo/other", "v1")
    api.create_repo("demo/base")
    api.create_tag("demo/base", tag="v9")
    poll = polled(hub, store, notebook)
    everything = ["demo/lora@v1", "demo/lora@v2", "demo/other@v1"]
    assert statuses(poll) == dict.fromkeys(everything, "dispatched")
    assert sorted(notebook.sent) == everything
    again = polled(hub, store, notebook)
    assert statuses(again) == dict.fromkeys(everything, "known")
    assert len(notebook.sent) == 3


def test_a_poll_that_remembers_nothing_finds_the_runs_of_the_one_before(
    hub: Hub, store: Store, notebook: Notebook, new_adapter: MAKE, tmp_path: Path
) -> None:
    new_adapter("demo/lora", "v1")
    new_adapter("demo/bad", "v1")
    first = polled(hub, store, notebook)
    failed = next(tag.request for tag in first.tags if tag.adapter == "demo/bad")
    notebook.fates[failed] = Fate(status="failed", reason="It broke.", remedy="Mend it.", exit_code=70)
    forgetful = Store(tmp_path / "new.db")
    second = polled(hub, forgetful, notebook)
    forgetful.close()
    assert statuses(second) == {"demo/bad@v1": "failed", "demo/lora@v1": "dispatched"}
    assert "It broke. Mend it." in second.tags[0].why
    assert len(notebook.sent) == 2


def test_a_failed_request_is_not_sent_again(hub: Hub, store: Store, notebook: Notebook, new_adapter: MAKE) -> None:
    new_adapter("demo/lora", "v1")
    request = polled(hub, store, notebook).tags[0].request
    notebook.fates[request] = Fate(status="failed", reason="It broke.", remedy="Mend it.", exit_code=70)
    sent = store.request(request)
    assert sent is not None
    store.follow(sent, notebook.fates[request])
    assert statuses(polled(hub, store, notebook)) == {"demo/lora@v1": "known"}
    assert len(notebook.sent) == 1


@pytest.mark.parametrize("how", ["main", "pull", "merged", "declined"])
def test_what_the_hub_has_seen_the_merge_of_is_left_alone(
    hub: Hub, store: Store, notebook: Notebook, new_adapter: MAKE, api: HfApi, how: str
) -> None:
    sha = new_adapter("demo/lora", "v1")
    api.create_repo("demo/lora-merged")
    number = publish(api, "demo/lora-merged", message(sha), pull=how != "main")
    if how != "main":
        assert number is not None
        if how == "declined":
            api.change_discussion_status("demo/lora-merged", number, "closed")
        elif how == "merged":
            api.merge_pull_request("demo/lora-merged", number)
    assert statuses(polled(hub, store, notebook)) == {"demo/lora@v1": "published"}
    assert notebook.sent == []


def test_neither_a_draft_nor_a_merge_of_several_nor_somebody_elses_pull_request_counts(
    hub: Hub, new_adapter: MAKE, api: HfApi, devhub: DevHub
) -> None:
    sha = new_adapter("demo/lora", "v1")
    publish(api, "demo/lora-merged", message(sha, "f" * 40))
    draft = api.create_pull_request("demo/lora-merged", title="Merge lora")
    title, _, body = message(sha).partition("\n\n")
    proposed = {"commit_message": title, "commit_description": body}
    files, others = ([CommitOperationAdd("a", text)] for text in (b"a", b"b"))
    api.create_commit("demo/lora-merged", files, revision=draft.git_reference, **proposed)
    stranger = HfApi(endpoint=devhub.url, token=devhub.create_token("stranger"))
    stranger.create_commit("demo/lora-merged", others, create_pr=True, **proposed)
    assert merged_before("demo/lora-merged", {sha}, hub) == set()


def test_a_poll_looks_where_its_options_publish_to_and_hands_them_on(
    hub: Hub, store: Store, notebook: Notebook, new_adapter: MAKE, api: HfApi
) -> None:
    sha = new_adapter("demo/lora", "v1")
    publish(api, "demo/lora-merged", message(sha))
    options = (("quantize", "nf4"),)
    poll = look(hub, EVERYTHING, store, options)
    assert statuses(poll) == {"demo/lora@v1": "missing"}
    assert statuses(look(hub, EVERYTHING, store, (("target-repo", "demo/lora-merged"), *options))) == {
        "demo/lora@v1": "published"
    }
    dispatch_missing(poll, store, Dispatcher(store, notebook, resolver(hub, EVERYTHING)), options=options)
    assert [request.order.options for request in notebook.runs.values()] == [options]
    publish(api, "demo/lora-merged-nf4", message(sha))
    assert statuses(look(hub, EVERYTHING, None, options)) == {"demo/lora@v1": "published"}


def test_only_tags_that_fit_are_looked_at(hub: Hub, store: Store, notebook: Notebook, new_adapter: MAKE) -> None:
    new_adapter("demo/lora", "v1", "draft")
    new_adapter("demo/lora-x", "v1")
    assert statuses(polled(hub, store, notebook, Allowed.of(["demo/lora"], ["v*"]))) == {"demo/lora@v1": "dispatched"}


def test_a_tag_that_a_webhook_told_of_is_not_sent_a_second_time(
    hub: Hub, store: Store, notebook: Notebook, new_adapter: MAKE
) -> None:
    sha = new_adapter("demo/lora", "v1")
    key = tag_key("demo/lora", "v1", sha)
    store.add(Order(key=key, adapter="demo/lora", revision="v1", sha=sha, origin="webhook"))
    assert statuses(polled(hub, store, notebook)) == {"demo/lora@v1": "known"}
    assert notebook.sent == ["demo/lora@v1"]


def test_a_backend_that_cannot_be_asked_is_told_and_asked_again(
    hub: Hub, store: Store, notebook: Notebook, new_adapter: MAKE
) -> None:
    new_adapter("demo/lora", "v1")
    notebook.fails = Outside("GitHub keeps failing.", remedy="Wait.")
    poll = polled(hub, store, notebook)
    assert (statuses(poll), poll.exit_code) == ({"demo/lora@v1": "postponed"}, 5)
    assert "GitHub keeps failing. Wait." in poll.tags[0].why


def test_a_repo_that_is_not_there_does_not_stop_the_others(
    hub: Hub, store: Store, notebook: Notebook, new_adapter: MAKE
) -> None:
    new_adapter("demo/lora", "v1")
    poll = polled(hub, store, notebook, Allowed.of(["demo/gone", "demo/lora"]))
    assert statuses(poll) == {"demo/lora@v1": "dispatched"}
    assert ["demo/gone" in str(problem) for problem in poll.problems] == [True]
    assert poll.exit_code == 5


def test_everybodys_adapters_cannot_be_listed(hub: Hub) -> None:
    with pytest.raises(Usage, match="cannot be listed"):
        look(hub, Allowed.of(["*/*"]), None)
