"""The compiled kernels beside PyTorch's way and beside float64: same results but for rounding, same bits every time."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from deepwell.lm.model.attending import attend
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.cross_entropy import linear_cross_entropy
from deepwell.lm.model.native import calls
from deepwell.lm.model.native.library import library
from deepwell.lm.model.products import grouped_linear, linear
from deepwell.lm.model.rowwise import RMSNorm, swiglu
from deepwell.lm.model.transformer import Transformer

pytestmark = pytest.mark.skipif(library() is None, reason="the kernels were not built, or do not suit this processor")


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def half(*shape: int, times: float = 1.0) -> Tensor:
    return (torch.randn(shape) * times).bfloat16().requires_grad_()


def away(ours: Tensor, expected: Tensor) -> float:
    """The relative distance of two tensors."""
    ours, expected = ours.detach(), expected.detach()
    return float((ours.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30))


def close(ours: list[Tensor], expected: list[Tensor], most: float = 6e-3) -> None:
    for one, other in zip(ours, expected, strict=True):
        assert one.shape == other.shape
        assert away(one, other) < most


def doubles(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


SHAPES = [
    (2, 4, 2, 70, 64, 64),
    (1, 3, 3, 97, 96, 64),
    (1, 2, 1, 200, 32, 16),
    (2, 1, 1, 8, 16, 16),
    (1, 2, 2, 49, 16, 48),
]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention(shape: tuple[int, ...], masked: bool, threads: int) -> None:
    torch.manual_seed(0)
    batch, heads, groups, count, width, valued = shape
    query = half(batch, count, heads, width)
    key, value = half(batch, count, groups, width), half(batch, count, groups, valued)
    mask = None
    if masked:  # packed documents, and a stretch of keys that no query of a block sees
        document = torch.arange(count) // 30
        mask = (document[:, None] == document).tril()[None, None].expand(batch, 1, -1, -1)
    upstream = torch.randn(batch, heads, count, valued).bfloat16()

    def run(query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        turned = [tensor.transpose(1, 2) for tensor in (query, key, value)]
        out = attend(*turned, scale=0.3, causal=mask is None, mask=mask)
        return [out, *torch.autograd.grad(out, (query, key, value), upstream.to(out.dtype))]

    assert calls.suits_attention(*(t.transpose(1, 2) for t in (query, key, value)), causal=not masked)
    ours = run(query, key, value)
    close(ours, run(*doubles(query, key, value)))
    assert all(torch.equal(a, b) for a, b in zip(ours, run(query, key, value), strict=True))


def test_attention_of_fewer_queries_than_keys_needs_a_mask() -> None:
    torch.manual_seed(0)
    query, key, value = half(1, 2, 20, 16), half(1, 2, 50, 16), half(1, 2, 50, 16)
    assert not calls.suits_attention(query, key, value, causal=True)
    mask = torch.ones(20, 50, dtype=torch.bool).tril(30)
    out = attend(query, key, value, scale=0.25, causal=False, mask=mask)
    wide = doubles(query, key, value)
    close([out], [F.scaled_dot_product_attention(*wide, attn_mask=mask, scale=0.25)])


def test_attention_at_large_scores_keeps_float32() -> None:
    """Scores of hundreds: in bf16 they would be off by more than 1, and shares by more than e."""
    torch.manual_seed(0)
    query, key, value = half(1, 1, 64, 64, times=8.0), half(1, 1, 64, 64, times=8.0), half(1, 1, 64, 16)
    out = attend(query, key, value, scale=0.125, causal=True)
    close([out], [F.scaled_dot_product_attention(*doubles(query, key, value), is_causal=True, scale=0.125)])


def test_widths_that_do_not_fit_take_pytorchs_way() -> None:
    assert not calls.suits_attention(half(1, 1, 16, 24), half(1, 1, 16, 24), half(1, 1, 16, 16), causal=True)
    assert not calls.suits_attention(*(half(1, 1, 4, 16) for _ in range(3)), causal=True)
    assert not calls.available(half(4), torch.randn(4))
    assert not calls.available(half(4), half(4).to("meta"))


@pytest.mark.parametrize("width", [5, 16, 37, 576])
def test_norm(width: int, threads: int) -> None:
    torch.manual_seed(0)
    x, weight = half(3, 70, width, times=3.0), torch.randn(width, requires_grad=True)
    upstream = torch.randn(3, 70, width).bfloat16()
    norm = RMSNorm(width, 1e-5)
    norm.weight = torch.nn.Parameter(weight.detach())
    out = norm(x)
    ours = [out, *torch.autograd.grad(out, (x, norm.weight), upstream)]
    wide = doubles(x, weight)
    expected = F.rms_norm(wide[0], (width,), wide[1], 1e-5)
    close(ours, [expected, *torch.autograd.grad(expected, wide, upstream.double())])
    assert ours[2].dtype is torch.float32


def test_gate_with_halves_of_one_tensor(threads: int) -> None:
    torch.manual_seed(0)
    both = half(33, 2 * 37, times=4.0)
    upstream = torch.randn(33, 37).bfloat16()
    out = swiglu(*both.chunk(2, -1))
    (wide,) = doubles(both)
    gate, up = wide.chunk(2, -1)
    expected = F.silu(gate) * up
    ours = [out, *torch.autograd.grad(out, both, upstream)]
    close(ours, [expected, *torch.autograd.grad(expected, wide, upstream.double())])


def test_gate_at_the_ends() -> None:
    gate = torch.tensor([[-1e4, -100.0, 0.0, 100.0, 1e4]]).bfloat16().requires_grad_()
    out = swiglu(gate, torch.ones_like(gate))
    assert torch.allclose(out.detach(), gate.detach().clamp_min(0), atol=1e-30)
    out.sum().backward()
    assert gate.grad is not None
    assert torch.allclose(gate.grad, torch.tensor([[0.0, 0.0, 0.5, 1.0, 1.0]]).bfloat16(), atol=1e-30)


@pytest.mark.parametrize("shape", [(0, 16), (3, 0), (37,), (2, 3, 5)], ids=str)
def test_gate_of_any_shape(shape: tuple[int, ...]) -> None:
    gate, up = half(*shape), half(*shape)
    out = swiglu(gate, up)
    assert out.shape == shape
    assert torch.allclose(out.float(), F.silu(gate.float()) * up.float(), rtol=1e-2, atol=1e-6)
    assert all(found.shape == shape for found in torch.autograd.grad(out.sum(), (gate, up)))


@pytest.mark.parametrize("rows", [0, 1, 33])
def test_cross_entropy(rows: int, threads: int) -> None:
    torch.manual_seed(0)
    hidden, weight = half(rows, 32), (torch.randn(101, 32) * 0.5).bfloat16().float().requires_grad_()
    labels = torch.randint(0, 101, (rows,))
    loss = linear_cross_entropy(hidden, weight, labels, 7)
    wide = doubles(hidden, weight)
    expected = F.cross_entropy(wide[0] @ wide[1].T, labels, reduction="sum") / 7
    assert abs(float(loss.detach()) - float(expected.detach())) < 1e-2
    ours = torch.autograd.grad(loss, (hidden, weight), torch.tensor(2.0))
    close(list(ours), list(torch.autograd.grad(expected * 2, wide)))
    assert ours[1].dtype is torch.float32


def test_cross_entropy_in_slices_is_that_of_the_whole() -> None:
    """More rows than a slice has: losses and gradients of all slices are summed."""
    torch.manual_seed(0)
    hidden, labels = half(40, 16), torch.randint(0, 2**21, (40,))
    weight = torch.zeros(2**21, 16)
    weight[:200] = torch.randn(200, 16)
    labels %= 200
    weight.requires_grad_()
    loss = linear_cross_entropy(hidden, weight, labels, 40)
    logits = hidden.detach().double() @ weight.detach()[:200].double().T
    normaliser = (logits.exp().sum(1) + (2**21 - 200)).log()
    expected = (normaliser - logits.gather(1, labels[:, None])[:, 0]).mean()
    assert abs(float(loss.detach()) - float(expected)) < 1e-2
    (grad,) = torch.autograd.grad(loss, weight)
    wrong = (logits - normaliser[:, None]).exp() - F.one_hot(labels, 200)
    assert away(grad[:200], wrong.T @ hidden.detach().double() / 40) < 6e-3


@pytest.mark.parametrize("shape", [(1, 16, 16), (33, 100, 48), (300, 96, 64), (70, 17, 32)], ids=str)
def test_gradient_of_a_weight_is_summed_in_float32(shape: tuple[int, ...], threads: int) -> None:
    torch.manual_seed(0)
    rows, out, inside = shape
    x, weight = half(rows, inside), torch.randn(out, inside, requires_grad=True)
    upstream = torch.randn(rows, out).bfloat16()
    (grad,) = torch.autograd.grad(linear(x, weight), weight, upstream)
    assert away(grad, upstream.double().T @ x.detach().double()) < 1e-6


@pytest.mark.parametrize("ends", [[0, 20, 20, 150], [150] * 4, [1, 2, 3, 150]], ids=str)
def test_experts(ends: list[int], threads: int) -> None:
    torch.manual_seed(0)
    x = half(150, 64)
    weight = (torch.randn(4, 96, 64)).bfloat16().float().requires_grad_()
    assert calls.suits_grouped(weight, 64, turned=True)
    offsets = torch.tensor(ends, dtype=torch.int32)
    upstream = torch.randn(150, 96).bfloat16()
    out = grouped_linear(x, weight, offsets)
    ours = [out, *torch.autograd.grad(out, (x, weight), upstream)]
    wide = doubles(x, weight)
    parts = zip([0, *ends[:-1]], ends, strict=True)
    expected = torch.cat([wide[0][start:end] @ wide[1][group].T for group, (start, end) in enumerate(parts)])
    close(ours, [expected, *torch.autograd.grad(expected, wide, upstream.double())])


def test_gradients_of_experts(threads: int) -> None:
    torch.manual_seed(0)
    x, weight = half(50, 32), torch.randn(4, 24, 32, requires_grad=True)
    upstream = torch.randn(50, 24).bfloat16()
    ends = [0, 20, 20, 50]
    (grad,) = torch.autograd.grad(grouped_linear(x, weight, torch.tensor(ends, dtype=torch.int32)), weight, upstream)
    for expert, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        exact = upstream[start:end].double().T @ x.detach()[start:end].double()
        assert away(grad[expert], exact) < 1e-6 if end > start else not grad[expert].any()


def test_the_number_of_threads_changes_no_bit() -> None:
    torch.manual_seed(0)
    query, key, value = (half(2, 6, 100, 32) for _ in range(3))
    x, gate, up = half(500, 64), half(500, 64), half(500, 64)
    weight, head, norm = (
        torch.randn(3, 64, 64).requires_grad_(),
        torch.randn(300, 64).requires_grad_(),
        RMSNorm(64, 1e-5),
    )
    ends, labels = torch.tensor([130, 130, 500], dtype=torch.int32), torch.randint(0, 300, (500,))

    def all_of_them() -> list[Tensor]:
        found: list[Tensor] = []
        for out, inputs in (
            (attend(query, key, value, scale=0.2, causal=True), (query, key, value)),
            (norm(x), (x, norm.weight)),
            (swiglu(gate, up), (gate, up)),
            (grouped_linear(x, weight, ends), (x, weight)),
            (linear_cross_entropy(x, head, labels, 500), (x, head)),
        ):
            found += [out, *torch.autograd.grad(out, inputs, torch.ones_like(out))]
        return found

    before = torch.get_num_threads()
    runs = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        runs.append(all_of_them())
    torch.set_num_threads(before)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_what_is_not_a_number_stays_so() -> None:
    """The guard of a training run looks at losses and gradients; what a kernel swallowed it would never see."""
    torch.manual_seed(0)
    query, key, value = (half(1, 1, 40, 16) for _ in range(3))
    with torch.no_grad():
        query[0, 0, 7, 3] = torch.nan
        key[0, 0, 30, 3] = torch.nan
    out = attend(query, key, value, scale=0.25, causal=True)
    assert out.isnan().all(-1).flatten().nonzero().flatten().tolist() == [7, *range(30, 40)]
    grads = torch.autograd.grad(out, (query, key, value), torch.ones_like(out))
    assert all(grad.isnan().any() for grad in grads)

    for place in (0, 1):
        both = [half(1, 20), half(1, 20)]
        with torch.no_grad():
            both[place][0, 17] = torch.nan
        out = swiglu(*both)
        assert out.isnan().flatten().nonzero().item() == 17
        assert torch.autograd.grad(out.sum(), both)[0][0, 17].isnan()  # that of up knows the gate alone

    x, norm = half(3, 20), RMSNorm(20, 1e-5)
    with torch.no_grad():
        x[1, 17] = torch.nan
    assert norm(x).isnan().all(-1).tolist() == [False, True, False]

    hidden, weight = half(3, 16), torch.randn(40, 16)
    weight[39] = torch.nan  # a token that is no label here
    loss = linear_cross_entropy(hidden, weight.requires_grad_(), torch.arange(3))
    assert loss.isnan()
    assert torch.autograd.grad(loss, hidden)[0].isnan().all()


def test_what_does_not_fit_together_is_refused_and_not_read_beyond() -> None:
    def wrong(run: Callable[[], Tensor], kind: type[Exception] = RuntimeError) -> None:
        with pytest.raises(kind):
            run()

    rows, weight = half(40, 64), torch.randn(2, 32, 64)
    for ends in ([20, 41], [20, 39], [41, 40], [-1, 40], [40], [10, 20, 40]):
        offsets = torch.tensor(ends, dtype=torch.int32)
        wrong(lambda: grouped_linear(rows, weight, offsets), ValueError)  # noqa: B023
    wrong(lambda: grouped_linear(half(40, 32), weight, torch.tensor([20, 40], dtype=torch.int32)))
    query, key = half(1, 4, 16, 32), half(1, 2, 16, 32)
    for other in (half(1, 2, 16, 16), half(1, 3, 16, 32), half(2, 2, 16, 32)):
        assert not calls.suits_attention(query, other, other, causal=True)
    assert not calls.suits_attention(query, key, key[:, :, :8], causal=True)
    added = torch.zeros(16, 16, dtype=torch.bfloat16).masked_fill_(~torch.ones(16, 16, dtype=torch.bool).tril(), -1e9)
    causal = attend(query, key, key, scale=1.0, causal=True)
    close([attend(query, key, key, scale=1.0, causal=False, mask=added)], [causal], 1e-2)  # PyTorch's, which adds it
    wrong(lambda: RMSNorm(16, 1e-5)(half(3, 32)))
    wrong(lambda: linear_cross_entropy(rows, torch.randn(20, 64), torch.zeros(39, dtype=torch.int64)), ValueError)


@pytest.mark.parametrize("label", [-100, 20])
def test_a_label_that_is_no_token_is_refused(label: int) -> None:
    with pytest.raises(IndexError, match=f"labels are .*{label}.*, of a vocabulary of 20"):
        linear_cross_entropy(half(3, 16), torch.randn(20, 16), torch.tensor([1, label, 2]))


def test_a_network_learns_the_same_with_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Transformer(ModelConfig.named("debug-moe")).train()
    model.compute_dtype = torch.bfloat16
    tokens = torch.randint(0, model.config.vocab_size, (2, 40))
    documents = torch.arange(40).expand(2, -1) // 17

    def learn() -> tuple[Tensor, Tensor]:
        model.zero_grad()
        total = model.loss(tokens, documents=documents).total
        total.backward()  # type: ignore[no-untyped-call]
        return total.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    loss, grads = learn()
    again = learn()
    assert torch.equal(loss, again[0])
    assert torch.equal(grads, again[1])
    monkeypatch.setenv("DEEPWELL_NATIVE", "off")
    assert library() is None
    plain_loss, plain_grads = learn()
    assert abs(float(loss - plain_loss)) < 5e-3
    assert away(grads, plain_grads) < 5e-2
