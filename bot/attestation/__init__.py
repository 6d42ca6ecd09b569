"""In-toto attestations of a merge: what was made of what, and what its proof found. They are written here, and read again.

Statements have no signature of ours: a workflow hands them to `actions/attest`, a person to `cosign attest-blob`.
"""

from __future__ import annotations

from bot.attestation.reading import Attestation, read_attestations
from bot.attestation.statement import BUILD_TYPE, PROVENANCE, TEST_RESULT
from bot.attestation.writing import attest, paths_beside, require_writable, utc_now

__all__ = [
    "BUILD_TYPE",
    "PROVENANCE",
    "TEST_RESULT",
    "Attestation",
    "attest",
    "paths_beside",
    "read_attestations",
    "require_writable",
    "utc_now",
]
