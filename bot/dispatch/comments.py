"""Commands in discussions: `/merge`, `/verify`, `/plan`, `/help`, on a line of their own in a comment.

Reading one is pure, and done before the delivery is answered. Who wrote it is asked of the Hub later: the delivery names its author
by a number only. Whoever may not write to the repo is not answered at all.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, get_args

from bot.dispatch.allow import Allowed
from bot.dispatch.command import OPTIONS, argument
from bot.dispatch.payload import Comment
from bot.dispatch.records import Fate, Kind, Order
from bot.dispatch.resolve import ADAPTER, REPORT, Decided, Gone, Resolved, Resolver
from bot.errors import Forbidden, NotFound, Usage
from bot.hub.names import is_repo_id
from bot.project import HIDDEN_MARK
from bot.report_document import Document
from bot.untrusted.markdown import unaddressed

if TYPE_CHECKING:
    from bot.hub import Hub, Pinned

COMMAND = re.compile(rf" {{0,3}}/({'|'.join(get_args(Kind))})(?:[ \t]+(.*))?")
FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
LONGEST = 300  # characters of a command
REVISION = "revision"
# What a comment may choose of a run; where the result goes, who sees it, and what code may run is the bot's owner's to say.
CHOOSABLE: dict[Kind, tuple[str, ...]] = {
    "merge": (REVISION, "dtype", "base-weights", "quantize", "overflow", "verify", "force"),
    "plan": (REVISION, "dtype", "base-weights", "quantize", "overflow", "verify"),
    "verify": (),
    "help": (),
}
_CHOICES = ", ".join(f"`{name}`" for name in CHOOSABLE["merge"])
HELP = f"""`adapter-merge` does what a comment asks for on a line of its own, if its author may write to this repo:

- `/merge` merges the adapter into its base, proves the merge, and publishes it.
  Its options are {_CHOICES}, as in `/merge --dtype float16 --force`.
