"""One product at a time, in every format and build: right to the last bits of float32, and blind to its neighbours."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from deepwell.lm.engine.native.library import Batch, Library
from deepwell.lm.engine.native.panels import Format, panels
from deepwell.lm.engine.native.program import Program, Rows
from deepwell.lm.precision.integers import GROUP, quantise
from deepwell.lm.weights.quantising import padded_quantise

FORMATS: tuple[Format, ...] = ("f32", "bf16", "int8", "int4")
SHAPES = [(1, 1), (16, 32), (17, 31), (40, 64), (33, 77), (7, 200), (64, 33)]
"""Outputs and inputs."""


class Product:
    """A matrix as an operation over the rows of wider memory."""

    def __init__(self, weight: Tensor, format: Format, bias: Tensor | None = None, *, add: bool = False) -> None:
        self.outputs, self.inputs = weight.shape
        self.rows = Rows(400)
        self.x = self.rows("x", self.inputs + 5)[:, 3 : 3 + self.inputs]
        self.wide = self.rows("y", self.outputs + 9)
        self.y = self.wide[:, 4 : 4 + self.outputs]
        self.program = Program(self.rows)
        self.program.linear(self.x, panels([weight], format, [bias]), self.y, add=add)

    def __call__(self, library: Library, x: Tensor, threads: int = 1, before: float = 0.0) -> Tensor:
        """The product of rows ``x`` [n, in]; what stands beside the outputs must stay."""
        self.wide.fill_(7.5)
        self.y.fill_(before)
        self.x[: len(x)] = x
        self.program.run(library, Batch(rows=len(x), threads=threads))
        assert bool((self.wide[:, :4] == 7.5).all() and (self.wide[:, 4 + self.outputs :] == 7.5).all())
        assert bool((self.y[len(x) :] == before).all())
        return self.y[: len(x)].clone()


def rounded_inputs(x: Tensor, most: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """[n, in] -> integers [n, groups, 32] and their scales [n, groups], as ``inputs.c`` says."""
    groups = -(-x.shape[1] // GROUP)
    wide = np.zeros((len(x), groups * GROUP), np.float32)
    wide[:, : x.shape[1]] = x.numpy()
    wide = wide.reshape(len(x), groups, GROUP)
    top = np.abs(wide).max(-1)
    inverse = np.divide(np.float32(most), top, out=np.zeros_like(top), where=top > 0)
    return np.rint(wide * inverse[..., None]).astype(np.int64), (top / np.float32(most)).astype(np.float32)


def emulated(weight: Tensor, x: Tensor, format: Format) -> tuple[NDArray[Any], NDArray[Any]]:
    """What integer products come to, [n, out] in float64, and the size of what was added up."""
    bits, most = (8, 32767) if format == "int8" else (4, 127)
    matrix = padded_quantise(weight.float(), bits, where="w")
    q = matrix.values.numpy().astype(np.int64).reshape(len(weight), -1, GROUP)
    a, scales = rounded_inputs(x, most)
    whole = np.einsum("ngk,ogk->nog", a, q).astype(np.float64)
    parts = whole * matrix.scales.double().numpy()[None] * scales.astype(np.float64)[:, None]
    if matrix.minima is not None:
        sums = a.sum(-1) * scales.astype(np.float64)
        low = matrix.minima.double().numpy()[None] * sums[:, None]
        return (parts + low).sum(-1), (np.abs(parts) + np.abs(low)).sum(-1)
    return parts.sum(-1), np.abs(parts).sum(-1)


def check(found: Tensor, weight: Tensor, x: Tensor, format: Format) -> None:
    """Within float32's error of the exact value."""
    if format in ("f32", "bf16"):
        held = weight.bfloat16() if format == "bf16" else weight
        wanted = (x.double() @ held.double().t()).numpy()
        size = (x.double().abs() @ held.double().abs().t()).numpy()
    else:
        wanted, size = emulated(weight, x, format)
    assert np.isfinite(wanted).all()
    assert (np.abs(found.double().numpy() - wanted) <= 1e-6 * size + 1e-37).all()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_what_the_format_says(shape: tuple[int, int], format: Format, library: Library) -> None:
    torch.manual_seed(sum(shape))
    weight = torch.randn(shape) * torch.rand(shape[0], 1).exp()
    product = Product(weight, format)
    for count in (1, 2, 3, 4, 5, 6, 7, 13, 50):
        x = torch.randn(count, shape[1]) * torch.rand(count, 1).exp() ** 3
        check(product(library, x), weight, x, format)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", [(17, 31), (100, 96)], ids=str)
def test_a_row_has_the_same_bits_in_any_company(shape: tuple[int, int], format: Format, library: Library) -> None:
    weight, bias = torch.randn(shape), torch.randn(shape[0])
    product = Product(weight, format, bias)
    x = torch.randn(390, shape[1])  # more than are taken at once
    alone = torch.cat([product(library, row[None]) for row in x[:60]])
    for count in (2, 3, 4, 5, 6, 7, 13, 50, 390):
        for threads in (1, 2, 3):
            together = product(library, x[:count], threads)
            assert torch.equal(together[:60], alone[:count])
    assert torch.equal(product(library, x[50:])[:10], alone[50:])


