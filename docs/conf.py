"""Settings of the documentation: Sphinx, MyST and furo.

`make docs` builds it with every warning an error.
"""

import os
from pathlib import Path

from docutils.nodes import Element
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

project = "implicitcore"
author = "implicitcore contributors"

extensions = [
    "myst_parser",
    "sphinx.ext.apidoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
html_theme = "furo"
html_title = "implicitcore"
myst_enable_extensions = ["dollarmath"]

# The reference is made anew at each build, a page for each package: a new module needs no line
# here.
_root = Path(__file__).parent.parent
_packages = [_root / "implicitcore", *sorted(_root.glob("plugins/*/implicitcore_*"))]
apidoc_modules = [
    {"path": str(package), "destination": f"api/{package.name}", "module_first": True}
    for package in _packages
]
os.environ["SPHINX_APIDOC_OPTIONS"] = (
    "members,show-inheritance"  # the setting apidoc_automodule_options is ignored for packages
)
exclude_patterns = ["api/*/modules.rst"]  # a table of contents that holds one package only

autodoc_default_options = {
    "ignore-module-all": True
}  # a name is described in the module that defines it, not where it is exported
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_custom_sections = ["Reference"]
napoleon_use_rtype = (
    False  # "Returns: a plain module: it knows ..." is a sentence, not a type with a description
)
# a dataclass describes its fields in its own docstring; they are not members a second time
napoleon_use_ivar = True

# Names of other projects have no target here: the build reads no inventory from the network, so
# that it works offline.
nitpick_ignore_regex = [
    (
        "py:.*",
        r"(abc|collections|dataclasses|enum|functools|inspect|os|pathlib|typing|unittest|"
        r"click|matplotlib|numpy|pluggy|pydantic|rich|scipy|torch|nn)(\..*)?",
    ),
    # The same, as a docstring or an import for type checkers has them.
    (
        "py:class",
        r"Any|Callable|Command|Console|Iterator|Mapping|Module|Path|ProcessGroup|Sequence|"
        r"SummaryWriter|Tensor",
    ),
    # A private class, which has no page: a base or an argument of one that has.
    ("py:(class|exc)", r"(.*\.)?_[A-Z]\w*"),
    # A type variable, which autodoc does not describe.
    (
        "py:.*",
        r"implicitcore\.((root|ode)_solvers\.step(wise|per)|gradients\.checkpoints)\.State|"
        r"(implicitcore\.layers\.options\.)?Value",
    ),
    # The bounds of an annotation, and what other distributions define.
    ("py:class", r"(gt|ge|lt|le)=.*|(annotated_types|pytorch_lightning|_thread)\..*"),
]


def resolve_short_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, text: Element
) -> Element | None:
    """Find the one object that a short name can mean.

    Such as ``System``, ``Dynamics.update`` or ``implicitcore.Anderson``.
    """
    if node.get("refdomain") != "py":
        return None
    domain = env.get_domain("py")
    short = node["reftarget"].removeprefix("implicitcore.").removeprefix("extend.")
    wants_module = node["reftype"] == "mod"  # else `build` is the function, not its module
    matches = [
        name
        for name, _, kind, *_ in domain.get_objects()
        if name.endswith(f".{short}") and (kind == "module") == wants_module
    ]
    if len(matches) > 1:  # a plugin has a class of the same name: the core's is meant
        matches = [name for name in matches if name.startswith("implicitcore.")]
    if len(matches) != 1:
        return None
    return domain.resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], matches[0], node, text
    )


def whole_first_line(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Keep napoleon from reading the start of a property's docstring as its type."""
    if what in {"attribute", "data", "property"}:
        lines[:0] = ["..", ""]  # an empty comment


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    app.connect("missing-reference", resolve_short_name)
    app.connect(
        "autodoc-process-docstring", whole_first_line, priority=400
    )  # napoleon comes at 500
