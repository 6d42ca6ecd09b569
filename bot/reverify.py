"""A merge that exists already is proven again, ours or anybody's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from bot import formats, trained_base
from bot.adapters.combine import Predicted, notation
from bot.adapters.combine.prediction import predict_combined
from bot.assets import files_to_prove, read_json
from bot.attestation import attest, require_writable
from bot.budget import by_layers, choose_level, verify_disk, verify_memory
from bot.checks.case import Case
from bot.checks.expected.probed_methods import reads_base
from bot.devices import choose_proof_device, device_refusals
from bot.errors import MachineTooSmall, Refused, Usage
from bot.evaluation import require_harness
from bot.events import Emit, Note, Stage
from bot.hub import Hub, is_repo_id
from bot.input_files import Keeper, holding
from bot.machine import look
from bot.merged_folder import complete_folder
from bot.one_adapter import one_adapter
from bot.options import deciding
from bot.plan import pin_of
from bot.pull import (
    card_of,
    fetch,
    hashed_since,
    is_subfolder,
    original_at_hand,
    pin,
    sha_of_all,
    vouch,
    with_sound_files,
)
from bot.records import (
    Combination,
    Held,
    Json,
    Level,
    Local,
    Options,
    ProofDevice,
    Ref,
    Report,
    Request,
    Role,
    Source,
    Sources,
    Stored,
)
from bot.report_document import NAME, Document, InputPins, MergeFacts, Pin, name_inputs, read_report
from bot.report_page.writing import require_page_folder, write_page
from bot.signing import Signer
from bot.verify import Subject, verify

COMMIT = re.compile(r"[0-9a-f]{40}")
LONGEST_CARD = 1_000_000  # bytes of a README that are looked through for its metadata
NotRun = tuple[tuple[str, str], ...]  # (check or level, why)
HowHard = tuple[Level, NotRun, ProofDevice]
SHOWN = 3  # models that a card may name as its base


def reverify(
    merged: Ref, base: Ref | None, adapters: Sequence[Ref], options: Options, hub: Hub, emit: Emit,
    attestation: Path | None = None, page: Path | None = None, **measuring: Any,
) -> Report:  # fmt: skip
    """Re-prove a merged repo or folder. Inputs that are not given are those that its verification.json names.

    `measuring`: Subject's `eval_text`, `force`, `attestations`, `signed_by`, `eval_tasks` and
    `eval_limit`; `attestation`: where to write what was proven, `page`: the same for people. Several
    adapters are combined again, as that file says. Every file that is read is held to what its repo states; what is damaged
    in the Hub's cache is fetched once more. Raises Damaged, Refused.
    """

    require_writable(attestation, merged.folder)
    require_page_folder(page)
    require_harness(measuring.get("eval_tasks"), measuring.get("eval_limit"))
    if by := measuring.get("signed_by"):
        Signer.to_verify(by)  # a mistake is reported before anything is read

    def attempt() -> Report:
        emit(Stage(name="pull", title="Reading the merged model and its inputs"))
        folder, files = complete_folder(merged, hub)
        with holding(files) as keeper:
            keeper.follow([folder / NAME])  # the inputs are those that it names
            report = _reverify(folder, base, adapters, options, hub, emit, asks=page is not None, **measuring)
            for name, sha256 in (report.document.files or {}).items():
                keeper.note_sha256(folder / name, sha256)
            if attestation is not None:
                attest(attestation, folder, report, hub.address)
            if page is not None:
                write_page(page, report.document)
            return report

    return with_sound_files(attempt, hub, emit)


def _reverify(
    folder: Path, base: Ref | None, adapters: Sequence[Ref], options: Options, hub: Hub, emit: Emit, **measuring: Any
) -> Report:
    claimed = claims_of(folder, base, adapters, options, hub, emit, later=True)
    sources = claimed.sources
    level = _level(folder, sources, form_of(claimed.merge, options), options, emit)
    local = fetch(sources, files_to_prove(sources), hub, emit)
    named = {header.file for header in sources.base.headers}
    weights = {held.name: held for held in local.files if held.role == "base" and held.name in named and not held.oid}
    with holding(local.files) as keeper, one_adapter(claimed.together, local, hub, emit) as local:
        _have_hashed(keeper, local.files, list(weights.values()), compared=level[0] != "files")
        subject = subject_of(folder, claimed, local, level, options, hub, unhashed=tuple(weights), **measuring)
        case = Case(subject, emit)
        report = verify(subject, emit, case)
        for name, sha256 in case.base_hashed.items():
            keeper.note_sha256(weights[name].path, sha256)
        return report


def _have_hashed(keeper: Keeper, files: Sequence[Held], weights: Sequence[Held], *, compared: bool) -> None:
    """Each input once: `weights`, of the base, by what compares them, where something does; the others of a folder were hashed when
    they were pinned, to the last byte, a moment ago."""
    by_others = [held.path for held in weights] if compared else []
    keeper.expect(by_others)
    for held in files:
        if held.repo is None and held not in weights and held.sha256 is not None:
            keeper.note_sha256(held.path, held.sha256)
    keeper.follow(held.path for held in files if held.repo is not None and held.path not in by_others)


@dataclass(frozen=True, kw_only=True)
class Claimed:
    """What a merged folder claims to be, by its report (`recorded`, None where it has none) or by what was given: `together` is how
    several adapters are combined."""

    recorded: Document | None
    merge: MergeFacts
    inputs: InputPins
    sources: Sources
    together: Predicted | None


def claims_of(
    folder: Path,
    base: Ref | None,
    adapters: Sequence[Ref],
    options: Options,
    hub: Hub,
    emit: Emit,
    *,
    later: bool = False,
) -> Claimed:
    """Read a folder's report, and pin the inputs: those given, or else those that it names. `later`: as pin's."""
    recorded = read_report(folder)
    inputs, merge = (recorded.inputs, recorded.merge) if recorded else (InputPins.of({}), MergeFacts.of({}))
    sources, together = _pinned(inputs, base, adapters, options, hub, emit, later)
    return Claimed(recorded=recorded, merge=merge, inputs=inputs, sources=sources, together=together)


def subject_of(
    folder: Path,
    claimed: Claimed,
    local: Local,
    level: HowHard,
    options: Options,
    hub: Hub,
    **measuring: Any,
) -> Subject:
    """What is to be proven of a merged folder, and how hard: (level, what is not run and why, where models run)."""
    sources, together = claimed.sources, claimed.together
    late = not sources.base.sha
    return Subject(
        folder=folder,
        base=local.base,
        adapter=local.adapter,
        inputs=InputPins.of({}) if late else _pins(sources, together, claimed.inputs),
        inputs_of=partial(_pins_since, claimed) if late else None,
        card_bases=_card_bases(folder, sources, hub),
        recorded=claimed.recorded,
        merge=claimed.merge,
        dtype=claimed.merge.option("dtype", options.dtype),
        ours=claimed.merge.fingerprint is not None,
        level=level[0],
        required=options.verify == "full",
        not_run=level[1],
        device=level[2],
        trust_remote_code=options.trust_remote_code,
        **form_of(claimed.merge, options),
        original=original_at_hand(sources.base, hub),
        **measuring,
        trained=tuple(filter(None, map(trained_base.in_four_bits, sources.adapters))),
        adapters=local.adapters if together else (),
        combination=notation.to_json(together.how) if together else None,
    )


def _pinned(
    inputs: InputPins, base: Ref | None, adapters: Sequence[Ref], options: Options, hub: Hub, emit: Emit, later: bool
) -> tuple[Sources, Predicted | None]:
    """The inputs, those given or else those that the report names, and how several adapters are combined."""
    adapter, *more = adapters or [_recorded_ref(pin, "adapter") for pin in inputs.adapters]
    request = Request(
        adapter=adapter,
        more=tuple(more),
        combination=_recorded_combination(inputs),
        base=base or _recorded_ref(inputs.base, "base"),
        options=options,
    )
    sources = pin(request, hub, emit, afresh=True, later=later)
    for source in [*([sources.base] if base is None else []), *(() if adapters else sources.adapters)]:
        vouch(source, hub, emit, NAME)
    together = predict_combined(sources, request.combination)
    if together is not None and together.refusals:
        raise Refused(together.refusals[0].reason, remedy=together.refusals[0].remedy)
    return sources, together


def _level(folder: Path, sources: Sources, form: Json, options: Options, emit: Emit) -> HowHard:
    """How hard to look, what is not run and why, and where models run. Raises Refused, or MachineTooSmall for what was asked for
    by name."""
    base = sources.base
    config = read_json(base, "config.json")
    tensors = _tensors(base, config)
    packed = form["base_weights"] == "simulate-nf4" or formats.quantization_of(config) is not None
    disk = verify_disk(tensors, base=packed, result=form["quantize"] != "none")
    machine, memory = look(folder), verify_memory(tensors)
    remade = any(reads_base(read_json(adapter, "adapter_config.json")) for adapter in sources.adapters)
    is_plain = not (disk or form["clamps"] or options.trust_remote_code or remade)
    layers = by_layers(tensors, config, is_plain=is_plain)
    device, notes = choose_proof_device(options, memory, machine, layers)
    level, not_run, refusals = choose_level(options, config, memory, machine, disk, device, layers)
    for refusal in [*refusals, *device_refusals(options, machine)]:
        kind = MachineTooSmall if refusal.exit_code == MachineTooSmall.exit_code else Refused
        raise kind(refusal.reason, remedy=refusal.remedy)
    for note in notes:
        emit(Note(text=note))
    return level, not_run, device


def _card_bases(folder: Path, sources: Sources, hub: Hub) -> tuple[str, ...]:
    """The models that the folder's card names as its base, as the Hub spells them today, where none of them is an input;
    () where the base is a folder, which no card can name."""
    readme = folder / "README.md"
    if sources.base.repo is None or not readme.is_file():
        return ()
    with readme.open("rb") as opened:
        bases = card_of({"README.md": opened.read(LONGEST_CARD)}).get("base_model")
    bases = bases if isinstance(bases, list) else [bases]
    named = [repo for repo in bases if isinstance(repo, str) and is_repo_id(repo)]
    own = {str(source.repo).casefold() for source in (sources.base, *sources.adapters)}
    if own & {repo.casefold() for repo in named}:
        return ()
    today = tuple(hub.current_name(repo) for repo in named[:SHOWN])
    return () if own & {repo.casefold() for repo in today} else today


def _tensors(base: Source, config: Json) -> list[Stored]:
    """The base's own tensors, whatever its files hold."""
    stored = {tensor.key: tensor for header in base.headers for tensor in header.tensors}
    if formats.quantization_of(config) is not None:
        stored = dict(formats.unpack(stored, config, base.small, base.card).tensors)
    return list(stored.values())


