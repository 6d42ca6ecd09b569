"""A merge with statements about it."""

from tests.attestation.conftest import attested, built, copy, llama, one_thread, report

__all__ = ["attested", "built", "copy", "llama", "one_thread", "report"]
