"""Settings of the documentation: Sphinx, MyST and furo.

`make docs` builds it with every warning an error. The site works from a folder, without a network:
formulas are MathML, and no page asks for a script, style or picture from elsewhere.
"""

import sys
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "implicitcore"
author = "implicitcore contributors"
project_copyright = author

extensions = [
    "mathml",
    "public_names",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
html_theme = "furo"
html_title = "implicitcore"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_search_summary = False  # a page opened from a folder may not read others
myst_enable_extensions = ["colon_fence", "dollarmath"]
exclude_patterns = ["_extensions", "examples", "gallery/**/*.ipynb", "gallery/**/*.py"]

# IMPLICITCORE_GALLERY=small trains less, for a test.
sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "filename_pattern": "plot_",
    "download_all_examples": False,
    "show_signature": False,
    "abort_on_example_error": True,
    "copyfile_regex": r"(?!)",
    "capture_repr": (),
    "min_reported_time": 1e9,
    "write_computation_times": False,  # a page that asks for scripts from elsewhere
}

# The pages of docs/reference say by hand what is public; the tables of names are made from them.
autosummary_generate = False
autodoc_default_options = {"show-inheritance": True}
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
        r"(abc|argparse|collections|dataclasses|enum|functools|inspect|os|pathlib|typing|unittest|"
        r"click|matplotlib|numpy|pluggy|pydantic|rich|scipy|torch|nn)(\..*)?",
    ),
    # The same, as a docstring or an import for type checkers has them.
    (
        "py:class",
        r"Any|ArgumentParser|Axes|Callable|Command|Console|Iterable|Iterator|Mapping|Module|"
        r"Path|ProcessGroup|Sequence|SummaryWriter|Tensor",
    ),
    # A private class, which has no page: a base or an argument of one that has.
    ("py:(class|exc)", r"(.*\.)?_[A-Z]\w*"),
    # A type variable, which autodoc does not describe.
    (
        "py:.*",
        r"implicitcore\.((root|ode)_solvers\.step(wise|per)|gradients\.checkpoints)\.State|"
        r"(implicitcore\.layers\.options\.)?Value",
    ),
    # TorchDEQ's options, which their function describes, and the alias of a weight's function.
    ("py:class", r"(implicitcore\.compat\.torchdeq\.(settings|loss)\.)?(Settings|WeightFunction)"),
    # The words that a finding's cause is one of.
    ("py:class", r"(implicitcore_lab\.diagnosis\.record\.)?Cause"),
    # The bounds of an annotation, and what other distributions define.
    ("py:class", r"(gt|ge|lt|le)=.*|(annotated_types|pytorch_lightning|_thread)\..*"),
]


def whole_first_line(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Keep napoleon from reading the start of a property's docstring as its type."""
    if what in {"attribute", "data", "property"}:
        lines[:0] = ["..", ""]  # an empty comment


def setup(app: Sphinx) -> None:
    """Connect the function above."""
    app.connect(
        "autodoc-process-docstring", whole_first_line, priority=400
    )  # napoleon comes at 500
