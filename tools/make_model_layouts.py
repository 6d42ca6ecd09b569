"""Write bot/checks/reading/model_layouts.json: how models are stored whose layers, names or layouts differ, without building them.

    python -m tools.make_model_layouts            write the file
    python -m tools.make_model_layouts CLASS…     print the rows of a few classes, or why they have none

For classes that plain_models.json does not have: mixtures of experts, vision-language models, classifiers, encoders, and those
with Conv1D. Everything is asked of the verifier's own skeleton, over the keys that transformers itself saves: of a model on the
meta device, from the class's default config with a few layers and experts. Which setting a number of layers or experts is, is
found by raising it by one; which switch matters, by turning it over.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from functools import cache
from typing import Any

import torch
import transformers
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.auto import modeling_auto

from bot.checks.expected.bypassed import goes_around
from bot.checks.reading.laid_out_skeleton import FLAG, NUMBER, TEXT, experts_of
from bot.checks.reading.model_skeleton import Skeleton
from tools.make_plain_models import IDLE, Particular, rows
from tools.make_plain_models import TARGET as PLAIN

TARGET = PLAIN.with_name("model_layouts.json")
LAYERS = {"num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "encoder_layers", "decoder_layers"}
EXPERTS = {"num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"}
FEW = {**dict.fromkeys(LAYERS, 8), **dict.fromkeys(EXPERTS, 4)}
UNSET = object()
TASKS = {
    "SEQ_CLS": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "TOKEN_CLS": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
}
# The classes that have a row; a further one needs its name here, and the program run again.
CLASSES = """
MixtralForCausalLM Qwen2MoeForCausalLM Qwen3MoeForCausalLM Qwen3NextForCausalLM DeepseekV2ForCausalLM DeepseekV3ForCausalLM
GptOssForCausalLM OlmoeForCausalLM Glm4MoeForCausalLM PhimoeForCausalLM GraniteMoeForCausalLM MiniMaxM2ForCausalLM GPT2LMHeadModel
LlavaForConditionalGeneration LlavaNextForConditionalGeneration Mistral3ForConditionalGeneration Gemma3ForConditionalGeneration
PaliGemmaForConditionalGeneration Qwen2VLForConditionalGeneration Qwen2_5_VLForConditionalGeneration
Qwen3VLForConditionalGeneration Idefics3ForConditionalGeneration
SmolVLMForConditionalGeneration InternVLForConditionalGeneration
BertForSequenceClassification RobertaForSequenceClassification DistilBertForSequenceClassification
DebertaV2ForSequenceClassification ModernBertForSequenceClassification GPT2ForSequenceClassification
LlamaForSequenceClassification MistralForSequenceClassification Qwen2ForSequenceClassification Qwen3ForSequenceClassification
GemmaForSequenceClassification Gemma2ForSequenceClassification Phi3ForSequenceClassification
BertForTokenClassification RobertaForTokenClassification DistilBertForTokenClassification DebertaV2ForTokenClassification
LlamaForTokenClassification MistralForTokenClassification Qwen2ForTokenClassification
BertModel RobertaModel BertForMaskedLM RobertaForMaskedLM DistilBertForMaskedLM DebertaV2ForMaskedLM
""".split()

transformers.utils.logging.set_verbosity_error()


@cache
def few_layers(chosen: Any) -> dict[str, Any]:
    """The class's default config as config.json has it, with a few layers and experts where it takes that."""
    default = chosen.config_class().to_dict()
    smaller = deepcopy(default)
    for section, name in settings(smaller, int):
        if name in FEW and section[name] > FEW[name]:
            section[name] = FEW[name]
    for section, name in settings(smaller, list):
        if name in ("layer_types", "mlp_layer_types"):
            del section[name]
    try:
        built(chosen, smaller)
    except Exception:  # whatever a constructor raises for a config that it does not expect
        return default
    return smaller


def settings(config: dict[str, Any], kind: type) -> list[tuple[dict[str, Any], str]]:
    """(the section, the name) of every setting of a kind, nested ones too."""
    pairs = [(config, name) for name, value in config.items() if type(value) is kind]
    return pairs + [pair for value in config.values() if isinstance(value, dict) for pair in settings(value, kind)]