@pytest.mark.parametrize("format", FORMATS)
def test_more_inputs_than_a_cache_holds_are_taken_in_turns(format: Format, library: Library) -> None:
    """Rows at a time are as many as fit into half of an L2, and 48 at least."""
    weight = torch.randn(33, 2100)
    product = Product(weight, format)
    x = torch.randn(150, 2100)
    found = product(library, x, 2)
    check(found, weight, x, format)
    assert torch.equal(found[140:], torch.cat([product(library, row[None]) for row in x[140:]]))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("outputs", [16, 21])
def test_bias_and_what_is_there_are_added(outputs: int, format: Format, library: Library) -> None:
    weight, bias, x = torch.randn(outputs, 40), torch.randn(outputs), torch.randn(5, 40)
    plain = Product(weight, format)(library, x)
    biased = Product(weight, format, bias)(library, x, before=3.0)
    torch.testing.assert_close(biased, plain + bias)
    added = Product(weight, format, bias, add=True)(library, x, 2, before=3.0)
    torch.testing.assert_close(added, plain + bias + 3.0)


@pytest.mark.parametrize("format", ["f32", "bf16"])
def test_heads_stand_side_by_side(format: Format, library: Library) -> None:
    heads, outputs, inputs, count = 5, 19, 12, 13
    weights = [torch.randn(outputs, inputs) for _ in range(heads)]
    rows = Rows(16)
    x, y = rows("x", heads * 20), rows("y", heads * 24)
    program = Program(rows)
    program.heads(x[:, 8:], 20, panels(weights, format), y, 24)
    for threads in (1, 3):
        x.copy_(torch.randn(x.shape))
        y.fill_(7.5)
        program.run(library, Batch(rows=count, threads=threads))
        for head, weight in enumerate(weights):
            check(y[:count, 24 * head :][:, :outputs], weight, x[:count, 20 * head + 8 :][:, :inputs], format)
        assert bool((y[:count].unflatten(1, (heads, 24))[..., outputs:] == 7.5).all())


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_tiny_and_huge_inputs(format: Format, library: Library) -> None:
    weight = torch.randn(20, 70)
    product = Product(weight, format)
    assert not product(library, torch.zeros(6, 70)).any()
    for scale in (1e-30, 1e30):
        x = torch.randn(6, 70) * scale
        x[:, :32] *= 1e-3  # groups of different sizes
        check(product(library, x), weight, x, format)
    assert product(library, torch.full((6, 70), 1e-44)).abs().max() < 1e-36  # too small for a scale
    assert product(library, torch.zeros(0, 70)).shape == (0, 20)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("wrong", [torch.nan, -torch.nan, torch.inf])
def test_a_broken_row_is_seen_and_breaks_no_other(wrong: float, format: Format, library: Library) -> None:
    weight = torch.randn(20, 70)
    product = Product(weight, format)
    x = torch.randn(7, 70)
    whole = product(library, x)
    x[3, 40] = wrong
    for count in (4, 7):
        found = product(library, x[:count])
        assert not found[3].isfinite().any()
        others = [row for row in range(count) if row != 3]
        assert torch.equal(found[others], whole[others])


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_at_the_ends_of_their_range_do_not_overflow(bits: int, library: Library) -> None:
    """All of them as large as they get, and inputs too, in both signs."""
    weight = torch.ones(32, 64)
    weight[:, ::2] *= torch.where(torch.arange(32) % 2 == 0, 1.0, -1.0)[:, None]
    weight[:, 1::32] = 0.0
    x = torch.stack([torch.ones(64), -torch.ones(64), weight[1], -weight[1]])
    format: Format = "int8" if bits == 8 else "int4"
    product = Product(weight, format)
    check(product(library, x), weight, x, format)
    check(product(library, x.repeat(3, 1)), weight, x.repeat(3, 1), format)
    assert product.program.weight_bytes == quantise(weight, bits).bytes


def test_builds_agree_about_integers() -> None:
    """Sums of integers are exact; only float32's fused multiplication differs between builds."""
    from deepwell.lm.engine.native.library import built

    if len(built()) < 2 or not built()["generic"].suits:
        pytest.skip("there are not two builds that run here")
    weight, x = torch.randn(40, 100), torch.randn(9, 100)
    for format in FORMATS:
        product = Product(weight, format)
        one, other = (product(library, x) for library in built().values())
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_random_products(library: Library) -> None:
    """Any shape, format, number of rows and threads."""

    @settings(max_examples=60, deadline=None, database=None, derandomize=True)
    @given(
        outputs=st.integers(1, 70), inputs=st.integers(1, 140), count=st.integers(1, 30), threads=st.integers(1, 4),
        format=st.sampled_from(FORMATS), scale=st.sampled_from([1e-20, 1e-3, 1.0, 1e9]), seed=st.integers(0, 99),
    )  # fmt: skip
    def check_one(outputs: int, inputs: int, count: int, threads: int, format: Format, scale: float, seed: int) -> None:
        torch.manual_seed(seed)
        weight, x = torch.randn(outputs, inputs), torch.randn(count, inputs) * scale
        x[torch.rand(x.shape) < 0.3] = 0.0
        product = Product(weight, format)
        found = product(library, x, threads)
        check(found, weight, x, format)
        assert torch.equal(product(library, x[-1:])[0], found[-1])

    check_one()
