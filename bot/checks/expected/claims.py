"""What an adapter says should become of a base, read from its own files and by this verifier's own rules.

Nothing here is shared with the merger: it has its own names, its own scaling, and so its own mistakes.
To teach the verifier a further PEFT method, write a module like `lora` and add one line to METHODS.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from bot.checks.expected import lora, saved_tensors
from bot.checks.expected.adapter_files import CONFIG, WEIGHTS, tensors_of
from bot.checks.expected.bypassed import goes_around
from bot.checks.expected.changes import AdapterReading, Expected, LowRank, ProbedParameter, TokenRows, WholeTensor
from bot.checks.expected.config_changes import Declared
from bot.checks.expected.derive import Derivation
from bot.checks.expected.heads import declare_heads, known_trained_class, nobody_saved, stated_class, trained_skeleton
from bot.checks.expected.parameter_names import ParameterNames
from bot.checks.expected.probed_methods import is_probed
from bot.checks.reading.checkpoint import Checkpoint, TensorRef
from bot.checks.reading.folders import read_json
from bot.checks.reading.laid_out_skeleton import LaidOutSkeleton
from bot.checks.reading.model_skeleton import BUILD_ERRORS, NEEDS_CODE, Skeleton, build, model_class
from bot.checks.reading.plain_skeleton import NotPlain, PlainSkeleton
from bot.checks.subject import Subject
from bot.errors import Refused
from bot.records import Json

Reader = Callable[[Json, dict[str, TensorRef], lora.Parameters], AdapterReading]

# peft_type → how its config and tensors are read.
METHODS: dict[str, Reader] = {"LORA": lora.read, "TRAINABLE_TOKENS": saved_tensors.read}


@dataclass(frozen=True, kw_only=True)
class Claims:
    """`expected`: every tensor of the merged checkpoint, by key. `problems`: what this verifier cannot account for.

    `dropped`: base keys that the merged model has no use for. `declared`: what config.json must say, beyond the base's.
    `layers`: the model's parameters that the method itself changes (for comparison with PEFT's own); `whole`: those that
    the adapter brings whole. `per_depth`: keys that a block which the base stores once has at its
    other depths. `bypassed`: keys of weights that the method changes, and that the model reads past PEFT's layer.
    """

    method: str
    tensors: int
    expected: dict[str, Expected] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    declared: tuple[Declared, ...] = ()
    layers: frozenset[str] = frozenset()
    whole: frozenset[str] = frozenset()
    trains_vocabulary: bool = False  # the embedding or the head is among what changes
    bypassed: frozenset[str] = frozenset()
    per_depth: frozenset[str] = frozenset()
    problems: tuple[str, ...] = ()

    @property
    def changes(self) -> dict[str, Expected]:
        """The tensors that the adapter has a say in."""
        return {key: wanted for key, wanted in self.expected.items() if wanted.touched}


@dataclass(frozen=True, kw_only=True)
class ClaimsInput:
    """What the claims are read from: both configs, the adapter's tensors, and the keys that the merged folder has."""

    subject: Subject
    base: Checkpoint
    config: Json
    adapter: Json
    tensors: dict[str, TensorRef]
    merged_keys: Collection[str]

    @property
    def method(self) -> str:
        """The peft_type."""
        return str(self.adapter.get("peft_type"))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{base key: shape}."""
        return {key: ref.stored.shape for key, ref in self.base.tensors.items()}

    def read(self, names: ParameterNames) -> AdapterReading:
        """The adapter, by its method."""
        if is_probed(self.adapter):
            from bot.checks.expected import peft_methods  # torch and PEFT, for the methods that need them

            return peft_methods.read(self.adapter, self.tensors, names, self.subject)
        return METHODS[self.method](self.adapter, self.tensors, names.parameters_of)


def read_claims(subject: Subject, base: Checkpoint, merged_keys: Collection[str] = ()) -> Claims:
    """`merged_keys`: the merged folder's, to tell which of two names a new tensor has.

    Raises Refused when the adapter cannot be read at all.
    """
    adapter, tensors = _read_adapter(subject)
    config = read_json(subject.base / "config.json") or {}
    given = ClaimsInput(
        subject=subject, base=base, config=config, adapter=adapter, tensors=tensors, merged_keys=merged_keys
    )
    if given.method not in METHODS and not is_probed(adapter):
        problem = f"This verifier does not know {given.method}."
        return Claims(method=given.method, tensors=len(tensors), problems=(problem,))
    if not is_probed(adapter):
        for known_names in (_by_plain_names, _by_known_layout, _by_known_head):
            try:
                return known_names(given)
            except NotPlain:
                pass  # only the model itself knows its names
    names = _names(given)
    reading = given.read(names)
    names.resolve_prefix(list(reading.changes))
    if any(names.locate(name) is None and names.is_new(name) is None for name in reading.changes):
        names = _names(given, with_its_class=True)
        reading = given.read(names)
    return _derive(given, reading, names)


def _by_plain_names(given: ClaimsInput) -> Claims:
    """Without building the model. Raises NotPlain."""
    skeleton = PlainSkeleton(given.config, given.shapes)
    names = ParameterNames(given.base, given.config, (skeleton,), None, stated_class(given.adapter))
    return _derive(given, given.read(names), names)


def _by_known_layout(given: ClaimsInput) -> Claims:
    """The same for a model whose layers differ, or whose checkpoint has another layout. Raises NotPlain."""
    skeleton = LaidOutSkeleton(_class_of(given.config), given.config, given.shapes)
    names = ParameterNames(given.base, given.config, (skeleton,), None, stated_class(given.adapter))
    return _derive(given, given.read(names), names)


def _by_known_head(given: ClaimsInput) -> Claims:
    """The same where the adapter was trained with another class, which has a head that the base has not. Raises NotPlain."""
    name, own = known_trained_class(given.adapter, given.config), _class_of(given.config)
    if name is None or name == own:
        raise NotPlain(own)
    base: PlainSkeleton | LaidOutSkeleton
    try:
        base = PlainSkeleton(given.config, given.shapes)
    except NotPlain:
        base = LaidOutSkeleton(own, given.config, given.shapes)
    trained = LaidOutSkeleton(name, given.config, given.shapes, beside=base.used)
    base.elsewhere, trained.elsewhere = trained.known, base.known
    names = ParameterNames(given.base, given.config, (base, trained), None)
    return _derive(given, given.read(names), names)


def _class_of(config: Json) -> str:
    architectures = config.get("architectures")
    return str(architectures[0]) if isinstance(architectures, list) and architectures else ""


def _derive(given: ClaimsInput, reading: AdapterReading, names: ParameterNames) -> Claims:
    config, tensors = given.config, given.tensors
    derivation = Derivation(reading, names, config, given.merged_keys)
    expected = derivation.run()
    declared, dropped, problems = declare_heads(derivation.new, names, config, given.subject.base)
    brought = derivation.new.keys() | derivation.changes.keys()
    problems += nobody_saved(given.adapter, names, brought, given.subject.base)
    used = {
        key
        for wanted in expected.values()
        for uses in (wanted.uses, *(step.uses for step in wanted.steps))
        for key in uses
    }
    idle = [
        f"{key} is used for nothing."
        for key in sorted(tensors.keys() - used - set(reading.unused) - set(derivation.repeated) - derivation.idle)
    ]
    problems = [*reading.problems, *derivation.problems, *problems]
    layers = frozenset(
        _today(parameter, names)
        for parameter, changes in derivation.changes.items()
        if any(
            isinstance(change, LowRank | TokenRows | ProbedParameter) and not derivation.idle.issuperset(change.uses)
            for change in changes
        )
    )
    gone = {*dropped, *_left_out(given, names, declared)}
    return Claims(
        method=reading.name,
        tensors=len(tensors),
        expected={key: wanted for key, wanted in expected.items() if key not in gone},
        dropped=tuple(dropped),
        declared=(*derivation.declared, *declared),
        layers=layers,
        bypassed=_bypassed(names, layers),
        per_depth=frozenset(derivation.per_depth),
        whole=frozenset(
            _today(parameter, names)
            for parameter, changes in derivation.changes.items()
            if any(isinstance(change, WholeTensor) for change in changes)
        ),
        trains_vocabulary=_trains_vocabulary(derivation, names),
        problems=tuple(problems or idle),
    )


def _left_out(given: ClaimsInput, names: ParameterNames, declared: Sequence[Declared]) -> Iterator[str]:
    """Base keys that the merged model has not, and that neither class uses (RoBERTa's language models are published with a pooler):
    a new class may be given its own tensors alone."""
    if given.merged_keys and any(change.path == "architectures" for change in declared):
        for key in given.base.tensors:
            if key not in given.merged_keys and not any(key in skeleton.used for skeleton in names.skeletons):
                yield key


def _trains_vocabulary(derivation: Derivation, names: ParameterNames) -> bool:
    own = {names.skeleton.embedding, names.skeleton.head} if names.skeleton else set()
    return any(
        not (isinstance(change, WholeTensor) and change.shared)
        for parameter in own
        for change in derivation.changes.get(parameter or "", ())
    )


def _bypassed(names: ParameterNames, layers: Collection[str]) -> frozenset[str]:
    return frozenset(
        key
        for skeleton in names.skeletons
        if isinstance(skeleton, Skeleton)  # of the others, no parameter that is read past its module can be adapted
        for key, parameters in skeleton.feeds.items()
        if any(parameter in layers and goes_around(skeleton.modules, parameter) for parameter in parameters)
    )


def _today(name: str, names: ParameterNames) -> str:
    """The parameter of today's model that a name of the adapter's means, or is a part of: of the class with the adapter's heads
    first, whose names are the ones that PEFT and the merged model have (a base of a body alone has no prefix)."""
    for skeleton in reversed(names.skeletons):
        own = skeleton.rename(name)[0]
        if name in skeleton.known or own in skeleton.known:
            return name if name in skeleton.known else own
    return name


def _read_adapter(subject: Subject) -> tuple[Json, dict[str, TensorRef]]:
    config = read_json(subject.adapter / CONFIG)
    if config is None or not (subject.adapter / WEIGHTS).is_file():
        lacking = WEIGHTS if config else CONFIG
        raise Refused(f"The adapter has no readable {lacking}.", remedy="Name a PEFT adapter saved as safetensors.")
    return config, tensors_of(subject.adapter)


def _names(given: ClaimsInput, with_its_class: bool = False) -> ParameterNames:
    """By the base's class, and by the class that the adapter was trained with, where that is asked for and no mere part of it."""
    folder, config, stated = given.subject.base, given.config, stated_class(given.adapter)
    shapes = given.shapes
    skeletons: list[Skeleton] = []
    problem = None
    try:
        chosen = model_class(config)
        if chosen is None:
            problem = NEEDS_CODE
        else:
            skeletons.append(Skeleton(build(folder, chosen), shapes))
    except BUILD_ERRORS as error:
        problem = f"transformers cannot build the model ({type(error).__name__}: {error})"
    names = ParameterNames(given.base, config, tuple(skeletons), problem, stated)
    if not with_its_class or not skeletons or names.is_of_a_part:
        return names
    trained = trained_skeleton(folder, given.adapter, shapes)
    return ParameterNames(given.base, config, (*skeletons, trained), problem, stated) if trained else names
