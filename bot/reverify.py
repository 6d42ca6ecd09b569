"""What is done with a merge that is there already: prove it again, or publish it."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from bot import formats, trained_base
from bot.adapters.combine import Predicted, notation
from bot.adapters.combine.prediction import predict_combined
from bot.assets import files_to_prove, read_json
from bot.budget import choose_level, verify_disk, verify_memory
from bot.card import retarget
from bot.compare import compare_folders
from bot.errors import MachineTooSmall, NotFound, NotVerified, Refused, Usage
from bot.events import Emit, Stage
from bot.hub import Hub, is_repo_id
from bot.input_files import holding
from bot.machine import look
from bot.options import deciding
from bot.pipeline import one_adapter, publish_made, target_of
from bot.plan import pin_of
from bot.publish import plain_files
from bot.pull import (
    card_of,
    fetch,
    is_subfolder,
    merged_files,
    original_at_hand,
    pin,
    repo_files,
    require_usable,
    sha_of_all,
    vouch,
    with_sound_files,
)
from bot.records import (
    Combination,
    Held,
    Json,
    Options,
    Publication,
    Ref,
    Report,
    Request,
    Role,
    Source,
    Sources,
    Stored,
)
from bot.untrusted import strict_json
from bot.verify import Subject, verify

COMMIT = re.compile(r"[0-9a-f]{40}")
REPORTED = "verification.json"
LONGEST_CARD = 1_000_000  # bytes of a README that are looked through for its metadata
SHOWN = 3  # models that a card may name as its base


def verify_again(
    merged: Ref, base: Ref | None, adapters: Sequence[Ref], options: Options, hub: Hub, emit: Emit, **measuring: Any
) -> Report:
    """Re-prove a merged repo or folder. Inputs that are not given are those that its verification.json names.

    `measuring`: Subject's `eval_text` and `force`. Several adapters are combined again, as that file says. Every file that is
    read is held to what its repo states; what is damaged in the Hub's cache is fetched once more. Raises Damaged, Refused.
    """
    return with_sound_files(lambda: _verify_again(merged, base, adapters, options, hub, emit, **measuring), hub, emit)


def _verify_again(
    merged: Ref, base: Ref | None, adapters: Sequence[Ref], options: Options, hub: Hub, emit: Emit, **measuring: Any
) -> Report:
    emit(Stage(name="pull", title="Reading the merged model and its inputs"))
    whole = whole_folder(merged, hub)
    with holding(whole.files) as keeper:
        keeper.follow([whole.folder / REPORTED])  # the inputs are those that it names
        report = _prove_again(whole.folder, base, adapters, options, hub, emit, **measuring)
        for name, sha256 in report.document["subject"]["files"].items():
            keeper.note_sha256(whole.folder / name, sha256)
        return report


def _prove_again(
    folder: Path, base: Ref | None, adapters: Sequence[Ref], options: Options, hub: Hub, emit: Emit, **measuring: Any
) -> Report:
    recorded = read_report(folder)
    inputs = (recorded or {}).get("inputs") or {}
    adapter, *more = adapters or _recorded_adapters(inputs)
    request = Request(
        adapter=adapter,
        more=tuple(more),
        combination=_recorded_combination(inputs),
        base=base or _recorded_ref(inputs.get("base"), "base"),
        options=options,
    )
    sources = pin(request, hub, emit, afresh=True)
    if base is None:
        vouch(sources.base, hub, emit, REPORTED)
    if not adapters:
        for source in sources.adapters:
            vouch(source, hub, emit, REPORTED)
    together = predict_combined(sources, request.combination)
    if together is not None and together.refusals:
        raise Refused(together.refusals[0].reason, remedy=together.refusals[0].remedy)
    config = read_json(sources.base, "config.json")
    facts = (recorded or {}).get("merge") or {}
    form = _form(facts.get("options") or {}, options)
    tensors = _tensors(sources.base, config)
    packed = form["base_weights"] == "simulate-nf4" or formats.quantization_of(config) is not None
    disk = verify_disk(tensors, base=packed, result=form["quantize"] != "none")
    level, not_run, refusals = choose_level(options, config, verify_memory(tensors), look(folder), disk)
    for refusal in refusals:
        kind = MachineTooSmall if refusal.exit_code == MachineTooSmall.exit_code else Refused
        raise kind(refusal.reason, remedy=refusal.remedy)
    local = fetch(sources, files_to_prove(sources), hub, emit)
    with holding(local.files) as keeper, one_adapter(together, local, hub, emit) as local:
        # Folders were hashed a moment ago, to the last byte.
        keeper.follow(one.path for one in local.files if one.repo is not None)
        subject = Subject(
            folder=folder,
            base=local.base,
            adapter=local.adapter,
            inputs={**_pins(sources, together, inputs), "recipe": inputs.get("recipe")},
            card_bases=_card_bases(folder, sources, hub),
            recorded=recorded,
            merge=facts,
            dtype=(facts.get("options") or {}).get("dtype", options.dtype),
            ours="fingerprint" in facts,
            level=level,
            required=options.verify == "full",
            not_run=not_run,
            trust_remote_code=options.trust_remote_code,
            **form,
            original=original_at_hand(sources.base, hub),
            **measuring,
            trained=tuple(filter(None, map(trained_base.in_four_bits, sources.adapters))),
            adapters=local.adapters if together else (),
            combination=notation.to_json(together.how) if together else None,
        )
        return verify(subject, emit)


def _card_bases(folder: Path, sources: Sources, hub: Hub) -> tuple[str, ...]:
    """The models that the folder's card names as its base, as the Hub spells them today, where none of them is an input;
    () where the base is a folder, which no card can name."""
    readme = folder / "README.md"
    if sources.base.repo is None or not readme.is_file():
        return ()
    with readme.open("rb") as opened:
        said = card_of({"README.md": opened.read(LONGEST_CARD)}).get("base_model")
    named = [one for one in (said if isinstance(said, list) else [said]) if isinstance(one, str) and is_repo_id(one)]
    own = {str(source.repo).casefold() for source in (sources.base, *sources.adapters)}
    if own & {one.casefold() for one in named}:
        return ()
    today = tuple(hub.spelled(one) for one in named[:SHOWN])
    return () if own & {one.casefold() for one in today} else today


def _tensors(base: Source, config: Json) -> list[Stored]:
    """The base's own tensors, whatever its files hold."""
    stored = {tensor.key: tensor for header in base.headers for tensor in header.tensors}
    if formats.quantization_of(config) is not None:
        stored = dict(formats.unpack(stored, config, base.small, base.card).tensors)
    return list(stored.values())


