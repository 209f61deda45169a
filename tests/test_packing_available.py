"""Packed weights work wherever PyTorch has the libraries: the other tests of them skip where they do not."""

from __future__ import annotations

import pytest
import torch as th

from sb3_ezm.runtime.packing import can_pack


@pytest.mark.skipif(not (th.backends.mkl.is_available() and th.backends.mkldnn.is_available()), reason="needs MKL and oneDNN")
def test_packing_works_wherever_its_libraries_are() -> None:
    assert can_pack(th.float32)
