"""Dump what transformers knows about checkpoint names into bot/checkpoint/conversions.json.

    python -m tools.make_conversions            write the file
    python -m tools.make_conversions CLASS…     print the rows of a few classes, as they would be written

Each model class is built from its default config on the meta device (no weight memory), because only a built model says
which sub-models it has, which modules are Conv1D, which hold stacked experts, and where its embeddings are.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import json
import re
import sys
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import models as families
from transformers.conversion_mapping import _build_checkpoint_conversion_mapping, get_model_conversion_mapping
from transformers.core_model_loading import (
    GroupWeightRename,
    PermuteForRope,
    PrefixChange,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from tools.small_models import SETTINGS, small

FLAG = "tie_word_embeddings"
# Why a class may have no row of its own, beside a library that is not here. Any other that is not built is an error.
LIBRARY = re.compile(r"requires the (\w+) library")
STATED = dict.fromkeys(
    (
        "Deimv2DINOv3ConvEncoder", "PatchTSTEncoder", "SeamlessM4Tv2TextToUnitDecoder", "SeamlessM4Tv2TextToUnitModel",
        "SwinEncoder", "T5Gemma2Decoder", "T5Gemma2Encoder", "T5Gemma2TextEncoder", "T5GemmaDecoder", "T5GemmaEncoder",
        "UVDocBridge", "Qwen3OmniMoeCode2WavDecoderBlock", "Qwen3OmniMoeTalkerForConditionalGeneration",
        "Qwen3OmniMoeTalkerModel",
    ),
    "a part that only its parent's config makes",
) | dict.fromkeys(
    (
        "BeitForSemanticSegmentation", "BridgeTowerForContrastiveLearning", "ConvNextBackbone", "ConvNextV2Backbone",
        "EsmForProteinFolding", "FocalNetBackbone", "Gemma4AssistantForCausalLM", "Gemma4AssistantPreTrainedModel",
        "Gemma4UnifiedAssistantForCausalLM", "HieraForPreTraining", "MoshiForConditionalGeneration",
        "PPOCRV5ServerDetForObjectDetection", "PPOCRV5ServerDetModel", "PPOCRV6MediumDetForObjectDetection",
        "PPOCRV6MediumDetModel", "PerceiverForImageClassificationConvProcessing", "PerceiverForImageClassificationFourier",
        "PerceiverForMultimodalAutoencoding", "PerceiverForOpticalFlow", "Sapiens2ForImageMatting",
        "Sapiens2ForNormalEstimation", "Sapiens2ForPointmapEstimation", "Sapiens2ForPoseEstimation",
        "Sapiens2ForSemanticSegmentation", "T5GemmaEncoderModel", "ViltForImagesAndTextClassification",
        "VitMatteForImageMatting",
    ),
    "its config has parts without defaults",
)  # fmt: skip
TARGET = Path(__file__).parents[1] / "bot" / "checkpoint" / "conversions.json"
CONVOLUTIONS = (
    torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d,
    torch.nn.utils.parametrize.ParametrizationList,  # weight norm, which transformers puts on convolutions
)  # fmt: skip
TASKS = re.compile(
    r"\w+For(SequenceClassification|TokenClassification|QuestionAnswering|MultipleChoice|(Audio|Image|Video)Classification"
    r"|AudioFrameClassification|XVector)"
)
NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")

transformers.utils.logging.set_verbosity_error()
warnings.filterwarnings("ignore")


# --- the conversion mapping ----------------------------------------------------------------------------------------


def mappings() -> tuple[list[list[Any]], dict[str, int]]:
    """([list of transforms, …], {class name or model type: index of its list}); equal lists are written once."""
    lists: list[list[Any]] = []
    by_name: dict[str, int] = {}
    for name, transforms in sorted(_build_checkpoint_conversion_mapping().items()):
        written = [transform_row(one) for one in transforms]
        if written not in lists:
            lists.append(written)
        by_name[name] = lists.index(written)
    return lists, by_name


def transform_row(transform: Any) -> list[Any]:
    """[sources, targets] of a rename; [sources, targets, operations] of a converter.

    The patterns are the post-processed ones, as `compiled_sources` uses them. A rename that is no plain one (a group, an
    offset) carries its class's name in the operations' place.
    """
    row: list[Any] = [transform.source_patterns, transform.target_patterns]
    if isinstance(transform, WeightConverter):
        return [*row, [operation_row(one) for one in transform.operations]]
    if type(transform) in (WeightRenaming, PrefixChange):
        return row
    if isinstance(transform, GroupWeightRename):
        return [*row, "group"]
    return [*row, f"offset {transform.offset}"]


def operation_row(operation: Any) -> list[Any]:
    settings = {key: value for key, value in vars(operation).items() if value is not None and value is not False}
    return [type(operation).__name__, settings]


# --- the model classes ---------------------------------------------------------------------------------------------


def model_classes() -> dict[str, type[PreTrainedModel]]:
    """Every model class of the library, by name."""
    found: dict[str, type[PreTrainedModel]] = {}
    root = Path(inspect.getfile(families)).parent
    for file in sorted(root.glob("*/modeling_*.py")):
        try:
            module = importlib.import_module(f"transformers.models.{file.parent.name}.{file.stem}")
        except ImportError:  # a model that needs a library which we do not have
            continue
        for name, one in vars(module).items():
            if isinstance(one, type) and issubclass(one, PreTrainedModel) and one.__module__ == module.__name__:
                found[name] = one
    return found


def build_empty(one: type[PreTrainedModel], changes: Mapping[str, object] | None = None) -> PreTrainedModel | str:
    """The class without weights: from its default config, where that makes no model from a small one by hand
    (tools.small_models), either with these changes. What stands in the way of both, as a sentence."""
    said = ""
    for make in (default_settings, tiny_settings):
        try:
            config = make(one.config_class)
            for name, value in (changes or {}).items():
                setattr(config, name, value)
            with torch.device("meta"):
                return one(config)
        except Exception as error:  # whatever a model's constructor raises for a config that is no real model
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"[:160]
    return said


def default_settings(chosen: type[PreTrainedConfig]) -> PreTrainedConfig:
    config = chosen()
    shrink(config)
    return config


def tiny_settings(chosen: type[PreTrainedConfig]) -> PreTrainedConfig:
    return chosen(**small(chosen(), settings=SETTINGS.get(chosen.model_type, {})))


def shrink(config: PreTrainedConfig) -> None:
    """Fewer layers where the default is deep: names repeat. 8 layers keep every kind (dense, sparse, hybrid)."""
    for nested in (config, *(value for value in vars(config).values() if isinstance(value, PreTrainedConfig))):
        for name in ("num_hidden_layers", "num_layers", "n_layer", "encoder_layers", "decoder_layers"):
            kinds = getattr(nested, "layer_types", None)
            if isinstance(getattr(nested, name, None), int) and getattr(nested, name) > 8 and not kinds:
                setattr(nested, name, 8)


def class_row(model: PreTrainedModel) -> dict[str, Any]:
    """What a class's modules say, by paths relative to the model; numbers in paths stand as `*`.

    type, prefix: model_type and base_model_prefix. parts: {path: [config attribute, class]} of its sub-models.
    shared: names of one weight, where it has more than those of a head and an embedding.
    conv1d: paths of Conv1D modules; experts: {path: [is_transposed, parameters in named_parameters() order]};
    head, embedding: the parameters, and saved_…: the names that save_pretrained gives them, where those differ.
    apart: 1 where the class never ties its head, whatever the config says.
    Modules inside a sub-model are that sub-model's own business.
    """
    parts = {path: one for path, one in model.named_modules() if path and isinstance(one, PreTrainedModel)}
    outside = [path for path in parts if not any(path.startswith(other + ".") for other in parts)]
    own = {
        path: one
        for path, one in model.named_modules()
        if not any(path == part or path.startswith(part + ".") for part in outside)
    }
    row: dict[str, Any] = {"type": model.config.model_type or "", "prefix": model.base_model_prefix}
    if parts:
        row["parts"] = {
            starred(path): [config_attribute(model, parts[path]), type(parts[path]).__name__] for path in outside
        }
    row["conv1d"] = sorted({starred(path) for path, one in own.items() if isinstance(one, Conv1D)})
    row["experts"] = {starred(path): stack for path, one in own.items() if (stack := expert_stack(one))}
    names = embedding_names(model)
    row["shared"] = shared_names(model, {names.get("head"), names.get("embedding")})
    return {key: value for key, value in (row | names).items() if value not in ([], {}, None)}


def shared_names(model: PreTrainedModel, pair: set[str | None]) -> list[list[str]]:
    """Weights that go by several names, tied to each other: but for the head and the embedding, where only they are.

    One name in a list: it stands at several depths.
    """
    groups: dict[str, list[str]] = {}
    for target, source in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        if target.endswith("weight"):
            groups.setdefault(source, [source]).append(target)
    found = {tuple(dict.fromkeys(map(starred, group))) for group in groups.values() if set(group) != pair}
    return [list(one) for one in sorted(found)]


def starred(path: str) -> str:
    return NUMBER.sub("*", path)


def config_attribute(model: PreTrainedModel, part: PreTrainedModel) -> str:
    """Under which attribute of the model's config the sub-model's config stands; "" where it is the same one."""
    if part.config is model.config or type(part.config) is type(model.config):
        return ""
    nested = {name: one for name, one in vars(model.config).items() if isinstance(one, PreTrainedConfig)}
    same = [name for name, one in nested.items() if one is part.config] or [
        name for name, one in nested.items() if type(one) is type(part.config)
    ]
    return same[0] if same else "?"


def expert_stack(module: torch.nn.Module) -> list[Any]:
    """[is_transposed, parameter names] of a module with parameters of its own that are stacks of matrices, else []."""
    own = dict(module.named_parameters(recurse=False))
    if isinstance(module, CONVOLUTIONS) or not any(one.dim() == 3 and one.shape[0] > 1 for one in own.values()):
        return []
    return [int(bool(getattr(module, "is_transposed", False))), [name for name, one in own.items() if one.dim() > 1]]


def embedding_names(model: PreTrainedModel) -> dict[str, Any]:
    found: dict[str, Any] = {}
    renamings, converters = saving_transforms(model)
    for what, getter in (("head", "get_output_embeddings"), ("embedding", "get_input_embeddings")):
        try:
            module = getattr(model, getter)()
        except (NotImplementedError, AttributeError):
            continue
        # A tied head shares its parameter with the embedding, so it is found by its module and not by its weight.
        paths = [path for path, one in model.named_modules() if one is module]
        if module is None or not paths or not isinstance(getattr(module, "weight", None), torch.nn.Parameter):
            continue
        if isinstance(module, CONVOLUTIONS):  # what a vision model calls its input embedding
            continue
        found[what] = f"{paths[0]}.weight"
        saved, _ = rename_source_key(found[what], renamings, converters, reverse=True)
        if saved != found[what]:
            found[f"saved_{what}"] = saved
    if "head" in found and not any(re.match(key, found["head"]) for key in model._tied_weights_keys or ()):
        found["apart"] = 1
    return found


def saving_transforms(model: PreTrainedModel) -> tuple[list[Any], list[Any]]:
    """(renamings, converters) that save_pretrained applies to a model that was not loaded."""
    transforms = get_model_conversion_mapping(model, add_legacy=False)
    turned = [one.reverse_transform() for one in transforms[::-1] if not isinstance(one, PrefixChange)]
    return (
        [one for one in turned if isinstance(one, WeightRenaming)],
        [one for one in turned if isinstance(one, WeightConverter)],
    )


def class_rows(names: Iterable[str] = (), *, patience: float = 1e9) -> dict[str, dict[str, Any]]:
    """The rows of all classes, or of those named. A sub-model that cannot be built alone gets its parent's view of it.

    A class without a view of its own says why, as `unbuilt`. Raises SystemExit where nobody stated a reason.
    """
    every = model_classes()
    rows: dict[str, dict[str, Any]] = {}
    inner: dict[str, dict[str, Any]] = {}
    for name in sorted(names or every):
        began = time.monotonic()
        model = build_empty(every[name])
        if isinstance(model, str):  # what the class alone says
            chosen = every[name].config_class
            if hasattr(chosen, "model_type"):
                row = {"type": chosen.model_type, "prefix": every[name].base_model_prefix}
                rows[name] = row | {"unbuilt": stated_reason(name, model)}
            continue
        rows[name] = class_row(model)
        for path, part in model.named_modules():
            if path and isinstance(part, PreTrainedModel) and type(part).__name__ not in inner:
                inner[type(part).__name__] = class_row(part)
        del model
        if (took := time.monotonic() - began) > patience:
            print(f"{name}: {took:.1f} s", file=sys.stderr, flush=True)
            gc.collect()
    for name, row in rows.items():
        if "unbuilt" in row and name in inner:
            rows[name] = inner[name]
    return dict(sorted((inner | rows).items())) if not names else rows


def stated_reason(name: str, said: str) -> str:
    """Why a class is not built, which `said` so when it was tried. Raises SystemExit for one of which nobody stated it."""
    library = LIBRARY.search(said)
    if not library and name not in STATED:
        raise SystemExit(
            f"{name} has no row: {said}. Give its type settings in tools/small_models.py, or state why not."
        )
    return f"needs {library[1]}" if library else STATED[name]


# --- tied heads ----------------------------------------------------------------------------------------------------


def tying() -> dict[str, list[str]]:
    """Model types by how `tie_word_embeddings` is read: its default is false but for those named here.

    tied: true where config.json is silent; always: tied whatever it says; never: not tied whatever it says; nested: where
    config.json is silent, text_config's own flag decides.
    """
    found: dict[str, list[str]] = {"tied": [], "always": [], "never": [], "nested": []}
    for model_type in sorted(transformers.CONFIG_MAPPING):
        one = transformers.CONFIG_MAPPING[model_type]
        silent, yes, no = (tie_flag(one, given) for given in ({}, {FLAG: True}, {FLAG: False}))
        inner = {tie_flag(one, {"text_config": {FLAG: flag}}) for flag in (True, False)}
        if yes is True and no is True:
            found["always"].append(model_type)
        elif not yes and not no:
            found["never"].append(model_type)
        elif silent:
            found["tied"].append(model_type)
        if inner == {True, False}:
            found["nested"].append(model_type)
    return found


def tie_flag(one: type[PreTrainedConfig], given: dict[str, Any]) -> bool | None:
    try:
        return getattr(one.from_dict(given), FLAG, None)
    except Exception:  # a config that cannot be made without its parts
        return None


def rope_heads() -> dict[str, dict[str, list[Any]]]:
    """Model types whose converters deal out the rows of attention heads (PermuteForRope), each with the parts of its
    config that such a converter names ("": the config itself): [the field of config.json, the class's default]."""
    parts_of: dict[str, set[str]] = {}
    for name, transforms in _build_checkpoint_conversion_mapping().items():
        operations = [o for one in transforms if isinstance(one, WeightConverter) for o in one.operations]
        asked = {one.subconfig_key or "" for one in operations if isinstance(one, PermuteForRope)}
        if asked:
            parts_of[name] = asked
    found: dict[str, dict[str, list[Any]]] = {}
    for model_type in sorted(transformers.CONFIG_MAPPING):
        config = default_config(transformers.CONFIG_MAPPING[model_type])
        inside = (
            [config, *(one for one in vars(config).values() if isinstance(one, PreTrainedConfig))] if config else []
        )
        for part in sorted({part for one in inside for part in parts_of.get(one.model_type, ())}):
            inner = getattr(config, part, None) if part else None
            at, asked_of = (part, inner) if isinstance(inner, PreTrainedConfig) else ("", config)
            if hasattr(asked_of, "num_attention_heads"):
                field = asked_of.attribute_map.get("num_attention_heads", "num_attention_heads")
                found.setdefault(model_type, {})[at] = [field, asked_of.num_attention_heads]
            else:
                found.setdefault(model_type, {})[at] = ["num_attention_heads", 1]
    return found


def default_config(one: type[PreTrainedConfig]) -> PreTrainedConfig | None:
    try:
        return one()
    except Exception:  # a config that cannot be made without its parts
        return None


def scaled_by_tying() -> list[str]:
    """Model types whose forward multiplies the head's input by a factor if the tie flag is set (the t5 family)."""
    pattern = re.compile(r"if self\.config\.(scale_decoder_outputs|tie_word_embeddings):\s+(#.*\s+)*\w+ = \w+ \*")
    modules = {inspect.getmodule(one) for one in model_classes().values()}
    scaling = {module for module in modules if module and pattern.search(Path(module.__file__ or "").read_text())}
    return sorted(
        {
            one.config_class.model_type
            for one in model_classes().values()
            if inspect.getmodule(one) in scaling
            and hasattr(one.config_class, "model_type")
            and pattern.search(inspect.getsource(one))
        }
    )


# --- writing -------------------------------------------------------------------------------------------------------


def conversions() -> dict[str, Any]:
    """All of conversions.json."""
    lists, by_name = mappings()
    rows = class_rows(patience=5.0)
    telling = {name for name, row in rows.items() if tells(name, row, by_name)}
    while (
        more := {name for name, row in rows.items() if telling & {part for _, part in row.get("parts", {}).values()}}
        - telling
    ):
        telling |= more
    return {
        "generator": "tools/make_conversions.py",
        "transformers": transformers.__version__,
        "lists": lists,
        "names": by_name,
        "classes": {name: row for name, row in rows.items() if name in telling},
        "models": plain(MODEL_MAPPING_NAMES),
        "causal": plain(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        "tying": tying(),
        "heads": rope_heads(),
        "scaled": scaled_by_tying(),
    }


def tells(name: str, row: dict[str, Any], by_name: dict[str, int]) -> bool:
    """Whether a class's row says more than that its names are the checkpoint's, or the class has a head that an adapter may bring:
    then it has to be known by its name."""
    is_headed = TASKS.fullmatch(name) is not None
    return is_headed or name in by_name or row["type"] in by_name or bool(row.keys() - {"type", "prefix", "parts"})


def plain(mapping: Any) -> dict[str, str]:
    """{model type: class} of an auto mapping, less the types that have several classes."""
    return {key: value for key, value in sorted(mapping.items()) if isinstance(value, str)}


def written(content: dict[str, Any]) -> str:
    """One line a list, a class and a name, so that a new transformers gives a diff that can be read."""
    sections = []
    for key, value in content.items():
        if key in ("lists", "classes"):
            entries = value if isinstance(value, list) else [f"{json.dumps(k)}: {dump(v)}" for k, v in value.items()]
            lines = [dump(one) if isinstance(value, list) else one for one in entries]
            opened, closed = ("[", "]") if isinstance(value, list) else ("{", "}")
            sections.append(f"{json.dumps(key)}: {opened}\n" + ",\n".join(lines) + f"\n{closed}")
        else:
            sections.append(f"{json.dumps(key)}: {dump(value)}")
    return "{\n" + ",\n".join(sections) + "\n}\n"


def dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:]:
        print(written({"classes": class_rows(sys.argv[1:])}))
    else:
        TARGET.write_text(written(conversions()))
