"""Names of a package that are imported on first use (PEP 562): ``ezm --help`` need not wait for PyTorch."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """
    Make ``__getattr__`` and ``__dir__`` for a package. Its submodules are found as well, as if it had imported them.

    :param package: the package's ``__name__``
    :param modules: dotted module of each public name
    :return: the two functions
    """

    def get(name: str) -> Any:
        """A public name of the package, or one of its modules."""
        if name in modules:
            value = getattr(importlib.import_module(modules[name]), name)
            setattr(sys.modules[package], name, value)  # the next access does not get here
            return value
        if not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}") is not None:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def names() -> list[str]:
        """What ``dir`` shows."""
        return sorted({*vars(sys.modules[package]), *modules})

    return get, names
