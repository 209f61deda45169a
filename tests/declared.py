"""
Read the requirements from ``setup.cfg`` and the source folders from the Makefile. Run as a program, it prints the lower bounds
as pins for ``pip install -c``: ``python tests/declared.py torch==2.13.0``, where arguments replace bounds.
"""

from __future__ import annotations

import configparser
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?:\[[\w,.-]+\])?(?P<versions>[^;]*)")


def normalized(name: str) -> str:
    """
    :param name: name of a distribution, e.g. ``rl_zoo3``
    :return: the normalized name, e.g. ``rl-zoo3`` (PEP 503)
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements() -> dict[str, dict[str, str]]:
    """
    :return: version specifiers by normalized name, for each extra and for ``""`` (always installed)
    """
    config = configparser.ConfigParser(inline_comment_prefixes=("#",))
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    groups = {"": config["options"]["install_requires"], **config["options.extras_require"]}
    return {
        extra: {
            normalized(match["name"]): match["versions"].strip()
            for line in text.split("\n")
            if (match := REQUIREMENT.match(line.strip()))
        }
        for extra, text in groups.items()
    }


def lowest_pins(replaced: list[str]) -> list[str]:
    """
    :param replaced: pins that replace a bound, e.g. ``torch==2.13.0``
    :return: a pin for each requirement that has a lower bound
    """
    pins = {}
    for group in requirements().values():
        for name, versions in group.items():
            if match := re.search(r">=([\w.]+)", versions):
                pins[name] = f"{name}=={match[1]}"
    pins |= {normalized(pin.split("==")[0]): pin for pin in replaced}
    return sorted(pins.values())


def linted_folders() -> list[str]:
    """
    :return: the source folders, from ``LINT_PATHS`` in the Makefile
    """
    listed = re.search(r"^LINT_PATHS := \$\(wildcard (.*)\)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert listed is not None
    return [name for name in listed[1].split() if "." not in name]


if __name__ == "__main__":
    print("\n".join(lowest_pins(sys.argv[1:])))
