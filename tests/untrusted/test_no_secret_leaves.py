"""One filter at the doors out: no token, signed URL or password is printed, written or uploaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bot.action.outputs import write_outputs
from bot.action.summary import write_summary
from bot.devhub import DevHub, Fault
from bot.gh.checks import cut
from bot.report_document import Document
from bot.untrusted.redact import know, know_environment, redact
from tests.publish.given import deliver, finished
from tests.pull.given import hub_client, write_adapter
from tests.untrusted.conftest import Started

TOKEN = "hf_" + "aB3" * 11 + "x"
SECRETS = (
    TOKEN,
    "hf_oauth_eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiI2NCJ9.sig-na_ture",
    "hf_jwt_eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiI2NCJ9.sig",
    "api_org_" + "q" * 34,
    "ghp_" + "b" * 36,
    "github_pat_" + "c" * 22 + "_" + "d" * 59,
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3",
)
SIGNED = (
    "https://cdn.example/f?X-Amz-Credential=AKIA%2F1&X-Amz-Signature=beef&Policy=eyJT~__&Key-Pair-Id=K1&sig=azure%3D"
)


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("around", ["{}", "token={}", '{{"auth": "{}"}}', "Authorization: Bearer {}", "see ({})."])
def test_a_token_is_known_by_its_form(secret: str, around: str) -> None:
    shown = redact(around.format(secret))
    assert secret not in shown
    assert secret[-12:] not in shown
    assert "…" in shown


def test_a_signed_url_keeps_its_place_and_loses_its_signature() -> None:
    shown = redact(f"GET {SIGNED} 403")
    assert shown.startswith("GET https://cdn.example/f?X-Amz-Credential=…&")
    assert shown.endswith(" 403")
    assert not [word for word in ("beef", "eyJT", "K1", "azure", "AKIA") if word in shown]


def test_a_url_leads_on_without_its_password() -> None:
    assert redact("https://ann:pa55@hub.example/acme/model") == "https://hub.example/acme/model"
    assert redact("https://ann@hub.example:8443/x") == "https://hub.example:8443/x"


@pytest.mark.parametrize(
    "text",
    [
        "acme/model@main", "https://huggingface.co/acme/model/tree/main", "hf_transfer and hf_hub_download", "sha256:" + "ab" * 32,
        "model.layers.0.self_attn.q_proj.lora_A.weight", "http://localhost:5999/acme/x@v1?page=2", "authorization fails",
        "git config user.email a@b.example", "X-Amz headers", "--private and the token of acme",
    ],
)  # fmt: skip
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


def test_what_was_given_as_a_token_is_never_shown_whatever_it_looks_like() -> None:
    know('correct horse "battery"')
    assert redact('it says correct horse "battery" here') == "it says … here"
    assert "battery" not in redact(json.dumps({"a": 'correct horse "battery"'}))


def test_what_the_environment_calls_a_secret_is_one_and_a_path_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.untrusted.redact._given", set())
    secret, path = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "/var/run/secrets/serviceaccount/token"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setenv("VAULT_TOKEN", path)
    know_environment()
    assert redact(f"{secret} {path}") == f"… {path}"


def test_with_debug_neither_the_hubs_words_nor_the_traceback_show_a_secret(dev: DevHub, start: Started) -> None:
    echoed = {"error": f"bad token {SECRETS[1]} for {SIGNED}, Authorization: Bearer {SECRETS[2]}"}
    dev.faults.add(Fault(path="/api/models/acme/x", status=403, times=None, body=json.dumps(echoed)))
    endpoint = dev.url.replace("http://", "http://ann:pa55word@")
    ran = start("plan", "acme/x", "--debug", env={"HF_ENDPOINT": endpoint, "HF_TOKEN": TOKEN})
    assert ran.returncode == 5, ran.stderr
    assert "Traceback" in ran.stderr  # so that there was something to filter
    secrets = [TOKEN, SECRETS[1], SECRETS[2], "beef", "eyJT", "pa55word"]
    assert [word for word in secrets if word in ran.stdout + ran.stderr] == []


def test_nothing_that_is_written_or_uploaded_holds_a_secret(dev: DevHub, tmp_path: Path) -> None:
    checks = [{"id": "loads", "status": "warn", "measured": SECRETS[1], "allowed": "", "why": SIGNED, "worst": [TOKEN]}]
    texts = [Document.of({"checks": checks}).canonical().decode(), cut(f"{TOKEN} {SIGNED}")]
    write_outputs(tmp_path / "out", {"pr-url": f"https://ann:pa55@hub.example/{TOKEN}"})
    write_summary(tmp_path / "summary", f"failed: {SIGNED} {TOKEN}")
    texts += [(tmp_path / name).read_text() for name in ("out", "summary")]
    from tests.publish.given import ADAPTER, BASE, TARGET, Owner

    owner = Owner(dev)
    for repo in (BASE, ADAPTER):
        owner.put("config.json", b"{}", repo)
    owner.existing()
    deliver(tmp_path / "finished", finished(tmp_path / "finished", checks=checks), hub_client(dev, tmp_path), tag=TOKEN)
    details = owner.api.get_discussion_details(TARGET, 1)
    texts += [str(event.content) for event in details.events if event.type == "comment"] + owner.titles("refs/pr/1")
    assert [word for word in (TOKEN, SECRETS[1], "beef", "pa55") for text in texts if word in text] == []


def test_the_reader_of_pickles_is_given_no_token(dev: DevHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bot.errors import Refused
    from bot.events import silent
    from bot.pull import parse_ref, pickles, pin
    from bot.records import Options, Request

    for name in ("HF_TOKEN", "GITHUB_TOKEN", "MY_DATABASE"):
        monkeypatch.setenv(name, "known")
    shown = "import os, sys; sys.exit(','.join(sorted(name for name, value in os.environ.items() if value == 'known')) or 'none')"
    monkeypatch.setattr(pickles, "CONVERT", shown)
    adapter = write_adapter(tmp_path / "a")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    request = Request(adapter=parse_ref(str(adapter)), options=Options(allow_pickle=True))
    with pytest.raises(Refused, match="cannot be read safely: none"):
        pin(request, hub_client(dev, tmp_path), silent)
