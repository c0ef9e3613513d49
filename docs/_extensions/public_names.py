"""References to a name lead to where it is public.

The reference has a page for each area, under the names that users import; docstrings name the
modules that define them, or the last word alone.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from docutils.nodes import Element
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

ROOT = Path(__file__).parents[2]
PACKAGES = [ROOT / "implicitcore", *sorted(ROOT.glob("plugins/*/implicitcore_*"))]


def stub_names(stub: Path) -> Iterator[tuple[str, str]]:
    """The names of a stub, each with the module that defines it."""
    for node in ast.parse(stub.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield node.module, alias.name


@cache
def public_names() -> dict[str, str]:
    """Where an object is defined -> what users call it; the users' page is before the authors'."""
    pages = [(PACKAGES[0] / "extend.pyi", "implicitcore.extend")]
    pages += [(package / "__init__.pyi", package.name) for package in reversed(PACKAGES)]
    return {
        f"{module}.{name}": f"{page}.{name}"
        for stub, page in pages
        if stub.exists()
        for module, name in stub_names(stub)
    }


def members(tree: ast.AST, prefix: str) -> Iterator[str]:
    """The classes, functions and assigned names of a module or class, with their members."""
    for node in getattr(tree, "body", []):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield f"{prefix}.{node.name}"
            yield from members(node, f"{prefix}.{node.name}")
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (f"{prefix}.{name.id}" for name in targets if isinstance(name, ast.Name))
        elif isinstance(node, ast.TypeAlias if hasattr(ast, "TypeAlias") else ()):
            yield f"{prefix}.{node.name.id}"


@cache
def defined_names() -> frozenset[str]:
    """All that our packages define, and every last part of such a name."""
    found: set[str] = set()
    for package in PACKAGES:
        for file in package.rglob("*.py"):
            parts = file.relative_to(package.parent).with_suffix("").parts
            module = ".".join(part for part in parts if part != "__init__")
            found.update((module, *members(ast.parse(file.read_text(encoding="utf-8")), module)))
    words = (name.split(".") for name in found)
    return frozenset(".".join(word[i:]) for word in words for i in range(len(word)))


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, text: Element
) -> Element | None:
    """Find the one public object that a name can mean; an internal name stays plain text.

    Such as ``System``, ``Dynamics.update`` or ``implicitcore.root_solvers.anderson.Anderson``.
    """
    if node.get("refdomain") != "py":
        return None
    domain, target = env.get_domain("py"), node["reftarget"]
    short = target.removeprefix("implicitcore.").removeprefix("extend.")
    matches = [public_names()[target]] if target in public_names() else []
    matches += [name for name, *_ in domain.get_objects() if name.endswith(f".{short}")]
    if len(set(matches)) > 1:  # a plugin has a class of the same name: the core's is meant
        matches = [name for name in matches if name.startswith("implicitcore.")]
    for match in matches:
        found = domain.resolve_xref(env, node["refdoc"], app.builder, "obj", match, node, text)
        if found is not None:
            return found
    return text if target in defined_names() or short in defined_names() else None


def forget_aliases(app: Sphinx, env: BuildEnvironment) -> None:
    """Keep the public names alone: Sphinx adds the module that defines each as a second one."""
    objects = env.get_domain("py").data["objects"]
    for name in [name for name, entry in objects.items() if entry.aliased]:
        del objects[name]


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the functions above."""
    app.connect("env-check-consistency", forget_aliases)
    app.connect("missing-reference", resolve)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
