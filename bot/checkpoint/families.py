"""What a model class is made of, read from conversions.json: its sub-models, Conv1D modules, expert stacks, embeddings.

The file is made by tools/make_conversions.py. Paths in it are relative to the class, and numbers in them stand as `*`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from bot.checkpoint.conversions import NUMBER, Conversions, Transform, known, transforms_of
from bot.records import Json

FLAG = "tie_word_embeddings"


@dataclass(frozen=True, kw_only=True)
class SubModel:
    """A model or a sub-model at `path`: its class, as config.json makes it, and that class's row (empty: not known).

    `attribute`: the field of its parent's config that its own config stands in ("": it has the parent's).
    """

    path: str
    name: str
    model_type: str
    row: Json
    attribute: str = ""


@dataclass(frozen=True, kw_only=True)
class Language:
    """A language model inside a model of several kinds of input, at `path`.

    Its text-only class (`…ForCausalLM`) has it as one of `alone`, and calls the output embedding `head`.
    """

    path: str
    alone: tuple[str, ...]
    head: str


@dataclass(frozen=True, kw_only=True)
class ModelFamily:
    """A model class with this config.

    `conv1d`: paths of Conv1D modules; `experts`: path → (is_transposed, parameters). `head` and `embedding` are v5
    parameter names, `saved_head` and `saved_embedding` what save_pretrained calls them. `shared`: starred names of one
    weight each; a single name stands at several depths.
    """

    prefix: str = ""
    conversions: Conversions = field(default_factory=lambda: Conversions(_of_every_model()))
    conv1d: frozenset[str] = frozenset()
    experts: Json = field(default_factory=dict)
    head: str | None = None
    saved_head: str | None = None
    embedding: str | None = None
    saved_embedding: str | None = None
    tied: bool = False
    scaled_by_tying: bool = False
    languages: tuple[Language, ...] = ()
    shared: tuple[frozenset[str], ...] = ()

    def spellings(self, path: str) -> tuple[str, ...]:
        """A path, starred, and the same with the base model's prefix put on or taken off (what loading tries too)."""
        starred = star(path)
        if not self.prefix:
            return (starred,)
        return starred, f"{self.prefix}.{starred}", starred.removeprefix(f"{self.prefix}.")

    def is_conv1d(self, parameter: str) -> bool:
        """Whether a v5 parameter is the weight of a Conv1D, which is stored in × out."""
        module, _, leaf = parameter.rpartition(".")
        return leaf == "weight" and any(path in self.conv1d for path in self.spellings(module))

    def names_of_one(self, parameter: str) -> frozenset[str]:
        """The starred names that the weight of this name has, where the model ties them together; else none."""
        spelled = self.spellings(parameter)
        return next((group for group in self.shared if any(name in group for name in spelled)), frozenset())

    def stack(self, module: str) -> tuple[bool, tuple[str, ...]] | None:
        """(is_transposed, parameters) of a v5 module of stacked experts; None for any other module."""
        row = next((self.experts[path] for path in self.spellings(module) if path in self.experts), None)
        return (bool(row[0]), tuple(row[1])) if row else None


def family_of(config: Json) -> ModelFamily:
    """The family that config.json names; where transformers does not know it, one without conversions."""
    parts = parts_of(config)
    if not parts:
        return ModelFamily()
    root = parts[0]
    embedding = _embedding(parts)
    return ModelFamily(
        prefix=root.row.get("prefix", ""),
        conversions=Conversions(_transforms(parts) + _of_every_model()),
        conv1d=frozenset(_join(part.path, path) for part in parts for path in part.row.get("conv1d", ())),
        experts={_join(part.path, path): row for part in parts for path, row in part.row.get("experts", {}).items()},
        head=root.row.get("head"),
        saved_head=root.row.get("saved_head", root.row.get("head")),
        embedding=embedding,
        saved_embedding=root.row.get("saved_embedding") if embedding == root.row.get("embedding") else None,
        tied=_is_tied(root, config),
        scaled_by_tying=config.get("model_type") in known()["scaled"],
        languages=tuple(_language(part) for part in parts if part.attribute == "text_config"),
        shared=tuple(_shared(parts)) if ties_weights(config) else (),
    )


def parts_of(config: Json) -> list[SubModel]:
    """The model that config.json names and its sub-models, in named_modules() order; [] where it is not known."""
    name = class_of(config)
    return [] if name is None else list(_walk("", name, config))


def path_of_class(config: Json, name: str | None) -> str | None:
    """The path of the one sub-model that is of the class `name`; None where there is none or several, or where the whole
    model is of that class."""
    paths = [part.path for part in parts_of(config) if part.name == name] if name else []
    return paths[0] or None if len(paths) == 1 and "*" not in paths[0] else None