def paths(config: Mapping[str, Any], kind: type, front: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of every setting of a kind."""
    for name, value in config.items():
        if type(value) is kind:
            yield f"{front}{name}", value
        if isinstance(value, dict):
            yield from paths(value, kind, f"{front}{name}.")


def changed(config: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The config with another value at a path; UNSET: with none."""
    config = deepcopy(config)
    *sections, name = path.split(".")
    section = config
    for part in sections:
        section = section[part]
    section[name] = value
    if value is UNSET:
        del section[name]
    return config


def built(chosen: Any, config: dict[str, Any]) -> Any:
    """The class without weights."""
    with torch.device("meta"):
        return chosen(chosen.config_class.from_dict(deepcopy(config)))


def skeleton_of(model: Any) -> Skeleton:
    """The verifier's own, over the keys that transformers saves this model under. Raises Particular."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    own = {name: value for name, value in model.state_dict().items() if name not in tied}
    stored = {key: tuple(value.shape) for key, value in revert_weight_conversion(model, own).items()}
    return Skeleton(model, stored)


def layout_of(skeleton: Skeleton) -> dict[str, Any]:
    """What of a row is read off one model; see `row_of`. Raises Particular."""
    keys: dict[str, str] = {}
    stacks: dict[str, dict[str, Any]] = {}
    particular: set[str] = set()
    for name, symbolic in skeleton.symbolic.items():
        pattern = NUMBER.sub("*", name)
        sources = list(dict.fromkeys(block.key for block in symbolic.blocks))
        patterns = list(dict.fromkeys(NUMBER.sub("*", key) for key in sources))
        if symbolic.plain and skeleton.rename(symbolic.plain)[1] is not None:
            raise Particular(f"how {name} is stored depends on its shape")
        if symbolic.plain and NUMBER.findall(symbolic.plain) == NUMBER.findall(name):
            put(keys, patterns[0], pattern)
            continue
        stack = {"parts": patterns, "along": 1}
        made = experts_of(stack, name, {key: skeleton.shapes[key] for key in sources})
        if made is not None and made.blocks == symbolic.blocks:
            put(stacks, pattern, stack)
        else:
            particular.add(pattern)
            for part in patterns:
                put(keys, part, pattern)
    for name in skeleton.unfollowed:
        raise Particular(f"{name} cannot be followed")
    return {
        "parameters": {NUMBER.sub("*", name): len(value.shape) for name, value in skeleton.known.items()
                       if name in skeleton.symbolic or name in skeleton.tied},
        "silent": silent(skeleton.model),
        "keys": {key: name for key, name in keys.items() if key != name}, "stacks": stacks,
        "kinds": kinds_of(skeleton), "particular": sorted(particular), "special": sorted(special(skeleton)),
    }  # fmt: skip


def silent(model: Any) -> list[str]:
    """What is stored and no parameter, and what may be missing."""
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_missing or ()]
    buffers = dict(model.named_buffers(remove_duplicate=False))
    names = (name for name in model.state_dict() if name in buffers or any(pattern.search(name) for pattern in ignored))
    return sorted({NUMBER.sub("*", name) for name in names})


def prefix_of(skeleton: Skeleton, layout: dict[str, Any]) -> str | None:
    """The base model's prefix that keys may lack, where no key has another name than its parameter; None where some have."""
    if layout["keys"] or layout["stacks"]:
        return None
    prefix = f"{skeleton.model.base_model_prefix}."
    without = Skeleton(skeleton.model, {key.removeprefix(prefix): shape for key, shape in skeleton.shapes.items()})
    same = without.key_of == {name: key.removeprefix(prefix) for name, key in skeleton.key_of.items()}
    return skeleton.model.base_model_prefix if same and len(without.shapes) == len(skeleton.shapes) else ""


def put(rows: dict[str, Any], key: str, value: Any) -> None:
    """Raises Particular where it is there with another value."""
    if rows.setdefault(key, value) != value:
        raise Particular(f"{key} is not the same in every layer")


def kinds_of(skeleton: Skeleton) -> dict[str, str]:
    """Parameters of transformers' Conv1D, and of experts that are stored in × out."""
    kinds = {}
    for name in skeleton.symbolic:
        module = skeleton.owner(name)
        if type(module).__name__ == "Conv1D":
            kinds[NUMBER.sub("*", name)] = "Conv1D"
        elif getattr(module, "is_transposed", False):
            kinds[NUMBER.sub("*", name)] = "transposed"
    return kinds


def special(skeleton: Skeleton) -> set[str]:
    """Parameters that need their module: convolutions, torch's own attention, and those that the model reads past their module."""
    names = set()
    for name in skeleton.symbolic:
        module = skeleton.owner(name)
        if (
            hasattr(module, "kernel_size")
            or type(module).__name__ == "MultiheadAttention"
            or goes_around(skeleton.modules, name)
        ):
            names.add(NUMBER.sub("*", name))
    return names


def counted(names: Iterable[str]) -> dict[str, set[int]]:
    """{a name up to a number: every number there}."""
    numbers: dict[str, set[int]] = {}
    for name in names:
        for match in NUMBER.finditer(name):
            numbers.setdefault(NUMBER.sub("*", name[: match.end()]), set()).add(int(match[0]))
    return numbers


def counts_of(chosen: Any, config: dict[str, Any], skeleton: Skeleton) -> dict[str, str]:
    """{a stored key or a parameter up to a number: the setting that says how many there are}. Raises Particular."""
    every = counted([*skeleton.shapes, *skeleton.symbolic])
    where: dict[str, str] = {}
    open_ = {front: len(numbers) for front, numbers in every.items() if numbers == set(range(len(numbers)))}
    late = {front: max(numbers) + 1 for front, numbers in every.items() if front not in open_}
    wanted = open_ | late
    fixed = set(wanted)
    for path, value in paths(config, int):
        if path.rpartition(".")[2] not in LAYERS | EXPERTS and value not in wanted.values():
            continue
        fronts = [front for front in fixed if wanted[front] == value]
        if not fronts:
            continue
        try:
            more = counted(
                [*(larger := skeleton_of(built(chosen, changed(config, path, value + 1)))).shapes, *larger.symbolic]
            )
        except Exception:  # whatever a constructor raises
            continue
        for front in fronts:
            if max(more.get(front, {-1})) + 1 == value + 1:
                where[front] = "|".join([path, *aliases(chosen.config_class.from_dict(deepcopy(config)), path)])
    rest = {front: str(wanted[front]) for front in fixed if front not in where}
    for front, number in rest.items():
        where[front] = number  # a number that no setting changes
    return where


def aliases(config: Any, path: str) -> list[str]:
    """What else a setting may be called in config.json."""
    *sections, name = path.split(".")
    for section in sections:
        config = getattr(config, section)
    front = "".join(f"{section}." for section in sections)
    return [f"{front}{other}" for other, own in config.attribute_map.items() if own == name]


def ties_of(chosen: Any, config: dict[str, Any], tied: dict[str, str]) -> dict[str, bool]:
    """{the flag on top, and in the text's config: whether the weights are tied}; as JSON has them, "none" where it is not there."""
    table = {}
    nested = TEXT in config
    for top in (None, True, False):
        for inner in (None, True, False) if nested else (None,):
            one = changed(config, FLAG, UNSET if top is None else top) if FLAG in config or top is not None else config
            if nested and (FLAG in config[TEXT] or inner is not None):
                one = changed(one, f"{TEXT}.{FLAG}", UNSET if inner is None else inner)
            mapping = getattr(built(chosen, one), "all_tied_weights_keys", None) or {}
            if mapping and dict(mapping) != tied:
                raise Particular("it ties other weights under another config")
            table[json.dumps([top, inner])] = bool(mapping)
    return table


def tied_by(chosen: Any, config: dict[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    """(what is tied where anything is, the config that unties it)."""
    untied = changed(config, FLAG, False)
    tied = changed(config, FLAG, True)
    if TEXT in config:
        untied, tied = changed(untied, f"{TEXT}.{FLAG}", False), changed(tied, f"{TEXT}.{FLAG}", True)
    if getattr(built(chosen, untied), "all_tied_weights_keys", None):
        raise Particular("it ties weights whatever its config says")
    return dict(getattr(built(chosen, tied), "all_tied_weights_keys", None) or {}), untied


def switches_of(chosen: Any, config: dict[str, Any], layout: dict[str, Any]) -> dict[str, bool]:
    """{path: default} of every true-or-false setting that changes the layout, or that the class cannot be built with."""
    matter = {}
    for path, value in paths(config, bool):
        if path.rpartition(".")[2] in IDLE or path == FLAG:
            continue
        try:
            same = layout_of(skeleton_of(built(chosen, changed(config, path, not value)))) == layout
        except Exception:  # whatever a constructor raises
            same = False
        if not same:
            matter[path] = value
    return matter


def is_whole(skeleton: Skeleton) -> bool:
    """Whether every layer has the same parameters."""
    names = list(skeleton.known)
    ranges = {front: len(numbers) for front, numbers in counted(names).items()}
    seen: dict[str, int] = {}
    for name in names:
        pattern = NUMBER.sub("*", name)
        seen[pattern] = seen.get(pattern, 0) + 1
    for pattern, count in seen.items():
        full, at = 1, 0
        while (at := pattern.find("*", at)) >= 0:
            full *= ranges[pattern[: at + 1]]
            at += 1
        if count != full:
            return False
    return True


def labels_of(chosen: Any, config: dict[str, Any], skeleton: Skeleton) -> dict[str, list[int | str]]:
    """{parameter: its shape, with "labels" for their number, and settings' paths} of those whose shape that number changes."""
    shapes = []
    for labels in (2, 5):
        made = chosen.config_class.from_dict(deepcopy(config))
        made.num_labels = labels
        with torch.device("meta"):
            shapes.append({name: tuple(value.shape) for name, value in chosen(made).state_dict().items()})
    few, many = shapes
    result: dict[str, list[int | str]] = {}
    for name, shape in few.items():
        if many[name] != shape:
            axes: list[int | str] = []
            for at, extent in enumerate(shape):
                axes.append("labels" if many[name][at] != extent else width_of(chosen, config, name, at, extent))
            result[name] = axes
    return result


def width_of(chosen: Any, config: dict[str, Any], name: str, at: int, extent: int) -> str:
    """The setting that an extent of a parameter is. Raises Particular."""
    for path, value in paths(config, int):
        if value != extent:
            continue
        for step in (1, value):
            try:
                larger = built(chosen, changed(config, path, value + step)).state_dict()[name].shape
            except Exception:  # whatever a constructor raises
                continue
            if larger[at] == value + step:
                return path
            break
    raise Particular(f"no setting says how wide {name} is")


def is_flat_too(chosen: Any, config: dict[str, Any], layout: dict[str, Any]) -> bool:
    """Whether the text's settings may stand on top, as older configs have them."""
    if TEXT not in config:
        return False
    flat = {name: value for name, value in config[TEXT].items() if name not in ("model_type", "architectures")}
    flat = {**flat, **{name: value for name, value in config.items() if name != TEXT}}
    try:
        return layout_of(skeleton_of(built(chosen, flat))) == layout and has_the_layers(chosen, config, flat)
    except Exception:  # whatever a constructor raises
        return False


def has_the_layers(chosen: Any, config: dict[str, Any], flat: dict[str, Any]) -> bool:
    return built(chosen, flat).state_dict().keys() == built(chosen, config).state_dict().keys()


def row_of(chosen: Any) -> dict[str, Any]:
    """type, types: model_type, and those of nested configs; parameters: {name with `*` for numbers: dimensions}, in the order of
    registration; keys: {stored: parameter} where they differ; stacks: {parameter: the keys of its parts, by expert}; kinds,
    special, silent: see there; particular: in a layout of its own; counts: {up to a number: the setting, or how many}; tied,
    ties: see there; embedding, head; switches; whole: all layers are alike; prefix: of the base model, that keys may lack or
    have; labels: a head's shapes; flat: the text's settings may stand on top. Raises Particular."""
    config = few_layers(chosen)
    tied, untied = tied_by(chosen, config)
    skeleton = skeleton_of(built(chosen, untied))
    lost = skeleton.known.keys() - skeleton.symbolic.keys()
    if lost:
        raise Particular(f"{min(lost)} is not among what is saved")
    layout = layout_of(skeleton)
    types = {
        name: value["model_type"] for name, value in config.items() if isinstance(value, dict) and "model_type" in value
    }
    return {
        "type": config["model_type"], "types": types, **layout, "counts": counts_of(chosen, untied, skeleton), "tied": tied,
        "ties": ties_of(chosen, config, tied), "embedding": skeleton.embedding, "head": skeleton.head,
        "switches": switches_of(chosen, untied, layout), "whole": is_whole(skeleton),
        "prefix": prefix_of(skeleton, layout), "labels": labels_of(chosen, untied, skeleton),
        "flat": is_flat_too(chosen, config, layout),
    }  # fmt: skip


def written(known: dict[str, dict[str, Any]]) -> str:
    """One line a class, so that a new transformers gives a diff that can be read."""
    lines = [f"  {json.dumps(name)}: {json.dumps(row, separators=(',', ':'))}" for name, row in sorted(known.items())]
    tasks = {task: {kind: name for kind, name in names.items() if name in known} for task, names in TASKS.items()}
    heading = f'"generator": "tools/make_model_layouts.py", "transformers": "{transformers.__version__}"'
    return "{" + heading + f', "tasks": {json.dumps(tasks)}, "classes": {{\n' + ",\n".join(lines) + "\n}}\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:]:
        print(written(rows(sys.argv[1:], row_of)))
    else:
        TARGET.write_text(written(rows(CLASSES, row_of)))
