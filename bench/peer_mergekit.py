"""mergekit, as its README names a LoRA: `model: BASE+ADAPTER`, passed through. Usage: peer_mergekit.py BASE ADAPTER OUTPUT"""

import subprocess
import sys
import tempfile
from pathlib import Path

base, adapter, output = sys.argv[1:]
command = Path(sys.executable).with_name("mergekit-yaml")
with tempfile.TemporaryDirectory(dir=Path(output).parent) as folder:  # mergekit keeps the merged LoRA beside the output
    recipe = Path(folder) / "recipe.yaml"
    recipe.write_text(f"merge_method: passthrough\nmodels:\n  - model: {base}+{adapter}\ndtype: bfloat16\n")
    options = ["--lora-merge-cache", f"{folder}/cache", "--lora-merge-dtype", "bfloat16", "--quiet"]
    subprocess.run([command, recipe, output, *options], check=True)
