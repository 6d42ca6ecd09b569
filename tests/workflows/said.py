"""Every sentence that the code can say of a failure, read out of the source: `…` stands for what is filled in."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bot.combine.given import BARRED_FIELDS, BARRED_KEYS
from bot.plan.sentences import SENTENCES
from bot.weights.methods import INITS_REFUSED, LORA_REFUSED, METHODS, OTHER_REFUSED

ROOT = Path(__file__).parents[2]
LEFT_OUT = ("devhub", "demo")  # the local Hub speaks as the Hub does; the demo's faults are ours
ERRORS = frozenset(
    "Usage Refused NotVerified Outside NotFound Gated Forbidden Moved MachineTooSmall Interrupted Busy".split()
)
SHELL = re.compile(r'\b(fail \d+|say (?:error|warning|notice)) "((?:[^"\\]|\\.)*)"')
SHELL_VALUE = re.compile(r"\$\{[^}]*\}|\$\([^)]*\)|\$\w+")


@dataclass(frozen=True, kw_only=True)
class Said:
    """One sentence. `code` is a refusal's code, empty elsewhere."""

    text: str
    where: str
    code: str = ""


@functools.cache
def everything_said() -> tuple[Said, ...]:
    """The sentences of all errors and refusals in bot/, and of its launcher."""
    found = [said for path in sorted((ROOT / "bot").rglob("*.py")) for said in _in_module(path)]
    # Built from tables, not at the place where they are raised.
    found += [Said(text=_plain(s), code=code, where="bot/plan/sentences.py") for code, (s, _) in SENTENCES.items()]
    settings = (*LORA_REFUSED, *(one for many in OTHER_REFUSED.values() for one in many))
    found += [
        Said(text=f"{why[0].upper()}{why[1:]}.", code=code, where="bot/weights/methods.py") for _, code, why in settings
    ]
    found += [
        Said(text=f"{why}.", code="changed-base", where="bot/weights/methods.py") for why in INITS_REFUSED.values()
    ]
    refused = [method.refused for method in METHODS.values() if method.refused]
    found += [Said(text=why, code="no-merged-form", where="bot/weights/methods.py") for why in refused]
    uses = {code for _, code, _ in BARRED_FIELDS} | {"bias", "changed-base", "unknown-setting"}
    holds = {code for _, code, _ in BARRED_KEYS} | {"repeated-key", "unknown-key"}
    found += [Said(text="… uses …, which cannot be combined.", code=code, where="bot/combine/given.py") for code in uses]
    found += [Said(text="… holds … (…), which cannot be combined.", code=c, where="bot/combine/given.py") for c in holds]
    launcher = ROOT / "bot" / "launch.sh"
    if launcher.exists():
        text = launcher.read_text()
        shell = (_plain(SHELL_VALUE.sub("…", match[2])) for match in SHELL.finditer(text))
        found += [Said(text=sentence, where="bot/launch.sh") for sentence in shell if sentence != "…"]
    return tuple(found)


def refusal_codes() -> set[str]:
    """Every code that a refusal in a plan can carry."""
    return {said.code for said in everything_said() if said.code}


def _in_module(path: Path) -> Iterator[Said]:
    inside = path.relative_to(ROOT)
    if inside.parts[1] in LEFT_OUT:
        return
    tree = ast.parse(path.read_text())
    words = _assigned(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        if name in ERRORS and node.args and "remedy" in given:
            for text in _texts(node.args[0], node.lineno, words):
                yield Said(text=text, where=f"{inside}:{node.lineno}")
        elif name == "Refusal" and "reason" in given:
            code = given["code"].value if isinstance(given["code"], ast.Constant) else ""
            for text in _texts(given["reason"], node.lineno, words):
                yield Said(text=text, code=str(code), where=f"{inside}:{node.lineno}")


def _assigned(tree: ast.AST) -> list[tuple[str, int, ast.expr]]:
    """(name, line, value) of every plain assignment: `reason = f"…"` just before it is raised."""
    return [
        (target.id, node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]


def _texts(node: ast.expr, line: int, words: list[tuple[str, int, ast.expr]]) -> list[str]:
    """The sentences an expression can be; none where it only passes on another's."""
    if isinstance(node, ast.IfExp):
        return _texts(node.body, line, words) + _texts(node.orelse, line, words)
    if isinstance(node, ast.Name):
        before = [(at, value) for name, at, value in words if name == node.id and at <= line]
        return _texts(max(before, key=lambda one: one[0])[1], line, []) if before else []
    text = _template(node)
    return [text] if re.search(r"[A-Za-z]{3}", text) else []


def _template(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return _plain(str(node.value))
    if isinstance(node, ast.JoinedStr):
        return _plain("".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values))
    if isinstance(node, ast.BinOp):
        return _plain(_template(node.left) + _template(node.right))
    return "…"


def _plain(text: str) -> str:
    """`{n}` and runs of filled-in parts become one `…`."""
    text = re.sub(r"\{\w*\}", "…", text)
    return " ".join(re.sub(r"…(?:…)+", "…", text).split())
