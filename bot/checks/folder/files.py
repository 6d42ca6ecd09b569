"""The folder itself: whole, nothing missing, nothing stale, nothing left behind."""

from __future__ import annotations

from pathlib import PurePosixPath

from bot.checks.case import Case
from bot.checks.finding import counted, finding, graded
from bot.checks.folder.hashing import hash_files, name_inputs
from bot.checks.reading.checkpoint import INDEX, SINGLE, weight_files
from bot.records import Finding
from bot.report_document import UNVOUCHED
from bot.untrusted import strict_json

PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib"})
OTHER_WEIGHTS = frozenset({".safetensors", ".h5", ".msgpack", ".gguf", ".ggml", ".onnx", ".ot", ".npz", ".tflite"})
BY_NAME = ("head.safetensors", "readout.safetensors")  # of a decision model: beside its weights, in no index
VOICES = ("spk_dict.pt",)  # of an omni model: transformers reads them with weights_only, which runs no code
ADAPTER_FILES = ("adapter_config.json", "adapter_model.")
TEMPORARY = (".tmp", ".part", ".partial", ".incomplete", ".lock", ".swp", ".orig", "~")
HIDDEN_BUT_RIGHT = frozenset({".gitattributes", ".gitignore", ".eval_results"})
ALWAYS_EXPECTED = frozenset({"config.json", "generation_config.json", INDEX, *UNVOUCHED})


def headers(case: Case) -> Finding:
    """Every weight file is a whole safetensors file."""
    merged = case.merged
    right = (counted(len(merged.headers), "weight file"), "Every weight file is whole.")
    return graded("headers", "0 unreadable", right, fails=merged.broken.values())


def index(case: Case) -> Finding:
    """The index names every key, each in the file that holds it, and the right number of bytes."""
    merged = case.merged
    if merged.index is None:
        return finding("index", "pass", "single file", "exact", "One weight file needs no index.")
    if not merged.index:
        return finding("index", "fail", "unreadable", "exact", f"{INDEX} is not an index.")
    fails: list[str] = _misnamed(case)
    warns: list[str] = []
    if sentence := _wrong_size(case):
        (fails if case.subject.ours and not _has_the_bases_size(case) else warns).append(sentence)
    right = (counted(len(merged.tensors), "key"), "Every key lies where it says.")
    return graded("index", "exact", right, fails=fails, warns=warns)


def _misnamed(case: Case) -> list[str]:
    merged = case.merged
    named = (merged.index or {})["weight_map"]
    faults = [f"{key} lies in two files." for key in merged.doubled]
    for key, file in named.items():
        ref = merged.tensors.get(key)
        if ref is None:
            faults.append(f"The index names {key}, and {file} does not hold it.")
        elif ref.stored.file != file:
            faults.append(f"The index says that {key} lies in {file}; it lies in {ref.stored.file}.")
    faults += [f"{key} lies in {merged.tensors[key].stored.file}, and the index does not name it."
             for key in merged.tensors if key not in named]  # fmt: skip
    return faults


def _wrong_size(case: Case) -> str | None:
    merged = case.merged
    claimed = ((merged.index or {}).get("metadata") or {}).get("total_size")
    actual = sum(ref.stored.stop - ref.stored.start for ref in merged.tensors.values())
    if claimed == actual:
        return None
    return f"The index says {claimed} bytes in total; the tensors take {actual}."


def _has_the_bases_size(case: Case) -> bool:
    """Some bases ship a wrong total (the tensor count); a patch of such a base keeps it, which is worth a remark."""
    sizes = [((index or {}).get("metadata") or {}).get("total_size") for index in (case.merged.index, case.base.index)]
    return sizes[0] == sizes[1] and case.merged.tensors.keys() == case.base.tensors.keys()


def strays(case: Case) -> Finding:
    """No weights that no loader should take, and no adapter beside the merged weights."""
    known = set(weight_files(case.subject.folder, case.merged.index))
    fails = [_stray(name) for name in case.files if _is_stray(case, name, known)]
    unknown = _unknown(case, known) if case.subject.ours else []
    warns = [f"{name} is in neither the base nor the adapter." for name in unknown]
    right = (counted(len(case.files), "file"), "No weights but those in use.")
    return graded("strays", "0 strays", right, fails=fails, warns=warns)


def _is_stray(case: Case, name: str, known: set[str]) -> bool:
    path = PurePosixPath(name)
    if path.name.startswith(ADAPTER_FILES):
        return True
    if path.name.endswith(".bin.index.json"):
        return True
    if path.suffix not in OTHER_WEIGHTS or name in known:
        return False
    return not _module_weights(case, path) and not (name in BY_NAME and _equals_an_input(case, path, "base"))


def _stray(name: str) -> str:
    if name == SINGLE:
        return f"{name} lies beside the shards, and a loader takes it first."
    if PurePosixPath(name).name.startswith(ADAPTER_FILES):
        return f"{name} is the adapter's; a loader would apply the adapter a second time."
    return f"{name} holds weights that the checkpoint does not name."


