"""The model's signature: whether it is the one that was asked for, and is about every file that is proven here."""

from __future__ import annotations

from bot.checks.case import Case
from bot.checks.finding import counted, finding, graded
from bot.checks.folder.hashing import hash_files
from bot.records import Finding
from bot.signing import SIGNATURE, Signer, verify_signature

WORDS = {"key": "the given key", "certificate": "a certificate that the given one vouches for"}


def signature(case: Case) -> Finding:
    """model.sig is by the signer who was named, and covers all that the proof is about."""
    by = case.subject.signed_by or ""
    signer = Signer.to_verify(by)
    try:
        signed = set(verify_signature(case.subject.folder, by))
    except ValueError as error:
        return finding("signature", "fail", "not theirs", "theirs", f"The signature does not hold: {error}.")
    left_out = [f"{SIGNATURE} does not cover {name}." for name in case.once(hash_files) if name not in signed]
    right = (counted(len(signed), "file"), f"{SIGNATURE} is by {WORDS.get(signer.kind, signer.values[0])}.")
    return graded("signature", "theirs", right, fails=left_out)
