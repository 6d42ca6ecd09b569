"""The only package that calls PyGithub: what one run tells GitHub. Each failure leaves as a bot.errors sentence."""

from __future__ import annotations

from bot.gh.checks import Annotation, CheckRun
from bot.gh.repository import GitHub

__all__ = ["Annotation", "CheckRun", "GitHub"]
