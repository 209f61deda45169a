"""
The directive ``function-body``: the code of a function without its docstring, with a link to its documentation.

    ```function-body
    sb3_ezm.learning.targets.n_step_targets
    ```

Where the page is read as plain Markdown the block shows the function's name. A name that does not exist fails the build.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.util.docutils import SphinxDirective


def find(dotted: str) -> Any:
    """
    :param dotted: name of a function, or of a method with its class
    :return: the object
    :raises LookupError: if there is none
    """
    parts = dotted.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            if not hasattr(found, part):
                break
            found = getattr(found, part)
        else:
            return found
    raise LookupError(f"there is no {dotted}")


def without_docstring(source: str) -> str:
    """
    :param source: source of one function or class
    :return: the same without its docstring
    """
    source = textwrap.dedent(source)
    definition = ast.parse(source).body[0]
    if not isinstance(definition, ast.FunctionDef | ast.ClassDef):
        raise LookupError(f"{source.splitlines()[0]} is no function")
    lines = source.splitlines()
    if ast.get_docstring(definition) is not None:
        docstring = definition.body[0]
        assert docstring.end_lineno is not None
        del lines[docstring.lineno - 1 : docstring.end_lineno]
    return "\n".join(lines)


class FunctionBody(SphinxDirective):
    """See the module."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """
        :return: a paragraph with a link, and the code
        """
        dotted = "".join(self.content).strip()
        try:
            code = without_docstring(inspect.getsource(inspect.unwrap(find(dotted))))
        except (LookupError, OSError, TypeError) as error:
            raise self.error(f"function-body: {error}") from error
        return [nodes.paragraph("", "", self.link(dotted)), nodes.literal_block(code, code, language="python")]

    def link(self, dotted: str) -> nodes.Node:
        """
        :param dotted: name of a function
        :return: a reference to its documentation (of a special method: to its class), or only the name of a private one
        """
        name = nodes.literal(dotted, dotted, classes=["xref", "py"])
        target = dotted.removesuffix(".__call__")
        if any(part.startswith("_") for part in target.split(".")):
            return name
        return addnodes.pending_xref(
            "", name, refdomain="py", reftype="obj", reftarget=target, refexplicit=True, refwarn=True, refdoc=self.env.docname
        )


def setup(app: Any) -> dict[str, bool]:
    """
    :param app: Sphinx
    :return: properties of this extension
    """
    app.add_directive("function-body", FunctionBody)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
