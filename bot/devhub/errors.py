"""What the local Hub refuses: one exception, and the refusals that the client knows by their headers."""

from __future__ import annotations

from collections.abc import Mapping


class HttpError(Exception):
    """An HTTP refusal: status, sentence, and the `X-Error-Code` by which huggingface_hub picks its exception."""

    def __init__(self, status: int, message: str, *, code: str | None = None, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = dict(headers or {})


def repo_not_found(signed_in: bool) -> HttpError:
    """A repo that is missing, or private to others; the two must look the same from outside."""
    if signed_in:
        return HttpError(404, "Repository not found", code="RepoNotFound")
    # Over http:// the client does not read a bare 401 as "not found" (its pattern wants https), hence the code.
    return HttpError(401, "Invalid username or password.", code="RepoNotFound")


def revision_not_found(revision: str) -> HttpError:
    """A branch, tag, pull request or commit that the repo does not have."""
    return HttpError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")


def entry_not_found(path: str, commit: str | None = None) -> HttpError:
    """A path that the revision does not have; with `commit`, the client caches the absence."""
    headers = {"X-Repo-Commit": commit} if commit else {}
    return HttpError(404, f'"{path}" does not exist', code="EntryNotFound", headers=headers)


def gated(kind: str, repo: str, url: str, signed_in: bool, status: str | None = None) -> HttpError:
    """Files of a gated repo asked for without having been let in; `url` is the repo's page, `status` the request's."""
    if not signed_in:
        message = (
            f"Access to {kind} {repo} is restricted. You must have access to it and be authenticated to access it. "
            "Please log in."
        )
        return HttpError(401, message, code="GatedRepo")
    if status == "pending":
        return HttpError(
            403, f"Your request to access {kind} {repo} is awaiting a review from the repo authors.", code="GatedRepo"
        )
    if status == "rejected":
        return HttpError(
            403, f"Your request to access {kind} {repo} has been rejected by the repo's authors.", code="GatedRepo"
        )
    message = (
        f"Access to {kind} {repo} is restricted and you are not in the authorized list. Visit {url} to ask for access."
    )
    return HttpError(403, message, code="GatedRepo")


def bad_token() -> HttpError:
    """A token that this hub never issued, or has revoked."""
    return HttpError(401, "Invalid credentials in Authorization header")


def bad_request(message: str) -> HttpError:
    """A request that makes no sense."""
    return HttpError(400, message)


def forbidden(message: str) -> HttpError:
    """A request that this token may not make."""
    return HttpError(403, message)


def conflict(message: str) -> HttpError:
    """Something of that name is already there."""
    return HttpError(409, message)
