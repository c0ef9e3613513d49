"""Formulas as MathML, converted when the pages are built: a browser needs no script for them.

What the converter does not know it would pass through as text; here it is an error of the build.
"""

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

logger = logging.getLogger(__name__)


def mathml(latex: str, display: str, node: nodes.Node) -> str:
    """The formula as an element <math>; a warning where a command is not known."""
    found = convert(latex.strip(), display=display)
    unknown = sorted({*re.findall(r"\\[A-Za-z]+", found), *re.findall("linebreak", found)})
    if unknown:
        logger.warning("latex2mathml does not know %s", ", ".join(unknown), location=node)
    return found


def visit_inline(self: HTML5Translator, node: nodes.math) -> None:
    """Write a formula within a line."""
    self.body.append(mathml(node.astext(), "inline", node))
    raise nodes.SkipNode


def visit_block(self: HTML5Translator, node: nodes.math_block) -> None:
    """Write a formula on a line of its own."""
    self.body.append(self.starttag(node, "div", CLASS="math"))
    self.body.append(mathml(node.astext(), "block", node))
    self.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer, which ``html_math_renderer`` names."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
