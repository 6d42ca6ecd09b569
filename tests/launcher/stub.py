"""Stands in for docker, nvidia-smi and python3 on a runner: writes down how it was called, and does as STUB_* says.

Installed under those names, with the shebang of a real interpreter; STUB is the folder that it writes to.
"""

import json
import os
import sys
import time
from pathlib import Path

name, arguments = Path(sys.argv[0]).name, sys.argv[1:]
folder = Path(os.environ["STUB"])
stopped = folder / "stopped"


def setting(key: str, default: str = "") -> str:
    return os.environ.get(f"STUB_{key}", default)


def end(code: str | int, says: str = "") -> None:
    print(says, file=sys.stderr if int(code) else sys.stdout, flush=True)
    sys.exit(int(code))


def phase(of: str) -> None:
    """A phase of the action: ends with the code that was set for it, or runs until something stops it."""
    if setting("ENDLESS") == of:
        (folder / "started").touch()
        for _ in range(600):
            if stopped.exists():
                end(143)
            time.sleep(0.05)
    end(setting(f"{of.upper()}_CODE", "0"), f"this is {of}")


with (folder / "calls.jsonl").open("a") as log:
    log.write(json.dumps({"name": name, "arguments": arguments, "env": dict(os.environ)}) + "\n")

match name, arguments:
    case "docker", ["info", *_]:
        end(setting("INFO_CODE", "0"), setting("INFO", '{"Runtimes":{"runc":{"path":"runc"}}}'))
    case "docker", ["image", "inspect", _]:
        end(setting("INSPECT_CODE", "0"))
    case "docker", ["pull", *_]:
        end(setting("PULL_CODE", "0"), "pulling")
    case "docker", ["run", *rest] if "test" in rest:
        end(setting("SHARED_CODE", "0"))
    case "docker", ["run", *rest]:
        phase(rest[-1])
    case "docker", ["container", "inspect", _]:
        end(0 if (folder / "started").exists() and not stopped.exists() else 1)
    case "docker", ["stop", *_]:
        if setting("STOP_CODE", "0") == "0":
            stopped.touch()
        end(setting("STOP_CODE", "0"))
    case "docker", ["rm", *_]:
        stopped.touch()
    case "nvidia-smi", _:
        end(setting("GPU_CODE", "0"), "GPU 0: a GPU")
    case "python3", [*_, "-c", _]:
        end(0 if setting("INSTALLED") else 1, setting("INSTALLED"))
    case "python3", rest:
        phase(rest[-1])
