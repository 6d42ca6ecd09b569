"""The unit and the compose file of the bot: valid, and what they start is what there is."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from bot.cli import cli
from tests.workflows.files import ROOT
from tests.workflows.test_linters import lint

DEPLOY = ROOT / "deploy"
UNIT = (DEPLOY / "adapter-merge.service").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yml").read_text(encoding="utf-8"))


def served(arguments: list[str]) -> dict[str, Any]:
    """What `serve` makes of these arguments."""
    name, *words = arguments
    assert name == "serve"
    command = cli.commands["serve"]
    return command.make_context("serve", list(words), resilient_parsing=False).params


def started_by_the_unit() -> list[str]:
    (line,) = re.findall(r"^ExecStart=((?:.*\\\n)*.*)$", UNIT, re.MULTILINE)
    return shlex.split(line.replace("\\\n", " "))


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here")
    unit = tmp_path / "adapter-merge.service"
    unit.write_text(UNIT.replace(started_by_the_unit()[0], sys.executable))
    ran = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    ours = [line for line in ran.stderr.splitlines() if "adapter-merge" in line]
    assert ran.returncode == 0, ran.stderr
    assert not ours


def test_systemd_rates_the_unit_as_well_confined(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here")
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=25", DEPLOY / "adapter-merge.service"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-300:] + ran.stderr


def test_the_compose_file_has_the_shape_that_compose_publishes() -> None:
    lint("check-jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yml")
    lint("yamllint", "--strict", DEPLOY / "compose.yml")


def test_unit_and_compose_file_start_the_same_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret"
    secret.touch()
    unit = [word.replace("${CREDENTIALS_DIRECTORY}/webhook-secret", str(secret)) for word in started_by_the_unit()[1:]]
    compose = [
        word.replace("/run/secrets/webhook-secret", str(secret)) for word in COMPOSE["services"]["bot"]["command"]
    ]
    first, second = served(unit), served(compose)
    assert first["allow"] == second["allow"] == ("acme/*",)
    for name in ("backend", "github_repo", "secret_file", "port"):
        assert first[name] == second[name]
    assert first["host"] == "127.0.0.1"
    assert str(second["state"]).startswith("/state/")


def test_only_the_proxy_can_be_reached_from_outside_and_only_its_webhook() -> None:
    assert all(port.startswith("127.0.0.1:") for port in COMPOSE["services"]["bot"]["ports"])
    caddyfile = (DEPLOY / "Caddyfile").read_text(encoding="utf-8")
    assert re.findall(r"^\s+path (.+)$", caddyfile, re.MULTILINE) == ["/webhook"]
    assert caddyfile.index("reverse_proxy bot:8000") < caddyfile.index("respond 404")
    assert "bot" in COMPOSE["services"]


def test_no_secret_stands_in_either() -> None:
    for name in ("HF_TOKEN", "GITHUB_TOKEN", "ADAPTER_MERGE_HUB_TOKEN", "ADAPTER_MERGE_WEBHOOK_SECRET"):
        assert f"{name}=" not in UNIT
        assert name not in COMPOSE["services"]["bot"]["environment"]
