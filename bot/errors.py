"""Every error a person can meet, as one tree; each class owns one exit code.

AdapterMergeError                one sentence of what happened, one of what to do
├── Usage              2         the request itself makes no sense
├── Refused            3         the plan, or the inputs' own bytes, forbid the merge
├── NotVerified        4         the merge exists, but was not proven; nothing was published
├── Outside            5         the Hub, GitHub or the network said no
│   ├── NotFound
│   ├── Gated
│   ├── Forbidden
│   └── Moved                    the target changed between plan and commit
├── MachineTooSmall    6         disk or memory
└── Interrupted      130         Ctrl-C, SIGTERM

Anything else that reaches the door is our bug: exit 70, with its traceback.
"""

from __future__ import annotations

OUR_BUG = 70


class AdapterMergeError(Exception):
    """`what` says what happened, `remedy` what to do; both are one plain sentence."""

    exit_code = OUR_BUG

    def __init__(self, what: str, *, remedy: str) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy

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


class Moved(Outside):
    pass


class MachineTooSmall(AdapterMergeError):
    exit_code = 6


class Interrupted(AdapterMergeError):
    exit_code = 130