def form_of(merge: MergeFacts, options: Options) -> Json:
    """What was merged into, and in what form the result is stored: as the report says, else as given."""
    values = merge.options or deciding(options)
    return {
        "base_weights": "simulate-nf4" if values.get("base_weights") == "simulate-nf4" else "stored",
        "quantization": values.get("quantization") or {},
        "quantize": values.get("quantize", "none"),
        "clamps": values.get("overflow") == "clamp",
    }


def _pins(sources: Sources, together: Predicted | None, recorded: InputPins) -> InputPins:
    """The inputs as verification.json names them. `recorded`: as the folder's own report does."""
    named = chain((recorded.base, *recorded.adapters), repeat(Pin()))
    base, *adapters = [_pin(*pair) for pair in zip((sources.base, *sources.adapters), named, strict=False)]
    return name_inputs(base, adapters, notation.to_json(together.how) if together else None, recorded.recipe)


def _pins_since(claimed: Claimed, hashes: Mapping[str, str]) -> InputPins:
    """The same, once the base's weights were hashed."""
    sources = replace(claimed.sources, base=hashed_since(claimed.sources.base, hashes))
    return _pins(sources, claimed.together, claimed.inputs)


def _pin(source: Source, recorded: Pin) -> Json:
    """A source's pin. An earlier version named a folder by all of its files: where the report does, so does this one."""
    pin = pin_of(source)
    if source.ref.folder is None or recorded.sha in (None, source.sha) or recorded.sha != sha_of_all(source):
        return pin
    return {**pin, "sha": recorded.sha}


def _recorded_ref(pin: Pin, role: Role) -> Ref:
    repo, sha, subfolder = pin.repo, pin.sha, pin.subfolder
    commit = isinstance(repo, str) and is_repo_id(repo) and isinstance(sha, str) and COMMIT.fullmatch(sha)
    if not commit or not (subfolder is None or (role == "adapter" and is_subfolder(subfolder))):
        raise Usage(f"No verification.json names a Hub repo as the {role}.", remedy=f"Name it with --{role}.")
    return Ref(text=f"{pin.name('')}@{sha}", repo=repo, revision=sha, subfolder=subfolder)


def _recorded_combination(inputs: InputPins) -> Combination | None:
    if inputs.combination is None:
        return None
    try:
        return notation.from_json(inputs.combination)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Refused(
            "verification.json names a combination of adapters that this version does not know.",
            remedy="Use the version that made it; the file names that under environment.",
        ) from error
