"""Write bot/checks/reading/model_layouts.json: how models are stored whose layers, names or layouts differ, without building them.

    python -m tools.make_model_layouts            write the file
    python -m tools.make_model_layouts CLASS…     print the rows of a few classes, or why they have none

For every class that people tune and that plain_models.json does not have: mixtures of experts, vision-language models,
encoders and decoders, classifiers, and those with Conv1D. Everything is asked of the verifier's own skeleton, over the keys that
transformers itself saves: of a model on the meta device, from the class's default config with a few layers and experts. Which
setting a number of layers or experts is, is found by raising it by one; which switch matters, by turning it over. A class that
cannot be built, or not in LIMIT_S seconds, has no row.
"""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from functools import cache
from math import prod
from typing import Any

import torch
import transformers
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.auto import modeling_auto

from bot.checks.expected.bypassed import goes_around
from bot.checks.reading.laid_out_skeleton import experts_of
from bot.checks.reading.layout_rows import FLAG, LEFT_OUT, TEXT, Patterns, at_path
from bot.checks.reading.model_skeleton import Skeleton
from tools.make_plain_models import IDLE, Particular, rows
from tools.make_plain_models import TARGET as PLAIN
from tools.small_models import CLASSES, config_for

TARGET = PLAIN.with_name("model_layouts.json")
LIMIT_S = 100
LAYERS = {"num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "encoder_layers", "decoder_layers"}
EXPERTS = {"num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"}
FEW = {**dict.fromkeys(LAYERS, 8), **dict.fromkeys(EXPERTS, 4)}
FEW_LITERAL = 8  # members of a sequence, where each has names of its own
UNSET = object()
# What a class is for, by PEFT's name for it where PEFT has one: those with a head that the base may lack.
TASKS = {
    "SEQ_CLS": "SEQUENCE_CLASSIFICATION", "TOKEN_CLS": "TOKEN_CLASSIFICATION", "QUESTION_ANS": "QUESTION_ANSWERING",
    "IMAGE_CLS": "IMAGE_CLASSIFICATION", "AUDIO_CLS": "AUDIO_CLASSIFICATION",
}  # fmt: skip
MODELS = (
    "CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "SPEECH_SEQ_2_SEQ", "MASKED_LM", "MULTIMODAL_LM", "CTC",
)  # fmt: skip
# Of what has these, the model without a head is a base too.
ENCODERS = ("MASKED_LM", "IMAGE_CLASSIFICATION", "AUDIO_CLASSIFICATION")
# Classes that none of these mappings has, and that adapters are trained for all the same.
MORE = ("T5EncoderModel", "MT5EncoderModel", "UMT5EncoderModel", "CLIPModel", "SiglipModel", "Siglip2Model")
# What a config chooses besides its switches: classes that have a second row, with these settings.
GATED = {"feed_forward_proj": "gated-gelu"}
SECOND = {
    "T5ForConditionalGeneration": GATED, "T5EncoderModel": GATED, "T5ForSequenceClassification": GATED,
    "T5ForTokenClassification": GATED, "T5ForQuestionAnswering": GATED, "LongT5ForConditionalGeneration":
    {**GATED, "encoder_attention_type": "transient-global"},
}  # fmt: skip
OF_THE_FIRST = "relative_attention_bias"  # only the first layer has one, in T5 and its kin
PERHAPS_IDLE = {FLAG, "is_decoder", "is_encoder_decoder"}

transformers.utils.logging.set_verbosity_error()


class Differs(Particular):
    """Names with different numbers are different things."""


class TooLong(BaseException):
    """No Exception: what a constructor raises is caught, and means something else."""


def mapping(name: str) -> dict[str, tuple[str, ...]]:
    """{model_type: the classes} of one of transformers' mappings."""
    names = getattr(modeling_auto, f"MODEL_{f'FOR_{name}_' if name else ''}MAPPING_NAMES")
    return {kind: (classes,) if isinstance(classes, str) else tuple(classes) for kind, classes in names.items()}


def candidates() -> list[str]:
    """The classes that people tune; those that plain_models.json has are known already."""
    classes = dict.fromkeys([*CLASSES.values(), *MORE])
    for name in (*MODELS, *TASKS.values()):
        for several in mapping(name).values():
            classes |= dict.fromkeys(several)
    for kind in {kind for name in ENCODERS for kind in mapping(name)}:
        classes |= dict.fromkeys(mapping("").get(kind, ()))
    plain = json.loads(PLAIN.read_bytes())["classes"]
    return sorted(name for name in classes if name not in plain and hasattr(transformers, name))


@cache
def few_layers(chosen: Any, second: bool = False) -> dict[str, Any]:
    """The class's default config as config.json has it, with a few layers and experts where it takes that; where nothing can be
    built of it, that of tools/small_models.py. `second`: with the settings of the class's second row."""
    default = chosen.config_class(**(SECOND[chosen.__name__] if second else {})).to_dict()
    smaller = deepcopy(default)
    for section, name in settings(smaller, int):
        if name in FEW and section[name] > FEW[name]:
            section[name] = FEW[name]
    for section, name in settings(smaller, list):
        if name in ("layer_types", "mlp_layer_types"):
            del section[name]
    for config in (smaller, default):
        try:
            built(chosen, config)
        except Exception:  # whatever a constructor raises for a config that it does not expect
            continue
        return config
    tiny: dict[str, Any] = config_for(chosen).to_dict()
    return tiny


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
    """The verifier's own, over the keys that transformers saves this model under; those of tied weights too."""
    stored = {key: tuple(value.shape) for key, value in revert_weight_conversion(model, model.state_dict()).items()}
    return Skeleton(model, stored)


def layout_of(skeleton: Skeleton, patterns: Patterns) -> dict[str, Any]:
    """What of a row is read off one model; see `row_of`. Raises Particular."""
    keys: dict[str, str] = {}
    apart: dict[str, dict[str, None]] = {}
    stacks: dict[str, dict[str, Any]] = {}
    particular: set[str] = set()
    for name, symbolic in skeleton.symbolic.items():
        pattern = patterns.of(name)
        sources = list(dict.fromkeys(block.key for block in symbolic.blocks))
        parts = list(dict.fromkeys(patterns.of(key) for key in sources))
        if symbolic.plain and skeleton.rename(symbolic.plain)[1] is not None:
            particular.add(pattern)  # how it is stored depends on its shape: only its converter knows
            apart.setdefault(parts[0], {})[pattern] = None
            continue
        if symbolic.plain and patterns.numbers(symbolic.plain) == patterns.numbers(name):
            put(keys, parts[0], pattern)
            continue
        stack = {"parts": parts, "along": 1}
        made = experts_of(stack, patterns.numbers(name), {key: skeleton.shapes[key] for key in sources})
        if made is not None and made.blocks == symbolic.blocks:
            put(stacks, pattern, stack)
        else:
            particular.add(pattern)
            own = patterns.numbers(name)
            if any(patterns.numbers(key)[: len(own)] != own for key in sources):
                raise Differs(f"{parts[0]} is not the same in every layer")
            for part in parts:
                apart.setdefault(part, {})[pattern] = None
    for key, names in skeleton.feeds.items():
        into = {patterns.of(name) for name in names}
        if into & particular and into != set(apart[patterns.of(key)]):
            raise Differs(f"{patterns.of(key)} is not the same in every layer")
    mixed = apart.keys() & keys.keys()
    if mixed:
        raise Differs(f"{min(mixed)} is not the same in every layer")
    for name in skeleton.unfollowed:
        raise Particular(f"{name} cannot be followed")
    parameters: dict[str, int] = {}
    for name, value in skeleton.known.items():
        if name in skeleton.symbolic or name in skeleton.tied:
            put(parameters, patterns.of(name), len(value.shape))
    return {
        "parameters": parameters, "silent": silent(skeleton.model, patterns),
        "keys": {key: name for key, name in keys.items() if key != name} | {
            key: names[0] if len(names := list(several)) == 1 else names for key, several in apart.items()
        }, "stacks": stacks,
        "kinds": kinds_of(skeleton, patterns), "particular": sorted(particular),
        "special": sorted(special(skeleton, patterns)), "embedding": skeleton.embedding, "head": skeleton.head,
    }  # fmt: skip


def silent(model: Any, patterns: Patterns) -> list[str]:
    """What is stored and no parameter, and what may be missing."""
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_missing or ()]
    buffers = dict(model.named_buffers(remove_duplicate=False))
    names = (name for name in model.state_dict() if name in buffers or any(pattern.search(name) for pattern in ignored))
    return sorted({patterns.of(name) for name in names})


