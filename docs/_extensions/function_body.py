"""
The directive ``function-body``: the code of a function without its docstring, with a link to its documentation.

    ```function-body
    sb3_ezm.targets.n_step_targets
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
    :param source: of one function or class
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
        block = nodes.literal_block(code, code, language="python")
        private = any(part.startswith("_") for part in dotted.split(".")) and not dotted.endswith("__call__")
        link, messages = self.parse_inline(f"``{dotted}``" if private else f":py:obj:`{dotted}`")
        return [nodes.paragraph("", "", *link), *messages, block]


def setup(app: Any) -> dict[str, bool]:
    """
    :param app: Sphinx
    :return: properties of this extension
    """
    app.add_directive("function-body", FunctionBody)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
