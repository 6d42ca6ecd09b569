"""card: the model card of a merged model. In ten seconds: what was merged, that it was proven, how to load it.

Words that come from other people's repos are data here: YAML goes through a YAML dump, Markdown is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib import resources
from string import Template
from typing import Any

from bot import verdict_text
from bot.card import evidence, loading, metadata
from bot.card.markdown import HUB, Links, cell
from bot.metadata import fields
from bot.metadata.license_fields import state
from bot.plan_text import tensors_in_words
from bot.project import REPOSITORY
from bot.records import Asset, Plan, Source, Sources
from bot.report_document import PICTURE, Document, MergeFacts
from bot.report_markdown import opening
from bot.untrusted.redact import redact

TAKEN_OVER = (fields.languages, fields.datasets, fields.metrics, fields.tags, fields.task)

PICTURED = "Size of the delta, as a share of the weight, by layer and module"
UNNAMED = "your-name/your-merged-model"  # stands for the target until there is one; `retarget` replaces it
KEPT_ENOUGH = 0.9  # below, so much of the delta is rounded away that a separate adapter serves better


def render(
    document: Document,
    *,
    target: str | None,
    base: Source,
    adapter: Source,
    license: str | None,
    adapters: Sequence[Source] = (),
    assets: Sequence[Asset] = (),
    hub: str = HUB,
    pictured: bool = False,
) -> str:
    """README.md for a merge that `document` (its verification.json) describes. `license` overrides the inputs'.

    `adapters`: where `adapter` is the combination of several, those. `assets`: the files beside the weights, where they are
    known. `hub`: the address of the Hub that all links lead to. `pictured`: the picture lies beside the card.
    """
    given, links = tuple(adapters) or (adapter,), Links(hub)
    merge = document.merge
    task = metadata.task_of(base, adapter)
    stated = state(base, given, license, assets=assets, home=f"{hub}/{target or UNNAMED}", hub=hub)
    block = metadata.block(merge, base=base, adapter=adapter, license=stated, task=task)
    template = Template(resources.files("bot").joinpath("templates/card.md").read_text(encoding="utf-8"))
    made = loading.ModelToLoad(base=base, adapter=adapter, assets=assets)
    text = template.substitute(
        metadata=metadata.dump(block),
        title=_title(target, base, given),
        headline=_headline(document, base, given, links),
        opening=opening(document),
        picture=f"![{PICTURED}]({PICTURE})\n\n*{PICTURED}.*\n\n" if pictured else "",
        summary=_summary(document, base, given, stated.words, links),
        loading=loading.section(target or UNNAMED, task, made, hub, by_transformers=bool(document.merge.shared_blocks)),
        advice=_advice(document, base, given, links),
        comparison=evidence.comparison(document),
        evidence=evidence.section(document),
        reproduce=evidence.reproduce(document, target or UNNAMED, base, given),
        about="\n\n".join(dict.fromkeys(_about(source, links) for source in given)),
    )
    return redact(text)


def preview(base: Source, adapter: Source, adapters: Sequence[Source], license: str | None, hub: str = HUB) -> str:
    """The card's metadata alone, as far as a Hub may refuse it: known before any download."""
    given = tuple(adapters) or (adapter,)
    return metadata.preview(base, adapter, state(base, given, license, home=f"{hub}/{UNNAMED}", hub=hub))


def retarget(text: str, old: str | None, new: str) -> str:
    """The card with the repo it was made for replaced by another; None stands for a card that was made for none."""
    name = re.escape(old or UNNAMED)
    text = re.sub(rf"(https?://\S*?/){name}(?=/blob/main/)", rf"\g<1>{new}", text)  # its license file's address
    # Bounded, so that owner/model does not change owner/model-lora or another/owner/model.
    return re.sub(rf"(?<![\w./-]){name}(?![\w-]|\.\w)", new, text)


def _title(target: str | None, base: Source, adapters: Sequence[Source]) -> str:
    if target:
        return target.rpartition("/")[2]
    return f"{' and '.join(map(_short, adapters))} merged into {_short(base)}"


def _short(source: Source) -> str:
    return source.called.partition("/")[2] if source.repo else f"a local {source.role}"


def _headline(document: Document, base: Source, adapters: Sequence[Source], links: Links) -> str:
    what = f"{' and '.join(map(links.to, adapters))} merged into {links.to(base)}"
    return f"{what}. " + (
        "PEFT is not needed." if document.verdict == "verified" else "Do not use it: it is not verified."
    )


