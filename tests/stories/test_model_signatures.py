"""A model is signed last, and its signature holds wherever it is fetched to: by this tool and by OpenSSF's own."""

from __future__ import annotations

import builtins
import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from huggingface_hub import snapshot_download
from model_signing import hashing, signing, verifying

from bot import pipeline
from bot.signing import PASSWORD, SIGNATURE
from tests.stories.conftest import Command, World

QUICK = ("--verify", "files")
MERGED = "demo/adapter-merged"


class Pair:
    """A private key and its public one, in PEM."""

    def __init__(self, folder: Path, name: str = "key", password: bytes | None = None) -> None:
        folder.mkdir(exist_ok=True)
        self.key = ec.generate_private_key(ec.SECP256R1())
        encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        self.private, self.public = folder / f"{name}.pem", folder / f"{name}.pub"
        self.private.write_bytes(self.key.private_bytes(pem, pkcs8, encryption))
        public = self.key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
        self.public.write_bytes(public)

    def certificate(self, path: Path, issuer: Pair | None = None) -> Path:
        """Signed by the issuer, or a root of its own."""
        names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]) for name in ("signer", "root")]
        now = datetime.now(UTC)
        others = (
            "content_commitment key_encipherment data_encipherment key_agreement crl_sign encipher_only decipher_only"
        )
        usage = dict.fromkeys(others.split(), False)
        made = (
            x509.CertificateBuilder()
            .subject_name(names[0 if issuer else 1])
            .issuer_name(names[1])
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(digital_signature=True, key_cert_sign=issuer is None, **usage), critical=True)
            .sign((issuer or self).key, hashes.SHA256())
        )
        path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        return path


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path / "keys")


def status(ran: Any) -> tuple[str, str]:
    check = next(check for check in json.loads(ran.out)["checks"] if check["id"] == "signature")
    return check["status"], check["why"]


def test_a_published_signature_holds_by_this_tool_and_by_openssfs_own(
    world: World, adapter_merge: Command, pair: Pair, tmp_path: Path
) -> None:
    ran = adapter_merge("run", "demo/adapter@v1", *QUICK, "--sign", f"key:{pair.private}")
    assert ran.code == 0, ran.err
    assert ".gitattributes" in world.api.list_repo_files(MERGED)  # the Hub's own file
    ran = adapter_merge("verify", MERGED, *QUICK, "--signed-by", f"key:{pair.public}", "--json")
    assert (ran.code, *status(ran)) == (0, "pass", "model.sig is by the given key.")
    cached = Path(snapshot_download(MERGED, endpoint=world.hub.url, token=world.hub.token))  # made of links
    local = snapshot_download(MERGED, endpoint=world.hub.url, token=world.hub.token, local_dir=tmp_path / "here")
    (Path(local) / "README.md").write_text("a card that its owner rewrote")
    for folder, links in ((cached, True), (Path(local), False)):
        theirs = verifying.Config().set_hashing_config(hashing.Config().set_allow_symlinks(links))
        theirs.use_elliptic_key_verifier(public_key=pair.public).verify(folder, folder / SIGNATURE)
    statement = adapter_merge("verify", local, *QUICK, "--signed-by", f"key:{pair.public}")
    assert statement.code == 0, statement.err


def test_a_signature_comes_with_a_pull_request_and_an_unsigned_merge_takes_it_away(
    world: World, adapter_merge: Command, pair: Pair
) -> None:
    sign = ("--sign", f"key:{pair.private}")
    assert adapter_merge("run", "demo/adapter@v1", *QUICK, *sign).code == 0
    world.new_version("v2", seed=7)
    assert adapter_merge("run", "demo/adapter@v2", *QUICK, *sign).code == 0
    revision = f"{MERGED}@refs/pr/1"
    ran = adapter_merge("verify", revision, *QUICK, "--signed-by", f"key:{pair.public}", "--json")
    assert (ran.code, status(ran)[0]) == (0, "pass")
    world.new_version("v3", seed=8)
    assert adapter_merge("run", "demo/adapter@v3", *QUICK, "--publish", "push").code == 0
    assert SIGNATURE not in world.api.list_repo_files(MERGED)  # it would be about other files
    assert adapter_merge("run", "demo/adapter@v3", *QUICK).out.count("unchanged")


def test_what_is_published_already_is_not_signed_and_that_is_said(
    world: World, adapter_merge: Command, pair: Pair
) -> None:
    assert adapter_merge("run", "demo/adapter@v1", *QUICK).code == 0
    ran = adapter_merge("run", "demo/adapter@v1", *QUICK, "--sign", f"key:{pair.private}")
    assert (ran.code, "so that nothing was signed" in ran.err) == (0, True)
    ran = adapter_merge("run", "demo/adapter@v1", *QUICK, "--sign", f"key:{pair.private}", "--force")
    assert ran.code == 0, ran.err


@pytest.fixture
def signed(world: World, adapter_merge: Command, pair: Pair, tmp_path: Path) -> Path:
    ran = adapter_merge("merge", "demo/adapter", *QUICK, "-o", tmp_path / "out", "--sign", f"key:{pair.private}")
    assert ran.code == 0, ran.err
    return tmp_path / "out"


def another_key(folder: Path, pair: Pair) -> str:
    return f"key:{Pair(folder.parent / 'other').public}"


def changed_file(folder: Path, pair: Pair) -> str:
    (folder / "generation_config.json").write_text("{}")
    return f"key:{pair.public}"


def added_file(folder: Path, pair: Pair) -> str:
    (folder / "LICENSE.more").write_text("one more")
    return f"key:{pair.public}"


