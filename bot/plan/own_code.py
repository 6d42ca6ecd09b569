"""Code that the output's configs name (`auto_map`): the merge runs none, and must not publish a pointer to a stranger's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

from bot.records import Asset, Options, Refusal, Source

REFERENCE = re.compile(r"(?:(?P<repo>[^\s]+)--)?(?P<module>[A-Za-z_]\w*)\.[A-Za-z_]\w*")
READ_IT = "Read that code, then pass --trust-remote-code; or name a base that brings its own."


def code_refusals(base: Source, adapter: Source, assets: Iterable[Asset], options: Options) -> list[Refusal]:
    """What is refused at every level: code of another repo (unless it is trusted), and code that nobody would find."""
    there = {entry.name for entry in base.files}
    refusals: dict[str, Refusal] = {}
    for name, role, reference in _named(base, adapter, assets):
        match = REFERENCE.fullmatch(reference)
        whose = f"{name} of the {role}"
        if match is None:
            reason = f"{whose} names {reference[:100]!r} as code, which is no class of a file."
            refusal = Refusal(code="code-elsewhere", reason=reason, remedy="Do not trust it; name another revision.")
        elif match["repo"] is not None and not options.trust_remote_code:
            reason = (
                f"{whose} names code of another repo ({reference[:100]}), which whoever loads the result would run."
            )
            refusal = Refusal(code="code-elsewhere", reason=reason, remedy=READ_IT)
        elif match["repo"] is None and f"{match['module']}.py" not in there:
            reason = f"{whose} names code that the base does not have ({match['module']}.py)."
            remedy = "Take it out of that file; an adapter's own Python files are never carried over."
            refusal = Refusal(code="code-elsewhere", reason=reason, remedy=remedy)
        else:
            continue
        refusals.setdefault(refusal.reason, refusal)
    return list(refusals.values())


def _named(base: Source, adapter: Source, assets: Iterable[Asset]) -> Iterator[tuple[str, str, str]]:
    """(file, whose, module.Class) of every class that a config of the output names."""
    sources = {"base": base, "adapter": adapter}
    for asset in assets:
        text = sources[asset.source].texts.get(asset.name)
        if text is None or not asset.name.endswith(".json"):
            continue
        auto_map = json.loads(text).get("auto_map")
        for value in auto_map.values() if isinstance(auto_map, dict) else [auto_map] if auto_map else []:
            for name in value if isinstance(value, list) else [value]:
                if name is not None:
                    yield asset.name, asset.source, name if isinstance(name, str) else repr(name)[:100]
