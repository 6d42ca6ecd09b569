"""Make tests/formats/torchao/: a tiny model as transformers saves it with torchao, and what torchao makes of its weights.

torchao is no dependency of the tests. Run this where it is installed, with the pinned torch and transformers:
    python -m venv V && V/bin/pip install torchao==0.18.0 torch==2.13.0 transformers==5.23.0 accelerate
    V/bin/python tests/formats/make_torchao.py
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import torch
from torchao.quantization import (
    Float8WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8DynamicActivationIntxWeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    PerAxis,
    PerGroup,
)
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, TorchAoConfig

HERE = Path(__file__).parent / "torchao"
KINDS = {
    "int8-rows": Int8WeightOnlyConfig(),
    "int8-activations": Int8DynamicActivationInt8WeightConfig(),
    "int4-groups": IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(16)),
    "int3-rows": IntxWeightOnlyConfig(weight_dtype=torch.int3, granularity=PerAxis(0)),
    "int4-activations": Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(16)),
    "float8-rows": Float8WeightOnlyConfig(),
}


def main() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=24, dtype="bfloat16", initializer_range=0.1,
    )  # fmt: skip
    plain = HERE.parent / "plain.tmp"
    LlamaForCausalLM(config).bfloat16().save_pretrained(plain)
    for name, kind in KINDS.items():
        shutil.rmtree(HERE / name, ignore_errors=True)
        model = AutoModelForCausalLM.from_pretrained(
            plain, quantization_config=TorchAoConfig(kind), dtype=torch.bfloat16
        )
        model.save_pretrained(HERE / name)
        again = AutoModelForCausalLM.from_pretrained(HERE / name, dtype=torch.bfloat16)
        found = {}
        for key, value in again.state_dict().items():
            if type(value) is not torch.Tensor:
                # torchao multiplies in the dtype it returns: float32 is asked for, of float32 scales.
                wide = value.to(torch.float32) if hasattr(value, "activation_quantization") else value
                dense = wide.dequantize(**({} if wide is not value else {"output_dtype": torch.float32}))
                assert dense.dtype == torch.float32
                found[key] = hashlib.sha256(dense.contiguous().numpy().tobytes()).hexdigest()
        (HERE / name / "expected.json").write_text(json.dumps(found, indent=1) + "\n")
        (HERE / name / "generation_config.json").unlink(missing_ok=True)
    shutil.rmtree(plain)


if __name__ == "__main__":
    main()
