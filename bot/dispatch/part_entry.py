"""One part of a merge that is shared out, as a Hugging Face Job: `python -m bot.dispatch.part_entry K/N RECEIPTS ADAPTER …`.

What follows ADAPTER are options of `merge`. The receipt goes to the repo RECEIPTS, for `finish` (deploy/huge_jobs.py starts the
Jobs, waits for them, and runs that). The token is the Job's secret HF_TOKEN.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bot.errors import AdapterMergeError

COMMAND = (sys.executable, "-P", "-m", "bot", "merge")


def run(part: str, receipts: str, words: Sequence[str]) -> int:
    """Make the part and hand in its receipt; the exit code of `merge`. Where the merge is there already there is no receipt."""
    from bot.hub import Hub

    name = f"receipt-{part.partition('/')[0]}.json"
    with tempfile.TemporaryDirectory() as folder:
        receipt = Path(folder) / name
        code = subprocess.run([*COMMAND, *words, "--shard", part, "--receipt", str(receipt)]).returncode
        if code == 0 and receipt.exists():
            Hub().keep_file(receipts, name, receipt.read_bytes())
    return code


def main() -> None:
    """Run what was asked for, and end with the merge's exit code."""
    part, receipts, *words = sys.argv[1:]
    try:
        sys.exit(run(part, receipts, words))
    except AdapterMergeError as error:
        print(f"✗ {error.what}\n  {error.remedy}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
