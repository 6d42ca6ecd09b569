"""The script that people copy: load everything, merge_and_unload, save. Usage: peft_script.py BASE ADAPTER OUTPUT"""

import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

base, adapter, output = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(output)
