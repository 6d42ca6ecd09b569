"""One sentence of what happened and one of what to do, for each way in which the Hub or the network can say no.

Server words are quoted in one short line; URLs and tokens never are.
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from huggingface_hub.errors import HfHubHTTPError

from bot.errors import AdapterMergeError, Forbidden, Gated, MachineTooSmall, Moved, NotFound, Outside, Usage
from bot.untrusted.redact import redact

TRY_AGAIN = "Run it again in a few minutes; what was transferred is kept."
IN_PROGRESS = "another conflicting operation is in progress"
TOKENS = "https://huggingface.co/settings/tokens"
BAD_TOKEN = "bad-token"


class HubBusy(Outside):
    """The Hub did not answer, or asked to come back later: the same call may succeed after `wait` seconds.

    `silent`: it let us wait, so that the time that this took counts as waiting too.
    """

    def __init__(self, what: str, *, remedy: str, wait: float | None = None, silent: bool = False) -> None:
        super().__init__(what, remedy=remedy)
        self.wait = wait
        self.silent = silent


class Unserved(Outside):
    """This server lacks the address: mirrors and company proxies serve only a part of the Hub's API."""


class NoDiscussions(Forbidden):
    """The repo's owner has switched discussions off, and pull requests with them."""


@dataclass(frozen=True, kw_only=True)
class Where:
    """What was being done when the client raised; `doing` completes "could not …"."""

    doing: str
    endpoint: str
    repo: str | None = None
    revision: str | None = None
    file: str | None = None
    signed_in: bool = False
    writing: bool = False

    @property
    def thing(self) -> str:
        """The repo as a person would write it."""
        at = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}{at}" if self.repo else self.endpoint


def plain(text: str | None, limit: int = 200) -> str:
    """Server words fit to be shown: one printable line without markup, token or URL, of no more than `limit` characters."""
    text = re.sub(r"hf_[A-Za-z0-9]{6,}", "hf_…", redact(text or ""))
    if re.match(r"\s*<(!doctype|html)", text, re.IGNORECASE):
        text = re.sub(r"<[^<>]*>", " ", text)  # a proxy's page
    text = " ".join(re.sub(r"https?://\S+", "", text).split())
    text = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _quoted(error: HfHubHTTPError) -> str:
    words = plain(error.server_message).rstrip(".")
    return f" (the Hub said: {words})" if words else ""


def gated(error: Any, where: Where) -> AdapterMergeError:
    page, words = f"{where.endpoint}/{where.repo}", error.server_message or ""
    if "awaiting a review" in words:
        return Gated(
            f"{where.repo} is gated, and its owners have not answered the request for access yet{_quoted(error)}.",
            remedy=f"Wait until they accept it, or ask them at {page}; asking again changes nothing.",
        )
    if "rejected" in words:
        return Gated(
            f"{where.repo} is gated, and its owners have turned the request for access down{_quoted(error)}.",
            remedy=f"Ask them at {page}, use a token of an account that they let in, or name another repo.",
        )
    who = "this token has no access to it" if where.signed_in else "no token was given"
    return Gated(
        f"{where.repo} is gated, and {who}{_quoted(error)}.",
        remedy=f"Accept its terms at {where.endpoint}/{where.repo}, then pass a token of that account (HF_TOKEN).",
    )


def disabled(error: Any, where: Where) -> AdapterMergeError:
    return Forbidden(f"{where.repo} has been disabled on the Hub.", remedy="Ask its owner, or name another repo.")


def no_repo(error: Any, where: Where) -> AdapterMergeError:
    token = (
        "the token given cannot see it; the Hub does not say which"
        if where.signed_in
        else "it is private and no token was given; the Hub does not say which"
    )
    return NotFound(
        f"Could not {where.doing}: {where.repo} does not exist on {where.endpoint}, or {token}.",
        remedy=f"Check the name; for a private repo pass a token that can {_verb(where)} it (HF_TOKEN); "
        "for a folder write ./name.",
    )


def no_revision(error: Any, where: Where) -> AdapterMergeError:
    return NotFound(
        f"{where.repo} has no revision {where.revision or 'main'!r}.",
        remedy="Name a branch, a tag, a commit sha or refs/pr/N that it has.",
    )


def no_file(error: Any, where: Where) -> AdapterMergeError:
    return NotFound(
        f"{where.thing} has no file {where.file!r}." if where.file else f"Could not {where.doing}: a file is missing.",
        remedy="Check the repo's files, or name another revision.",
    )


def answered(error: HfHubHTTPError, where: Where) -> AdapterMergeError:
    status = error.response.status_code
    if status in UNSERVED and not (where.writing and status == 400) and not error.response.headers.get("X-Error-Code"):
        return _unserved(error, where)
    if status >= 500 or status == 408:
        return HubBusy(
            f"Could not {where.doing}: the Hub failed with {status}{_quoted(error)}.",
            remedy=TRY_AGAIN,
            wait=seconds_to_wait(error.response.headers),
        )
    if status == 409 and IN_PROGRESS in (error.server_message or ""):
        return HubBusy(
            f"Could not {where.doing}: the Hub is busy with another change of this account.", remedy=TRY_AGAIN
        )
    if is_not_there_yet(error):
        return HubBusy(
            f"Could not {where.doing}: the Hub does not see a file yet that was uploaded to it.", remedy=TRY_AGAIN
        )
    return STATUS.get(status, _odd)(error, where)


