"""What keeps a request from reaching the Hub at all: certificates, proxies, names, and this machine's settings of them."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2

from bot.errors import AdapterMergeError, Outside
from bot.hub.sentences import HubBusy, Where, plain
from bot.untrusted.redact import redact

CERTIFICATES = (
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
)  # what the client reads; others, such as REQUESTS_CA_BUNDLE, it does not


def unreachable(error: BaseException, where: Where) -> AdapterMergeError:
    """No answer came. HubBusy (try again) only where that can help: a certificate that is not trusted stays so."""
    unverified = next((cause for cause in _chain(error) if isinstance(cause, ssl.SSLCertVerificationError)), None)
    if unverified is not None:
        return Outside(
            f"Could not {where.doing}: the certificate of {where.endpoint} is not trusted ({unverified.verify_message}).",
            remedy="Behind a company's proxy, set SSL_CERT_FILE to a PEM file with its CA's certificate (REQUESTS_CA_BUNDLE is "
            "not read); else check HF_ENDPOINT.",
        )
    words = plain(str(error), 120)
    proxy = proxy_for(where.endpoint)
    if isinstance(error, httpx2.ProxyError) and not words.startswith("5"):
        return Outside(
            f"Could not {where.doing}: the proxy {proxy} did not let it through ({words}).",
            remedy="Correct that variable (a name and a password go before the host: http://user:password@host:port), or name "
            "the Hub in NO_PROXY.",
        )
    if proxy and isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError):
        return HubBusy(
            f"Could not {where.doing}: the proxy {proxy} cannot be reached ({words or type(error).__name__}).",
            remedy="Correct or unset that variable, or name the Hub in NO_PROXY; then run it again.",
        )
    return HubBusy(
        f"Could not {where.doing}: {where.endpoint} cannot be reached ({type(error).__name__}).",
        remedy="Check the network, HF_ENDPOINT and any proxy, then run it again; what was transferred is kept.",
    )


def misconfigured(error: BaseException) -> Outside:
    """Why no HTTP client can be made with this machine's settings."""
    words = plain(str(error), 160).rstrip(".")
    if isinstance(error, OSError):
        named = next(((name, os.environ[name]) for name in CERTIFICATES if os.environ.get(name)), None)
        store = f"{named[1]} ({named[0]})" if named else "this system's store"
        return Outside(
            f"The trusted certificates in {store} cannot be read: {words}.",
            remedy="Point SSL_CERT_FILE at a PEM file with the certificates of the CAs to trust, or unset it.",
        )
    shown = ", ".join(f"{redact(url)} ({_variable(scheme)})" for scheme, url in getproxies().items() if scheme != "no")
    return Outside(
        f"The proxy {shown} cannot be used: {words}.",
        remedy="Write it as http://host:port; a SOCKS proxy needs `pip install socksio`.",
    )


def proxy_for(endpoint: str) -> str:
    """The proxy that requests to an address go by, with the variable that says so; empty where they go by none."""
    address = urlsplit(endpoint)
    if address.hostname is None or proxy_bypass(address.hostname):
        return ""
    for scheme in (address.scheme, "all"):
        if url := getproxies().get(scheme):
            return f"{redact(url)} ({_variable(scheme)})"
    return ""


def _variable(scheme: str) -> str:
    return next(
        (name for name in (f"{scheme}_proxy", f"{scheme.upper()}_PROXY") if os.environ.get(name)), "the system's"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes."""
    seen: list[Any] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__
