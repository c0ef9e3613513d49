"""The size of the classes of the core, and what is written once."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import implicitcore

CORE = Path(implicitcore.__file__).parent
MOST = 12
FILES = {path: path.read_text() for path in sorted(CORE.rglob("*.py"))}
CLASSES = {
    node.name: node
    for text in FILES.values()
    for node in ast.walk(ast.parse(text))
    if isinstance(node, ast.ClassDef)
}


def own_attributes(node: ast.ClassDef) -> set[str]:
    """What is assigned on ``self``, and the fields of a dataclass."""
    found = {
        target.attr
        for inner in ast.walk(node)
        if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store)
        for target in [inner]
        if isinstance(inner.value, ast.Name) and inner.value.id == "self"
    }
    fields = {
        statement.target.id
        for statement in node.body
        if isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and "ClassVar" not in ast.unparse(statement.annotation)
    }
    setters = {
        statement.name
        for statement in node.body
        if isinstance(statement, ast.FunctionDef)
        and ".setter" in "".join(map(ast.unparse, statement.decorator_list))
    }
    return (found | fields) - setters


def attributes(node: ast.ClassDef) -> set[str]:
    """Its own, and those of the classes of the core that it derives from."""
    names = {ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases}
    inherited = [attributes(CLASSES[name]) for name in names - {node.name} if name in CLASSES]
    return own_attributes(node).union(*inherited)


def test_no_class_has_more_than_a_dozen_attributes():
    counts = {name: len(attributes(node)) for name, node in CLASSES.items()}
    assert counts["StopTest"] > 5
    assert {name: count for name, count in counts.items() if count > MOST} == {}


def test_the_rows_of_some_samples_are_taken_in_one_place():
    found = [
        f"{path.relative_to(CORE)}: {name}"
        for path, text in FILES.items()
        for name in re.findall(r"def (select|restrict)\b", text)
    ]
    assert 1 <= len(found) <= 4, found


def test_no_tensor_is_known_by_its_address():
    rooms = ("system", "root_solvers", "ode_solvers", "gradients")
    found = [
        f"{path.relative_to(CORE)}:{node.lineno}"
        for path, text in FILES.items()
        if path.relative_to(CORE).parts[0] in rooms
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "id"
    ]
    assert found == []
