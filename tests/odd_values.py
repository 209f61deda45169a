"""Values that are never meaningful, or only for some arguments."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch as th

ODD_VALUES: tuple[Any, ...] = (
    *(True, False, None, 0, 1, 2, -1, 1.5, 2.0, -0.5, math.nan, math.inf, -math.inf, 1e12, 1e300, 10**30),
    *("", "false", "adam", "1e-3", b"x", [], [2], (), {}, {"a": 1}, {1: 1}, {2}),
    *(np.int64(3), np.float32(0.5), np.float64(math.nan), np.bool_(True), np.zeros(2), np.array(2), 2j),
    *(th.tensor(2), th.tensor(0.5), th.zeros(2), th.zeros((), device="meta")),
    *(object(), lambda: None, lambda *_: None, int, type, math),
)
