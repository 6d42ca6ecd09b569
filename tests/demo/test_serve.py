"""adapter-merge hub says who one is and what to type; what it says works."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path


def test_its_lines_can_be_copied_into_a_shell_and_do_what_they_say(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text("{}")
    served = tmp_path / "my hub"
    command = [sys.executable, "-m", "bot", "hub", str(served), "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    ) as process:
        try:
            assert process.stdout is not None
            said: list[str] = []
            while not said or "Ctrl-C" not in said[-1]:
                said.append(process.stdout.readline())
            text = "".join(said)
            assert "Its user is demo" in text
            assert "It is empty." in text
            lines = re.findall(r"^  (export .*|hf (?:auth|repos create|upload) .*)$", text, re.MULTILINE)
            assert len(lines) == 6
            path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
            env = {"PATH": path, "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
            script = "set -e\n" + "\n".join(lines) + "\nhf repos tag create demo/my-model v1\n"
            ran = subprocess.run(
                ["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, env=env, check=False
            )
            assert ran.returncode == 0, ran.stderr
            assert "demo" in ran.stdout
        finally:
            process.send_signal(signal.SIGINT)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            assert "It holds demo/my-model." in process.stdout.readline()
        finally:
            process.send_signal(signal.SIGINT)
    assert shlex.quote(str(served / "token")) in text
