import resource

import pytest
import torch
from torch.nn import functional as F

from scalear.scales import ScaleSchedule
from scalear.tokenizers import quantizer as quantizer_file
from scalear.tokenizers.quantizer import Quantizer, VectorQuantizer, assignment_entropy
from scalear.tokenizers.residual import ResidualQuantizer

SCHEDULE = ScaleSchedule.parse("1,2,3x4,6")


def brute_force(vectors_nC: torch.Tensor, codes_VC: torch.Tensor) -> torch.Tensor:
    return (vectors_nC[:, None].double() - codes_VC[None].double()).square().sum(-1).argmin(1)


def make_quantizer(normalise: bool) -> Quantizer:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(5, 200, normalise)
    torch.nn.init.normal_(quantizer.codebook)
    return quantizer


@pytest.fixture
def residual() -> ResidualQuantizer:
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(5, 64, str(SCHEDULE), num_phis=2)
    torch.nn.init.normal_(quantizer.codebook)
    return quantizer


@pytest.mark.parametrize("normalise", [True, False])
def test_nearest_equals_brute_force_in_chunks_and_under_autocast(normalise: bool, monkeypatch):
    quantizer, vectors = make_quantizer(normalise), torch.randn(3, 111, 5)
    compared = F.normalize(vectors, dim=-1) if normalise else vectors
    expected = brute_force(compared.reshape(-1, 5), quantizer.vectors)
    monkeypatch.setattr(quantizer_file, "_CHUNK", 2000)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = quantizer.nearest(vectors)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(found, expected.reshape(3, 111))


@pytest.mark.slow
def test_the_search_in_a_large_codebook_needs_little_memory():
    """16384 codes x 100,000 vectors: all distances at once would take 6.1 GiB."""
    quantizer, vectors = VectorQuantizer(32, 16384), torch.randn(100_000, 32)
    quantizer.nearest(vectors[:100])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    quantizer.nearest(vectors)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 0.1 * 2**20  # KiB


def test_codes_and_embedding_go_row_by_row():
    quantizer, latent = make_quantizer(False), torch.randn(2, 5, 3, 4)
    codes = quantizer.codes(latent)
    assert codes.shape == (2, 12) and codes.dtype == torch.int64
    assert codes[1, 6] == quantizer.nearest(latent[1, :, 1, 2])
    embedded = quantizer.embed(codes, (3, 4))
    torch.testing.assert_close(embedded[1, :, 1, 2], quantizer.codebook[codes[1, 6]])
    assert torch.equal(quantizer.codes(embedded), codes)
    weights = F.one_hot(codes, 200).float()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(quantizer.embed(weights, (3, 4)), embedded, rtol=0, atol=0)


@pytest.mark.parametrize("normalise", [True, False])
def test_the_gradient_passes_straight_through(normalise: bool):
    torch.manual_seed(0)
    quantizer = VectorQuantizer(5, 50, normalise)
    latent = torch.randn(2, 5, 3, 3, requires_grad=True)
    upstream = torch.randn(2, 5, 3, 3)
    passage = quantizer.passage(latent)
    (through,) = torch.autograd.grad(passage.latent_BChw, latent, upstream, retain_graph=True)
    seen = F.normalize(latent, dim=1) if normalise else latent
    (expected,) = torch.autograd.grad(seen, latent, upstream) if normalise else (upstream,)
    torch.testing.assert_close(through, expected)
    torch.testing.assert_close(
        passage.latent_BChw, quantizer.embed(passage.quantized.codes[0], (3, 3)), rtol=0, atol=1e-6
    )
    # Each penalty moves its side alone.
    for name, moved, still in (("codebook", quantizer.codebook, latent), ("commitment", latent, quantizer.codebook)):
        grads = torch.autograd.grad(passage.penalties[name], (moved, still), retain_graph=True, allow_unused=True)
        assert grads[0].any() and grads[1] is None


def test_entropy_prefers_sure_vectors_and_even_use():
    codes = torch.eye(4)
    even, single = codes.repeat(5, 1), codes[:1].repeat(20, 1)
    unsure = torch.zeros(20, 4)
    values = [assignment_entropy(vectors, codes).item() for vectors in (even, single, unsure)]
    assert values == pytest.approx([-torch.tensor(4.0).log().item(), 0.0, 0.0], abs=1e-3)


def test_residual_codes_sum_to_f_hat(residual: ResidualQuantizer):
    latent = torch.randn(2, 5, 6, 6)
    codes = residual.encode(latent, SCHEDULE)
    assert [tuple(code.shape) for code in codes] == [(2, 1), (2, 4), (2, 12), (2, 36)]
    f_hat = torch.zeros_like(latent)
    for k, size in enumerate(SCHEDULE.sizes):
        rest = F.adaptive_avg_pool2d(latent - f_hat, size)
        assert torch.equal(codes[k], residual.codes(rest))
        h = F.interpolate(residual.embed(codes[k], size), size=(6, 6), mode="bicubic")
        f_hat = f_hat + 0.5 * h + 0.5 * residual.phis[residual.phi_index(k, 4)](h)
    torch.testing.assert_close(residual.quantize(latent), f_hat)
    torch.testing.assert_close(residual.passage(latent).latent_BChw, f_hat)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(residual.encode(latent, SCHEDULE), codes, strict=True))
    with pytest.raises(ValueError, match="end at 6 tokens, but the latent has 7"):
        residual.encode(torch.randn(1, 5, 7, 7), SCHEDULE)


def test_residual_gradients(residual: ResidualQuantizer):
    latent = torch.randn(2, 5, 6, 6, requires_grad=True)
    upstream = torch.randn(2, 5, 6, 6)
    passage = residual.passage(latent)
    (through,) = torch.autograd.grad(passage.latent_BChw, latent, upstream, retain_graph=True)
    torch.testing.assert_close(through, upstream)
    passage.penalties["codebook"].backward()
    assert not latent.grad.any() and residual.codebook.grad.any()
    assert all(phi.weight.grad.any() for phi in residual.phis)


@pytest.mark.parametrize(
    "num_phis, num_scales, expected",
    [
        (4, 10, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]),  # VAR at 256x256, from its code
        (1, 10, [0] * 10),
        (7, 7, list(range(7))),
        (4, 1, [0]),
    ],
)
def test_which_phi_serves_which_scale(num_phis: int, num_scales: int, expected: list[int]):
    quantizer = ResidualQuantizer(2, 8, "1,2", num_phis)
    assert [quantizer.phi_index(k, num_scales) for k in range(num_scales)] == expected


def test_without_phi_maps_are_added_as_they_are():
    quantizer = ResidualQuantizer(2, 8, "1,2,4", phi_ratio=0.0)
    assert not list(quantizer.phis.parameters())
    latent = torch.randn(1, 2, 4, 4)
    assert quantizer.phi(0, 3, latent) is latent
