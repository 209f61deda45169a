"""A pytest plugin that shuffles the test files, and the tests in each file, with ``ORDER_SEED``."""

from __future__ import annotations

import os
import random

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """
    Shuffle file by file, so that each file's shared fixtures are set up once.

    :param items: the collected tests, reordered in place
    """
    draws = random.Random(int(os.environ.get("ORDER_SEED", "0")))
    files = sorted({item.path for item in items})
    draws.shuffle(files)
    draws.shuffle(items)
    items.sort(key=lambda item: files.index(item.path))
