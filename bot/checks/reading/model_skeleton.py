"""The model without its weights, to ask transformers how checkpoint keys, modules and parameters correspond.

This is the one module of the verifier that leans on transformers' internals (`get_model_conversion_mapping`,
`rename_source_key`, `WeightConverter.convert`: what `from_pretrained` itself uses in 5.x). When they move, this file and
its tests move.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any

from bot.checks.reading.symbolic import NotFollowed, SymbolicTensor, compose
from bot.records import Json

# Families that store weights in × out; consulted only where the model itself cannot be built.
IN_BY_OUT = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})

# What transformers raises for a config that it cannot make a model of; NotImplementedError is a RuntimeError.
BUILD_ERRORS = (ImportError, AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError)
NEEDS_CODE = "the model needs the repo's own code, and --trust-remote-code was not given"


def model_class(config: Json, trust_remote_code: bool = False) -> Any:
    """The plain class that config.json names, else the Auto class. None where only the repo's own code would do.

    `trust_remote_code` is for the worker processes of the trial only: in this one, no stranger's code ever runs.
    """
    import transformers

    for name in config.get("architectures") or ():
        named = getattr(transformers, name, None)
        if named is not None:
            return named
    own = [name for name in config.get("auto_map") or () if name.startswith("AutoModel")]
    if own and not trust_remote_code:
        return None
    return getattr(transformers, own[0]) if own else transformers.AutoModel


def build(folder: Path, chosen: Any, trust_remote_code: bool = False, changes: Mapping[str, Any] | None = None) -> Any:
    """The model of `folder` as class `chosen`, on the meta device: no weight memory. Raises one of BUILD_ERRORS.

    `changes` are set on the config first (num_labels for a new head).
    """
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    for name, value in (changes or {}).items():
        setattr(config, name, value)
    with torch.device("meta"):
        if hasattr(chosen, "from_config"):  # an Auto class
            return chosen.from_config(config, trust_remote_code=trust_remote_code)
        return chosen(config)


class Skeleton:
    """One model class over one checkpoint: which boxes of which stored tensors each parameter is.

    `shapes`: {stored key: shape}. Everything is computed when it is first asked for.
    """

    def __init__(self, model: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        self.model = model
        self.shapes = shapes
        self.modules: dict[str, Any] = dict(model.named_modules())
        self.known: dict[str, Any] = model.state_dict()
        transforms = get_model_conversion_mapping(model)
        self._renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
        self._converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
        self._by_pattern = {pattern: each for each in self._converters for pattern in each.source_patterns}
        self._undone: dict[str, dict[str, SymbolicTensor]] = {}

    @cached_property
    def symbolic(self) -> dict[str, SymbolicTensor]:
        """{parameter: the stored boxes it is}; for those that some stored key feeds."""
        return {name: origin for name, origin in self._loaded.items() if isinstance(origin, SymbolicTensor)}

    @cached_property
    def unfollowed(self) -> dict[str, str]:
        """{parameter: the reason} for those whose stored layout cannot be followed."""
        return {name: origin for name, origin in self._loaded.items() if isinstance(origin, str)}

    @cached_property
    def feeds(self) -> dict[str, tuple[str, ...]]:
        """{stored key: the parameters that it goes into}. Keys that the model does not use are absent."""
        parameters: dict[str, list[str]] = {}
        for name, symbolic in self.symbolic.items():
            for key in dict.fromkeys(block.key for block in symbolic.blocks):
                parameters.setdefault(key, []).append(name)
        return {key: tuple(names) for key, names in parameters.items()}

    @cached_property
    def used(self) -> frozenset[str]:
        """Every stored key that the model reads, also those in a layout that cannot be followed."""
        return frozenset(self._sources)

    @cached_property
    def key_of(self) -> dict[str, str]:
        """{parameter: key} for parameters that are stored as they are."""
        return {name: symbolic.plain for name, symbolic in self.symbolic.items() if symbolic.plain}

    def rename(self, name: str) -> tuple[str, str | None]:
        """The parameter that a stored name (of this checkpoint or an older one) goes into; and the converter's pattern."""
        from transformers.core_model_loading import rename_source_key

        prefix = self.model.base_model_prefix
        renamed: tuple[str, str | None]
        renamed = rename_source_key(name, self._renamings, self._converters, prefix, self.known)
        if renamed[0] not in self.known and name in self.known:
            renamed = rename_source_key(name, [], [], prefix, self.known)
        return renamed

    @cached_property
    def _sources(self) -> dict[str, str]:
        """{stored key: the first parameter it goes into}."""
        return {key: name for key in self.shapes if (name := self.rename(key)[0]) in self.known}

    @cached_property
    def _loaded(self) -> dict[str, SymbolicTensor | str]:
        """As transformers loads: renamed keys as they are, the others through their converter."""
        from transformers.core_model_loading import dot_natural_key

        loaded: dict[str, SymbolicTensor | str] = {}
        running: dict[str, list[tuple[str, str]]] = {}
        for key in sorted(self.shapes, key=dot_natural_key):
            name, pattern = self.rename(key)
            if name not in self.known:
                continue
            if pattern is None:
                loaded[name] = SymbolicTensor.whole(key, self.shapes[key])
            else:
                running.setdefault(name, []).append((pattern, key))
        for name, fed in running.items():
            loaded |= self._converted(self._by_pattern[fed[0][0]], name, fed)
        return loaded

    @cached_property
    def groups(self) -> dict[str, tuple[str, list[tuple[str | None, str]]]]:
        """{parameter: (the first of those that are loaded with it, the (pattern, stored key) of all that they are made from)}; for
        those that some stored key feeds. The pattern is None where a parameter is stored as it is."""
        from transformers.core_model_loading import dot_natural_key

        fed: dict[str, list[tuple[str | None, str]]] = {}
        for key in sorted(self.shapes, key=dot_natural_key):
            name, pattern = self.rename(key)
            if name in self.known:
                fed.setdefault(name, []).append((pattern, key))
        groups: dict[str, tuple[str, list[tuple[str | None, str]]]] = {}
        for first, sources in fed.items():
            converter = self._by_pattern.get(sources[0][0] or "")
            patterns: list[str] = converter.target_patterns if converter else []
            groups |= {first.replace(patterns[0], pattern): (first, sources) for pattern in patterns}
            groups.setdefault(first, (first, sources))
        return groups

    def load(self, first: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of a group, made of its stored tensors as transformers makes them. Raises what its converters raise."""
        _, sources = self.groups[first]
        if sources[0][0] is None:
            return {first: tensors[sources[-1][1]]}
        converter = self._by_pattern[sources[0][0]]
        return self._run(converter, first, [(pattern or "", key, tensors[key]) for pattern, key in sources])

    def _converted(self, converter: Any, name: str, fed: list[tuple[str, str]]) -> dict[str, SymbolicTensor | str]:
        """`fed`: (pattern, stored key) of every tensor that the converter takes."""
        shapes = {key: self.shapes[key] for _, key in fed}
        try:
            return {**self._followed(converter, name, fed, shapes)}
        except NotFollowed as error:
            operations = " and ".join(type(operation).__name__ for operation in converter.operations)
            targets = [name.replace(converter.target_patterns[0], pattern) for pattern in converter.target_patterns]
            reason = f"it is stored in a layout that cannot be followed ({operations}: {error})"
            return dict.fromkeys(targets, reason)
        except Exception as error:  # transformers' own converters raise what they like on an incomplete set of tensors
            return {name: f"transformers cannot convert it ({type(error).__name__}: {error})"}

    def _followed(
        self, converter: Any, name: str, fed: list[tuple[str, str]], shapes: Mapping[str, tuple[int, ...]]
    ) -> dict[str, SymbolicTensor]:
        """What the converter makes: by boxes, or by the numbers of rows. Raises NotFollowed, and what the converter does."""
        try:
            symbols = [(pattern, key, SymbolicTensor.whole(key, shapes[key])) for pattern, key in fed]
            return self._run(converter, name, symbols)
        except (NotFollowed, AttributeError, TypeError):  # something that stand-ins have not
            from bot.checks.reading.row_numbers import Counted

            counted = Counted(shapes)
        made = self._run(converter, name, [(pattern, key, counted.tensor(key)) for pattern, key in fed])
        return {key: counted.symbolic(value) for key, value in made.items()}

    def _run(self, converter: Any, name: str, fed: list[tuple[str, str, Any]]) -> dict[str, Any]:
        fresh = deepcopy(converter)
        for pattern, key, tensor in fed:
            fresh.add_tensor(name, key, pattern, tensor)
        made = fresh.convert(name, model=self.model, config=self.model.config)
        return {key: value[0] if isinstance(value, list) else value for key, value in made.items()}

    # --- names of an adapter --------------------------------------------------------------------------------------------

    def trace(self, name: str) -> tuple[SymbolicTensor, str | None] | str | None:
        """(the stored boxes of a parameter, the model's own name for it or None), by the name that an adapter has for it.

        The model's own names come first, then those that transformers renames on load (an older transformers' names, one
        module per expert). A string says why it cannot be followed; None: there is no such parameter.
        """
        own = name if name in self.known else self.rename(name)[0]
        if own in self.known and self.rename(name)[1] is None:
            return self.unfollowed.get(own) or ((self.symbolic[own], own) if own in self.symbolic else None)
        if own not in self.known:
            return None
        older = self._older(name)
        if older is None:
            return f"{name} has no counterpart in the model of today"
        symbolic = compose(older, self.symbolic.get)
        return (symbolic, None) if symbolic else next(iter(self.unfollowed.values()), None)

    def _older(self, name: str) -> SymbolicTensor | None:
        """A tensor of an older layout, as boxes of today's parameters."""
        from transformers.core_model_loading import apply_renamings

        own, pattern = self.rename(name)
        if own not in self._undone:
            self._undone[own] = self._undo(own, self._by_pattern[pattern or ""])
        wanted = apply_renamings(name, self._renamings)
        made = self._undone[own]
        return made.get(wanted) or next((tensor for key, tensor in made.items() if wanted.endswith(f".{key}")), None)

    def _undo(self, own: str, forward: Any) -> dict[str, SymbolicTensor]:
        """What the converter makes the parameter from, as boxes of the parameter: the converter, run backwards."""
        backward = forward.reverse_transform()
        parameters = [own.replace(forward.target_patterns[0], parameter) for parameter in forward.target_patterns]
        if any(parameter not in self.known for parameter in parameters):
            return {}
        fed = list(zip(backward.source_patterns, parameters, strict=True))
        shapes = {parameter: tuple(self.known[parameter].shape) for parameter in parameters}
        first = own.replace(forward.target_patterns[0], backward.target_patterns[0])
        try:
            return self._followed(backward, first, fed, shapes)
        except (NotFollowed, ValueError):
            return {}

    # --- modules --------------------------------------------------------------------------------------------------------

    def owner(self, parameter: str) -> Any:
        """The module that a parameter of the model hangs on."""
        return self.modules.get(parameter.rpartition(".")[0])

    def parameters_of(self, module: str) -> tuple[str, ...]:
        """The names of a module's own parameters in the order of registration; () where there is no such module."""
        for name in (module, f"{self.model.base_model_prefix}.{module}"):
            if name in self.modules:
                return tuple(parameter for parameter, _ in self.modules[name].named_parameters(recurse=False))
        return ()

    @cached_property
    def decoder(self) -> str | None:
        """Where the language model stands in the model: by transformers' own get_decoder, or else by whose config the
        text's is; None where the model is a language model itself, or has none."""
        try:
            decoder, config = self.model.get_decoder(), self.model.config.get_text_config(decoder=True)
        except (AttributeError, NotImplementedError, TypeError, ValueError):
            return None
        by_itself = next((name for name, module in self.modules.items() if module is decoder and name), None)
        owners = (name for name, module in self.modules.items() if getattr(module, "config", None) is config)
        return by_itself or next((name for name in owners if name), None)

    def part_of_class(self, name: str) -> str | None:
        """Where the one model inside this one stands that is of the class `name`; None where there is none or several, or where
        this one is of it."""
        from transformers import PreTrainedModel

        parts = [path for path, module in self.modules.items() if type(module).__name__ == name]
        if len(parts) != 1 or not isinstance(self.modules[parts[0]], PreTrainedModel):
            return None
        return parts[0] or None

    def in_decoder(self, name: str) -> tuple[str, ...]:
        """What a name may mean that a class made of the language model alone gives: inside it, with the prefix of its
        base model or without."""
        if self.decoder is None:
            return ()
        alone = f"{getattr(self.modules[self.decoder], 'base_model_prefix', '')}."
        tails = (name.removeprefix(alone), name.removeprefix("model."), name)
        return tuple(dict.fromkeys(f"{self.decoder}.{tail}" for tail in tails))

    @cached_property
    def tied(self) -> dict[str, str]:
        """{parameter: the one that it shares}, as the config has it."""
        return dict(getattr(self.model, "all_tied_weights_keys", None) or {})

    @cached_property
    def embedding(self) -> str | None:
        """The input embedding's weight, as the model names it."""
        return self._name_of(self.model, "get_input_embeddings")

    @cached_property
    def head(self) -> str | None:
        """The output embedding's weight."""
        return self._name_of(self.model, "get_output_embeddings")

    def _name_of(self, model: Any, ask: str) -> str | None:
        try:
            module = getattr(model, ask)()
        except (AttributeError, NotImplementedError):
            return None
        return next((f"{name}.weight" for name, part in self.modules.items() if part is module), None)

    def stored_names(self, parameter: str) -> tuple[str, ...]:
        """The names that a checkpoint of this kind may have for a parameter that it does not hold, the likeliest first."""
        from transformers.core_model_loading import apply_renamings

        backward = [renaming.reverse_transform() for renaming in reversed(self._renamings)]
        names = dict.fromkeys((apply_renamings(parameter, backward), *self._siblings(parameter), parameter))
        return tuple(name for name in names if self.rename(name) == (parameter, None))

    def _siblings(self, parameter: str) -> list[str]:
        """The parameter behind the prefixes that this checkpoint's keys have and the model's parameters have not."""
        fronts = {key.removesuffix(tail) for tail, key in self._tails()}
        return [f"{front}{parameter}" for front in sorted(fronts, key=len) if front]

    def _tails(self) -> list[tuple[str, str]]:
        return [(name, key) for name, key in self.key_of.items() if key.endswith(name) and key != name]


def layer_list(model: Any) -> str | None:
    """The list of layers that PEFT's layer_replication would rearrange, as a module path; None where it finds none.

    PEFT descends `.model` as far as it goes, then `.bert`, then takes `layers`, `encoder.layer` or `h`.
    """
    path: list[str] = []
    while hasattr(model, "model"):
        model = model.model
        path.append("model")
    if hasattr(model, "bert"):
        model = model.bert
        path.append("bert")
    for tail in (("layers",), ("encoder", "layer"), ("h",)):
        module = model
        for part in tail:
            module = getattr(module, part, None)
        if module is not None and type(module).__name__ == "ModuleList":
            return ".".join([*path, *tail])
    return None


def numbered(name: str, layers: str) -> tuple[str, int, str] | None:
    """(what stands before the number, the number, what stands behind) of a name below a list of layers."""
    match = re.fullmatch(rf"({re.escape(layers)}\.)(\d+)(\..*)", name)
    return (match[1], int(match[2]), match[3]) if match else None