def prefix_of(skeleton: Skeleton, layout: dict[str, Any]) -> str | None:
    """The base model's prefix that keys may lack or have; "" where they may not; None where that is not known of them all."""
    if layout["stacks"] or layout["particular"]:
        return None
    prefix = f"{skeleton.model.base_model_prefix}."
    lack = any(key.startswith(prefix) for key in skeleton.shapes)
    other = {key: key.removeprefix(prefix) if lack else f"{prefix}{key}" for key in skeleton.shapes}
    moved = Skeleton(skeleton.model, {other[key]: shape for key, shape in skeleton.shapes.items()})
    same = moved.key_of == {name: other[key] for name, key in skeleton.key_of.items()}
    if same and len(moved.shapes) == len(skeleton.shapes):
        return skeleton.model.base_model_prefix
    return None if layout["keys"] else ""


def has_both_names(skeleton: Skeleton) -> bool:
    """Whether what is stored under another name than its parameter's is known by that too."""
    renamed = {name: tuple(skeleton.known[name].shape) for name, key in skeleton.key_of.items() if name != key}
    today = Skeleton(skeleton.model, renamed)
    return bool(renamed) and today.key_of == {name: name for name in renamed}


def put(rows: dict[str, Any], key: str, value: Any) -> None:
    """Raises Differs where it is there with another value."""
    if rows.setdefault(key, value) != value:
        raise Differs(f"{key} is not the same in every layer")


