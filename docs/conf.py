"""Sphinx: the Markdown pages of this folder and the API from the docstrings. ``make docs`` builds them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_extensions")]

import inventories  # noqa: E402

project = "sb3-ezm"
author = "sb3-ezm authors"
copyright = "sb3-ezm authors"
release = version = (ROOT / "sb3_ezm" / "version.txt").read_text(encoding="utf-8").strip()

extensions = [
    "myst_nb",  # Markdown by myst_parser, and notebooks
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "function_body",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_extensions", "_inventories", "_static", "_templates"]
html_theme = "furo"
html_title = f"sb3-ezm {release}"
html_static_path = ["_static"]
# The site must be complete without a network: MathJax is part of it, in one file with its fonts.
mathjax_path = "mathjax/tex-svg.js"

# The notebook runs while the pages are built, and again only when it changes.
nb_execution_mode = "cache"
nb_execution_cache_path = str(ROOT / "docs" / "_build" / "notebooks")
nb_execution_in_temp = True
nb_execution_timeout = 1800  # seconds for a cell, beside other programs; alone the notebook takes less than a minute
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_output_stderr = "remove"  # progress bars
nb_merge_streams = True
nb_ipywidgets_js: dict[str, Any] = {}  # would come from other servers

# The same pages are read as plain Markdown where the repository is browsed, hence $ for formulas and ordinary links.
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 4  # links to #headings, as on GitHub
myst_fence_as_directive = ["function-body"]  # ```function-body shows as a code block with the function's name elsewhere
# Code blocks with placeholders; links to Markdown outside docs/, which tests/test_docs.py checks like all others.
suppress_warnings = ["misc.highlighting_failure", "myst.xref_missing"]

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"show-inheritance": True}

# Names of other packages that the pages mention, with their addresses, so that building needs no network.
intersphinx_mapping = inventories.compile_all(ROOT / "docs" / "_inventories", ROOT / "docs" / "_build" / "inventories")

# Every reference into the package must resolve; those to other packages without an address are left as text.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!sb3_ezm\.).*"),
    ("py:class", r".*\._\w+"),
    ("py:class", r".*\.(Self\w+|\w+T|R)"),  # type variables
    ("py:data", r".*\.[A-Z0-9_]+"),  # constants are listed only where they have a docstring
]

linkcheck_timeout = 20
linkcheck_retries = 2
linkcheck_anchors = False


def resolve_reexport(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """
    Link ``sb3_ezm.EZM``, or any other name that a package passes on, to where it is defined.

    :param app: Sphinx
    :param env: its build environment
    :param node: the reference that was not found
    :param contnode: what it shows
    :return: a link, or None
    """
    from function_body import find

    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target.startswith("sb3_ezm."):
        return None
    try:
        found = find(target)
    except LookupError:
        return None
    home = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
    domain = env.get_domain("py")
    if home == target or home not in domain.objects:
        return None
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", home, node, contnode)


def link_notes(app: Any, name: str, content: list[str]) -> None:
    """
    Fix links to and from the notes: a page on the site, but a file in ``experiments/`` in the repository.

    :param app: Sphinx
    :param name: of the page
    :param content: its text, changed in place
    """
    content[0] = content[0].replace("](../experiments/NOTES.md", "](notes.md").replace("](../docs/", "](")


def setup(app: Any) -> None:
    """
    :param app: Sphinx
    """
    app.connect("missing-reference", resolve_reexport)
    app.connect("source-read", link_notes)
    app.connect("include-read", lambda app, path, parent, content: link_notes(app, parent, content))
