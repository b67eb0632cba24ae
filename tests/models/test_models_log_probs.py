"""Log-probabilities and entropies of the head against softmax, in one piece and in many."""

import pytest
import torch

from models.head import OutputHead
from models.log_probs import linear_log_probs

N, V, D = 7, 11, 5


def head_and_input(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(D, V, bias=False).to(dtype)
    with torch.no_grad():
        linear.weight.copy_(2.0 * torch.randn(V, D, generator=generator))
    hidden = torch.randn(N, D, generator=generator).to(dtype).requires_grad_()
    return OutputHead(linear), hidden, torch.randint(V, (N,), generator=generator)


def plain(head, hidden, targets):
    logits = hidden @ head.weight.T
    logp = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
    return torch.stack([logp.gather(-1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)])


@pytest.mark.parametrize("pieces", ["one", "many", "many chunks"])
def test_values_and_gradients_are_those_of_softmax(monkeypatch, pieces):
    if pieces != "one":
        monkeypatch.setattr("models.log_probs.PIECE_ELEMENTS", 2 * V)
    if pieces == "many chunks":
        monkeypatch.setattr("models.head.LOGITS_CHUNK_ELEMENTS", 3 * V)
    head, hidden, targets = head_and_input()
    slope = torch.randn(2, N, generator=torch.Generator().manual_seed(1))
    got, want = head(hidden, targets, entropy=True), plain(head, hidden, targets)
    assert got.shape == (2, N) and got.dtype == torch.float32
    assert got.detach().numpy() == pytest.approx(want.detach().numpy(), abs=1e-5)
    assert torch.equal(got[0], head(hidden, targets))
    parameters = hidden, head.weight
    for mine, theirs in zip(
        torch.autograd.grad((got * slope).sum(), parameters),
        torch.autograd.grad((want * slope).sum(), parameters),
        strict=True,
    ):
        assert mine.numpy() == pytest.approx(theirs.numpy(), abs=1e-5)


@pytest.mark.parametrize("which", [0, 1])
def test_each_has_a_gradient_of_its_own(which):
    head, hidden, targets = head_and_input()
    mine = torch.autograd.grad(head(hidden, targets, entropy=True)[which].sum(), hidden)[0]
    theirs = torch.autograd.grad(plain(head, hidden, targets)[which].sum(), hidden)[0]
    assert mine.numpy() == pytest.approx(theirs.numpy(), abs=1e-5)


@pytest.mark.parametrize("rows", [2, 100])
def test_on_a_gpu_logits_of_half_precision_are_not_rounded_in_sampler_and_trainer(monkeypatch, rows):
    """The product with sums in fp32 that only GPUs have is stood in for by one of fp32 inputs."""
    head, hidden, targets = head_and_input(torch.bfloat16)
    monkeypatch.setattr("models.head.LOGITS_CHUNK_ELEMENTS", rows * V)
    rounded = head(hidden, targets)
    monkeypatch.setattr("models.log_probs.keeps_fp32", lambda device_type: True)
    monkeypatch.setattr("models.log_probs._fp32_product", lambda a, b: a.float() @ b.float())
    exact_head, exact_hidden = OutputHead(torch.nn.Linear(D, V, bias=False)), hidden.detach().float().requires_grad_()
    exact_head.weight.data.copy_(head.weight)
    want, got = plain(exact_head, exact_hidden, targets)[0], head(hidden, targets)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    assert (rounded - want).abs().max() > 1e-3
    sampled = head(hidden.detach(), fp32=True)
    assert sampled.dtype == torch.float32
    torch.testing.assert_close(sampled.log_softmax(-1).gather(-1, targets[:, None])[:, 0], want, atol=1e-5, rtol=0)
    mine = torch.autograd.grad(got.sum(), (hidden, head.weight))
    for a, b in zip(mine, torch.autograd.grad(want.sum(), (exact_hidden, exact_head.weight)), strict=True):
        assert a.dtype == torch.bfloat16 and (a.float() - b).norm() <= 1e-2 * b.norm()


def of_logits(logits, targets, entropy=True):
    return linear_log_probs(logits, torch.eye(logits.shape[-1], dtype=logits.dtype), None, targets, 2, entropy)


def test_a_certain_token_has_no_entropy_and_a_finite_gradient():
    logits = torch.tensor([[0.0, 500.0, -500.0], [1.0, 1.0, 1.0]], requires_grad=True)
    found = of_logits(logits * 1.0, torch.tensor([1, 0]))
    assert found[1].tolist() == pytest.approx([0.0, 1.0986123])
    found.sum().backward()
    assert logits.grad.isfinite().all() and logits.grad[0].abs().max() < 1e-6


def test_half_precision_is_summed_in_fp32():
    head, hidden, targets = head_and_input(torch.bfloat16)
    logits = (hidden @ head.weight.T).detach()
    found = of_logits(logits, targets)
    assert found.dtype == torch.float32 and torch.equal(found[0], of_logits(logits, targets, entropy=False))
    logp = logits.float().log_softmax(-1)
    assert found[1].numpy() == pytest.approx((-(logp.exp() * logp).sum(-1)).numpy(), abs=1e-5)


def test_gradients_of_many_chunks_are_the_bits_of_autograd_over_chunks(monkeypatch):
    """What the trained bits of fp32 runs rest on: chunks add up from the last to the first, as autograd's do."""
    monkeypatch.setattr("models.head.LOGITS_CHUNK_ELEMENTS", 3 * V)
    head, hidden, targets = head_and_input()
    parameters = hidden, head.weight
    mine = torch.autograd.grad(head(hidden, targets).sum(), parameters)
    pieces = [
        linear_log_probs(h, head.weight, None, t, N) for h, t in zip(hidden.split(3), targets.split(3), strict=True)
    ]
    theirs = torch.autograd.grad(torch.cat(pieces).sum(), parameters)
    assert all(map(torch.equal, mine, theirs))


def test_the_weights_gradient_is_summed_over_chunks_in_fp32():
    """75 chunks of bf16: a sum in bf16 has an error of 4.7e-3."""
    rows, chunks, size, vocabulary = 8, 75, 64, 2000
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(size, vocabulary, bias=False)
    linear.weight.data = torch.randn(vocabulary, size, generator=generator) / 8
    hidden = torch.randn(rows * chunks, size, generator=generator)
    targets = torch.randint(vocabulary, (rows * chunks,), generator=generator)
    slope = torch.randn(rows * chunks, generator=generator) + 1
    (want,) = torch.autograd.grad(
        (plain(linear.double(), hidden.double(), targets)[0] * slope.double()).sum(), linear.weight
    )
    weight = torch.nn.Parameter(linear.weight.detach().bfloat16())
    weight.grad_dtype = torch.float32
    (linear_log_probs(hidden.bfloat16(), weight, None, targets, rows) * slope).sum().backward()
    assert weight.grad.dtype == torch.float32
    assert ((weight.grad - want).norm() / want.norm()).item() <= 3.2e-3
