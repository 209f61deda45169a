"""
Inventories for ``sphinx.ext.intersphinx`` from short lists in text, instead of files from other projects' sites.

The first line of ``_inventories/<project>.txt`` is the address of its pages. Each further line is a role, a name and an
address relative to that, in which ``$`` stands for the name. Several names may share an address.
"""

from __future__ import annotations

import zlib
from pathlib import Path

HEADER = """\
# Sphinx inventory version 2
# Project: {project}
# Version:
# The remainder of this file is compressed using zlib.
"""


def compile_all(source: Path, target: Path) -> dict[str, tuple[str, str]]:
    """
    :param source: folder of the lists
    :param target: folder for the inventories
    :return: what ``intersphinx_mapping`` must be
    :raises ValueError: if a line is not a role, a name and an address
    """
    mapping = {}
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("*.txt")):
        address, *lines = path.read_text(encoding="utf-8").split("\n")
        entries = []
        for line in lines:
            if not line:
                continue
            role, name, uri = line.split()
            entries.append(f"{name} py:{role} 1 {uri.replace('$', name)} -\n")
        inventory = target / f"{path.stem}.inv"
        inventory.write_bytes(HEADER.format(project=path.stem).encode() + zlib.compress("".join(entries).encode()))
        mapping[path.stem] = (address, str(inventory))
    return mapping
