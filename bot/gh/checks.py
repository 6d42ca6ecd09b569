"""A check run as we ask for it, cut to what GitHub takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from bot.untrusted.redact import redact

MOST_ANNOTATIONS = 50  # in one request; more are appended by further ones
LONGEST = 65_535  # characters of a check run's summary and text, and of a comment
LONGEST_TITLE = 255
CUT = "\n\n… (cut: GitHub takes no more)"


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """A remark on a file of the repo; the first line stands for the whole file."""

    path: str
    level: Literal["notice", "warning", "failure"]
    title: str
    message: str

    def as_request(self) -> dict[str, str | int]:
        """The annotation in GitHub's own words."""
        return {
            "path": self.path,
            "start_line": 1,
            "end_line": 1,
            "annotation_level": self.level,
            "title": redact(self.title)[:LONGEST_TITLE],
            "message": cut(self.message),
        }


@dataclass(frozen=True, kw_only=True)
class CheckRun:
    """A finished check run on a commit. `conclusion`: success, failure or neutral."""

    name: str
    sha: str
    conclusion: Literal["success", "failure", "neutral"]
    title: str
    summary: str
    text: str
    annotations: tuple[Annotation, ...] = ()
    details_url: str | None = None
    external_id: str = ""

    def batches(self) -> list[dict[str, Any]]:
        """The `output` of each request: title, summary and text, and up to fifty annotations at a time."""
        remarks = [annotation.as_request() for annotation in self.annotations]
        batches = [remarks[start : start + MOST_ANNOTATIONS] for start in range(0, len(remarks), MOST_ANNOTATIONS)]
        words = {"title": redact(self.title)[:LONGEST_TITLE], "summary": cut(self.summary), "text": cut(self.text)}
        return [words | {"annotations": batch} for batch in batches or [[]]]


def cut(text: str, limit: int = LONGEST) -> str:
    """The text without any secret, shortened visibly where GitHub would refuse it."""
    text = redact(text)
    return text if len(text) <= limit else text[: limit - len(CUT)] + CUT