def kinds_of(skeleton: Skeleton, patterns: Patterns) -> dict[str, str]:
    """Parameters of transformers' Conv1D, and of experts that are stored in × out."""
    kinds = {}
    for name in skeleton.symbolic:
        module = skeleton.owner(name)
        if type(module).__name__ == "Conv1D":
            kinds[patterns.of(name)] = "Conv1D"
        elif getattr(module, "is_transposed", False):
            kinds[patterns.of(name)] = "transposed"
    return kinds


def special(skeleton: Skeleton, patterns: Patterns) -> set[str]:
    """Parameters that need their module: convolutions, torch's own attention, and those that the model reads past their module."""
    names = set()
    for name in skeleton.symbolic:
        module = skeleton.owner(name)
        if (
            hasattr(module, "kernel_size")
            or type(module).__name__ == "MultiheadAttention"
            or goes_around(skeleton.modules, name)
        ):
            names.add(patterns.of(name))
    return names


def counted(names: Iterable[str], patterns: Patterns) -> dict[str, set[int]]:
    """{a name up to a number: every number there}."""
    numbers: dict[str, set[int]] = {}
    for name in names:
        for front, number in patterns.fronts(name):
            numbers.setdefault(front, set()).add(number)
    return numbers


def counts_of(chosen: Any, config: dict[str, Any], skeleton: Skeleton, patterns: Patterns) -> dict[str, str]:
    """{a stored key or a parameter up to a number: the setting that says how many there are, by itself or by its length; or the
    number that none does}."""
    wanted = {front: max(numbers) + 1 for front, numbers in names_of(skeleton, patterns).items()}
    where: dict[str, str] = {}

    def look(path: str, count: int, more: dict[str, Any], fronts: list[str]) -> None:
        """Whether one more in a setting is one more behind some fronts."""
        if not fronts:
            return
        try:
            numbers = names_of(skeleton_of(built(chosen, more)), patterns)
        except Exception:  # whatever a constructor raises
            return
        for front in fronts:
            if max(numbers.get(front, {-1})) == count:
                where[front] = "|".join([path, *aliases(chosen.config_class.from_dict(deepcopy(config)), path)])

    for path, value in paths(config, int):
        look(
            path,
            value,
            changed(config, path, value + 1),
            [front for front, number in wanted.items() if number == value],
        )
    for path, value in paths(config, int):
        if path.rpartition(".")[2] in LAYERS:
            rest = [front for front, number in wanted.items() if number == value and front not in where]
            look(path, value, with_kinds(config, path, value), rest)
    for path, values in (*paths(config, list), *paths(config, tuple)):
        rest = [front for front, number in wanted.items() if number == len(values) and front not in where]
        look(path, len(values), changed(config, path, [*values, *values[-1:]]), rest)
    return where | {front: str(number) for front, number in wanted.items() if front not in where}


