"""The class that an adapter was trained with: where it brings a head that the base's class has not, that is the merged model's."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from bot.checks.expected import config_changes
from bot.checks.expected.changes import WholeTensor
from bot.checks.expected.config_changes import Declared
from bot.checks.expected.parameter_names import ParameterNames
from bot.checks.reading.laid_out_skeleton import LaidOutSkeleton
from bot.checks.reading.layout_rows import class_for, has_a_head
from bot.checks.reading.model_skeleton import BUILD_ERRORS, Skeleton, build
from bot.checks.reading.plain_skeleton import NotPlain, PlainSkeleton
from bot.records import Json

AUTO = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "FEATURE_EXTRACTION": "AutoModel",
}


def stated_class(adapter: Json) -> str | None:
    """The name of the class that auto_mapping says the adapter was trained on."""
    mapping = adapter.get("auto_mapping")
    named = mapping.get("base_model_class") if isinstance(mapping, Mapping) else None
    return named if isinstance(named, str) else None


def trained_class(adapter: Json) -> Any:
    """transformers' class, by auto_mapping's name for it, else by the task; None where neither says."""
    import transformers

    named = stated_class(adapter)
    named_class = getattr(transformers, str(named), None)
    if isinstance(named_class, type) and issubclass(named_class, transformers.PreTrainedModel):
        return named_class
    return getattr(transformers, AUTO.get(str(adapter.get("task_type")), ""), None)


def known_trained_class(adapter: Json, config: Json) -> str | None:
    """The same by name, of the classes with heads whose layout is known; None for another one."""
    stated = stated_class(adapter)
    if stated is not None:
        return stated if has_a_head(stated) else None
    return class_for(str(adapter.get("task_type")), config)


def trained_skeleton(folder: Path, adapter: Json, shapes: Mapping[str, tuple[int, ...]]) -> Skeleton | None:
    """The base's weights under the class that the adapter was trained with; None where there is no such class."""
    chosen = trained_class(adapter)
    if chosen is None:
        return None
    try:
        return Skeleton(build(folder, chosen), shapes)
    except BUILD_ERRORS:
        return None


def nobody_saved(adapter: Json, names: ParameterNames, given: Collection[str], folder: Path) -> list[str]:
    """Parameters of the class that the adapter was trained with, which neither the base nor the adapter (`given`) has: they
    were random in training, and are random again at every load."""
    if not names.skeletons or not _says_its_class(adapter):
        return []
    skeleton = names.skeletons[-1]
    if isinstance(skeleton, PlainSkeleton):
        if (
            not skeleton.is_of(adapter.get("auto_mapping"))
            or skeleton.known.keys() - skeleton.used - set(given) - skeleton.tied.keys()
        ):
            raise NotPlain(skeleton.name)
        return []
    if isinstance(skeleton, LaidOutSkeleton):
        if skeleton.name != (stated_class(adapter) or known_trained_class(adapter, names.config)):
            raise NotPlain(skeleton.name)
        if any(name not in given for name in skeleton.lacking()):
            raise NotPlain(skeleton.name)  # or a number in the config says that there is none: the model knows
        return []
    if len(names.skeletons) == 1 and type(skeleton.model) is not trained_class(adapter) and not names.is_of_a_part:
        skeleton = trained_skeleton(folder, adapter, names.stored) or skeleton
    fed = skeleton.symbolic.keys() | skeleton.unfollowed.keys() | set(given)
    ignored = [re.compile(pattern) for pattern in skeleton.model._keys_to_ignore_on_load_missing or ()]
    lost = [
        name
        for name, _ in skeleton.model.named_parameters(remove_duplicate=False)
        if name not in fed and name not in skeleton.tied and not any(pattern.search(name) for pattern in ignored)
    ]
    return _nowhere(type(skeleton.model).__name__, lost)


def _nowhere(name: str, lost: list[str]) -> list[str]:
    if not lost:
        return []
    return [f"{name} has {', '.join(lost[:3])}{' …' if len(lost) > 3 else ''}, which neither the "
            "base nor the adapter has: random when the adapter was trained, and lost."]  # fmt: skip


def _says_its_class(adapter: Json) -> bool:
    """Whether it names the class, or a task whose classes have heads of their own. CAUSAL_LM stands for too many."""
    return bool(stated_class(adapter)) or adapter.get("task_type") in ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")


def declare_heads(
    new: Mapping[str, WholeTensor], names: ParameterNames, config: Json, folder: Path
) -> tuple[list[Declared], list[str], list[str]]:
    """(what config.json must say, base keys that the new class has no use for, problems) for parameters that are new or
    have another shape."""
    if not new or not names.skeletons:
        return [], [], []
    base, last = names.skeletons[0], names.skeletons[-1]
    if isinstance(last, PlainSkeleton | LaidOutSkeleton) and all(
        _is_vocabulary(parameter, change, last, config) for parameter, change in new.items()
    ):
        return [], [], []
    if isinstance(last, LaidOutSkeleton):
        return _declare_known_head(new, base, last, config)
    declared: list[Declared] = []
    dropped: list[str] = []
    if any(parameter not in base.known for parameter in new):
        declared.append(config_changes.renamed(type(last.model).__name__))
        dropped = sorted(base.used - last.used)
    labels = _labels(new, type(last.model), folder)
    if labels is None:
        problem = f"{' and '.join(new)} have shapes that {type(last.model).__name__} has for no number of labels."
        return declared, dropped, [problem]
    return [*declared, *(config_changes.labelled(config, labels) if labels else [])], dropped, []


def _declare_known_head(
    new: Mapping[str, WholeTensor], base: Any, last: LaidOutSkeleton, config: Json
) -> tuple[list[Declared], list[str], list[str]]:
    """The same by the class's row. Raises NotPlain where no number of labels fits, or several do."""
    declared: list[Declared] = []
    dropped: list[str] = []
    if any(parameter not in base.known for parameter in new):
        declared.append(config_changes.renamed(last.name))
        dropped = sorted(base.used - last.used)
    shapes = {parameter: change.values.stored.shape for parameter, change in new.items()}
    counts = sorted({2, *(shape[0] for shape in shapes.values() if shape)})
    fitting = [labels for labels in counts if last.fits(shapes, labels)]
    if len(fitting) != 1:
        raise NotPlain(last.name)
    return [*declared, *config_changes.labelled(config, fitting[0])], dropped, []


def _is_vocabulary(
    parameter: str, change: WholeTensor, skeleton: PlainSkeleton | LaidOutSkeleton, config: Json
) -> bool:
    """A tied head that gets a tensor of its own, for the words that the model has."""
    stored = skeleton.shapes.get(skeleton.embedding or "")
    shape = change.values.stored.shape
    return parameter == skeleton.head and shape == stored and shape[0] == config.get("vocab_size")


def _labels(new: Mapping[str, WholeTensor], model: Any, folder: Path) -> int | None:
    """The number of labels with which the class has the shapes that the adapter brings; 0: whatever it is."""
    shapes = {parameter: change.values.stored.shape for parameter, change in new.items()}
    fitting = []
    for labels in sorted({2, *(shape[0] for shape in shapes.values() if shape)}):
        known = build(folder, model, changes={"num_labels": labels}).state_dict()
        if all(parameter in known and tuple(known[parameter].shape) == shape for parameter, shape in shapes.items()):
            fitting.append(labels)
    if not fitting:
        return None
    return fitting[0] if len(fitting) == 1 else 0
