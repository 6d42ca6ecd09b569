"""Every sentence that the code can say of a failure, read out of the source: `…` stands for what is filled in."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bot.adapters.combine.adapter_input import BARRED_FIELDS, BARRED_KEYS
from bot.adapters.method_rules import INITS_REFUSED, LORA_REFUSED, OTHER_REFUSED
from bot.adapters.methods import METHODS
from bot.plan.refusal_texts import SENTENCES

ROOT = Path(__file__).parents[2]
LEFT_OUT = ("devhub", "demo")  # the local Hub speaks as the Hub does; the demo's faults are ours
ERRORS = frozenset(
    (
        "Usage Refused NotVerified Outside NotFound Gated Forbidden Damaged Moved MachineTooSmall Interrupted "
        "HubBusy Unserved NoDiscussions RateLimited Unanswered Unsure NotCopied LostUpload"
    ).split()
)
SHELL = re.compile(r'\b(fail \d+|say (?:error|warning|notice)) "((?:[^"\\]|\\.)*)"')
ADAPTER_TENSORS = "… adapter tensors …, e.g. …."  # spelled out by _of_the_reader
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
    found += [Said(text=_plain(s), code=code, where="bot/plan/refusal_texts.py") for code, (s, _) in SENTENCES.items()]
    settings = (*LORA_REFUSED, *(one for many in OTHER_REFUSED.values() for one in many))
    found += [Said(text=f"{why}.", code=code, where="bot/adapters/method_rules.py") for _, code, why in settings]
    found += [
        Said(text=f"{why}.", code="changed-base", where="bot/adapters/method_rules.py")
        for why in INITS_REFUSED.values()
    ]
    refused = [method.refused for method in METHODS.values() if method.refused]
    found += [Said(text=why, code="no-merged-form", where="bot/adapters/methods.py") for why in refused]
    uses = {code for _, code, _ in BARRED_FIELDS} | {"bias", "changed-base", "unknown-setting"}
    holds = {code for _, code, _ in BARRED_KEYS} | {"repeated-key", "unknown-key"}
    found += [
        Said(text="… uses …, which cannot be combined.", code=code, where="bot/adapters/combine/adapter_input.py")
        for code in uses
    ]
    found += [
        Said(text="… holds … (…), which cannot be combined.", code=c, where="bot/adapters/combine/adapter_input.py")
        for c in holds
    ]
    found += _of_the_reader(ROOT / "bot" / "adapters" / "lora.py")
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
    for scope, node in _calls(tree):
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        if name in ERRORS and node.args and "remedy" in given:
            for text in _texts(node.args[0], node.lineno, scope, tree):
                yield Said(text=text, where=f"{inside}:{node.lineno}")
        elif name == "Refusal" and "reason" in given:
            code = given["code"].value if isinstance(given["code"], ast.Constant) else ""
            for text in _texts(given["reason"], node.lineno, scope, tree):
                if text != ADAPTER_TENSORS:
                    yield Said(text=text, code=str(code), where=f"{inside}:{node.lineno}")


def _of_the_reader(path: Path) -> Iterator[Said]:
    """What is said of adapter tensors that cannot be sorted: `self._refuse(code, "what they are", tensor)`."""
    for _, call in _calls(ast.parse(path.read_text())):
        if isinstance(call.func, ast.Attribute) and call.func.attr == "_refuse":
            code, sentence = (argument.value for argument in call.args[:2] if isinstance(argument, ast.Constant))
            text = ADAPTER_TENSORS.replace("tensors …", f"tensors {sentence}")
            yield Said(text=text, code=str(code), where=f"bot/adapters/lora.py:{call.lineno}")


Scope = ast.Module | ast.FunctionDef


def _calls(tree: ast.Module) -> Iterator[tuple[Scope, ast.Call]]:
    """Every call, with the function that it stands in."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = {id(node): function for function in functions for node in ast.walk(function)}  # the innermost is the last
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield inside.get(id(node), tree), node


def _assigned(scope: Scope, name: str) -> list[tuple[int, ast.expr]]:
    """(line, value) of every assignment to a name, `reason, remedy = …, …` included."""
    found = []
    for node in ast.walk(scope):
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=True))
            found += [(node.lineno, value) for one, value in pairs if isinstance(one, ast.Name) and one.id == name]
    return found


def _texts(node: ast.expr, line: int, scope: Scope, tree: ast.Module) -> list[str]:
    """The sentences an expression can be; none where it only passes on another's."""
    if isinstance(node, ast.IfExp):
        return _texts(node.body, line, scope, tree) + _texts(node.orelse, line, scope, tree)
    if isinstance(node, ast.Name):
        return [
            text for value, at, there in _values(node.id, line, scope, tree) for text in _texts(value, at, there, tree)
        ]
    text = _template(node)
    return [text] if re.search(r"[A-Za-z]{3}", text) else []


def _values(name: str, line: int, scope: Scope, tree: ast.Module) -> list[tuple[ast.expr, int, Scope]]:
    """(value, line, where) of what a name can stand for where it is used: all that was given to it since its last use,
    or what the callers of this function pass."""
    before = sorted(((at, value) for at, value in _assigned(scope, name) if at <= line), key=lambda one: one[0])
    loads = [node for node in ast.walk(scope) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)]
    used = max((node.lineno for node in loads if node.id == name and node.lineno < line), default=0)
    if before:
        return [(value, at, scope) for at, value in before if at > used or at == before[-1][0]]
    names = [argument.arg for argument in scope.args.args] if isinstance(scope, ast.FunctionDef) else []
    if name not in names:
        return []
    return [
        (call.args[names.index(name)], call.lineno, caller)
        for caller, call in _calls(tree)
        if isinstance(call.func, ast.Name) and call.func.id == scope.name and len(call.args) > names.index(name)
    ]


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