def _form(recorded: Json, options: Options) -> Json:
    """What was merged into, and in what form the result is stored: as the file says, else as given."""
    values = recorded or deciding(options)
    simulated = values.get("base_weights") == "simulate-nf4"
    return {
        "base_weights": "simulate-nf4" if simulated else "stored",
        "quantization": values.get("quantization") or {},
        "quantize": values.get("quantize", "none"),
        "clamps": values.get("overflow") == "clamp",
    }


def _pins(sources: Sources, together: Predicted | None, recorded: Json) -> Json:
    """The inputs as verification.json names them. `recorded`: as the one at hand does."""
    named = [recorded.get("base"), *(recorded.get("adapters") or [recorded.get("adapter")])]
    base, *pins = [_pin(*pair) for pair in zip_longest((sources.base, *sources.adapters), named) if pair[0]]
    if together is None:
        return {"base": base, "adapter": pins[0]}
    return {"base": base, "adapters": pins, "combination": notation.to_json(together.how)}


def _pin(source: Source, recorded: Any) -> Json:
    """A source's pin; of a folder that a report of an earlier version names by all of its files, that one."""
    pin, said = pin_of(source), recorded.get("sha") if isinstance(recorded, dict) else None
    if source.ref.folder is None or said in (None, source.sha) or said != sha_of_all(source):
        return pin
    return {**pin, "sha": said}