def _summary(document: Document, base: Source, adapters: Sequence[Source], licenses: str, links: Links) -> str:
    merge = document.merge
    counts = tensors_in_words(merge.tensors, str(merge.dtype or "?"), merge.form)
    rows = [
        *(("adapter", links.pinned(adapter)) for adapter in adapters),
        ("combined", cell(_combined(document))),
        ("base", links.pinned(base)),
        ("method", cell(_method(merge))),
        ("base weights", cell(str(merge.base_weights or ""))),
        ("weights", cell(f"{_stored(merge)}; {counts}" if merge.tensors else _stored(merge))),
        ("shared blocks", cell(merge.shared_blocks or "")),
        ("tokens", cell(_tokens(merge))),
        ("license", cell(licenses)),
        ("made by", f"[adapter-merge]({REPOSITORY})"),
    ]
    return "\n".join(f"| {name} | {text} |" for name, text in rows if text)


def _tokens(merge: MergeFacts) -> str:
    """The numbers that follow the adapter's tokenizer; empty where it says what the base's does."""
    changed = [f"{path} {before} → {after}" for path, (before, after) in sorted(merge.tokens.items())]
    return f"the adapter's tokenizer has others: {', '.join(changed)}" if changed else ""


def _stored(merge: MergeFacts) -> str:
    """The dtype, and the form that the merged weights are stored in."""
    dtype, form = str(merge.dtype or "?"), merge.form
    return dtype if form == "none" else f"{'the form of the base' if form == 'same' else form}, the rest {dtype}"


def _combined(document: Document) -> str:
    """How several adapters were combined, as the report names it; empty for one."""
    how = document.inputs.combination or {}
    words = [f"{name.replace('_', ' ')} {how[name]}" for name in ("density", "seed", "rank") if name in how]
    if not how:
        return ""
    return ", ".join([f"{how.get('kind')} of weights {', '.join(map(_number, how.get('weights') or ()))}", *words])


def _number(text: str) -> str:
    return f"{float(text):g}"


def _method(merge: MergeFacts) -> str:
    ranks = [f"rank {_spread(merge.ranks)}"] if merge.ranks else []
    scalings = [f"scaling {_spread(merge.scalings)}"] if merge.scalings else []
    return ", ".join([str(merge.method or "?"), *ranks, *scalings])


def _spread(values: Iterable[Any]) -> str:
    numbers = sorted(values)
    shown = [f"{number:g}" for number in (numbers if len(numbers) <= 2 else (numbers[0], numbers[-1]))]
    return " to ".join(dict.fromkeys(shown))


def _advice(document: Document, base: Source, adapters: Sequence[Source], links: Links) -> str:
    """Where keeping the adapter separate would serve better, the card says so."""
    reasons = []
    kept = verdict_text.retention(document)
    if kept is not None and kept < KEPT_ENOUGH:
        reasons.append(
            f"The storage dtype ({cell(str(document.merge.dtype or '?'))}) keeps only {kept:.0%} of what the adapter "
            "changes; the rest is below its rounding step. A merge into a wider dtype (`--dtype float32`) keeps more."
        )
    if metadata.quantised(base) and document.merge.form == "none":
        reasons.append(
            "The base is quantised. The merge holds its dequantised weights, which take more memory; quantising them "
            "again would round part of the adapter away."
        )
    if not reasons:
        return ""
    where = f"{links.to(base)} with {' and '.join(map(links.to, adapters))}"
    text = "\n\n".join(reasons)
    return f"## Keeping the adapter separate serves better\n\n{text}\n\nLoading {where} through PEFT avoids this.\n\n"


def _about(adapter: Source, links: Links) -> str:
    if adapter.repo is None:
        return "The adapter came from a local folder; its content is named by the sha256 above."
    return (
        f"What it was trained for, on what data, and its limits: see the card of {links.to(adapter)}. "
        "What it says of the adapter holds for this model; only the way to load it differs."
    )


def with_notes_on_cards(plan: Plan, sources: Sources, license: str | None) -> Plan:
    """The plan with a note for each card that the Hub would not take as it is, and those about the license: known before any download.

    `license`: what --license says. Raises Usage where it is none that the Hub knows.
    """
    notes = [note for adapter in sources.adapters for note in _of_adapter(adapter)]
    if not any(fields.languages(adapter.card, fields.Left()) for adapter in sources.adapters):
        notes += _of_base(sources.base)  # then its languages are carried
    licenses = state(sources.base, sources.adapters, license, assets=plan.assets)
    return replace(plan, notes=(*plan.notes, *notes, *licenses.notes))


def _of_adapter(adapter: Source) -> list[str]:
    left = fields.Left()
    for read in TAKEN_OVER:
        read(adapter.card, left)
    return left.sentences(adapter.called if adapter.repo else "the adapter")


def _of_base(base: Source) -> list[str]:
    left = fields.Left()
    fields.languages(base.card, left)
    return left.sentences(base.repo or "the base")
