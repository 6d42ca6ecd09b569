"""Which modules a model's code goes around: it reads their weight itself, and never calls them.

There PEFT's layer, which stands in the module's place, has no say: the unmerged model does not have what the adapter holds
for it, and a merge would. (FalconMamba's dt_proj, LongCat-Flash's router, WavLM's attention, MobileBERT's decoder.) Told by
the source of the class, which is as close as one comes without running the model; what that leaves open, the check
`behaviour` finds by running it.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

SETTING_UP = ("__init__", "_init", "init_", "reset_", "tie_", "get_", "set_")  # methods that run before any input
ABOUT = frozenset({"dtype", "device", "shape", "size", "ndim", "dim", "numel", "requires_grad", "data_ptr"})
QUANTISED = "_is_quantized"  # a branch that calls the module only where bitsandbytes has replaced it


def goes_around(modules: Mapping[str, Any], parameter: str) -> bool:
    """Whether the module that holds `parameter` is one that its parent reads itself. `modules`: the model's, by path."""
    path, _, name = parameter.rpartition(".")
    parent, _, own = path.rpartition(".")
    if name != "weight" or parent not in modules:
        return False
    kind: Any = type(modules[parent])
    return own in _read_only(kind)


@cache
def _read_only(kind: Any) -> frozenset[str]:
    """The submodules, by name, whose weight the methods of a class read, and which none of them calls."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):
        return frozenset()
    read: set[str] = set()
    called: set[str] = set()
    for method in ast.walk(tree):
        if isinstance(method, ast.FunctionDef) and not method.name.startswith(SETTING_UP):
            for node, above in _walk(method, ()):
                if isinstance(node, ast.Call) and (name := _own(node.func)):
                    called.add(name)
                elif isinstance(node, ast.Attribute) and node.attr == "weight" and not _only_about(above):
                    read |= {_own(node.value)} - {""}
    return frozenset(read - called)


def _walk(node: ast.AST, above: tuple[ast.AST, ...]) -> Iterator[tuple[ast.AST, tuple[ast.AST, ...]]]:
    yield node, above
    skipped = node.body if isinstance(node, ast.If) and QUANTISED in ast.unparse(node.test) else []
    for child in ast.iter_child_nodes(node):
        if child not in skipped:
            yield from _walk(child, (*above, node))


def _own(node: ast.AST) -> str:
    """`x` of `self.x`, else nothing."""
    own = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    return node.attr if own and isinstance(node, ast.Attribute) else ""


def _only_about(above: tuple[ast.AST, ...]) -> bool:
    """Whether the weight is asked for its dtype or the like, not for its numbers."""
    last = above[-1] if above else None
    if isinstance(last, ast.Call):
        return isinstance(last.func, ast.Name) and last.func.id == "isinstance"
    return isinstance(last, ast.Attribute) and last.attr in ABOUT
