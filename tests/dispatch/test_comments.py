"""A comment is a command where somebody wrote it who may; everybody else is not even answered."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from huggingface_hub import DiscussionComment, HfApi
from hypothesis import example, given
from hypothesis import strategies as st

from bot.devhub import DevHub
from bot.dispatch.allow import Allowed
from bot.dispatch.announce import Announcer
from bot.dispatch.command import arguments, with_defaults
from bot.dispatch.comments import CHOOSABLE, comment_resolver, read_commands
from bot.dispatch.dispatcher import Dispatcher
from bot.dispatch.payload import Comment, read_payload
from bot.dispatch.records import Fate, Order, RunRequest
from bot.dispatch.resolve import resolver
from bot.dispatch.store import Store
from bot.errors import Usage
from bot.hub import Hub
from tests.dispatch.conftest import Notebook

ALLOWED = Allowed.of(["demo/*", "acme/*"])


def comment(text: str, *, repo: str = "demo/lora", number: int = 1, id: str = "c1") -> Comment:
    return Comment(repo=repo, number=number, id=id, author="0" * 24, text=text)


def order_of(text: str) -> Order | None:
    return next(iter(read_commands(comment(text))), None)


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "options"),
    [
        ("/merge", "merge", {}),
        ("Thanks!\r\n\r\n/merge --dtype float16 --force\r\n", "merge", {"dtype": "float16", "force": "true"}),
        ("/merge base_weights=stored quantize=nf4", "merge", {"base-weights": "stored", "quantize": "nf4"}),
        ("  /plan --verify=full", "plan", {"verify": "full"}),
        ("/verify  ", "verify", {}),
        ("/help me please", "help", {}),
        ("```\n/merge\n```\n/plan", "plan", {}),
        ("/plan\n/merge", "plan", {}),
    ],
)
def test_a_command_stands_on_a_line_of_its_own(text: str, kind: str, options: dict[str, str]) -> None:
    order = order_of(text)
    assert order is not None
    assert (order.kind, dict(order.options)) == (kind, options)
    assert order.key == "comment demo/lora c1"
    assert order.answer == "demo/lora#1/c1"


def test_a_command_has_the_bots_options_and_chooses_among_them() -> None:
    options = (("quantize", "nf4"), ("dtype", "float16"))
    for text, meant in (
        ("/merge --dtype bfloat16", {"quantize": "nf4", "dtype": "bfloat16"}),
        ("/plan", dict(options)),
        ("/verify", {}),
    ):
        order = order_of(text)
        assert order is not None
        assert dict(with_defaults(order, options).options) == meant


@pytest.mark.parametrize(
    "text",
    ["", "merge", "please /merge", "> /merge", "/merged", "/merge/x", "/MERGE", "    /merge", "```\n/merge", "`/merge`",
     "/merge\n<!-- adapter-merge:merged -->", "//merge", "~~~\n```\n/merge\n~~~"],
)  # fmt: skip
def test_what_is_no_command_starts_nothing(text: str) -> None:
    assert order_of(text) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("/merge --to mallory/x", "'--to' is no option of /merge."),
        ("/merge --target-repo=mallory/x", "is no option of /merge."),
        ("/merge --trust-remote-code", "is no option of /merge."),
        ("/merge allow-pickle=true", "is no option of /merge."),
        ("/merge --private false", "is no option of /merge."),
        ("/merge --license mit", "is no option of /merge."),
        ("/merge --publish push", "is no option of /merge."),
        ("/merge --base-model a/b", "is no option of /merge."),
        ("/plan --force", "is no option of /plan."),
        ("/verify --dtype float16", "is no option of /verify."),
        ("/merge now", "'now' is no option of /merge."),
        ("/merge --dtype", "dtype of /merge has no value."),
        ("/merge --dtype float8", "dtype is 'float8'."),
        ("/merge --force=perhaps", "force is 'perhaps'."),
        ("/merge 'dtype", "quotation mark"),
        ("/merge " + "--force " * 100, "too long"),
        ("/merge --revision refs/pr/3", "The revision of a command is none."),
        ("/merge --revision=-x", "The revision of a command is none."),
    ],
)
def test_a_command_that_cannot_be_read_is_answered_and_nothing_is_run(text: str, words: str) -> None:
    order = order_of(text)
    assert order is not None
    assert order.kind == "help"
    assert words in dict(order.options)["what"]


@pytest.mark.parametrize("kind", ["merge", "plan"])
def test_no_comment_chooses_where_the_result_goes_or_what_code_runs(kind: str) -> None:
    never = {"target-repo", "to", "trust-remote-code", "allow-pickle", "private", "license", "publish", "base-model"}
    assert not never & set(CHOOSABLE[kind])  # type: ignore[index]


def test_a_value_is_never_taken_for_another_option() -> None:
    order = order_of("/merge --revision 'v1 --to mallory/x'")
    assert order is not None
    assert arguments(order) == ["run", "demo/lora@v1 --to mallory/x", "--json"]


@given(st.text(st.characters(), max_size=400))
@example("/merge '\x00\n/merge")
@example("/merge \ud800")
@example("/merge --dtype=" + "'" * 300)
def test_junk_is_read_without_an_error(text: str) -> None:
    for prefix in ("", "/merge ", "/plan --"):
        for order in read_commands(comment(prefix + text)):
            assert order.kind in ("merge", "plan", "verify", "help")
            if order.kind != "help":
                try:
                    arguments(order)
                except Usage as error:  # pragma: no cover
                    pytest.fail(str(error))


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


@given(JUNK, JUNK, st.sampled_from(["discussion", "discussion.comment"]))
def test_a_payload_of_any_shape_is_read_without_an_error(about: object, said: object, scope: str) -> None:
    event = {"action": "create", "scope": scope}
    for said_so in (
        said,
        {"id": "c", "content": said},
        {"id": said, "content": "/merge"},
        {"id": "c", "content": "/merge"},
    ):
        for thread in (about, {"num": about}, {"num": 3}):
            body = {
                "event": event,
                "repo": {"type": "model", "name": "demo#1/lora"},
                "discussion": thread,
                "comment": said_so,
            }
            reading = read_payload(body, ALLOWED)
            assert not (reading.comment and read_commands(reading.comment))  # the repo's name is none


def test_the_comment_that_opens_a_discussion_counts() -> None:
    body = {
        "event": {"action": "create", "scope": "discussion"},
        "repo": {"type": "model", "name": "demo/lora"},
        "discussion": {"num": 7},
        "comment": {"id": "c9", "content": "/merge", "author": {"id": "a"}},
    }
    reading = read_payload(body, ALLOWED)
    assert reading.comment is not None
    assert read_commands(reading.comment)[0].answer == "demo/lora#7/c9"


# --- who may, and what it means ---------------------------------------------------------------------------------------


@dataclass
class Bot:
    """A dispatcher that resolves comments and answers them."""

    store: Store
    notebook: Notebook
    hub: Hub
    account: Hub
    trusted: tuple[str, ...] = ()
    allowed: Allowed = ALLOWED

    def hears(self, by: HfApi, text: str, repo: str = "demo/lora") -> RunRequest:
        """Somebody opens a discussion with these words, and the bot does what it does then."""
        opened = by.create_discussion(repo, "A question", description=text)
        (first,) = by.get_discussion_details(repo, opened.num).events
        (order,) = read_commands(comment(text, repo=repo, number=opened.num, id=first.id))
        request = self.store.add(order)
        assert request is not None
        self.works()
        kept = self.store.request(request.id)
        assert kept is not None
        return kept

    def works(self) -> None:
        resolve = comment_resolver(self.hub, self.account, self.allowed, self.trusted, resolver(self.hub, self.allowed))
        dispatcher = Dispatcher(self.store, self.notebook, resolve)
        while dispatcher.step():
            pass
        Announcer(self.store, self.account, lambda event: None)()


@pytest.fixture
def account(devhub: DevHub) -> Hub:
    token = devhub.create_token(devhub.create_user("merge-bot"))
    return Hub(endpoint=devhub.url, read_token=token, write_token=token, patience=())


@pytest.fixture
def bot(store: Store, notebook: Notebook, hub: Hub, account: Hub) -> Bot:
    return Bot(store, notebook, hub, account)


@pytest.fixture
def person(devhub: DevHub) -> Callable[[str], HfApi]:
    return lambda name: HfApi(endpoint=devhub.url, token=devhub.create_token(devhub.create_user(name)))


def answers(api: HfApi, repo: str = "demo/lora") -> Iterator[str]:
    """What was said in the newest discussion after its first comment."""
    newest = next(iter(api.get_repo_discussions(repo)))
    comments = api.get_discussion_details(repo, newest.num).events[1:]
    return (event.content for event in comments if isinstance(event, DiscussionComment))


def test_the_owner_merges_by_a_comment_and_is_answered_once(
    bot: Bot, api: HfApi, new_adapter: Callable[..., str]
) -> None:
    sha = new_adapter("demo/lora", "v1")
    request = bot.hears(api, "/merge --dtype float16")
    assert (request.state, request.order.sha) == ("sent", sha)
    assert bot.notebook.runs[request.id].order.options == (("dtype", "float16"),)
    (first,) = answers(api)
    assert f"The merge of commit `{sha[:12]}` by `adapter-merge`: running." in first
    sent = bot.store.request(request.id)
    assert sent is not None
    bot.store.follow(
        sent, Fate(status="published", url="https://hub.example/x", verdict="verified (full)", exit_code=0)
    )
    bot.works()
    (last,) = answers(api)
    assert "published. [The merged model](https://hub.example/x). Proof: verified (full)." in last


def test_a_tag_can_be_named(bot: Bot, api: HfApi, new_adapter: Callable[..., str]) -> None:
    new_adapter("demo/lora", "v1")
    request = bot.hears(api, "/merge --revision v1")
    assert arguments(bot.notebook.runs[request.id].order) == ["run", "demo/lora@v1", "--json"]
    missing = bot.hears(api, "/merge --revision v9")
    assert missing.state == "done"
    (text,) = answers(api)
    assert "refused" in text
    assert "v9" in text


@pytest.mark.parametrize("text", ["/merge", "/help", "/merge --to mallory/x", "/verify"])
def test_a_stranger_is_not_answered(
    bot: Bot, api: HfApi, person: Callable[[str], HfApi], new_adapter: Callable[..., str], text: str
) -> None:
    new_adapter("demo/lora", "v1")
    request = bot.hears(person("mallory"), text)
    assert request.state == "dropped"
    assert "mallory may not give commands on demo/lora." in request.reason
    assert bot.notebook.sent == []
    assert list(answers(api)) == []


def test_who_was_named_may(
    bot: Bot, api: HfApi, person: Callable[[str], HfApi], new_adapter: Callable[..., str]
) -> None:
    new_adapter("demo/lora", "v1")
    bot.trusted = ("Alice", "")
    assert bot.hears(person("alice"), "/merge").state == "sent"
    assert bot.hears(person("bob"), "/merge").state == "dropped"


def test_an_author_whom_the_hub_does_not_name_any_more_may_not(
    bot: Bot, devhub: DevHub, api: HfApi, new_adapter: Callable[..., str]
) -> None:
    new_adapter("demo/lora", "v1")
    bot.trusted = ("",)
    opened = api.create_discussion("demo/lora", "A question", description="/merge")
    (first,) = api.get_discussion_details("demo/lora", opened.num).events
    with devhub.site.db.write() as rows:
        rows.execute("UPDATE event SET author = '' WHERE id = ?", (first.id,))
    (order,) = read_commands(comment("/merge", number=opened.num, id=first.id))
    request = bot.store.add(order)
    assert request is not None
    bot.works()
    assert bot.notebook.sent == []


@pytest.mark.parametrize(
    ("role", "state"),
    [("admin", "sent"), ("write", "sent"), ("contributor", "dropped"), ("read", "dropped"), (None, "dropped")],
)
def test_of_an_organization_those_may_whose_role_is_told(
    bot: Bot, devhub: DevHub, api: HfApi, person: Callable[[str], HfApi], new_adapter: Callable[..., str],
    role: str | None, state: str,
) -> None:  # fmt: skip
    devhub.create_org("acme", members={"demo": "admin", "merge-bot": "read"} | ({"alice": role} if role else {}))
    new_adapter("acme/lora", "v1")
    assert bot.hears(person("alice"), "/merge", "acme/lora").state == state


def test_a_role_that_the_hub_does_not_tell_does_not_count(
    bot: Bot, devhub: DevHub, api: HfApi, person: Callable[[str], HfApi], new_adapter: Callable[..., str]
) -> None:
    devhub.create_org("acme", members={"demo": "admin", "alice": "write"})  # the bot is no member
    new_adapter("acme/lora", "v1")
    assert bot.hears(person("alice"), "/merge", "acme/lora").state == "dropped"


def test_a_command_that_cannot_be_read_is_answered_to_who_may(
    bot: Bot, api: HfApi, new_adapter: Callable[..., str]
) -> None:
    new_adapter("demo/lora", "v1")
    assert bot.hears(api, "/merge --to [x](https://evil.example) @all").state == "done"
    (text,) = answers(api)
    assert "'--to' is no option of /merge. There are revision, dtype" in text
    assert bot.hears(api, "/merge [x](https://evil.example)").state == "done"
    (text,) = answers(api)
    assert "[x](" not in text
    assert bot.notebook.sent == []


def test_help_is_answered_without_a_run(bot: Bot, api: HfApi, new_adapter: Callable[..., str]) -> None:
    new_adapter("demo/lora", "v1")
    assert bot.hears(api, "/help").state == "done"
    (text,) = answers(api)
    assert "`/merge`" in text
    assert not read_commands(comment(text))


def merged(api: HfApi, repo: str, adapter: str) -> str:
    """A merged repo whose report names this adapter; its commit."""
    api.create_repo(repo)
    document = {
        "inputs": {"base": {"repo": "demo/base", "sha": "b" * 40}, "adapter": {"repo": adapter, "sha": "a" * 40}}
    }
    report = json.dumps(document | {"verdict": "verified"}).encode()
    return str(api.upload_file(path_or_fileobj=report, path_in_repo="verification.json", repo_id=repo).oid)


def test_a_comment_on_the_merged_repo_means_the_adapter_that_it_names(
    bot: Bot, api: HfApi, new_adapter: Callable[..., str]
) -> None:
    sha = new_adapter("demo/lora", "v1")
    at = merged(api, "demo/lora-merged", "demo/lora")
    request = bot.hears(api, "/merge", "demo/lora-merged")
    assert (request.order.adapter, request.order.sha) == ("demo/lora", sha)
    assert len(list(answers(api, "demo/lora-merged"))) == 1
    for repo in ("demo/lora-merged", "demo/lora"):
        proof = bot.hears(api, "/verify", repo)
        assert (proof.order.adapter, proof.order.sha) == ("demo/lora-merged", at)
        assert arguments(bot.notebook.runs[proof.id].order) == ["verify", "demo/lora-merged", "--json"]


def test_an_adapter_that_is_not_on_the_list_is_refused(bot: Bot, api: HfApi, new_adapter: Callable[..., str]) -> None:
    merged(api, "demo/lora-merged", "mallory/lora")
    request = bot.hears(api, "/merge", "demo/lora-merged")
    assert request.state == "done"
    (text,) = answers(api, "demo/lora-merged")
    assert "mallory/lora is not on the bot's list of adapters." in text
    assert bot.notebook.sent == []


@pytest.mark.parametrize("report", [b"{", b"[]", b'{"inputs": {"adapter": 3}}', b'{"inputs": {"adapters": [{}, {}]}}'])
def test_a_report_that_names_no_adapter_is_refused(bot: Bot, api: HfApi, report: bytes) -> None:
    api.create_repo("demo/odd")
    api.upload_file(path_or_fileobj=report, path_in_repo="verification.json", repo_id="demo/odd")
    assert bot.hears(api, "/merge", "demo/odd").state == "done"
    (text,) = answers(api, "demo/odd")
    assert "demo/odd is no adapter, and names none." in text


def test_a_comment_that_was_hidden_meanwhile_starts_nothing(
    bot: Bot, api: HfApi, new_adapter: Callable[..., str]
) -> None:
    new_adapter("demo/lora", "v1")
    opened = api.create_discussion("demo/lora", "A question", description="/merge")
    (first,) = api.get_discussion_details("demo/lora", opened.num).events
    api.hide_discussion_comment("demo/lora", opened.num, first.id)
    (order,) = read_commands(comment("/merge", number=opened.num, id=first.id))
    request = bot.store.add(order)
    assert request is not None
    bot.works()
    kept = bot.store.request(request.id)
    assert kept is not None
    assert kept.state == "dropped"


def test_a_bot_that_answers_nobody_leaves_commands_to_one_that_does(
    bot: Bot, hub: Hub, new_adapter: Callable[..., str]
) -> None:
    """It shares the state file with another that was started with --announce."""
    new_adapter("demo/lora", "v1")
    (order,) = read_commands(comment("/merge"))
    request = bot.store.add(order)
    assert request is not None
    Dispatcher(bot.store, bot.notebook, resolver(hub, ALLOWED)).step()
    kept = bot.store.request(request.id)
    assert kept is not None
    assert kept.state == "waiting"
    assert bot.notebook.sent == []
