"""A pytest plugin that runs the files of the tests, and the tests of each file, in an order drawn with ``ORDER_SEED``."""

from __future__ import annotations

import os
import random

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """
    File by file, so that what a file prepares for all of its tests is prepared once.

    :param items: the collected tests, reordered in place
    """
    draws = random.Random(int(os.environ.get("ORDER_SEED", "0")))
    files = sorted({item.path for item in items})
    draws.shuffle(files)
    draws.shuffle(items)
    items.sort(key=lambda item: files.index(item.path))
