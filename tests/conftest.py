"""One environment for all tests: an own cache, no telemetry, and the Hub client in its LFS mode.

Set before anything imports huggingface_hub, which reads it once. Xet stories run in processes of their own.
Every report that a test makes in its own process is held to the schema of verification.json.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import wraps
from typing import Any

from hypothesis import HealthCheck, settings

from bot import report_document
from tests import report_schema

_HOME = tempfile.mkdtemp(prefix="adapter-merge-tests-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
os.environ |= {
    "HF_HOME": _HOME,
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
for _name in ("HF_TOKEN", "HF_READ_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "GITHUB_ACTIONS"):
    os.environ.pop(_name, None)

# What a test finds must not depend on how busy the machine is: the first example of a run imports and warms up libraries.
# In CI it must not depend on luck either; everywhere else each run draws anew, and finds what nobody thought of.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=bool(os.environ.get("CI"))
)
settings.load_profile("any machine")

_new_document = report_document.new_document


@wraps(_new_document)
def _fitting_document(*parts: Any, **named: Any) -> report_document.Document:
    document = _new_document(*parts, **named)
    # Tests of single checks name no inputs.
    complete = {**document.json, "inputs": document.json["inputs"] or report_schema.EXAMPLE}
    misfits = report_schema.misfits(report_document.Document.of(complete).canonical())
    assert not misfits, f"docs/verification.schema.json does not describe this report: {misfits}"
    return document


report_document.new_document = _fitting_document  # before bot.verify is imported, which makes them