- `/verify` proves the published merge again.
- `/plan` says what a merge would do; its options are those of `/merge` without `force`.
- `/help` says this."""


def read_commands(comment: Comment) -> Sequence[Order]:
    """The first command of a comment as an order; none where it has none, or is one of our own."""
    is_readable = is_repo_id(comment.repo) and HIDDEN_MARK not in comment.text
    line = _command_line(comment.text) if is_readable else None
    if line is None:
        return ()
    kind, rest = line
    options: tuple[tuple[str, str], ...]
    try:
        options = _options(kind, rest)
    except Usage as error:
        kind, options = "help", (("what", error.what), ("remedy", error.remedy))
    return (
        Order(
            key=f"comment {comment.repo.lower()} {comment.id}",
            kind=kind,
            adapter=comment.repo,
            revision=next((value for name, value in options if name == REVISION), None),
            sha=None,
            origin="comment",
            options=tuple(option for option in options if option[0] != REVISION),
            answer=f"{comment.repo}#{comment.number}/{comment.id}",
        ),
    )


def help_text(order: Order) -> str:
    """The answer to /help, and to a command that cannot be read: Markdown."""
    error = dict(order.options)
    return f"That was no command: {unaddressed(error['what'])} {unaddressed(error['remedy'])}" if error else HELP


def _command_line(text: str) -> tuple[Kind, str] | None:
    """The first line that is a command, outside of blocks of code."""
    fence = ""
    for line in text.replace("\r", "\n").split("\n"):
        if edge := FENCE.match(line):
            if not fence:
                fence = edge[1]
            elif edge[1].startswith(fence):
                fence = ""
        elif not fence and (command := COMMAND.fullmatch(line.rstrip())):
            kind: Kind = command[1]  # type: ignore[assignment]  # the pattern is made of the kinds
            return kind, command[2] or ""
    return None


def _options(kind: Kind, rest: str) -> tuple[tuple[str, str], ...]:
    """`--name value`, `--name=value` or `name=value`, checked against the options of a run. Raises Usage. No shell reads it."""
    if kind == "help":
        return ()
    if len(rest) > LONGEST:
        raise Usage("The command is too long.", remedy=f"Write no more than {LONGEST} characters on its line.")
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise Usage("A quotation mark of the command has no partner.", remedy="Options need none.") from error
    options: dict[str, str] = {}
    while words:
        word = words.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        name = name.replace("_", "-")
        if name not in CHOOSABLE[kind] or not (equals or word.startswith("--")):
            there = f"There are {', '.join(CHOOSABLE[kind])}." if CHOOSABLE[kind] else "Write it alone."
            raise Usage(f"{word[:60]!r} is no option of /{kind}.", remedy=there)
        is_flag = name != REVISION and OPTIONS[name].type is bool
        if not equals and not is_flag and not words:
            raise Usage(f"{name} of /{kind} has no value.", remedy=f"Write it behind the name, as --{name} VALUE.")
        options[name] = value if equals else "true" if is_flag else words.pop(0)
        if name != REVISION:
            argument(name, options[name])
        elif not options[name] or options[name].startswith(("-", "refs/")):
            raise Usage("The revision of a command is none.", remedy="Name a tag or a commit of the adapter.")
    return tuple(options.items())


def comment_resolver(
    hub: Hub, account: Hub, allowed: Allowed, trusted: Collection[str], otherwise: Resolver
) -> Resolver:
    """Resolves orders that comments gave, and leaves all others to `otherwise`. `account` reads the discussions; `trusted`: names
    of accounts that may give commands anywhere."""
    names = {name.casefold() for name in trusted if name}

    def resolve(order: Order) -> Resolved | Gone | Decided:
        if order.origin != "comment" or order.answer is None:
            return otherwise(order)
        repo, _, thread = order.answer.partition("#")
        number, _, id = thread.partition("/")
        try:
            remark = account.conversation(repo, int(number)).remark(id)
        except (NotFound, Forbidden) as gone:
            return Gone(reason=gone.what)
        if remark is None or remark.hidden:
            return Gone(reason=f"The comment on {repo} is there no more.")
        if HIDDEN_MARK in remark.text:
            return Gone(reason="The comment is one of our own.")
        if remark.author.casefold() not in names and not account.may_write(repo, remark.author):
            return Gone(reason=f"{remark.author or 'Its author'} may not give commands on {repo}.")
        if order.kind == "help":
            return Decided(fate=Fate(status="answered"))
        try:
            return _means(order, repo, hub, allowed)
        except NotFound as missing:
            return _refused(missing.what, missing.remedy)

    return resolve


def _means(order: Order, repo: str, hub: Hub, allowed: Allowed) -> Resolved | Decided:
    """What an order on a repo's discussion is about. Raises NotFound."""
    here = hub.pin(repo)
    is_merged = _has(here, REPORT)
    adapter = _adapter_named(here, hub) if is_merged else here.repo if _has(here, ADAPTER) else None
    if adapter is None:
        return _refused(f"{here.repo} is no adapter, and names none.", "Give the command on the adapter's discussion.")
    if not allowed.repo(adapter):
        return _refused(f"{adapter} is not on the bot's list of adapters.", "Ask its owner to --allow it.")
    if order.kind == "verify":
        target = here if is_merged else hub.pin(f"{adapter}-merged")
        return Resolved(adapter=target.repo, sha=target.sha)
    pinned = hub.pin(adapter, order.revision)
    if not allowed.repo(pinned.repo):
        return _refused(f"{pinned.repo} is not on the bot's list of adapters.", "Ask its owner to --allow it.")
    return Resolved(adapter=pinned.repo, sha=pinned.sha)


def _has(pinned: Pinned, name: str) -> bool:
    return any(entry.name.rpartition("/")[2] == name for entry in pinned.files)


def _adapter_named(merged: Pinned, hub: Hub) -> str | None:
    """The one adapter on the Hub that a merged repo's report names; None where it names several, a folder in a repo, or none."""
    size = next((entry.size for entry in merged.files if entry.name == REPORT), 0)
    try:
        document = Document.read(hub.read_span(merged.repo, merged.sha, REPORT, 0, min(size, 16_000_000)))
    except ValueError:
        return None
    adapters = document.inputs.adapters
    only = adapters[0] if len(adapters) == 1 and not adapters[0].subfolder else None
    return only.repo if only is not None and isinstance(only.repo, str) else None


def _refused(reason: str, remedy: str) -> Decided:
    return Decided(fate=Fate(status="refused", reason=reason, remedy=remedy, exit_code=3))