def _unserved(error: HfHubHTTPError, where: Where) -> AdapterMergeError:
    status = error.response.status_code
    return Unserved(
        f"Could not {where.doing}: {where.endpoint} has no such page ({status}){_quoted(error)}.",
        remedy="Publishing needs the Hub itself and no mirror of it: set HF_ENDPOINT, or pass --publish none."
        if where.writing
        else "Check the name and HF_ENDPOINT; a mirror or proxy may serve only a part of the Hub.",
    )


def is_passing(response: Any) -> bool:
    """Whether an answer asks to come back: a rate limit, a failure of the Hub, or a change that is under way."""
    status = response.status_code
    return status >= 500 or status in (408, 429) or (status == 409 and IN_PROGRESS in response.text)


def is_not_there_yet(error: HfHubHTTPError) -> bool:
    """Whether a commit came before the Hub's storage had told of the upload, or the upload was lost there."""
    words = error.server_message or ""
    return error.response.status_code == 400 and "LFS pointer" in words and "does not exist" in words


def _bad_token(error: HfHubHTTPError, where: Where) -> AdapterMergeError:
    if not where.signed_in:
        return Forbidden(
            f"Could not {where.doing}: the Hub wants a token, and none was given.",
            remedy=f"Set HF_TOKEN, or run `hf auth login` (tokens: {TOKENS}).",
        )
    return Forbidden(
        f"Could not {where.doing}: the Hub does not accept this token; it is mistyped, expired or revoked{_quoted(error)}.",
        remedy=f"Set HF_TOKEN to a valid token ({TOKENS}); it wins over `hf auth login`.",
        code=BAD_TOKEN,
    )


def _forbidden(error: HfHubHTTPError, where: Where) -> AdapterMergeError:
    repo = where.repo or "it"
    if re.search(r"(discussions|pull requests)[^.]* disabled", error.server_message or "", re.IGNORECASE):
        return NoDiscussions(
            f"Could not {where.doing}: discussions and pull requests are switched off there{_quoted(error)}.",
            remedy="Switch them on in that repo's settings, or push to it (--publish push).",
        )
    if re.search(r"storage (limit|quota)|quota|upgrade your plan", error.server_message or "", re.IGNORECASE):
        return _payment(error, where)
    named = next(
        (remedy for words, remedy in REMEDIES if re.search(words, error.server_message or "", re.IGNORECASE)), None
    )
    if named is not None:
        remedy = named
    elif where.writing:
        remedy = f"Use a token with write access to {repo}: role write, or fine-grained with that repo in its scope."
    else:
        remedy = f"Use a token that can read {repo} (a fine-grained token lists the repos it may read)."
    return Forbidden(f"Could not {where.doing}: the token may not do that{_quoted(error)}.", remedy=remedy)


def _payment(error: HfHubHTTPError, where: Where) -> AdapterMergeError:
    return Forbidden(
        f"Could not {where.doing}: the account's plan or storage does not allow it{_quoted(error)}.",
        remedy="Free some storage or change the plan on the Hub; or publish to a public repo or to another account.",
    )


def _taken(error: HfHubHTTPError, where: Where) -> AdapterMergeError:
    return Outside(
        f"Could not {where.doing}: something of that name is already there{_quoted(error)}.",
        remedy="If it is a repo that this token cannot see, use its owner's token; else choose another name.",
    )


def _moved(error: Any, where: Where) -> AdapterMergeError:
    return Moved(
        f"{where.repo} changed while this run was working, so nothing was committed to it.",
        remedy="Run it again: the check and the commit are repeated on what is there now.",
    )


def _too_many(error: HfHubHTTPError, where: Where) -> AdapterMergeError:
    wait = seconds_to_wait(error.response.headers)
    later = f"in {wait:.0f} seconds" if wait is not None else "in five minutes"
    return HubBusy(
        f"Could not {where.doing}: the Hub's rate limit is reached{_quoted(error)}.",
        remedy=f"Run it again {later}; "
        + ("" if where.signed_in else "a token (HF_TOKEN) raises the limit; ")
        + "what was transferred is kept.",
        wait=wait,
    )


def _odd(error: HfHubHTTPError, where: Where) -> AdapterMergeError:
    status = error.response.status_code
    return Outside(
        f"Could not {where.doing}: the Hub answered {status}{_quoted(error)}.",
        remedy="Read what the Hub said; if the request looks right, report it with --debug's output.",
    )


def misnamed(error: Any, where: Where) -> AdapterMergeError:
    return Usage(f"{where.repo!r} is not a name that a Hub repo can have.", remedy="Write owner/name.")


