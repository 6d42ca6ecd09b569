"""A certificate that is not trusted, and a proxy that is not there: told by name, with the variable to set."""

from __future__ import annotations

import datetime
import http.server
import ipaddress
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from huggingface_hub.utils import close_session

from bot.devhub import DevHub
from bot.errors import Outside
from bot.hub import Hub
from tests.pull.given import put, two_sentences, write_adapter

VARIABLES = (
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
)


@pytest.fixture(autouse=True)
def _anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No certificate or proxy of this machine; the client looks at its environment once, when it is made."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    close_session()
    yield
    close_session()


def certificate(folder: Path, *, host: str = "127.0.0.1", days: int = 2) -> tuple[Path, Path]:
    """A certificate for this host that nobody's store knows, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "A company's CA")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=3)).not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    paths = folder / "ca.pem", folder / "ca.key"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))
    return paths


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[Callable[..., Hub]]:
    """Our client to a local Hub that speaks TLS, with all the patience of a run."""
    opened: list[DevHub] = []
    with DevHub(tmp_path / "secure") as plain:
        put(plain, "demo/adapter", write_adapter(tmp_path / "a"))

    def serve(**made: object) -> Hub:
        dev = DevHub(tmp_path / "secure", tls=certificate(tmp_path, **made))  # type: ignore[arg-type]
        opened.append(dev.__enter__())
        return Hub(endpoint=dev.url, cache_dir=tmp_path / "cache", write_token=dev.token)

    yield serve
    for dev in opened:
        dev.close()


def told(hub: Hub, *, within: float = 5.0) -> Outside:
    close_session()
    began = time.monotonic()
    with pytest.raises(Outside) as caught:
        hub.pin("demo/adapter")
    assert time.monotonic() - began < within, "it waited for what does not pass"
    return caught.value


@pytest.mark.parametrize("variable", [None, "REQUESTS_CA_BUNDLE"])
def test_a_companys_certificate_is_told_at_once(
    variable: str | None, secure: Callable[..., Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = secure()
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "ca.pem"))
    two_sentences(told(hub), what="is not trusted (self-signed certificate)", do="SSL_CERT_FILE")


@pytest.mark.parametrize(("made", "words"), [({"host": "10.9.8.7"}, "mismatch"), ({"days": -1}, "expired")])
def test_a_certificate_that_is_wrong_says_how(
    made: dict[str, object], words: str, secure: Callable[..., Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = secure(**made)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    two_sentences(told(hub), what=words, do="HF_ENDPOINT")


def test_with_ssl_cert_file_the_hub_is_read(
    secure: Callable[..., Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = secure()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    close_session()
    sha = hub.pin("demo/adapter").sha
    folder = hub.download("demo/adapter", sha, ["adapter_config.json", "adapter_model.safetensors"])
    assert (folder / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_file_of_certificates_that_is_none(
    content: str | None, dev: DevHub, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "none.pem"
    if content:
        path.write_text(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    two_sentences(told(hub), what=f"{path} (SSL_CERT_FILE) cannot be read", do="unset it")


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_proxy_that_is_not_there_is_named_without_its_password(
    variable: str, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "http://ann:pa55word@127.0.0.1:1")
    error = told(hub)
    two_sentences(error, what=f"the proxy http://127.0.0.1:1 ({variable}) cannot be reached", do="NO_PROXY")
    assert "pa55" not in str(error)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()
    with pytest.raises(Outside, match="does not exist"):
        hub.pin("demo/adapter")


@pytest.mark.parametrize("url", ["ftp://127.0.0.1:1", "http://127.0.0.1:port"])
def test_a_proxy_of_another_kind_is_named(url: str, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", url)
    two_sentences(told(hub), what=f"The proxy {url} (HTTP_PROXY) cannot be used", do="http://host:port")


def test_a_proxy_that_wants_a_name_is_not_tried_again(
    secure: Callable[..., Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            self.send_error(407, "Proxy Authentication Required")

        def log_message(self, *words: object) -> None:
            pass

    hub = secure()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{proxy.server_address[1]}"
        monkeypatch.setenv("HTTPS_PROXY", address)
        two_sentences(
            told(hub), what=f"the proxy {address} (HTTPS_PROXY) did not let it through (407", do="user:password@"
        )
        proxy.shutdown()
