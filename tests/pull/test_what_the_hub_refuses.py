"""Every way in which the Hub or the network says no, as a person reads it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from bot.devhub import Fault
from bot.errors import Forbidden, Gated, MachineTooSmall, NotFound, Outside, Usage
from bot.hub import HubBusy
from bot.hub.errors import Where, translate_errors
from tests.pull.given import hub_client, put, two_sentences, write_adapter


def failure(error, call, *arguments):
    with pytest.raises(error) as caught:
        call(*arguments)
    return caught.value


def test_a_missing_repo_may_also_be_private(hub, dev, tmp_path):
    two_sentences(failure(NotFound, hub.pin, "demo/nope"), what="or the token given cannot see it", do="HF_TOKEN")
    stranger = hub_client(dev, tmp_path, token=False)
    two_sentences(failure(NotFound, stranger.pin, "demo/nope"), what="or it is private and no token", do="HF_TOKEN")


def test_a_private_repo_looks_missing_to_others(hub, dev, tmp_path):
    put(dev, "demo/secret", write_adapter(tmp_path / "a"), private=True)
    eve = hub_client(dev, tmp_path, token=dev.create_token(dev.create_user("eve")))
    two_sentences(failure(NotFound, eve.pin, "demo/secret"), what="does not exist", do="private repo")


def test_a_missing_revision(hub, pair):
    two_sentences(failure(NotFound, hub.pin, "demo/base", "v9"), what="has no revision 'v9'", do="a tag")


def test_a_missing_file(hub, pair):
    error = failure(NotFound, hub.read_span, "demo/base", pair["base"], "nope.bin", 0, 8)
    two_sentences(error, what="has no file 'nope.bin'", do="another revision")


def test_a_gated_repo(hub, dev, pair, tmp_path):
    HfApi(dev.url, dev.token).update_repo_settings("demo/base", gated="auto")
    eve = hub_client(dev, tmp_path / "eve", token=dev.create_token(dev.create_user("eve")))
    error = failure(Gated, eve.read_span, "demo/base", pair["base"], "config.json", 0, 8)
    two_sentences(error, what="is gated, and this token has no access", do="Accept its terms")
    nobody = hub_client(dev, tmp_path / "nobody", token=False)
    error = failure(Gated, nobody.read_span, "demo/base", pair["base"], "config.json", 0, 8)
    two_sentences(error, what="no token was given", do="Accept its terms")
    two_sentences(failure(Gated, eve.download, "demo/base", pair["base"], ["config.json"]), what="gated", do="terms")
    dev.grant("demo/base", "eve")
    assert eve.read_span("demo/base", pair["base"], "config.json", 0, 1) == b"{"


def test_a_token_that_is_none(dev, tmp_path, pair):
    wrong = hub_client(dev, tmp_path, token="hf_thisisnotatoken")
    two_sentences(failure(Forbidden, wrong.pin, "demo/base"), what="does not accept this token", do="HF_TOKEN")
    two_sentences(failure(Forbidden, wrong.whoami), what="does not accept this token", do="HF_TOKEN")
    nobody = hub_client(dev, tmp_path, token=False)
    assert nobody.pin("demo/base").sha == pair["base"]


def test_a_token_that_may_only_read(dev, tmp_path, pair):
    reader = hub_client(dev, tmp_path, token=dev.create_token("demo", "read"))
    error = failure(Forbidden, reader.require_write, "demo/base")
    two_sentences(error, what="the token may not do that", do="write access to demo/base")
    two_sentences(
        failure(Forbidden, reader.create, "demo/new"), what="could not create".capitalize(), do="write to all repos"
    )


def test_a_token_for_other_repos_only(dev, tmp_path, pair):
    narrow = hub_client(dev, tmp_path, token=dev.create_token("demo", "fine-grained", ["demo/other"]))
    error = failure(Forbidden, narrow.require_write, "demo/base")
    two_sentences(error, what="the token may not do that", do="fine-grained")


def test_a_name_that_is_taken(hub, pair):
    two_sentences(failure(Outside, hub.create, "demo/base"), what="already there", do="another name")


def test_a_name_that_cannot_be(hub):
    two_sentences(failure(Usage, hub.pin, "no--way/x"), what="not a name", do="owner/name")


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_hub_that_fails(hub, dev, status):
    dev.faults.add(Fault(path="/api/models/demo/base", status=status, times=None))
    two_sentences(failure(HubBusy, hub.pin, "demo/base"), what=f"failed with {status}", do="again in a few minutes")


def test_a_short_failure_of_the_hub_is_sat_out(dev, pair, tmp_path):
    patient = hub_client(dev, tmp_path, patience=(0.01, 0.01))
    dev.faults.add(Fault(path="/api/models/demo/base", status=502, times=2))
    assert patient.pin("demo/base").sha == pair["base"]
    dev.faults.add(Fault(path="/resolve/", status=503, times=2))
    assert patient.read_span("demo/base", pair["base"], "config.json", 0, 1) == b"{"


def test_a_rate_limit(hub, dev):
    headers = {"RateLimit": '"api";r=0;t=200', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}
    dev.faults.add(Fault(path="/api/models/demo/base", status=429, times=None, headers=headers))
    error = failure(HubBusy, hub.pin, "demo/base")
    two_sentences(error, what="rate limit", do="again in 200 seconds")
    assert error.wait == 200


def test_a_short_rate_limit_is_waited_for(dev, pair, tmp_path):
    patient = hub_client(dev, tmp_path, patience=(0.0,))
    dev.faults.add(Fault(path="/api/models/demo/base", status=429, headers={"Retry-After": "1"}))
    assert patient.pin("demo/base").sha == pair["base"]


def test_a_hub_that_is_not_there(dev, tmp_path):
    hub = hub_client(dev, tmp_path)
    dev.close()
    two_sentences(failure(HubBusy, hub.pin, "demo/base"), what="cannot be reached", do="HF_ENDPOINT")


def test_an_endpoint_that_is_no_hub(hub, dev, pair):
    body = "<html>a proxy's login page</html>"
    dev.faults.add(Fault(path="resolve", status=200, times=None, body=body))
    error = failure(Outside, hub.download, "demo/base", pair["base"], ["config.json"])
    two_sentences(error, what="without the headers of a Hub", do="proxy")


def test_a_refusal_that_nobody_foresaw(hub, dev):
    dev.faults.add(
        Fault(path="/api/models/demo/base", status=418, times=None, body='{"error": "teapot hf_abcdefghij"}')
    )
    error = failure(Outside, hub.pin, "demo/base")
    two_sentences(error, what="answered 418 (the Hub said: teapot", do="--debug")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk(number):
    where = Where(doing="download x", endpoint="e", repo="x")
    with pytest.raises(MachineTooSmall) as caught, translate_errors(where):
        raise OSError(number, os.strerror(number))
    two_sentences(caught.value, what="the disk is full", do="HF_HOME")


def test_a_full_disk_in_the_real_client(dev, hub, pair, tmp_path):
    if not Path("/dev/shm").is_dir() or os.geteuid() != 0:
        pytest.skip("needs to mount a tiny filesystem")
    tiny = tmp_path / "tiny"
    tiny.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tiny)], capture_output=True).returncode:
        pytest.skip("this container may not mount")
    try:
        big = tmp_path / "big"
        write_adapter(big)
        (big / "large.bin").write_bytes(os.urandom(1_000_000))
        sha = put(dev, "demo/big", big)
        small = hub_client(dev, tmp_path)
        small.cache_dir = tiny / "hub"
        error = failure(MachineTooSmall, small.download, "demo/big", sha, ["large.bin"])
        two_sentences(error, what="the disk is full", do="Free some space")
    finally:
        subprocess.run(["umount", "-l", str(tiny)], check=True)


def test_our_own_faults_pass_the_gate_unchanged():
    with pytest.raises(KeyError), translate_errors(Where(doing="x", endpoint="e")):
        raise KeyError("ours")


OFFLINE = """
    import sys
    from bot.errors import Outside
    from bot.events import silent
    from bot.hub import Hub
    from bot.pull import parse_ref, pin, fetch
    from bot.records import Request
    hub = Hub(cache_dir=sys.argv[1], patience=())
    sources = pin(Request(adapter=parse_ref("demo/adapter")), hub, silent)
    names = {"base": [h.file for h in sources.base.headers], "adapter": ["adapter_model.safetensors"]}
    print(sources.base.sha, fetch(sources, names, hub, silent).base, "torch" in sys.modules)
    try:
        pin(Request(adapter=parse_ref("demo/never-seen")), hub, silent)
    except Outside as error:
        print(error)
"""


def test_offline_mode_works_from_the_cache(dev, hub, pair, tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HF_ENDPOINT": dev.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}
    environment |= {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "HF_TOKEN": dev.token}
    command = [sys.executable, "-c", textwrap.dedent(OFFLINE), str(hub.cache_dir)]
    online = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert pair["base"] in online
    dev.close()
    offline = subprocess.run(
        command, env=environment | {"HF_HUB_OFFLINE": "1"}, stdout=subprocess.PIPE, text=True, check=True
    )
    assert offline.stdout.splitlines()[0] == online.splitlines()[0]
    assert online.splitlines()[0].endswith("False")  # pulling never imports torch
    assert "HF_HUB_OFFLINE is set" in offline.stdout
