"""Every error a person can meet, as one tree; each class owns one exit code.

AdapterMergeError                one sentence of what happened, one of what to do
├── Usage              2         the request itself makes no sense
├── Refused            3         the plan, or the inputs' own bytes, forbid the merge
├── NotVerified        4         the merge exists, but was not proven; nothing was published
├── Outside            5         the Hub, GitHub or the network said no
│   ├── NotFound
│   ├── Gated
│   ├── Forbidden
│   ├── Damaged                  a file on this disk has not the bytes that its source states
│   └── Moved                    the target changed between plan and commit
├── MachineTooSmall    6         disk or memory
└── Interrupted      130         Ctrl-C, SIGTERM, SIGHUP

Any other exception is our bug: exit 70, with its traceback.
"""

from __future__ import annotations

import errno

OUR_BUG = 70


class AdapterMergeError(Exception):
    """`what` says what happened, `remedy` what to do; both are one plain sentence."""

    exit_code = OUR_BUG

    def __init__(self, what: str, *, remedy: str, code: str | None = None) -> None:
        """`code`: the one word for machines, as a plan's refusals have it; None for most."""
        super().__init__(what)
        self.what = what
        self.remedy = remedy
        self.code = code

    def __str__(self) -> str:
        return f"{self.what} {self.remedy}"


class Usage(AdapterMergeError):
    exit_code = 2


class Refused(AdapterMergeError):
    exit_code = 3


class NotVerified(AdapterMergeError):
    exit_code = 4


class Outside(AdapterMergeError):
    exit_code = 5


class NotFound(Outside):
    pass


class Gated(Outside):
    pass


class Forbidden(Outside):
    pass


class Damaged(Outside):
    """`files`: the records.Held that are not what they must be."""

    def __init__(self, what: str, *, remedy: str, files: tuple[object, ...] = ()) -> None:
        super().__init__(what, remedy=remedy)
        self.files = files


class Moved(Outside):
    pass


class MachineTooSmall(AdapterMergeError):
    exit_code = 6


class Interrupted(AdapterMergeError):
    exit_code = 130


# What a system says when it lacks something, or is not allowed; FileNotFoundError and its like are our bugs.
LACKING = {
    errno.ENOSPC: "Free some space, or point TMPDIR, HF_HOME and --output at a larger disk.",
    errno.EDQUOT: "Free some space, or point TMPDIR, HF_HOME and --output at a disk without that quota.",
    errno.EROFS: "Point TMPDIR, HF_HOME and --output at folders that can be written.",
    errno.EACCES: "Give this user the right to that file, or point TMPDIR, HF_HOME and --output elsewhere.",
    errno.EPERM: "Give this user the right to that file, or point TMPDIR, HF_HOME and --output elsewhere.",
    errno.ENAMETOOLONG: "Rename it, or work in a folder with a shorter path.",
    errno.ELOOP: "Replace the link by the file that it should lead to.",
    errno.EMFILE: "Raise the limit of open files (`ulimit -n`).",
    errno.ENFILE: "Close other programs, or raise the system's limit of open files.",
    errno.ENOMEM: "Close other programs, or raise the container's memory limit.",
    errno.EIO: "Check the disk (the system's log says more), then run it again.",
    errno.ESTALE: "Check the network file system, then run it again.",
}


def of_system(error: OSError | MemoryError) -> MachineTooSmall | None:
    """The sentence for what this machine lacks; None where it lacks nothing, and the fault is ours."""
    if isinstance(error, MemoryError):
        return MachineTooSmall("This machine ran out of memory.", remedy=LACKING[errno.ENOMEM])
    if error.errno not in LACKING:
        return None
    named = f" ({error.filename!r:.200})" if error.filename else ""
    return MachineTooSmall(f"The system refused a file{named}: {error.strerror}.", remedy=LACKING[error.errno])
