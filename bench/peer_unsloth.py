"""unsloth's 16-bit merge: what `save_pretrained_merged` of a model on a GPU calls, called on a model that PEFT loaded, since
unsloth's own loader on a machine without a GPU gives a model whose `save_pretrained_merged` is PEFT's merge of a copy.
`import unsloth` comes first: it patches the rest. Usage: peer_unsloth.py BASE ADAPTER OUTPUT"""

import sys

import unsloth  # noqa: F401

# isort: split
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from unsloth_zoo.saving_utils import merge_and_overwrite_lora

base, adapter, output = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16), adapter)
merge_and_overwrite_lora(
    lambda name, load_in_4bit: name,  # which base to merge into: the one that was loaded
    model,
    save_directory=output,
    save_method="merged_16bit",
    output_dtype=torch.bfloat16,
)