def _module_weights(case: Case, path: PurePosixPath) -> bool:
    """sentence-transformers keeps its dense heads' weights in folders that modules.json names."""
    try:
        names = {module["path"] for module in _modules(case)}
    except (TypeError, KeyError):
        return False
    return _equals_an_input(case, path, "adapter", "base") and path.parent.as_posix() in names


def _equals_an_input(case: Case, path: PurePosixPath, *roles: str) -> bool:
    """Whether the file is, byte for byte, that of the first of these inputs that has it."""
    originals = [original for role in roles if (original := getattr(case.subject, role) / path).is_file()]
    return bool(originals) and originals[0].read_bytes() == (case.subject.folder / path).read_bytes()


def _modules(case: Case) -> list[dict[str, str]]:
    path = case.subject.folder / "modules.json"
    try:
        modules = strict_json.loads(path.read_bytes()) if path.is_file() else []
    except ValueError:
        modules = []
    return modules if isinstance(modules, list) else []


def _unknown(case: Case, known: set[str]) -> list[str]:
    subject = case.subject
    expected = known | ALWAYS_EXPECTED
    return [
        name
        for name in case.files
        if name not in expected
        and not (subject.base / name).exists()
        and not (subject.adapter / name).exists()
        and (name.endswith(".py") or not name.startswith((".", "LICENSE", "NOTICE")))
    ]


def pickles(case: Case) -> Finding:
    """No file that runs code when it is loaded."""
    pickled = [name for name in case.files if PurePosixPath(name).suffix in PICKLES]
    fails = [f"{name} is a pickle." for name in pickled if not _is_voice_file(case, name)]
    return graded("pickles", "0 pickles", ("0 pickles", "Nothing runs code when loaded."), fails=fails)


def _is_voice_file(case: Case, name: str) -> bool:
    """A file of the base's that its model reads by name, and only as tensors."""
    return name in VOICES and _equals_an_input(case, PurePosixPath(name), "base")


def leftovers(case: Case) -> Finding:
    """No temporary, hidden or dangling files."""
    fails = []
    for name in case.files:
        parts = PurePosixPath(name).parts
        if any(part.startswith(".") and part not in HIDDEN_BUT_RIGHT for part in parts):
            fails.append(f"{name} is hidden.")
        elif name.endswith(TEMPORARY) or "__pycache__" in parts:
            fails.append(f"{name} is temporary.")
        elif not (case.subject.folder / name).is_file():
            fails.append(f"{name} is a link to nothing.")
    return graded("leftovers", "0 files", ("0 files", "Nothing temporary was left."), fails=fails)


def metadata(case: Case) -> Finding:
    """Weight files say `format: pt`, without which older loaders refuse them."""
    silent = [header.file for header in case.merged.headers if header.metadata.get("format") != "pt"]
    warns = [f"{name} does not say its format." for name in silent]
    return graded("format", "format: pt", ("format: pt", "Every weight file says so."), warns=warns)


def pins(case: Case) -> Finding:
    """The inputs and the files are those that the folder's own report names, and the base is the card's."""
    recorded, named = case.subject.recorded, case.subject.card_bases
    fails = [f"The card names {' and '.join(named)} as its base, which is none of the inputs."] if named else []
    if recorded is not None:
        fails += _other_inputs(recorded.stated_inputs, case.once(name_inputs).json)
        fails += _other_files(recorded.files, case.once(hash_files))
    elif not fails:
        return finding("pins", "pass", "no report", "same pins", "No earlier report to hold it to.")
    return graded("pins", "same pins", ("same pins", "Inputs and files are as reported."), fails=fails)


def _other_inputs(recorded: object, actual: object, path: str = "") -> list[str]:
    """Where two input records differ. Names may change (a repo can be renamed); shas and the recipe may not."""
    if isinstance(recorded, dict) and isinstance(actual, dict):
        keys = sorted((recorded.keys() | actual.keys()) - {"repo", "revision"})
        pairs = [(recorded.get(key), actual.get(key), f"{path}.{key}".lstrip(".")) for key in keys]
        return [sentence for pair in pairs for sentence in _other_inputs(*pair)]
    if isinstance(recorded, list) and isinstance(actual, list) and len(recorded) == len(actual):
        numbered = [(*pair, f"{path}.{at}") for at, pair in enumerate(zip(recorded, actual, strict=True), 1)]
        return [sentence for pair in numbered for sentence in _other_inputs(*pair)]
    if recorded == actual:
        return []
    return [f"The report names {path or 'inputs'} {recorded}; it was verified against {actual}."]


def _other_files(recorded: object, actual: dict[str, str]) -> list[str]:
    if not isinstance(recorded, dict):
        return ["The report names no files."]
    faults = [f"{name} is in the report and not in the folder." for name in recorded if name not in actual]
    faults += [f"{name} is in the folder and not in the report." for name in actual if name not in recorded]
    faults += [f"{name} is not the file that the report names." for name in actual if recorded.get(name, "") != actual[name]
             and name in recorded]  # fmt: skip
    return faults