def misread(error: BaseException, where: Where, answer: str) -> AdapterMergeError:
    words = plain(ascii(answer)[1:-1], 120)
    why = plain(str(error) if type(error) is ValueError else type(error).__name__, 120)
    return Unserved(
        f"Could not {where.doing}: {where.endpoint} answered what no Hub would ({why})"
        + (f": {words}" if words else "."),
        remedy="Check HF_ENDPOINT and any proxy in between; if it is the Hub itself, report it with --debug's output.",
    )


def offline(error: Any, where: Where) -> AdapterMergeError:
    return Outside(
        f"Could not {where.doing}: HF_HUB_OFFLINE is set, and the local cache does not have it.",
        remedy="Unset HF_HUB_OFFLINE, or download it into the cache first (`hf download`).",
    )


def not_cached(error: Any, where: Where) -> AdapterMergeError:
    return Outside(
        f"Could not {where.doing}: it is not in the local cache, and the Hub was not asked or did not answer.",
        remedy=f"Check that {where.endpoint} can be reached and that HF_HUB_OFFLINE is not set.",
    )


def no_metadata(error: Any, where: Where) -> AdapterMergeError:
    return Outside(
        f"Could not {where.doing}: {where.endpoint} answered without the headers of a Hub.",
        remedy="Check HF_ENDPOINT and any proxy in between.",
    )


def no_token(error: Any, where: Where) -> AdapterMergeError:
    return Forbidden(
        f"Could not {where.doing}: it needs a token, and there is none.",
        remedy=f"Set HF_TOKEN, or run `hf auth login` (tokens: {TOKENS}).",
    )


def no_oidc(error: Any, where: Where) -> AdapterMergeError:
    return Forbidden(
        "HF_OIDC_RESOURCE is set, and the job's identity could not be exchanged for a Hub token.",
        remedy="Give the job `permissions: id-token: write` and trust its workflow in the repo's settings on the Hub.",
    )


def slow(error: Any, where: Where) -> AdapterMergeError:
    what = f"Could not {where.doing}: {where.endpoint} did not answer in time."
    return HubBusy(what, remedy=TRY_AGAIN, silent=True)


def _xet(error: Any, where: Where) -> AdapterMergeError:
    return Outside(
        f"Could not {where.doing}: the transfer failed ({plain(str(error), 120)}).",
        remedy="Run it again; if it fails the same way, set HF_HUB_DISABLE_XET=1 to go by plain HTTP.",
    )


def transfer(error: BaseException, where: Where) -> AdapterMergeError:
    return disk(error, where) or _xet(error, where)


def disk(error: BaseException, where: Where) -> AdapterMergeError | None:
    if type(error).__module__.partition(".")[0] == "hf_xet":
        return _xet(error, where)
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
        return MachineTooSmall(
            f"Could not {where.doing}: the disk is full.",
            remedy="Free some space, or point HF_HOME (the download cache) at a larger disk.",
        )
    if number in (errno.EACCES, errno.EROFS, errno.EPERM):
        return MachineTooSmall(
            f"Could not {where.doing}: the download cache cannot be written.",
            remedy="Point HF_HOME at a folder that this user may write.",
        )
    if "Consistency check failed" in str(error):
        return HubBusy(f"Could not {where.doing}: the download arrived incomplete.", remedy=TRY_AGAIN)
    return None


def _verb(where: Where) -> str:
    return "write to" if where.writing else "read"


def seconds_to_wait(headers: Any) -> float | None:
    """`t` of a RateLimit header that has nothing left, or Retry-After (seconds, or a date); None where no time is named."""
    limit, after = headers.get("RateLimit", ""), headers.get("Retry-After", "").strip()
    window = re.search(r"\bt\s*=\s*(\d+)", limit)
    if window and not re.search(r"\br\s*=\s*[1-9]", limit):
        return float(window[1])
    if re.fullmatch(r"\d+(\.\d+)?", after):
        return float(after)
    try:
        return max(0.0, parsedate_to_datetime(after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


# By the Hub's own words, where a refusal is not for want of a token that may write.
REMEDIES = (
    (
        r"approv",
        "An administrator of the organization has to approve this token, in the organization's settings; until then "
        "use one that is approved.",
    ),
    (
        r"public gated repositories",
        "Let this fine-grained token read the public gated repos that its owner can access (a box in its settings, "
        f"{TOKENS}).",
    ),
    (r"only.*fine-grained", f"Make a fine-grained token ({TOKENS}): that organization takes no other."),
    (
        r"rights to create",
        "Use a token that may write to all repos of that account or organization; or create the repo by hand, and let the "
        "token write to it.",
    ),
    (
        r"read access but not the required",
        "Ask an administrator of its owner for the role write there, or open a pull request (--publish pr).",
    ),
)
UNSERVED = (400, 404, 405, 410, 501)
STATUS: dict[int, Callable[[Any, Where], AdapterMergeError]] = {
    401: _bad_token,
    402: _payment,
    403: _forbidden,
    409: _taken,
    412: _moved,
    429: _too_many,
}
