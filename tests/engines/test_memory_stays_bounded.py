"""Peak resident memory of a whole merge, start to exit, on checkpoints larger than it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bot.checkpoint.header import write_header

LIMIT = 300 << 10  # KiB, as wait4 counts
EXPERTS, HIDDEN, INNER, RANK = 32, 2048, 1024, 8


def sparse_base(folder: Path) -> Path:
    """One layer of stacked experts, 0.4 GB in two tensors, and a dense matrix; all zeros, so that the disk holds none."""
    folder.mkdir()
    stack = "model.layers.0.mlp.experts"
    tensors = [
        (f"{stack}.down_proj", "BF16", (EXPERTS, HIDDEN, INNER)),
        (f"{stack}.gate_up_proj", "BF16", (EXPERTS, 2 * INNER, HIDDEN)),
        ("model.layers.0.self_attn.q_proj.weight", "BF16", (4096, HIDDEN)),
    ]
    header = write_header(tensors, {"format": "pt"})
    size = sum(2 * torch.Size(shape).numel() for _, _, shape in tensors)
    with (folder / "model.safetensors").open("wb") as opened:
        opened.write(header)
        opened.truncate(len(header) + size)
    config = {
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": HIDDEN, "num_experts": EXPERTS,
        "moe_intermediate_size": INNER, "num_hidden_layers": 1, "num_attention_heads": 32, "head_dim": 128,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def adapter(folder: Path) -> Path:
    folder.mkdir()
    torch.manual_seed(0)
    module = "base_model.model.model.layers.0"
    tensors = {
        f"{module}.mlp.experts.base_layer.lora_A.weight": torch.randn(RANK * EXPERTS, HIDDEN),
        f"{module}.mlp.experts.base_layer.lora_B.weight": torch.randn(2 * INNER, RANK * EXPERTS),
        f"{module}.mlp.experts.lora_A.weight": torch.randn(RANK * EXPERTS, INNER),
        f"{module}.mlp.experts.lora_B.weight": torch.randn(HIDDEN, RANK * EXPERTS),
        f"{module}.self_attn.q_proj.lora_A.weight": torch.randn(RANK, HIDDEN),
        f"{module}.self_attn.q_proj.lora_B.weight": torch.randn(4096, RANK),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    parameters = ["experts.gate_up_proj", "experts.down_proj"]
    config = {"peft_type": "LORA", "r": RANK, "target_modules": ["q_proj"], "target_parameters": parameters}
    config["peft_version"] = "0.21.2"  # the stacked experts are square: only this says which side is which
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.slow
def test_stacked_experts_are_never_held_whole(tmp_path: Path) -> None:
    base, trained = sparse_base(tmp_path / "base"), adapter(tmp_path / "adapter")
    given = [str(trained), "--base", str(base), "--output", str(tmp_path / "out"), "--verify", "files", "--quiet"]
    assert peak_memory([sys.executable, "-m", "bot", "merge", *given]) < LIMIT
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 400_000_000


def peak_memory(command: list[str]) -> int:
    """KiB. Asked of a small process between: the system counts what a process was before it became the command."""
    program = "import os, sys; pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ); "
    program += "_, status, usage = os.wait4(pid, 0); print(status, usage.ru_maxrss)"
    asked = subprocess.run([sys.executable, "-S", "-c", program, *command], capture_output=True, text=True, check=True)
    status, peak = map(int, asked.stdout.split()[-2:])
    assert status == 0, asked.stderr
    return peak


def test_merging_imports_neither_torch_nor_transformers_nor_peft_nor_the_hubs_client(tmp_path: Path) -> None:
    from tests.factory import save_adapter, save_base

    base = save_base("llama", tmp_path / "base")
    trained = save_adapter(base, "llama", tmp_path / "adapter")
    program = "import sys; from bot.cli import _guarded; code = _guarded(sys.argv[1:]); "
    program += (
        "print([n for n in ('torch', 'transformers', 'peft', 'huggingface_hub') if n in sys.modules]); sys.exit(code)"
    )
    given = [
        "merge",
        str(trained),
        "--base",
        str(base),
        "--output",
        str(tmp_path / "out"),
        "--verify",
        "files",
        "--quiet",
    ]
    ran = subprocess.run([sys.executable, "-c", program, *given], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"
