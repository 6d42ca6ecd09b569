"""What the checks of the files say by themselves: each that failed is a cause, in its own words."""

from __future__ import annotations

from collections.abc import Iterable

from bot.checks.cause.evidence import Evidence
from bot.checks.cause.hypothesis import Cause, Hypothesis

# check → (kind, how the sentence begins)
FILES = {
    "headers": ("damaged-files", "Weight files are damaged or missing: "),
    "index": ("damaged-files", "The index does not fit the files: "),
    "strays": ("stray-files", "Weights lie in the folder that do not belong there: "),
    "pins": ("other-report", "The folder's report is not of this folder and these inputs: "),
    "config": ("config-changed", "config.json was changed: "),
    "tokenizer": ("tokenizer-changed", "The tokenizer was changed: "),
    "special-tokens": ("tokenizer-changed", "The special tokens were changed: "),
    "vocabulary": ("vocabulary-size", "The vocabulary is too small for the tokenizer: "),
    "chat-template": ("chat-template-changed", "The chat template was changed: "),
    "generation-config": ("generation-config-changed", "generation_config.json was changed: "),
    "processor": ("processor-changed", "The processor was changed: "),
    "custom-code": ("code-changed", "The model's code was changed: "),
    "own-code": ("code-changed", "The model's code is not all there: "),
    "method": ("adapter-not-understood", "The adapter does not fit this base, or is not understood: "),
    "effect": ("adapter-without-effect", "The adapter itself changes nothing that could be stored: "),
}


def _failed(evidence: Evidence) -> Iterable[Cause]:
    kinds: set[str] = set()
    for check, (kind, begin) in FILES.items():
        if evidence.failed(check) and kind not in kinds:
            kinds.add(kind)
            finding = evidence.findings[check]
            yield Cause(kind=kind, sentence=f"{begin}{finding.why}", figures={"faults": 1 + len(finding.worst)})


CHANGED_FILES = Hypothesis(name="files", read=_failed)