def names_of(skeleton: Skeleton, patterns: Patterns) -> dict[str, set[int]]:
    """The numbers in every stored key and parameter."""
    return counted([*skeleton.shapes, *skeleton.symbolic], patterns)


def require_as_many_experts(skeleton: Skeleton, layout: dict[str, Any], patterns: Patterns) -> None:
    """Raises Particular where some layers have fewer experts than others: their number is none of one setting then."""
    every = names_of(skeleton, patterns)
    for name, symbolic in skeleton.symbolic.items():
        stack = layout["stacks"].get(patterns.of(name))
        if stack is not None:
            front = stack["parts"][0][: stack["parts"][0].rfind("*") + 1]
            keys = {block.key for block in symbolic.blocks}
            if len(keys) != len(stack["parts"]) * (max(every[front]) + 1):
                raise Particular(f"{name} has another number of experts than other layers")


def with_kinds(config: dict[str, Any], path: str, value: int) -> dict[str, Any]:
    """The config with one more layer; a list that says what each is says it of the last one twice."""
    more = changed(config, path, value + 1)
    section = at_path(more, path.rpartition(".")[0]) if "." in path else more
    for name, several in section.items():
        if isinstance(several, list) and len(several) == value:
            section[name] = [*several, several[-1]]
    return more


def layout_and_patterns(
    chosen: Any, config: dict[str, Any], skeleton: Skeleton
) -> tuple[dict[str, Any], Patterns, list[str]]:
    """The layout; the patterns that it is in; and the fronts whose numbers stay numbers there, as behind each is something else: a
    few members of a sequence, as many as they are under every config. Raises Particular."""
    literal: list[str] = []
    while True:
        patterns = Patterns(literal)
        try:
            return layout_of(skeleton, patterns), patterns, literal
        except Differs:
            counts = counts_of(chosen, config, skeleton, patterns)
            fixed = [front for front, number in counts.items() if number.isdigit() and int(number) <= FEW_LITERAL]
            if not fixed:
                raise
            literal = sorted({*literal, *fixed})


def aliases(config: Any, path: str) -> list[str]:
    """What else a setting may be called in config.json."""
    *sections, name = path.split(".")
    for section in sections:
        config = getattr(config, section)
    front = "".join(f"{section}." for section in sections)
    return [f"{front}{other}" for other, own in config.attribute_map.items() if own == name]


def ties_of(chosen: Any, config: dict[str, Any]) -> tuple[list[dict[str, str]], dict[str, int]]:
    """(what may be tied, {the flag on top, and in the text's config: which of these is}); as JSON has them, null for a flag that
    is not there."""
    tied: list[dict[str, str]] = [{}]
    table = {}
    nested = isinstance(config.get(TEXT), dict)
    for top in (None, True, False):
        for inner in (None, True, False) if nested else (None,):
            asked = (
                changed(config, FLAG, UNSET if top is None else top) if FLAG in config or top is not None else config
            )
            if nested and (FLAG in config[TEXT] or inner is not None):
                asked = changed(asked, f"{TEXT}.{FLAG}", UNSET if inner is None else inner)
            try:
                these = tied_in(built(chosen, asked))
            except Exception:  # whatever a constructor raises for a config that the class does not take
                continue
            if any(Patterns().numbers(name) for pair in these.items() for name in pair):
                raise Particular("which of its layers share a weight is up to their number")
            if these not in tied:
                tied.append(these)
            table[json.dumps([top, inner])] = tied.index(these)
    return tied, table


def tied_in(model: Any) -> dict[str, str]:
    """{parameter: the one that it shares}."""
    return dict(getattr(model, "all_tied_weights_keys", None) or {})


def untied(config: dict[str, Any]) -> dict[str, Any]:
    """The config that ties no more than it must."""
    config = changed(config, FLAG, False)
    return changed(config, f"{TEXT}.{FLAG}", False) if isinstance(config.get(TEXT), dict) else config


