"""What the token, its owner and the target allow is told before any work, in the Hub's own words, with the remedy that fits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from bot.devhub import DevHub, Fault
from bot.doctor import examine
from bot.errors import Forbidden, Gated, Outside
from bot.events import Event, Note
from bot.hub import Hub, NoDiscussions
from bot.publish import require_reach
from bot.records import Json
from tests.publish.given import BASE, TARGET, Owner, deliver
from tests.publish.test_doctor import MACHINE
from tests.pull.given import hub_client, two_sentences

READ, WRITE, DISCUSS = "repo.content.read", "repo.write", "discussion.write"
Token = Callable[..., Hub]


@pytest.fixture
def fine(dev: DevHub, tmp_path: Path) -> Token:
    """Our client with a fine-grained token of these permissions on these repos."""

    def make(*permissions: str, on: tuple[str, ...] = ("demo/*",), **more: Any) -> Hub:
        return hub_client(
            dev, tmp_path, token=dev.create_token("demo", "fine-grained", on, permissions=permissions, **more)
        )

    return make


def refused(hub: Hub, target: str = TARGET, how: Any = "auto", kind: type[Outside] = Forbidden) -> Outside:
    """What preflight says; doctor says the same."""
    with pytest.raises(kind) as caught:
        require_reach(target, how, hub)
    if how == "auto":
        (line,) = [line for line in examine(target, hub, MACHINE) if line.topic == "target"]
        assert line.status in ("fail", "warn")
        assert caught.value.what in line.sentence
    return caught.value


# --- a target that does not exist ---------------------------------------------------------------------------------


def test_a_token_for_one_repo_cannot_create_it(fine: Token) -> None:
    error = refused(fine(READ, WRITE, DISCUSS, on=(TARGET,)))
    two_sentences(error, what=f"it lacks repo.write on demo (it has {TARGET}: {READ}, {WRITE}", do="by hand")


def test_a_token_that_may_not_write_cannot_create(fine: Token) -> None:
    two_sentences(refused(fine(READ, DISCUSS)), what="it lacks repo.write on demo", do="all repos of demo")
    two_sentences(refused(fine(on=())), what="no permission on any repo", do="all repos of demo")


def test_a_token_for_the_whole_account_creates(fine: Token) -> None:
    require_reach(TARGET, "auto", fine(READ, WRITE))
    fine(READ, WRITE).create(TARGET)


@pytest.mark.parametrize(("role", "may"), [("read", False), ("contributor", True), ("write", True), ("admin", True)])
def test_the_role_in_an_organization_decides(role: str, may: bool, dev: DevHub, hub: Hub) -> None:
    dev.create_org("acme", members={"demo": role})
    if may:
        require_reach("acme/new", "auto", hub)
        return
    error = refused(hub, "acme/new")
    two_sentences(error, what="demo's role in acme is read", do="Ask an administrator of acme")
    with pytest.raises(Forbidden, match="rights to create"):
        hub.create("acme/new")


# --- one that exists ----------------------------------------------------------------------------------------------


def test_what_a_fine_grained_token_may_do_to_a_target_that_exists(fine: Token, owner: Owner) -> None:
    owner.existing()
    require_reach(TARGET, "push", fine(READ, WRITE, on=(TARGET,)))
    require_reach(TARGET, "pr", fine(READ, DISCUSS, on=(TARGET,)))
    require_reach(TARGET, "pr", fine(READ, on=(), everywhere=(DISCUSS,)))
    error = refused(fine(READ, on=("demo/other",)))
    two_sentences(error, what=f"may not open a pull request on {TARGET}: it lacks discussion.write", do="discussions")
    error = refused(fine(READ, DISCUSS), how="push")
    two_sentences(error, what="lacks the permission", do="fine-grained with that repo")


def test_a_member_with_the_role_read_proposes_and_does_not_push(dev: DevHub, owner: Owner, tmp_path: Path) -> None:
    dev.create_org("acme", members={"demo": "admin", "ann": "read"})
    owner.put("model.safetensors", b"x", "acme/model")
    dev.create_user("ann")
    ann = hub_client(dev, tmp_path, token=dev.create_token("ann"))
    require_reach("acme/model", "pr", ann)
    error = refused(ann, "acme/model", "push")
    two_sentences(error, what="You have read access but not the required permissions", do="ann's role in acme is read")
    (line,) = [line for line in examine("acme/model", ann, MACHINE) if line.topic == "target"]
    assert (line.status, "A pull request is possible (--publish pr)" in line.remedy) == ("warn", True)


def test_a_stranger_is_told_to_propose(dev: DevHub, owner: Owner, tmp_path: Path) -> None:
    owner.existing()
    eve = hub_client(dev, tmp_path, token=dev.create_token(dev.create_user("eve")))
    two_sentences(refused(eve, how="push"), what="the Hub said", do="eve is not in demo: open a pull request")


def test_a_token_that_awaits_approval_says_whose(dev: DevHub, owner: Owner, tmp_path: Path) -> None:
    dev.create_org("acme", members=["demo"])
    owner.put("model.safetensors", b"x", "acme/model")
    waiting = hub_client(dev, tmp_path, token=dev.create_token("demo", awaits=("acme",)))
    error = refused(waiting, "acme/model", "push")
    two_sentences(error, what="awaits the approval of an administrator of acme", do="has to approve this token")


def test_discussions_that_are_switched_off_are_seen_by_doctor(dev: DevHub, hub: Hub, owner: Owner) -> None:
    owner.existing()
    from bot.devhub import discussions, repos

    found = repos.find(dev.site.db, "model", TARGET)
    assert found is not None
    discussions.switch(dev.site.db, found, on=False)
    two_sentences(refused(hub, kind=NoDiscussions), what="Discussions are disabled for this repo", do="--publish push")
    require_reach(TARGET, "push", hub)


def test_a_token_that_the_hub_tells_nothing_of_is_judged_by_the_hub_alone(dev: DevHub, hub: Hub, owner: Owner) -> None:
    owner.existing()
    dev.faults.add(Fault(path="/api/whoami", status=403, times=None, body='{"error": "not for this token"}'))
    require_reach(TARGET, "push", hub)
    require_reach("demo/new", "auto", hub)
    error = refused(hub, how="pr")
    two_sentences(error, what="does not say whose this token is", do="--publish push")


@pytest.mark.parametrize("target", ["demo/new", "demo/empty", "demo/full"])
def test_such_a_token_pushes_without_a_word_of_pull_requests(
    target: str, dev: DevHub, hub: Hub, owner: Owner, folder: Path, document: Json
) -> None:
    owner.api.create_repo("demo/empty")
    owner.existing("demo/full")
    dev.faults.add(Fault(path="/api/whoami", status=403, times=None, body='{"error": "not for this token"}'))
    notes: list[Event] = []
    how = "push" if target == "demo/full" else "auto"
    done = deliver(folder, document, hub, target=target, how=how, emit=notes.append)
    assert (done.status, done.how) == ("published", "push")
    assert not [note for note in notes if isinstance(note, Note) and note.level == "warning"]
    assert deliver(folder, document, hub, target=target).status == "unchanged"
    assert [path for _, path, _ in dev.requests].count("/api/whoami-v2") == 1


def test_such_a_token_makes_no_repo_that_it_could_only_propose_to(
    dev: DevHub, hub: Hub, owner: Owner, folder: Path, document: Json
) -> None:
    dev.faults.add(Fault(path="/api/whoami", status=403, times=None, body='{"error": "not for this token"}'))
    with pytest.raises(Forbidden, match="does not say whose this token is"):
        deliver(folder, document, hub, how="pr")
    assert not owner.api.repo_exists(TARGET)


def test_a_token_that_is_none_is_told_before_a_repo_would_be_made(dev: DevHub, tmp_path: Path) -> None:
    error = refused(hub_client(dev, tmp_path, token="hf_notatoken"), "demo/new")
    two_sentences(error, what="does not accept this token", do="valid token")


# --- what the Hub tells of a token, and what it leaves out --------------------------------------------------------


def told(dev: DevHub, token: dict[str, Any], *orgs: dict[str, Any]) -> None:
    """From now on the Hub says this of every token."""
    found = {"type": "user", "name": "demo", "orgs": [*orgs], "auth": {"type": "access_token", "accessToken": token}}
    dev.faults.add(Fault(path="/api/whoami", status=200, times=None, body=json.dumps(found)))


def scoped(kind: str, name: str, *permissions: str) -> dict[str, Any]:
    """A fine-grained token with permissions on one thing."""
    entry = {"entity": {"type": kind, "name": name}, "permissions": [*permissions]}
    return {"role": "fineGrained", "fineGrained": {"global": [], "scoped": [entry]}}


def test_an_organization_that_the_token_writes_to_need_not_be_listed(dev: DevHub, hub: Hub) -> None:
    told(dev, scoped("org", "acme", WRITE))
    require_reach("acme/new", "auto", hub)
    assert "is not in other" in refused(hub, "other/new").what


def test_a_token_of_an_application_lists_no_organizations(dev: DevHub, hub: Hub) -> None:
    told(dev, {})
    require_reach("acme/new", "auto", hub)


def test_what_a_resource_group_holds_the_hub_alone_knows(dev: DevHub, hub: Hub, owner: Owner) -> None:
    dev.create_org("acme", members=["demo"])
    owner.put("model.safetensors", b"x", "acme/model")
    group = {"name": "acme", "roleInOrg": "read", "resourceGroups": [{"name": "team", "role": "write"}]}
    told(dev, scoped("resource-group", "team", WRITE), group)
    for target, how in (("acme/new", "auto"), ("acme/model", "push"), ("acme/model", "pr")):
        require_reach(target, how, hub)  # type: ignore[arg-type]


# --- the gate of an input -----------------------------------------------------------------------------------------


def test_a_gate_says_whether_one_has_to_ask_to_wait_or_to_look_elsewhere(dev: DevHub, tmp_path: Path) -> None:
    HfApi(dev.url, dev.token).update_repo_settings(BASE, gated="manual")
    eve = hub_client(dev, tmp_path, token=dev.create_token(dev.create_user("eve")))
    sha = str(HfApi(dev.url, dev.token).model_info(BASE).sha)

    def told() -> Gated:
        with pytest.raises(Gated) as caught:
            eve.read_span(BASE, sha, "config.json", 0, 1)
        return caught.value

    two_sentences(told(), what="has no access to it (the Hub said", do="Accept its terms")
    dev.request(BASE, "eve")
    two_sentences(told(), what="have not answered the request for access yet (the Hub said: Your request", do="Wait")
    assert "Accept its terms" not in told().remedy
    dev.revoke(BASE, "eve")
    two_sentences(told(), what="turned the request for access down (the Hub said: Your request", do="another repo")
    dev.grant(BASE, "eve")
    assert eve.read_span(BASE, sha, "config.json", 0, 1) == b"{"


def test_a_fine_grained_token_needs_a_box_for_gated_repos(dev: DevHub, tmp_path: Path) -> None:
    api = HfApi(dev.url, dev.token)
    api.update_repo_settings(BASE, gated="auto")
    dev.create_user("eve")
    dev.grant(BASE, "eve")
    eve = hub_client(dev, tmp_path, token=dev.create_token("eve", "fine-grained", gated=False))
    with pytest.raises(Forbidden) as caught:
        eve.read_span(BASE, str(api.model_info(BASE).sha), "config.json", 0, 1)
    two_sentences(caught.value, what="Please enable access to public gated repositories", do="a box in its settings")


# --- storage, limits, and words that nobody foresaw ---------------------------------------------------------------


def test_private_storage_that_is_full_is_no_question_of_the_token(dev: DevHub, hub: Hub, tmp_path: Path) -> None:
    dev.set_quota("demo", 10)
    hub.create(TARGET)
    big = tmp_path / "model.safetensors"
    big.write_bytes(b"x" * 100)
    with pytest.raises(Forbidden) as caught:
        hub.upload(TARGET, "main", {big.name: big}, pull_request=False, sent=lambda _: None)
    two_sentences(caught.value, what="Private repository storage limit reached, please upgrade", do="public repo")
    assert "token" not in caught.value.remedy


@pytest.mark.parametrize(
    ("status", "words", "remedy"),
    [
        (402, "Payment required: upgrade your plan", "change the plan"),
        (403, "Organization storage quota exceeded", "change the plan"),
        (403, "Only fine-grained tokens can be used in acme", "Make a fine-grained token"),
        (403, "Your token is pending approval by acme", "has to approve this token"),
        (403, "Something new", "Use a token with write access"),
        (429, "You have reached the rate limit for repository creation", "Run it again"),
    ],
)
@pytest.mark.parametrize("form", ["header", "error", "errors", "text"])
def test_the_hubs_own_sentence_is_kept(
    form: str, status: int, words: str, remedy: str, dev: DevHub, hub: Hub, owner: Owner
) -> None:
    owner.existing()
    body = {"header": "", "error": f'{{"error": "{words}"}}', "errors": f'{{"errors": [{{"message": "{words}"}}]}}'}
    headers = {"X-Error-Message": words} if form == "header" else {}
    fault = Fault(path="/auth-check/write", status=status, times=None, body=body.get(form, words), headers=headers)
    dev.faults.add(fault)
    with pytest.raises(Outside) as caught:
        hub.require_write(TARGET)
    two_sentences(caught.value, what=f"(the Hub said: {words})", do=remedy)
