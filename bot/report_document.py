"""verification.json: what was verified, against what, with which versions, and what came of it. Read and written here only.

A document may be of another version, or somebody's own: it is kept as it was read, so that nothing of it is lost or changed when it
is copied or compared, and what it lacks has one default here.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bot import __version__
from bot.errors import Refused
from bot.options import Options, options_of
from bot.untrusted import strict_json
from bot.untrusted.redact import redact
from bot.untrusted.strict_json import AllFit

Json = dict[str, Any]

NAME = "verification.json"
PICTURE = "verification.png"  # the size of the delta, for the card
PAGE = "report.html"  # the report for people, where it goes into the repo
OWN_FILES = frozenset(
    {NAME, PICTURE, PAGE, "model.sig"}
)  # which no report can name with their hash: made after it, of it
# What a report does not vouch for: those, and what its owner or the Hub may rewrite.
UNVOUCHED = OWN_FILES | {"README.md", ".gitattributes"}
RESULTS = ".eval_results/"  # of evaluations, which anybody may add to
SCHEMA = 1
PACKAGES = ("torch", "transformers", "peft", "safetensors", "bitsandbytes", "compressed-tensors")
DIGITS = 6  # significant digits of every float: more would differ from machine to machine
NUMBER = (int, float)
NULLABLE = frozenset({"noise_floor", "cause", "tag", "target", "control", "merged"})
CAUSE: Json = {"kind": str, "sentence": str, "tensors": AllFit(str), "figures": AllFit(NUMBER, named=True)}
FIELDS: Json = {  # what a report may hold there, if it has the field; others are left alone
    "subject": {"files": AllFit(str, named=True)},
    "inputs": {"base": dict, "adapter": dict, "adapters": AllFit(dict), "combination": dict, "recipe": str},
    "merge": {
        "fingerprint": str,
        "method": str,
        "engine": str,
        "dtype": str,
        "tag": str,
        "target": str,
        "shared_blocks": str,
        "tensors": AllFit(NUMBER, named=True),
        "ranks": AllFit(NUMBER),
        "scalings": AllFit(NUMBER),
        "parameters": dict,
        "options": {
            each.field: frozenset(each.choices) for each in options_of(Options) if each.decides and each.choices
        }
        | {"quantization": AllFit((str, int, bool), named=True)},
    },
    "checks": AllFit(
        {"id": str, "group": str, "status": str, "measured": str, "allowed": str, "why": str, "worst": AllFit(str)}
    ),
    "not_run": AllFit({"id": str, "reason": str}),
    "comparison": AllFit(dict),
    "probe": AllFit({"module": str, "control": NUMBER, "merged": NUMBER}),
    "environment": dict,
    "noise_floor": dict,
    "cause": {**CAUSE, "also": AllFit(CAUSE)},
    "evaluation": {"tasks": AllFit(dict)},
    "delta": AllFit(dict),
    "prompts": AllFit(dict),
    "answers": AllFit(dict),
    "verdict": str,
}


@dataclass(frozen=True, kw_only=True)
class Pin:
    """An input as a report names it. In a report that nobody has checked the values may be of any type."""

    repo: str | None = None  # None: a folder
    sha: str | None = None
    subfolder: str | None = None
    revision: str | None = None  # as it was asked for

    @classmethod
    def of(cls, named: Any) -> Pin:
        """What a report has in the place of a pin; an empty one where it has none."""
        return cls(**_known(cls, named if isinstance(named, dict) else {}))

    def name(self, otherwise: str) -> str:
        """The repo, with the folder in it that an adapter lies in; `otherwise` stands for a repo that it does not have."""
        return "/".join(map(str, filter(None, (self.repo or otherwise, self.subfolder))))


@dataclass(frozen=True, kw_only=True)
class InputPins:
    """What was merged: the base and the adapter, or all of several adapters and how they are combined."""

    json: Json
    base: Pin
    adapters: list[Pin]  # one or more, in their order
    combination: Any = None  # as `bot.adapters.combine.notation` writes it; None for one adapter
    recipe: Any = None

    @classmethod
    def of(cls, json: Json) -> InputPins:
        """The inputs that are named so."""
        adapters = [Pin.of(named) for named in json.get("adapters") or [json.get("adapter")]]
        return cls(**_known(cls, json) | {"json": json, "base": Pin.of(json.get("base")), "adapters": adapters})

    @property
    def repos(self) -> Iterator[tuple[str, str | None]]:
        """(base or adapter, repo) of every input; None for a folder."""
        for role, key in (("base", "base"), ("adapter", "adapter"), ("adapter", "adapters")):
            named = self.json.get(key)
            for entry in named if isinstance(named, list) else [named] if isinstance(named, dict) else []:
                repo = Pin.of(entry).repo
                yield role, repo if isinstance(repo, str) else None


@dataclass(frozen=True, kw_only=True)
class MergeFacts:
    """How the merge was made. `json` is all of it: of a merge that is not ours it is copied and never interpreted."""

    json: Json
    fingerprint: str | None = None  # None: no merge of ours
    method: str | None = None
    dtype: str | None = None
    base_weights: str | None = None
    tensors: dict[str, int] = field(default_factory=dict)
    ranks: Sequence[int] = ()
    scalings: Sequence[float] = ()
    tokens: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    options: Json = field(default_factory=dict)
    retention: Any = None
    tag: str | None = None
    target: str | None = None
    shared_blocks: str | None = None  # of weights that are written once for each depth

    @classmethod
    def of(cls, json: Json) -> MergeFacts:
        """The facts of a merge that is described so."""
        return cls(json=json, **_known(cls, json))

    @property
    def form(self) -> str:
        """The form that the merged weights are stored in: the option `quantize`."""
        return str(self.option("quantize", "none"))

    def option(self, name: str, default: Any) -> Any:
        """An option of the merge; `default` where the report does not name it."""
        return (self.options or {}).get(name, default)


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What one check found. None: the report does not say."""

    id: str | None = None
    group: str | None = None  # files, config, tokenizer, weights or behaviour
    status: str | None = None
    measured: str | None = None
    allowed: str | None = None
    why: str | None = None
    worst: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Document:
    """A verification.json. `json` is all of it, as it was read or is to be written."""

    json: Json
    files: dict[str, str] | None = None  # the sha256 of every file that was proven; None: the report does not say
    inputs: InputPins
    merge: MergeFacts
    checks: list[CheckResult]
    not_run: list[tuple[Any, Any]]  # (check or level, why)
    comparison: list[Json]  # the ways to use a quantised base or result, side by side
    noise_floor: Json | None = None  # K and what it was made of; None: no model was run
    delta: list[Json]  # how large the adapter's change is, by layer and module; [] where that was not measured
    probe: list[Json]  # module by module, in their order: how far control and merged lie from the unmerged model
    prompts: list[Json]  # how far base, control and merged are from the unmerged model, by prompt; [] as above
    cause: Json | None = None  # what most likely went wrong: kind, sentence, tensors, figures; `also`: further ones
    environment: Json
    verdict: Any = None  # verified or not-verified

    @classmethod
    def of(cls, json: Json) -> Document:
        """The document that has this content."""
        return cls(
            json=json,
            files=(json.get("subject") or {}).get("files"),
            inputs=InputPins.of(json.get("inputs") or {}),
            merge=MergeFacts.of(json.get("merge") or {}),
            checks=[CheckResult(**_known(CheckResult, check)) for check in json.get("checks") or ()],
            not_run=[(entry.get("id"), entry.get("reason")) for entry in json.get("not_run") or ()],
            comparison=_rows(json, "comparison"),
            noise_floor=json.get("noise_floor"),
            delta=_rows(json, "delta"),
            prompts=_rows(json, "prompts"),
            cause=json.get("cause"),
            probe=_rows(json, "probe"),
            environment=json.get("environment") or {},
            verdict=json.get("verdict"),
        )

    @classmethod
    def read(cls, text: bytes) -> Document:
        """A verification.json, whoever wrote it. Raises ValueError, with the reason, where it is none of ours."""
        return cls.of(strict_json.fitting(text, FIELDS, NULLABLE))

    @property
    def stated_inputs(self) -> Any:
        """The inputs as they stand there, None where they do not, to be compared."""
        return self.json.get("inputs")

    @property
    def proves(self) -> tuple[object, ...]:
        """What two copies of a report must agree on; measured floats are rounded when it is written."""
        return self.verdict, self.json.get("subject"), self.stated_inputs

    def canonical(self) -> bytes:
        """Sorted keys, two spaces, UTF-8, floats of six significant digits, one newline. Raises ValueError for NaN."""
        text = json.dumps(_stable(self.json), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
        return redact(f"{text}\n").encode(errors="backslashreplace")  # a lone surrogate out of somebody's config


def is_vouched(name: str) -> bool:
    """Whether a file of a merged folder is one that its report names with its sha256."""
    return name not in UNVOUCHED and not name.startswith(RESULTS)


def short_sha(sha: str) -> str:
    """The first digits of a commit sha or of `sha256:…`, as many as a reader needs."""
    kind, colon, digits = sha.rpartition(":")
    return kind + colon + digits[:12]


def read_report(folder: Path, name: str = NAME) -> Document | None:
    """The verification.json of a folder, None where there is none. Raises Refused when it cannot be read."""
    path = folder / name
    if not path.exists():
        return None
    try:
        return Document.read(path.read_bytes())
    except ValueError as error:
        raise Refused(
            f"verification.json is no report of ours ({str(error)[:200]}).",
            remedy="Fetch the folder again, or remove that file.",
        ) from error


def name_inputs(base: Json, adapters: Sequence[Json], combination: Json | None, recipe: str | None) -> InputPins:
    """The inputs as this version names them. `combination`: None for one adapter."""
    several = {"adapters": list(adapters), "combination": combination}
    named = {"adapter": adapters[0]} if combination is None else several
    return InputPins.of({"base": base, **named, "recipe": recipe})


def new_document(
    inputs: InputPins, merge: MergeFacts, files: dict[str, str], checks: list[Json], not_run: Iterable[tuple[str, str]],
    noise_floor: Json | None, comparison: list[Json] | None, verdict: str, rows: Json | None = None, cause: Json | None = None,
    device: str | None = None,
) -> Document:  # fmt: skip
    """The report of a verification; no host names, no paths, no user names. `comparison`: None where nothing is quantised;
    `rows`: further fields, of layers, modules and prompts, of which the empty ones are left out; `cause`: of what went wrong,
    None where nothing did; `device`: the name of what the models ran on, None where none was run."""
    json: Json = {
        "schema": SCHEMA,
        "subject": {"files": files},
        "inputs": inputs.json,
        "environment": {**environment(), **({} if device is None else {"device": device})},
        "merge": merge.json,
        "checks": checks,
        "noise_floor": noise_floor,
        **({} if comparison is None else {"comparison": comparison}),
        **{name: value for name, value in (rows or {}).items() if value},
        "cause": cause,
        "not_run": [{"id": id, "reason": reason} for id, reason in not_run],
        "verdict": verdict,
    }
    return Document.of(json)


def environment() -> Json:
    """Versions that can change a result, read without importing anything."""
    packages = {name: _version(name) for name in PACKAGES}
    system = f"{platform.system()}-{platform.machine()}"
    return {"adapter-merge": __version__, "python": platform.python_version(), "platform": system, **packages}


def _rows(json: Json, name: str) -> list[Json]:
    return [row for row in json.get(name) or () if isinstance(row, dict)]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _stable(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {str(key): _stable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_stable(inner) for inner in value]
    return value


def _known(record: type, json: Json) -> Json:
    """The fields of a record that a JSON object has."""
    return {entry.name: json[entry.name] for entry in fields(record) if entry.name in json and entry.name != "json"}