def switches_of(chosen: Any, config: dict[str, Any], layout: dict[str, Any], patterns: Patterns) -> dict[str, bool]:
    """{path: what it is} of every true-or-false setting that changes the layout or what is tied, or that the class cannot be
    built without."""
    matter = {}
    tied = tied_in(built(chosen, config))
    for path, value in paths(config, bool):
        if path.rpartition(".")[2] in IDLE - PERHAPS_IDLE or path in (FLAG, f"{TEXT}.{FLAG}"):
            continue
        try:
            model = built(chosen, changed(config, path, not value))
            same = layout_of(skeleton_of(model), patterns) == layout and tied_in(model) == tied
        except Exception:  # whatever a constructor raises
            same = False
        if not same:
            matter[path] = value
    return matter


def members_of(
    skeleton: Skeleton, patterns: Patterns, counts: Mapping[str, str]
) -> dict[str, list[list[int] | None]] | None:
    """{parameter: for each `*` the numbers that there are, or null for all}, of those that are not there for every number; None
    where that is another matter: where layers differ, as a setting may have it."""
    there: dict[str, set[tuple[int, ...]]] = {}
    for name in skeleton.known:
        there.setdefault(patterns.of(name), set()).add(tuple(int(number) for number in patterns.numbers(name)))
    every = names_of(skeleton, patterns)
    some: dict[str, list[list[int] | None]] = {}
    for pattern, numbers in there.items():
        fronts = [pattern[: match.end()] for match in re.finditer(r"\*", pattern)]
        columns = [sorted(set(column)) for column in zip(*numbers, strict=True)]
        if len(numbers) != prod(len(column) for column in columns):
            return None
        full = [column == list(range(max(every[front]) + 1)) for front, column in zip(fronts, columns, strict=True)]
        for front, column, all_there in zip(fronts, columns, full, strict=True):
            if not (all_there or counts[front].isdigit() or (column == [0] and OF_THE_FIRST in pattern)):
                return None
        if not all(full):
            some[pattern] = [None if all_there else column for column, all_there in zip(columns, full, strict=True)]
    return some


def labels_of(chosen: Any, config: dict[str, Any], skeleton: Skeleton) -> dict[str, list[str]]:
    """{parameter: its shape, with "labels" for their number, and settings' paths} of a head: what has another shape for another
    number of labels, and what is in one module with that; not of what is wide as no setting says."""
    shapes = []
    for labels in (2, 5):
        made = chosen.config_class.from_dict(deepcopy(config))
        made.num_labels = labels
        try:
            with torch.device("meta"):
                shapes.append({name: tuple(value.shape) for name, value in chosen(made).state_dict().items()})
        except Exception:  # whatever a constructor raises for a number of labels that it does not take
            return {}
    few, many = shapes
    heads = {name.partition(".")[0] for name, shape in few.items() if many[name] != shape}
    result: dict[str, list[str]] = {}
    for name, shape in few.items():
        if name.partition(".")[0] not in heads or name not in skeleton.symbolic or Patterns().numbers(name):
            continue
        try:
            result[name] = [
                axis_of(chosen, config, name, at, (extent, many[name][at])) for at, extent in enumerate(shape)
            ]
        except Particular:
            continue  # a head of that name is left to the model
    return result


def axis_of(chosen: Any, config: dict[str, Any], name: str, at: int, extents: tuple[int, int]) -> str:
    """ "labels", or the setting that an extent is, given those for 2 and for 5 labels. Raises Particular."""
    if extents == (2, 5):
        return "labels"
    if extents[0] != extents[1]:
        raise Particular(f"{name} is not as long as there are labels")
    return width_of(chosen, config, name, at, extents[0])


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


def is_flat_too(chosen: Any, config: dict[str, Any], layout: dict[str, Any], patterns: Patterns) -> bool:
    """Whether the text's settings may stand on top, as older configs have them."""
    if not isinstance(config.get(TEXT), dict):
        return False
    flat = {name: value for name, value in config[TEXT].items() if name not in ("model_type", "architectures")}
    flat = {**flat, **{name: value for name, value in config.items() if name != TEXT}}
    try:
        return layout_of(skeleton_of(built(chosen, flat)), patterns) == layout and has_the_layers(chosen, config, flat)
    except Exception:  # whatever a constructor raises
        return False


def has_the_layers(chosen: Any, config: dict[str, Any], flat: dict[str, Any]) -> bool:
    return built(chosen, flat).state_dict().keys() == built(chosen, config).state_dict().keys()


