"""Whoever copies the card's lines has the model: they are run here as they stand, from the Hub that the card names."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.stories.conftest import Command, World


def test_the_cards_python_loads_the_published_model_and_it_answers(
    adapter_merge: Command, world: World, tmp_path: Path
) -> None:
    assert adapter_merge("run", "demo/adapter@v1", "--verify", "files").code == 0
    card = Path(world.api.hf_hub_download("demo/adapter-merged", "README.md")).read_text()
    assert f"export HF_ENDPOINT={world.hub.url}\n" in card
    assert f"[demo/adapter]({world.hub.url}/demo/adapter)" in card
    assert "https://huggingface.co" not in card
    (lines,) = re.findall(r"^```python\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)
    assert "apply_chat_template" in lines
    program = "import sys; sys.modules['peft'] = None\n" + lines + "\nprint('parameters', model.num_parameters())"
    env = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, check=False)
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"parameters \d+", ran.stdout)
