"""What a refused change is told as: (what happened, with {n} cases and {shown} of them; what to do)."""

from __future__ import annotations

SHOWN = 3  # how many cases a refusal names before it says how many more there are
OTHER_BASE = "Check that the base is the one the adapter was trained on, or name it with --base."
SEPARATE = "Keep the adapter separate."

SENTENCES = {
    "not-in-base": ("{n} adapter modules are not in the base, e.g. {shown}.", OTHER_BASE),
    "matches-nothing": ("None of the adapter's modules is in the base, e.g. {shown}.", OTHER_BASE),
    "ambiguous-names": (
        "The adapter's modules fit two places in the base, e.g. {shown}.",
        "Save the adapter from the model class that the base's config.json names, so that its keys say which part they mean.",
    ),
    "unmergeable": (
        "{n} adapter modules lie in the checkpoint in an order that no merge can follow: {shown}.",
        SEPARATE,
    ),
    "not-gathered": (
        "{n} adapter tensors are empty, as DeepSpeed ZeRO-3 and FSDP leave them where each process saves what it holds: "
        "{shown}.",
        "Save the adapter again with its parameters gathered: with trainer.save_model under "
        "stage3_gather_16bit_weights_on_model_save, or out of the training checkpoint by zero_to_fp32.py.",
    ),
    "transposed": (
        "{n} adapter modules fit the base's weights only with inputs and outputs exchanged: {shown}.",
        "Save the adapter from the model class that the base's config.json names: it was trained on one that stores these "
        "weights the other way round.",
    ),
    "shape": ("{n} adapter tensors do not fit the base: {shown}.", OTHER_BASE),
    "rank": (
        "{n} adapter modules have another rank than adapter_config.json gives them: {shown}.",
        "Save the adapter again; with the wrong rank its scaling would be wrong.",
    ),
    "stacked-order": (
        "{n} adapter modules are on stacked experts as high as they are wide, whose two sides PEFT exchanged in 0.19.1, "
        "and adapter_config.json does not say by which PEFT they were saved: {shown}.",
        "Put the version of PEFT that the adapter was trained with into adapter_config.json, as peft_version.",
    ),
    "half-a-pair": ("{n} adapter modules lack a part: {shown}.", "Save the adapter again."),
    "claimed-twice": ("{n} adapter modules lead to a tensor that another one already changes: {shown}.", OTHER_BASE),
    "not-linear": ("{n} adapter tensors are no matrices: {shown}.", "Save the adapter again, from gathered shards."),
    "conv-groups": (
        "{n} adapter modules are on grouped convolutions, whose delta mixes the groups and has no merged form: {shown}.",
        SEPARATE,
    ),
    "dora-in-pieces": (
        "{n} DoRA modules are stored in pieces that cut through the rows that DoRA scales: {shown}.",
        SEPARATE,
    ),
    "in-pieces": ("{n} whole adapter tensors are stored in pieces in the base: {shown}.", SEPARATE),
    "shared-weight": (
        "{n} adapter modules change one of several names of a weight that the model stores once, which would make them "
        "different: {shown}.",
        SEPARATE,
    ),
    "lora-bias": (
        "{n} adapter modules have a LoRA bias, and the base's layer has no bias to add it to: {shown}.",
        "Keep the adapter separate, or train it without lora_bias.",
    ),
    "weight-dtype": (
        "{n} base weights have a dtype that this version cannot add to: {shown}.",
        "Name the 16-bit or 32-bit base with --base.",
    ),
    "adapter-dtype": (
        "{n} adapter tensors have an unknown dtype: {shown}.",
        "Save the adapter in float32 or bfloat16.",
    ),
    "tied-scaling": (
        "The adapter changes an embedding that this architecture ties to its head and scales by that: {shown}.",
        SEPARATE,
    ),
    "tokens-and-weight": (
        "The adapter trains some tokens of a weight that it changes as a whole too: {shown}.",
        "Train either the tokens or the weight, or keep the adapter separate.",
    ),
    "tied-by-half": (
        "The adapter ties what it learnt of the embedding and of the head (ensure_weight_tying), and holds one of the two "
        "only: {shown}.",
        "Save the adapter again, or set ensure_weight_tying to false in adapter_config.json if the other did not follow it "
        "while it was trained.",
    ),
    "rows-not-saved": (
        "The adapter was trained on a vocabulary of another size, whose rows it does not hold: {shown}.",
        "Save it again with save_embedding_layers=True, or name the base whose embeddings were resized with --base.",
    ),
    "vocabulary": ("The adapter resizes one of the two embeddings only: {shown}.", "Save the adapter with both."),
    "new-head": ("The adapter brings {n} tensors that the base's architecture does not have: {shown}.", OTHER_BASE),
}
