"""Scalars as categorical distributions: the transform, two-hot targets, decoding and the loss."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch as th
from hypothesis import given

from sb3_ezm.model.supports import CategoricalSupport, squash, unsquash
from tests.test_world_model import small_model

# H(x) = sign(x) (sqrt(|x| + 1) - 1) + 0.001 x where the root is easy to compute.
BY_HAND = [
    (0.0, 0.0),
    (3.0, 1.003),  # sqrt(4) - 1 + 0.003
    (-3.0, -1.003),
    (8.0, 2.008),
    (-15.0, -3.015),
    (24.0, 4.024),
    (99.0, 9.099),
    (1.0, 0.415214),  # 0.414214 + 0.001
    (0.5, 0.225245),  # 1.224745 - 1 + 0.0005
    (299.0, 16.619508),  # 17.320508 - 1 + 0.299
    (20.0, 3.602576),  # 4.582576 - 1 + 0.02
]


@pytest.mark.parametrize(("x", "y"), BY_HAND)
def test_transform_and_inverse_by_hand(x: float, y: float) -> None:
    exact = squash(th.tensor(x, dtype=th.float64))
    assert exact.item() == pytest.approx(y, abs=6e-7)  # y is rounded to six digits
    assert unsquash(exact).item() == pytest.approx(x, rel=1e-12, abs=1e-12)
    # float32 has seven digits, and processors differ in the last.
    assert squash(th.tensor(x)).item() == pytest.approx(y, rel=1e-5, abs=1e-5)
    assert unsquash(th.tensor(y)).item() == pytest.approx(x, rel=3e-5, abs=3e-5)


def test_inverse_is_the_textbook_formula() -> None:
    y = th.linspace(-60.0, 60.0, 1001, dtype=th.float64)
    root = (th.sqrt(1.0 + 4e-3 * (y.abs() + 1.0 + 1e-3)) - 1.0) / 2e-3
    th.testing.assert_close(unsquash(y), th.sign(y) * (root**2 - 1.0), rtol=1e-10, atol=1e-10)


def test_float32_keeps_its_precision_everywhere() -> None:
    # Within a few units in the last place (1.2e-7), for values in the thousands as well as for rewards of a millionth. The
    # textbook form loses the fifth digit in the thousands, and all digits below 1e-4.
    near = th.logspace(-8, math.log10(3000.0), 20_001)
    x = th.cat((-near.flip(0), th.zeros(1), near))
    assert ((unsquash(squash(x)) - x).abs() <= 3e-6 * x.abs()).all()
    exact = squash(x.double())
    assert ((squash(x).double() - exact).abs() <= 1e-6 * exact.abs()).all()


def test_transform_is_odd_and_increasing() -> None:
    x = th.linspace(-3000.0, 3000.0, 20_001, dtype=th.float64)
    assert th.equal(squash(-x), -squash(x)) and (squash(x).diff() > 0).all()
    assert th.equal(unsquash(-x), -unsquash(x)) and (unsquash(x).diff() > 0).all()


def test_atoms_of_the_paper() -> None:
    # Range 299 with 51 atoms: H(299) = 16.6195, spacing 2 * 16.6195 / 50 = 0.66478, the 26th atom is zero.
    support = CategoricalSupport(299.0, 51)
    atoms = support.atoms
    assert atoms.shape == (51,) and atoms[25] == 0.0
    assert [atoms[-1].item(), atoms[0].item()] == pytest.approx([16.6195, -16.6195], abs=1e-4)
    th.testing.assert_close(atoms.diff(), th.full((50,), 0.66478), rtol=0.0, atol=3e-5)


@pytest.mark.parametrize(
    ("limit", "num_atoms", "x", "expected"),
    [
        # Limit 3, three atoms: -1.003, 0, 1.003.
        (3.0, 3, 0.0, [0.0, 1.0, 0.0]),
        (3.0, 3, 3.0, [0.0, 0.0, 1.0]),
        (3.0, 3, -3.0, [1.0, 0.0, 0.0]),
        (3.0, 3, 1.0, [0.0, 0.586028, 0.413972]),  # 0.415214 / 1.003
        (3.0, 3, -0.5, [0.224571, 0.775429, 0.0]),  # 0.225245 / 1.003
        (3.0, 3, 1e6, [0.0, 0.0, 1.0]),  # beyond the limit: the outermost atom
        (3.0, 3, -3.1, [1.0, 0.0, 0.0]),
        # Limit 8, five atoms with spacing 2.008 / 2 = 1.004: 1.003 lies 0.001 below the fourth.
        (8.0, 5, 3.0, [0.0, 0.0, 0.000996, 0.999004, 0.0]),
        (8.0, 5, -3.0, [0.0, 0.999004, 0.000996, 0.0, 0.0]),
    ],
)
def test_two_hot_by_hand(limit: float, num_atoms: int, x: float, expected: list[float]) -> None:
    encoded = CategoricalSupport(limit, num_atoms).encode(th.tensor([x]))
    assert encoded.shape == (1, num_atoms)
    assert encoded[0].tolist() == pytest.approx(expected, abs=1e-5)


@given(st.floats(0.01, 1e4), st.integers(1, 150), st.lists(st.floats(-2e4, 2e4, width=32), min_size=1, max_size=20))
def test_two_hot_is_a_distribution_on_two_neighbors_with_the_right_mean(limit: float, half: int, xs: list[float]) -> None:
    support, x = CategoricalSupport(limit, 2 * half + 1), th.tensor(xs)
    encoded = support.encode(x)
    assert encoded.min() >= 0.0 and encoded.max() <= 1.0
    th.testing.assert_close(encoded.sum(dim=-1), th.ones(len(xs)))
    for row in encoded:
        used = row.nonzero().flatten().tolist()
        assert len(used) == 1 or (len(used) == 2 and used[1] == used[0] + 1)
    mean = (encoded * support.atoms).sum(dim=-1)
    bound = support.atoms[-1].item()
    th.testing.assert_close(mean, squash(x.clamp(-limit, limit)), rtol=1e-5, atol=1e-5 * bound)


@pytest.mark.parametrize(("limit", "num_atoms"), [(299.0, 51), (300.0, 51), (20.0, 51), (2000.0, 201)])
def test_encode_then_decode(limit: float, num_atoms: int) -> None:
    support, x = CategoricalSupport(limit, num_atoms), th.linspace(-limit, limit, 4001)
    decoded = support.decode(th.log(support.encode(x)))  # log 0 = -inf is a legal logit
    # Weights are exact to some 1e-5 of the spacing; dx/dH = 2 sqrt(x + 1) at most.
    th.testing.assert_close(decoded, x, rtol=2e-4, atol=3e-5 * limit)
    assert support.encode(x).min() == 0.0  # no weight below zero, not even by rounding at the limits


def test_decode_by_hand() -> None:
    # Atoms -1.003, 0, 1.003 with 1/4, 1/4, 1/2: y = 0.25075. t = y / (1.002 + 0.001 t) = 0.250187, x = t (t + 2) = 0.562968.
    support = CategoricalSupport(3.0, 3)
    logits = th.log(th.tensor([[0.25, 0.25, 0.5], [1.0, 1.0, 1.0]]))
    decoded = support.decode(logits)
    assert decoded.tolist() == pytest.approx([0.562968, 0.0], abs=1e-5)  # a uniform distribution is symmetric
    th.testing.assert_close(support.decode(logits + 7.0), decoded)  # logits are free up to a constant


def test_cross_entropy_by_hand() -> None:
    # Target of 1: 0.586028 and 0.413972 on atoms 1 and 2; prediction 1/4, 1/4, 1/2:
    # 0.586028 ln 4 + 0.413972 ln 2 = (2 * 0.586028 + 0.413972) * 0.693147 = 1.099350.
    support = CategoricalSupport(3.0, 3)
    loss = support.cross_entropy(th.log(th.tensor([[0.25, 0.25, 0.5]])), th.tensor([1.0]))
    assert loss.shape == (1,) and loss.item() == pytest.approx(1.099350, abs=1e-5)


def test_cross_entropy_gradient_vanishes_at_the_target_only() -> None:
    support, x = CategoricalSupport(20.0, 11), th.tensor([-7.0, 0.3, 0.0, 19.0])
    target = support.encode(x)
    at_target = th.log(target.clamp(min=1e-12)).requires_grad_()
    support.cross_entropy(at_target, x).sum().backward()
    assert at_target.grad is not None and at_target.grad.abs().max() < 1e-5
    elsewhere = th.randn(4, 11, generator=th.Generator().manual_seed(0)).requires_grad_()
    support.cross_entropy(elsewhere, x).sum().backward()
    th.testing.assert_close(elsewhere.grad, (th.softmax(elsewhere, dim=-1) - target).detach())


def test_saturation_counts_what_lies_beyond() -> None:
    support = CategoricalSupport(3.0, 3)
    assert support.saturation(th.tensor([[0.0, 3.0], [-3.0, 2.9]])).item() == 0.0
    assert support.saturation(th.tensor([[3.01, 3.0], [-100.0, 2.9]])).item() == 0.5


def test_leading_shapes_are_kept() -> None:
    support, x = CategoricalSupport(20.0, 7), th.randn(2, 3, 4, generator=th.Generator().manual_seed(0))
    encoded = support.encode(x)
    assert encoded.shape == (2, 3, 4, 7)
    assert support.decode(encoded).shape == support.cross_entropy(encoded, x).shape == (2, 3, 4)
    th.testing.assert_close(support.encode(x[1, 2]), encoded[1, 2])


def test_decoding_and_loss_stay_in_float32_under_autocast() -> None:
    support = CategoricalSupport(300.0, 51)
    generator = th.Generator().manual_seed(0)
    logits, x = 3.0 * th.randn(64, 51, generator=generator), 100.0 * th.randn(64, generator=generator)
    with th.autocast("cpu", dtype=th.bfloat16):
        decoded, loss = support.decode(logits), support.cross_entropy(logits, x)
    assert decoded.dtype == loss.dtype == th.float32
    assert th.equal(decoded, support.decode(logits)) and th.equal(loss, support.cross_entropy(logits, x))
    rounded = logits.bfloat16()  # as returned by a network under autocast
    assert support.decode(rounded).dtype == th.float32
    assert th.equal(support.decode(rounded), support.decode(rounded.float()))


def test_atoms_follow_their_model_at_once() -> None:
    model = small_model()
    supports = (model.reward_support, model.value_support)
    assert all(support.atoms.device.type == "cpu" for support in supports)
    assert model.to("meta") is model
    assert all(support.atoms.device.type == "meta" for support in supports)
