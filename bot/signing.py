"""Model signatures of OpenSSF's model_signing (an extra): a folder's files, hashed and signed in one file of it, `model.sig`.

https://github.com/sigstore/model-transparency · the signature is a Sigstore bundle whose statement names each file's hash.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bot.attestation.reading import read_attestations
from bot.errors import AdapterMergeError, Outside, Usage
from bot.untrusted.redact import know, redact

SIGNATURE = "model.sig"
# What may change after the signing: the card, by its owner; git's settings, by the Hub; results of evaluations, by anybody;
# the notes of a download. The signature names them, so that every verifier leaves them out.
NOT_SIGNED = (SIGNATURE, "README.md", ".gitattributes", ".eval_results", ".cache", ".git")
PASSWORD = "ADAPTER_MERGE_SIGNING_PASSWORD"
GITHUB = "https://token.actions.githubusercontent.com"
SIGNING = "--sign takes key:FILE, env:VARIABLE, certificate:KEY,CERTIFICATE[,CHAIN…] or sigstore."
VERIFYING = "--signed-by takes key:FILE, certificate:ROOT[,ROOT…] or sigstore:IDENTITY[,ISSUER]."
INSTALL = "Install it with what it is signed by: `pip install '.[signing]'` in a clone, or model-signing and pyOpenSSL."
LONGEST = 300  # characters of what the library says


@dataclass(frozen=True, kw_only=True)
class Signer:
    """Who signs, or whose signature is asked for: `kind`, and what follows its colon, at the commas."""

    kind: str
    values: tuple[str, ...]

    @classmethod
    def to_sign(cls, text: str) -> Signer:
        """Of `--sign`. Raises Usage where it makes no sense, or names what is not there."""
        signer = cls._of(text, {"key": (1, 1), "env": (1, 1), "certificate": (2, 99), "sigstore": (0, 0)}, SIGNING)
        if signer.kind == "env" and not os.environ.get(signer.values[0]):
            raise Usage(f"The variable {signer.values[0]} holds no key.", remedy="Set it to the private key, in PEM.")
        return signer

    @classmethod
    def to_verify(cls, text: str) -> Signer:
        """Of `--signed-by`. Raises Usage, as above."""
        return cls._of(text, {"key": (1, 1), "certificate": (1, 99), "sigstore": (1, 2)}, VERIFYING)

    @classmethod
    def _of(cls, text: str, kinds: Mapping[str, tuple[int, int]], remedy: str) -> Signer:
        kind, _, rest = text.partition(":")
        values = tuple(value for value in rest.split(",") if value)
        least, most = kinds.get(kind, (1, 0))
        if not least <= len(values) <= most:
            raise Usage(f"{text[:80]!r} names no signer.", remedy=remedy)
        files = values if kind in ("key", "certificate") else ()
        missing = next((name for name in files if not Path(name).is_file()), None)
        if missing:
            raise Usage(f"There is no key or certificate {missing}.", remedy="Name a file in PEM.")
        return cls(kind=kind, values=values)


def require_signer(text: str | None) -> None:
    """Raise Usage, before hours of work, where nothing can be signed so."""
    if text is not None:
        signer = Signer.to_sign(text)
        with _translated(signer):
            _sign_with(signer)


def sign(folder: Path, how: str, name: str) -> Path:
    """Sign every file of `folder` but NOT_SIGNED, and put the signature into it; its path. `how`: as `--sign` has it; `name`:
    what the model is called in it. Reads every file once more. Raises Usage, and Outside where Sigstore does not answer."""
    signer = Signer.to_sign(how)
    fresh = folder / f".{SIGNATURE}.tmp"
    fresh.unlink(missing_ok=True)  # a killed run's
    with _translated(signer), tempfile.TemporaryDirectory() as temporary:
        called = Path(temporary) / name
        called.symlink_to(folder.absolute())  # the library takes the model's name from its path
        hashing = _hashing().use_file_serialization(
            allow_symlinks=True
        )  # so that it also holds in the Hub's cache, of links
        hashing.set_allow_symlinks(True).set_ignored_paths(paths=NOT_SIGNED)
        _sign_with(signer).set_hashing_config(hashing).sign(called, fresh)
    return fresh.replace(folder / SIGNATURE)


def verify_signature(folder: Path, by: str) -> list[str]:
    """The files that the signature in `folder` is about, by name. `by`: as `--signed-by` has it.

    Raises ValueError, with the reason, where it is not theirs or the files are others; Usage, and Outside, as above.
    """
    signer, signature = Signer.to_verify(by), folder / SIGNATURE
    if not signature.is_file():
        raise ValueError(f"the folder has no {SIGNATURE}")
    statement, *others = read_attestations(signature)
    if others:
        raise ValueError("it holds several statements")
    serialization = statement.predicate.get("serialization")
    with _translated(signer, verifying=True):
        _verifier(signer).set_hashing_config(_as_signed(serialization)).verify(folder, signature)
    resources = statement.predicate.get("resources")
    return (
        [str(each.get("name")) for each in resources if isinstance(each, dict)] if isinstance(resources, list) else []
    )


def _sign_with(signer: Signer) -> Any:
    from model_signing import signing

    config, password = signing.Config(), os.environ.get(PASSWORD)
    match signer.kind:
        case "key":
            key = Path(signer.values[0])
            return config.use_elliptic_key_signer(private_key=key, password=password.encode() if password else None)
        case "env":
            with _in_a_file(os.environ[signer.values[0]]) as key:
                return config.use_elliptic_key_signer(private_key=key, password=password.encode() if password else None)
        case "certificate":
            key, certificate, *chain = map(Path, signer.values)
            return config.use_certificate_signer(
                private_key=key, signing_certificate=certificate, certificate_chain=chain
            )
    from sigstore.oidc import detect_credential

    if not sys.stdin.isatty() and not detect_credential():  # it would wait for a browser
        raise Usage(
            "Sigstore needs an identity, and none is at hand.",
            remedy="In a workflow, give the job `id-token: write`; on a terminal, a browser asks for one.",
        )
    return config.use_sigstore_signer(use_ambient_credentials=True)


def _verifier(signer: Signer) -> Any:
    from model_signing import verifying

    config = verifying.Config()
    match signer.kind:
        case "key":
            return config.use_elliptic_key_verifier(public_key=Path(signer.values[0]))
        case "certificate":
            return config.use_certificate_verifier(certificate_chain=list(map(Path, signer.values)))
    identity, issuer = (*signer.values, GITHUB)[:2]
    return config.use_sigstore_verifier(identity=identity, oidc_issuer=issuer)


def _as_signed(serialization: Any) -> Any:
    """How the files were hashed, as the signature says it, but for links: a snapshot in the Hub's cache is made of them."""
    signed = serialization if isinstance(serialization, dict) else {}
    algorithm = signed.get("hash_type", "sha256")
    config = _hashing()
    if signed.get("method") == "shards":
        config.use_shard_serialization(
            hashing_algorithm=algorithm, shard_size=int(signed["shard_size"]), allow_symlinks=True
        )
    else:
        config.use_file_serialization(hashing_algorithm=algorithm, allow_symlinks=True)
    return config.set_allow_symlinks(True).set_ignored_paths(paths=[SIGNATURE, ".cache"])


