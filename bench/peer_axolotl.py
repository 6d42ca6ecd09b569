"""axolotl's memory-efficient merge, by its command; it writes OUTPUT/merged. Usage: peer_axolotl.py BASE ADAPTER OUTPUT"""

import subprocess
import sys
import tempfile
from pathlib import Path

base, adapter, output = sys.argv[1:]
command = Path(sys.executable).with_name("axolotl")
with tempfile.TemporaryDirectory() as folder:
    recipe = Path(folder) / "recipe.yaml"  # a training recipe: the merge looks at its first four lines only
    recipe.write_text(f"""
base_model: {base}
lora_model_dir: {adapter}
output_dir: {output}
adapter: lora
lora_r: 16
lora_alpha: 32
lora_target_linear: true
bf16: true
datasets: [{{path: none, type: alpaca}}]
micro_batch_size: 1
gradient_accumulation_steps: 1
num_epochs: 1
learning_rate: 0.0001
""")
    subprocess.run([command, "merge-lora", recipe], check=True)