def publish_folder(folder: Path, request: Request, hub: Hub, emit: Emit) -> Publication:
    """Publish a folder that an earlier merge finished, with the report that lies in it, to the request's target."""
    require_usable(folder, hidden=True)
    files = plain_files(folder)  # before anything of it is read: a link would lead to what is none of its business
    document = read_report(folder)
    if document is None:
        raise NotVerified(
            f"{folder} has no verification.json.", remedy="Publish a folder that adapter-merge merge made."
        )
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as parcel:
        # Links, and a card of its own: the folder stays as it is, for other targets too.
        for name, path in files.items():
            twin = Path(parcel) / name
            twin.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, twin, follow_symlinks=False)
        _retarget(Path(parcel) / "README.md", document, target_of(request))
        return publish_made(Path(parcel), document, request, hub, emit)


def _retarget(readme: Path, document: Json, target: str) -> None:
    """Let the card name its new repo. A folder without a card is refused by the publisher, with its reason."""
    if readme.exists():
        text = readme.read_text(encoding="utf-8")
        readme.unlink()
        made_for = (document.get("merge") or {}).get("target")
        readme.write_text(retarget(text, made_for, target), encoding="utf-8")


def read_report(folder: Path) -> Json | None:
    """The verification.json of a folder, None where there is none. Raises Refused when it cannot be read."""
    path = folder / "verification.json"
    if not path.exists():
        return None
    try:
        return strict_json.report_of(path.read_bytes())
    except ValueError as error:
        raise Refused(
            f"verification.json is no report of ours ({str(error)[:200]}).",
            remedy="Fetch the folder again, or remove that file.",
        ) from error


def _recorded_ref(pinned: Any, role: Role) -> Ref:
    pinned = pinned if isinstance(pinned, dict) else {}
    repo, sha, subfolder = pinned.get("repo"), pinned.get("sha"), pinned.get("subfolder")
    commit = isinstance(repo, str) and is_repo_id(repo) and isinstance(sha, str) and COMMIT.fullmatch(sha)
    if not commit or not (subfolder is None or (role == "adapter" and is_subfolder(subfolder))):
        raise Usage(f"No verification.json names a Hub repo as the {role}.", remedy=f"Name it with --{role}.")
    named = "/".join(filter(None, (repo, subfolder)))
    return Ref(text=f"{named}@{sha}", repo=repo, revision=sha, subfolder=subfolder)


def _recorded_adapters(inputs: Json) -> list[Ref]:
    several = inputs.get("adapters")
    if isinstance(several, list) and several:
        return [_recorded_ref(pinned, "adapter") for pinned in several]
    return [_recorded_ref(inputs.get("adapter"), "adapter")]


def _recorded_combination(inputs: Json) -> Combination | None:
    if inputs.get("combination") is None:
        return None
    try:
        return notation.from_json(inputs["combination"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Refused(
            "verification.json names a combination of adapters that this version does not know.",
            remedy="Use the version that made it; the file names that under environment.",
        ) from error


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A folder that has every file of a merged model, and what those must be."""

    folder: Path
    files: tuple[Held, ...]


def whole_folder(ref: Ref, hub: Hub) -> Whole:
    """A repo or folder with all of its files. Raises NotFound, and Refused for a link that leads out of the folder."""
    if ref.folder is not None:
        if not ref.folder.is_dir():
            raise NotFound(f"There is no folder {ref.text}.", remedy="Check the path.")
        require_usable(ref.folder, hidden=True)
        return Whole(folder=ref.folder, files=merged_files(ref))
    assert ref.repo is not None
    pinned = hub.pin(ref.repo, ref.revision)
    folder = hub.download(pinned.repo, pinned.sha, [entry.name for entry in pinned.files])
    return Whole(folder=folder, files=repo_files(pinned, folder))


def compare_models(first: Ref, second: Ref, hub: Hub, emit: Emit) -> Json:
    """Compare two checkpoints; what is damaged in the Hub's cache is fetched once more. See `compare_folders` for the rest."""

    def attempt() -> Json:
        one, other = whole_folder(first, hub), whole_folder(second, hub)
        with holding((*one.files, *other.files)) as keeper:
            keeper.follow(held.path for held in (*one.files, *other.files))
            return compare_folders(one.folder, other.folder)

    return with_sound_files(attempt, hub, emit)
