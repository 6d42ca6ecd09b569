"""The same story over both transports, each in a process of its own: push, pull it back, push again, propose."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from bot.devhub import DevHub
from tests.publish.given import ADAPTER, BASE, TARGET, Owner, finished

STORY = """
    import hashlib, sys
    from pathlib import Path
    from bot.events import silent
    from bot.hub import Hub
    from bot.untrusted.links import cached_blob, input_files
    from bot.publish import publish
    from bot.report_document import read_report
    from huggingface_hub import constants

    first, second, cache = map(Path, sys.argv[1:4])
    hub = Hub(cache_dir=cache, patience=())
    arrived = []

    def deliver(folder):
        document = read_report(folder)
        return publish(folder, document, target="demo/merged", how="auto", private="auto", force=False, tag="v1",
                       hub=hub, emit=silent)

    print(*(done.status + ":" + done.how for done in (deliver(first), deliver(first), deliver(second))))
    pinned = hub.pin("demo/merged", "v1")
    names = [entry.name for entry in pinned.files if entry.name != ".gitattributes"]
    head = hub.read_span("demo/merged", pinned.sha, "model-00001-of-00002.safetensors", 8, 9)
    folder = hub.download("demo/merged", pinned.sha, names, arrived.append)
    print(all((folder / n).read_bytes() == (first / n).read_bytes() for n in names), head == b"{")
    print(sum(arrived) == sum((first / n).stat().st_size for n in names), "torch" in sys.modules)

    def is_as_stated(entry):
        content = (folder / entry.name).read_bytes()
        oid = hashlib.sha1(b"blob %d\\0" % len(content) + content).hexdigest()
        return (entry.sha256 or oid, entry.oid or oid) == (hashlib.sha256(content).hexdigest() if entry.sha256 else oid, oid)

    print(input_files(folder).keys() == set(names), all(cached_blob(folder / n) for n in names))
    constants.HF_HUB_OFFLINE = True
    away = hub.pin("demo/merged", "v1")
    constants.HF_HUB_OFFLINE = False
    here = [entry for entry in away.files if entry.here]
    print(away.online, {entry.name for entry in here} == set(names), all(map(is_as_stated, here)))
    damaged = (folder / "model-00001-of-00002.safetensors").resolve()
    damaged.chmod(0o600)
    damaged.write_bytes(bytes(damaged.stat().st_size))
    hub.drop("demo/merged", pinned.sha, "model-00001-of-00002.safetensors")
    hub.download("demo/merged", pinned.sha, names)
    print(all((folder / n).read_bytes() == (first / n).read_bytes() for n in names))
"""


@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_a_merge_is_pushed_pulled_and_proposed(tmp_path, xet):
    finished(tmp_path / "first")
    finished(tmp_path / "second", seed=2)
    with DevHub(tmp_path / "devhub", xet=xet) as dev:
        owner = Owner(dev)
        for repo in (BASE, ADAPTER):
            owner.put("config.json", b"{}", repo)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | dev.environment()
        environment |= {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        command = [sys.executable, "-c", textwrap.dedent(STORY)]
        command += [str(tmp_path / name) for name in ("first", "second", "cache")]
        told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        lines = told.stdout.splitlines()
        assert lines[:3] == ["published:push unchanged:push published:pr", "True True", "True False"]
        # What lies in the cache is known by its name there, also where a repo's blob is itself a link; and it can be mended.
        assert lines[3:] == ["True True", "False True True", "True"]
        assert told.stderr == ""
        asked = [path for _, path, _ in dev.requests]
        assert any("xet-write-token" in path for path in asked) == xet
        assert any("/info/lfs/" in path for path in asked) != xet
        assert owner.files("refs/pr/1") == owner.files("main")
        assert [pull.status for pull in owner.pulls(TARGET)] == ["open"]