def missing_file(folder: Path, pair: Pair) -> str:
    (folder / "LICENSE").unlink()
    return f"key:{pair.public}"


def no_signature(folder: Path, pair: Pair) -> str:
    (folder / SIGNATURE).unlink()
    return f"key:{pair.public}"


def no_json(folder: Path, pair: Pair) -> str:
    (folder / SIGNATURE).write_text("signed, honestly")
    return f"key:{pair.public}"


def one_that_leaves_weights_out(folder: Path, pair: Pair) -> str:
    (weights,) = [path.name for path in folder.glob("model-00001-of-*.safetensors")]
    hash_all = hashing.Config().set_ignored_paths(paths=[SIGNATURE, "README.md", weights])
    config = signing.Config().use_elliptic_key_signer(private_key=pair.private).set_hashing_config(hash_all)
    config.sign(folder, folder / SIGNATURE)
    return f"key:{pair.public}"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (another_key, "Key mismatch"),
        (changed_file, "Hash mismatch for 'generation_config.json'"),
        (added_file, "Extra files found in model 'out': LICENSE.more"),
        (missing_file, "Missing files in model 'out': LICENSE"),
        (no_signature, "the folder has no model.sig"),
        (no_json, "The signature does not hold"),
        (one_that_leaves_weights_out, "model.sig does not cover model-00001-of-"),
    ],
)
def test_a_signature_that_does_not_hold_fails_by_its_reason(
    signed: Path, adapter_merge: Command, pair: Pair, change: Any, why: str
) -> None:
    by = change(signed, pair)
    ran = adapter_merge("verify", signed, *QUICK, "--signed-by", by, "--json")
    assert ran.code == 4
    assert status(ran)[0] == "fail"
    assert why in status(ran)[1]


def test_a_key_out_of_the_environment_signs_and_is_never_printed(
    world: World, adapter_merge: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Pair(tmp_path / "keys", password=b"a long password")
    monkeypatch.setenv("SIGNING_KEY", pair.private.read_text())
    out = tmp_path / "out"
    ran = adapter_merge("merge", "demo/adapter", *QUICK, "-o", out, "--sign", "env:SIGNING_KEY")
    assert (ran.code, "The model cannot be signed so" in ran.err, out.exists()) == (2, True, False)  # no password
    monkeypatch.setenv(PASSWORD, "a long password")
    ran = adapter_merge("merge", "demo/adapter", *QUICK, "-o", out, "--sign", "env:SIGNING_KEY")
    assert ran.code == 0, ran.err
    assert not [line for line in pair.private.read_text().splitlines()[1:-1] if line in ran.out + ran.err]
    assert adapter_merge("verify", out, *QUICK, "--signed-by", f"key:{pair.public}").code == 0


def test_a_certificate_signs_and_its_root_verifies(
    world: World, adapter_merge: Command, pair: Pair, tmp_path: Path
) -> None:
    root, other = Pair(tmp_path / "keys", "root"), Pair(tmp_path / "keys", "other")
    own = pair.certificate(tmp_path / "own.crt", issuer=root)
    roots = [each.certificate(tmp_path / f"{name}.crt") for name, each in (("root", root), ("other", other))]
    out = tmp_path / "out"
    how = f"certificate:{pair.private},{own},{roots[0]}"
    assert adapter_merge("merge", "demo/adapter", *QUICK, "-o", out, "--sign", how).code == 0
    assert adapter_merge("verify", out, *QUICK, "--signed-by", f"certificate:{roots[0]}").code == 0
    assert adapter_merge("verify", out, *QUICK, "--signed-by", f"certificate:{roots[1]}").code == 4


def test_a_merge_that_is_not_proven_is_not_signed(
    world: World, adapter_merge: Command, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proven = pipeline.prove
    monkeypatch.setattr(pipeline, "prove", lambda *given: replace(proven(*given), verdict="not-verified"))
    out = tmp_path / "out"
    ran = adapter_merge("merge", "demo/adapter", *QUICK, "-o", out, "--sign", f"key:{pair.private}")
    assert ran.code == 4
    assert not (out.with_name("out.unverified") / SIGNATURE).exists()


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("key", "'key' names no signer"),
        ("gpg:me", "'gpg:me' names no signer"),
        ("sigstore:me", "'sigstore:me' names no signer"),
        ("key:absent.pem", "There is no key or certificate absent.pem"),
        ("env:NO_SUCH_KEY", "The variable NO_SUCH_KEY holds no key"),
    ],
)
def test_what_names_no_signer_is_said_before_anything_is_read(
    adapter_merge: Command, tmp_path: Path, how: str, why: str
) -> None:
    ran = adapter_merge("merge", "demo/absent", "-o", tmp_path / "out", "--sign", how)
    assert (ran.code, why in ran.err) == (2, True), ran.err


def test_without_the_extra_one_sentence_says_what_to_install(
    world: World, adapter_merge: Command, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    importing = builtins.__import__

    def refuse(name: str, *more: Any, **named: Any) -> Any:
        if name.partition(".")[0] == "model_signing":
            raise ImportError(name)
        return importing(name, *more, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    ran = adapter_merge("merge", "demo/adapter", "-o", tmp_path / "out", "--sign", f"key:{pair.private}")
    assert ran.code == 2
    assert "Signatures need the extra `signing`, which is not installed." in ran.err


def test_a_base_that_is_signed_does_not_lend_its_signature(
    world: World, adapter_merge: Command, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(world.base, tmp_path / "signed-base"))
    (base / SIGNATURE).write_text("{}")
    assert adapter_merge("merge", "demo/adapter", "--base", base, *QUICK, "-o", tmp_path / "out").code == 0
    assert not (tmp_path / "out" / SIGNATURE).exists()