def row_of(chosen: Any, second: bool = False) -> dict[str, Any]:
    """type, types: model_type, and those of nested configs; parameters: {name with `*` for numbers: dimensions}, in the order of
    registration; keys: {stored: parameter, or all that it goes into} where they differ; stacks: {parameter: the keys of its
    parts, by expert}; kinds, special, silent: see there; particular: in a layout of its own; literal: see
    `layout_and_patterns`; counts: {up to a number: the setting, or how many}; tied, ties: see there; embedding, head; switches;
    stated: settings that config.json must have, as they are not the class's defaults; members: see there; prefix: of
    the base model, that keys may lack or have; both: renamed keys may have the parameters' names too; labels: a head's shapes;
    flat: the text's settings may stand on top. Raises Particular."""
    chosen_config = few_layers(chosen, second)
    config = untied(chosen_config)
    skeleton = skeleton_of(built(chosen, config))
    lost = skeleton.known.keys() - skeleton.symbolic.keys()
    if lost:
        raise Particular(f"{min(lost)} is not among what is saved")
    layout, patterns, literal = layout_and_patterns(chosen, config, skeleton)
    require_as_many_experts(skeleton, layout, patterns)
    counts = counts_of(chosen, config, skeleton, patterns)
    tied, ties = ties_of(chosen, chosen_config)
    switches, stated = stated_apart(chosen, switches_of(chosen, config, layout, patterns), second)
    return {
        "type": config["model_type"],
        "types": {path.removesuffix(".model_type"): kind for path, kind in paths(config, str) if path.endswith(".model_type")},
        **layout, "literal": literal, "counts": counts, "tied": tied, "ties": ties,
        "switches": switches, "stated": stated, "members": members_of(skeleton, patterns, counts),
        "prefix": prefix_of(skeleton, layout), "both": has_both_names(skeleton), "labels": labels_of(chosen, config, skeleton),
        "flat": is_flat_too(chosen, config, layout, patterns),
    }  # fmt: skip


def stated_apart(chosen: Any, switches: dict[str, bool], second: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the switches that have the value needed where config.json is silent, the settings that it must not be silent about)."""
    chosen_by = SECOND.get(chosen.__name__, {})
    default = chosen.config_class(**(chosen_by if second else {})).to_dict()
    by_default = {path: value for path, value in switches.items() if at_path(default, path) is value}
    stated = {path: value for path, value in switches.items() if path not in by_default}
    if second:
        return by_default, {**stated, **chosen_by}
    return {**by_default, **{path: default[path] for path in chosen_by}}, stated


def row_in_time(chosen: Any, second: bool = False) -> dict[str, Any]:
    """The same. Raises Particular where it takes too long, by the processor's time: a row is the same on a busy machine."""

    def give_up(*_: Any) -> None:
        raise TooLong

    signal.signal(signal.SIGPROF, give_up)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    try:
        return row_of(chosen, second)
    except TooLong:
        raise Particular(f"it takes longer than {LIMIT_S} seconds") from None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def every_row(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Of all classes that have one, the second ones of a class too, as `CLASS 2`."""
    known = rows(list(names), row_in_time)
    for name in SECOND.keys() & known.keys():
        known[f"{name} 2"] = row_in_time(getattr(transformers, name), second=True)
    return known


def written(known: dict[str, dict[str, Any]]) -> str:
    """One line a class, so that a new transformers gives a diff that can be read, and that one class is read alone. What a row
    does not say is in layout_rows.LEFT_OUT."""
    lines = []
    for name, row in sorted(known.items()):
        said_of_it = {field: value for field, value in row.items() if field not in LEFT_OUT or LEFT_OUT[field] != value}
        lines.append(f"  {json.dumps(name)}: {json.dumps(said_of_it, separators=(',', ':'))}")
    tasks = {task: {kind: classes[0] for kind, classes in mapping(name).items() if classes[0] in known}
             for task, name in TASKS.items()}  # fmt: skip
    heading = f'"generator": "tools/make_model_layouts.py", "transformers": "{transformers.__version__}"'
    return "{" + heading + f', "tasks": {json.dumps(tasks)}, "classes": {{\n' + ",\n".join(lines) + "\n}}\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:]:
        print(written(every_row(sys.argv[1:])))
    else:
        TARGET.write_text(written(every_row(candidates())))