def part_of_class(config: Json, name: str | None) -> str | None:
    """The same where that is more than the body of the whole model: one part beside others, whose names may be as theirs."""
    path = path_of_class(config, name)
    root = next(iter(parts_of(config)), None)
    return path if root is not None and path != root.row.get("prefix") else None


def class_of(config: Json) -> str | None:
    """The model class: the one that config.json names, else the plain one of its model type."""
    for name in config.get("architectures") or ():
        if name in known()["classes"]:
            return str(name)
    plain = known()["models"].get(config.get("model_type"))
    return str(plain) if plain else None


def star(path: str) -> str:
    return NUMBER.sub("*", path)


def _language(part: SubModel) -> Language:
    """Its text-only class is the causal one of its model type, which may be what stands in the model already."""
    name = known()["causal"].get(part.model_type)
    causal = known()["classes"].get(name, {})
    inner = tuple(causal.get("parts", {})) or ("model",)
    path = _join(part.path, inner[0]) if part.name == name else part.path
    return Language(path=path, alone=inner, head=causal.get("head", "lm_head.weight"))


def _walk(path: str, name: str, config: Json, attribute: str = "") -> Iterator[SubModel]:
    """The model at `path`, then its sub-models, in named_modules() order."""
    row = known()["classes"].get(name, {})
    model_type = row.get("type") or config.get("model_type") or ""
    yield SubModel(path=path, name=name, model_type=model_type, row=row, attribute=attribute)
    for inner, (attribute, usual) in row.get("parts", {}).items():
        nested = config.get(attribute) if attribute else config
        nested = nested if isinstance(nested, dict) else {}
        yield from _walk(_join(path, inner), _substitute(usual, nested) if attribute else usual, nested, attribute)


def _substitute(usual: str, config: Json) -> str:
    """The class of a sub-model whose config names another model type than the one that its parent has by default."""
    wanted = config.get("model_type")
    if not wanted or known()["classes"].get(usual, {}).get("type") == wanted:
        return usual
    kind: Literal["models", "causal"] = "causal" if usual in known()["causal"].values() else "models"
    return str(known()[kind].get(wanted, usual))


def _transforms(parts: list[SubModel]) -> list[Transform]:
    """As transformers' get_model_conversion_mapping: by class, else by model type unless an ancestor has claimed it."""
    root = parts[0].row.get("prefix", "")
    seen: dict[str, list[str]] = {}
    every: list[Transform] = []
    for part in parts:
        if _claimed(seen, part.name, part.path):
            continue
        scope = part.path.removeprefix(root).removeprefix(".") if part.path else None
        transforms, by = transforms_of(part.name, scope, root), part.name
        if transforms is None:
            if _claimed(seen, part.model_type, part.path):
                continue
            transforms, by = transforms_of(part.model_type, scope, root), part.model_type
        if transforms is None:
            continue
        every += transforms
        for identifier in {part.name, by}:
            seen.setdefault(identifier, []).append(part.path)
    return every


def _claimed(seen: dict[str, list[str]], identifier: str, path: str) -> bool:
    return any(above == "" or path.startswith(above + ".") for above in seen.get(identifier, ()))


def _of_every_model() -> list[Transform]:
    return transforms_of("legacy", None, "") or []


def _embedding(parts: list[SubModel]) -> str | None:
    """The root's input embedding; inside a sub-model, where that sub-model's class has it."""
    name = parts[0].row.get("embedding")
    if name is None:
        return None
    owners = [part for part in parts if part.path and star(name).startswith(part.path + ".")]
    inner = owners[-1].row.get("embedding") if owners else None
    return _join(owners[-1].path, inner) if inner else str(name)


def _shared(parts: list[SubModel]) -> Iterator[frozenset[str]]:
    for part in parts:
        for group in part.row.get("shared", ()):
            yield frozenset(_join(part.path, name) for name in group)


def ties_weights(config: Json) -> bool:
    """Whether transformers ties the weights that the model's class ties: by the flag, and its default for the model type."""
    parts = parts_of(config)
    return bool(parts) and _ties(parts[0], config)


def _is_tied(root: SubModel, config: Json) -> bool:
    """Whether transformers ties the head to the embedding: by the flag, and the class."""
    return root.row.get("head") is not None and not root.row.get("apart") and _ties(root, config)


def _ties(root: SubModel, config: Json) -> bool:
    """Whether transformers ties weights: by the flag, and its default for the model type."""
    rules = known()["tying"]
    model_type = config.get("model_type") or root.model_type
    if model_type in rules["never"]:
        return False
    if model_type in rules["always"]:
        return True
    text = config.get("text_config")
    if FLAG not in config and model_type in rules["nested"] and isinstance(text, dict) and FLAG in text:
        return bool(text[FLAG])
    return bool(config.get(FLAG, model_type in rules["tied"]))


def _join(path: str, inner: str) -> str:
    return f"{path}.{inner}" if path else inner
