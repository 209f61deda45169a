"""A pytest plugin for machines that ought to run everything: a test may be skipped only for a reason listed here."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

KNOWN = (
    "PyTorch finds no CUDA device",
    "could not import 'jax'",  # a comparison with mctx, in the benchmarks only
    "needs Weights & Biases",
    "EnvPool",  # has no wheels for every Python
    "`humanoid_bench` is not installed",  # is not on PyPI
    "rliable is not installed",  # a comparison of our intervals with its
    "root may write everywhere",
    "this CPU has no products in bfloat16",
    "MuJoCo cannot draw here",
    "oneDNN's packed products are not available",  # processors without AVX2
)
_KNOWN = re.compile("|".join(map(re.escape, KNOWN)))


def _judge(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip for another reason into a failure."""
    if not report.skipped or hasattr(report, "wasxfail") or _KNOWN.search(str(report.longrepr)):
        return
    report.longrepr = f"skipped for a reason that tests/known_skips.py does not list: {report.longrepr}"
    report.outcome = "failed"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Judge the report of every phase of a test, once all other plugins have made it."""
    report = yield
    _judge(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    """Judge files that are skipped as a whole."""
    report = yield
    _judge(report)
    return report