def _hashing() -> Any:
    from model_signing import hashing

    return hashing.Config()


@contextlib.contextmanager
def _in_a_file(key: str) -> Iterator[Path]:
    """A private key out of the environment, as the library takes it: in a file that only this user can read, for a moment."""
    for line in key.splitlines():
        know(line)
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as opened:  # made with mode 600
        opened.write(key)
        opened.flush()
        yield Path(opened.name)


@contextlib.contextmanager
def _translated(signer: Signer, *, verifying: bool = False) -> Iterator[None]:
    """What the library raises, as ours; what it prints goes to standard error."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except AdapterMergeError:
        raise
    except ImportError as error:
        raise Usage(
            "Signatures need the extra `signing`, which is not installed.",
            remedy=INSTALL,
        ) from error
    except Exception as error:
        why = redact(" ".join(str(error).split()))[:LONGEST].rstrip(".") or type(error).__name__
        if _unanswered(error):
            raise Outside(f"Sigstore did not answer: {why}.", remedy="Try again later, or sign with a key.") from error
        if verifying:
            raise ValueError(why) from error
        raise Usage(f"The model cannot be signed so: {why}.", remedy=SIGNING) from error


def _unanswered(error: Exception) -> bool:
    """Whether it was Sigstore's service that failed: it is asked for its own keys, and to sign."""
    from sigstore.errors import NetworkError, TUFError

    return isinstance(error, OSError | NetworkError | TUFError)
