"""From the findings to the cause: every hypothesis is tested on every part that is wrong, and those that explain most are named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from bot.checks.case import Case
from bot.checks.cause import HYPOTHESES
from bot.checks.cause.evidence import Evidence
from bot.checks.cause.hypothesis import Cause, Explained, Hypothesis
from bot.checks.cause.numbers import spread
from bot.checks.cause.suspects import Sample, TensorPart
from bot.records import Finding, Json

WELL = 0.02  # a prediction that leaves no more makes the costly ones needless
EQUAL = 0.01  # of what is explained: two causes are held against each other by how many elements they match
CAUSES_NAMED = 4
ROUNDED_LOOKED_AT = 4  # parts of a merge without a fault
# Checks whose remarks are about numbers: of all others only a failure has a cause worth naming.
OF_NUMBERS = ("touched", "untouched")


@dataclass(kw_only=True)
class Group:
    """All parts that predictions of one label explain."""

    hypothesis: Hypothesis
    label: str
    parts: list[Explained] = field(default_factory=list)

    def explains(self, open_parts: set[TensorPart]) -> float:
        """How much of the deviation that nothing else has explained yet."""
        return sum(each.deviation * (1 - each.left) for each in self.parts if each.part in open_parts)

    def matches(self, open_parts: set[TensorPart]) -> float:
        """The mean share of elements that are exactly as predicted."""
        shares = [each.matched for each in self.parts if each.part in open_parts]
        return sum(shares) / len(shares) if shares else 0.0


def find_cause(case: Case, findings: Mapping[str, Finding]) -> Json | None:
    """The most likely cause as verification.json has it, with the further ones under `also`; None where every check is content,
    or has mere remarks about files."""
    remarks = [finding for finding in findings.values() if finding.status == "warn" and finding.id in OF_NUMBERS]
    if not remarks and not any(finding.status == "fail" for finding in findings.values()):
        return None
    evidence = Evidence(case, findings)
    causes = [*_of_numbers(evidence), *(cause for each in HYPOTHESES for cause in each.read(evidence))]
    if not causes:
        return None
    first, *others = sorted(_each_kind_once(causes), key=lambda cause: (cause.remark, -cause.deviation))
    also = [cause.to_json() for cause in others[: CAUSES_NAMED - 1]]
    return {**first.to_json(), **({"also": also} if also else {})}


def _each_kind_once(causes: list[Cause]) -> list[Cause]:
    """A head that is tied and one that is lost are two words for one thing; so are two roundings."""
    kinds: dict[str, Cause] = {}
    for cause in causes:
        if cause.kind not in kinds or cause.deviation > kinds[cause.kind].deviation:
            kinds[cause.kind] = cause
    if "tied-both" in kinds:
        kinds.pop("head-lost", None)
        kinds.pop("config-changed", None)
    if "vocabulary-size" in kinds:
        kinds.pop("config-changed", None)
    return list(kinds.values())


def _of_numbers(evidence: Evidence) -> list[Cause]:
    """Causes that explain numbers, each with the deviation that it explains."""
    groups: dict[tuple[str, str], Group] = {}
    open_parts: dict[TensorPart, float] = {}
    suspects = list(evidence.suspects())
    wrong = evidence.failed(*OF_NUMBERS)
    if not wrong:  # only rounded otherwise: a few tensors say how
        suspects = [suspects[at] for at in spread(len(suspects), ROUNDED_LOOKED_AT)]
    for part in suspects:
        sample = Sample.of(part)
        if sample.deviation > 0:
            evidence.deviating.append(part)
            open_parts[part] = sample.deviation
            for costly in (False, True)[: 2 if wrong else 1]:
                _test(part, sample, evidence, groups, costly)
                if _is_explained_well(part, groups):
                    break
    causes = _largest_first(groups, open_parts, evidence)
    for hypothesis in HYPOTHESES:
        if hypothesis.remaining is not None:
            remaining = [Explained(part=part, deviation=deviation, left=1.0, matched=0.0, details={})
                         for part, deviation in open_parts.items()]  # fmt: skip
            for cause, explained in hypothesis.remaining(remaining, evidence):
                deviation = sum(open_parts.pop(each.part, 0.0) for each in explained)
                causes.append(replace(cause, deviation=max(deviation, cause.deviation)))
    return causes


def _test(
    part: TensorPart, sample: Sample, evidence: Evidence, groups: dict[tuple[str, str], Group], costly: bool
) -> None:
    for hypothesis in HYPOTHESES:
        if hypothesis.costly != costly:
            continue
        best: dict[str, Explained] = {}
        for prediction in hypothesis.predict(part, sample, evidence):
            left = sample.distance(prediction.values) / sample.deviation
            known = best.get(prediction.label)
            if left <= hypothesis.limit and (known is None or left < known.left):
                best[prediction.label] = Explained(
                    part=part, deviation=sample.deviation, left=left, matched=sample.matched(prediction.values),
                    details=prediction.details,
                )  # fmt: skip
        for label, explained in best.items():
            key = (hypothesis.name, label)
            groups.setdefault(key, Group(hypothesis=hypothesis, label=label)).parts.append(explained)


def _is_explained_well(part: TensorPart, groups: dict[tuple[str, str], Group]) -> bool:
    return any(each.part is part and each.left <= WELL for group in groups.values() for each in group.parts)


def _largest_first(
    groups: dict[tuple[str, str], Group], open_parts: dict[TensorPart, float], evidence: Evidence
) -> list[Cause]:
    """The group that explains most, then the one that explains most of the rest, and so on."""
    causes = []
    order = [hypothesis.name for hypothesis in HYPOTHESES]
    candidates = sorted(groups.values(), key=lambda group: order.index(group.hypothesis.name))
    while candidates and open_parts:
        still = set(open_parts)
        most = max(group.explains(still) for group in candidates)
        if most <= 0:
            break
        equal = [group for group in candidates if group.explains(still) >= (1 - EQUAL) * most]
        best = max(equal, key=lambda group: round(group.matches(still), 2))
        candidates.remove(best)
        explained = [each for each in best.parts if each.part in still]
        cause = best.hypothesis.describe(best.label, explained, evidence)
        causes.append(replace(cause, deviation=sum(open_parts.pop(each.part) for each in explained)))
    return causes
