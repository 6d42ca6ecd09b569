"""The checks, in the order in which they are read; they run in it, too, but for those that hash. To add one: write it, and add its
line here."""

from __future__ import annotations

from bot.checks.case import Case
from bot.checks.elementwise import weights
from bot.checks.expected.combined import combined
from bot.checks.finding import Check
from bot.checks.folder import assets, config, files
from bot.checks.folder.attestation import attestation
from bot.checks.folder.own_code import own_code
from bot.checks.folder.signature import signature
from bot.checks.folder.special_tokens import vocabulary
from bot.records import Finding


def _quantised(case: Case) -> Finding:
    from bot.checks.elementwise.quantised_result import quantised  # torch is for those who need it

    return quantised(case)


def _effect(case: Case) -> Finding:
    from bot.checks.elementwise.effect import effect

    return effect(case)


def _loads(case: Case) -> Finding:
    from bot.checks.behaviour.findings import loads  # the workers are for those who run models

    return loads(case)


def _behaviour(case: Case) -> Finding:
    from bot.checks.behaviour.findings import behaviour

    return behaviour(case)


def _requantised(case: Case) -> Finding:
    from bot.checks.behaviour.findings import requantised

    return requantised(case)


CHECKS: tuple[Check, ...] = (
    Check(id="headers", group="files", level="files", run=files.headers),
    Check(id="index", group="files", level="files", run=files.index, needs=("headers",)),
    Check(id="strays", group="files", level="files", run=files.strays),
    Check(id="pickles", group="files", level="files", run=files.pickles),
    Check(id="leftovers", group="files", level="files", run=files.leftovers),
    Check(id="format", group="files", level="files", run=files.metadata),
    Check(id="pins", group="files", level="files", run=files.pins, hashes=True),
    Check(id="attestation", group="files", level="files", run=attestation, on_request="attestations", hashes=True),
    Check(id="signature", group="files", level="files", run=signature, on_request="signed_by", hashes=True),
    Check(id="config", group="config", level="files", run=config.config),
    Check(id="own-code", group="config", level="files", run=own_code),
    Check(id="base-weights", group="config", level="files", run=config.base_weights),
    *assets.checks(),
    Check(id="chat-template", group="tokenizer", level="files", run=assets.chat_template),
    Check(id="keys", group="weights", level="weights", run=weights.keys, needs=("headers",)),
    Check(id="shapes", group="weights", level="weights", run=weights.shapes, needs=("headers",)),
    Check(id="dtypes", group="weights", level="weights", run=weights.dtypes, needs=("headers",)),
    Check(id="combined", group="weights", level="weights", run=combined, combined=True),
    Check(id="method", group="weights", level="weights", run=weights.method),
    Check(id="touched", group="weights", level="weights", run=weights.touched, needs=("headers", "method")),
    Check(id="untouched", group="weights", level="weights", run=weights.untouched, needs=("headers", "method")),
    Check(id="coverage", group="weights", level="weights", run=weights.coverage, needs=("headers", "method")),
    Check(id="bypassed", group="weights", level="weights", run=weights.bypassed, needs=("headers", "method")),
    Check(
        id="quantised", group="weights", level="weights", run=_quantised, needs=("headers", "method"), quantised=True
    ),
    Check(id="effect", group="weights", level="weights", run=_effect, needs=("headers", "method")),
    Check(id="finite", group="weights", level="weights", run=weights.finite, needs=("headers", "method")),
    Check(id="retention", group="weights", level="weights", run=weights.retention, needs=("headers", "method")),
    Check(id="vocabulary", group="tokenizer", level="weights", run=vocabulary, needs=("headers", "method")),
    Check(id="loads", group="behaviour", level="full", run=_loads, needs=("headers",)),
    Check(
        id="behaviour",
        group="behaviour",
        level="full",
        run=_behaviour,
        needs=("headers", "method", "loads"),
        quantised=False,
    ),
    Check(
        id="requantised",
        group="behaviour",
        level="full",
        run=_requantised,
        needs=("headers", "method", "quantised"),
        quantised=True,
    ),
)
