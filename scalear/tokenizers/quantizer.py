"""Vector quantisation: latents to codes of a learned codebook and back (van den Oord et al. 2017).

Shapes: B batch, C latent channels, h w token map, l = h * w tokens, V codes, n vectors.
"""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from scalear.scales import ScaleSchedule
from scalear.tokenizers.bottleneck import Bottleneck, Passage, Quantized, TrainingRequest

_CHUNK = 2**20  # distances held at a time: 4 MiB, which stay in a CPU's cache


class Quantizer(Bottleneck):
    """V vectors of C numbers, the search among them and the way back. All of it in float32, also under autocast.

    Moments are the latent before quantisation, stored in float32: codes flip when it is rounded.

    Args:
        latent_channels: C.
        num_codes: V.
        normalise: Compare directions only: vectors and codes are scaled to unit length first.

    Raises:
        ValueError: There are fewer than 2 codes, or no channels.
    """

    def __init__(self, latent_channels: int, num_codes: int, normalise: bool) -> None:
        super().__init__(latent_channels, latent_channels, torch.float32)
        if num_codes < 2 or latent_channels < 1:
            raise ValueError(
                f"a codebook needs num_codes >= 2 and latent_channels >= 1, got {num_codes} and {latent_channels}"
            )
        self.num_codes = num_codes
        self.normalise = normalise
        initial = torch.empty(num_codes, latent_channels).uniform_(-1 / num_codes, 1 / num_codes)
        self.codebook = nn.Parameter(F.normalize(initial, dim=1) if normalise else initial)
        self.codebook.no_weight_decay = True

    @property
    def vectors(self) -> Tensor:
        """The codes as they are used, (V, C) float32."""
        return self.scaled(self.codebook)

    def scaled(self, vectors: Tensor) -> Tensor:
        """Vectors (..., C) as they are compared: float32, of unit length if `normalise`."""
        return F.normalize(vectors.float(), dim=-1) if self.normalise else vectors.float()

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """Index of the nearest code of each vector: (..., C) -> (...) int64.

        Exact in float32, whatever autocast or the precision of matrix products is set to. Distances are held for a
        chunk of vectors at a time: memory does not grow with their number.
        """
        codes_VC, flat_nC = self.scaled(self.codebook), self.scaled(vectors).reshape(-1, self.latent_channels)
        half_square_V = 0.5 * codes_VC.square().sum(1)
        rows = max(1, _CHUNK // self.num_codes)
        # One buffer for all chunks: small results between large ones that come and go would tear the heap apart.
        distance_nV = half_square_V.new_empty(min(rows, len(flat_nC)), self.num_codes)
        nearest_n = torch.empty(len(flat_nC), dtype=torch.int64, device=flat_nC.device)
        with _float32_products(flat_nC.device.type):
            for chunk_nC, out_n in zip(flat_nC.split(rows), nearest_n.split(rows), strict=True):
                # |v - c|^2 / 2 without |v|^2 / 2, which is the same for all codes
                out_nV = distance_nV[: len(chunk_nC)]
                torch.addmm(half_square_V, chunk_nC, codes_VC.T, alpha=-1, out=out_nV)
                torch.argmin(out_nV, dim=1, out=out_n)
        return nearest_n.reshape(vectors.shape[:-1])

    def codes(self, latent_BChw: Tensor) -> Tensor:
        """Nearest codes of every cell, (B, h*w) int64, row by row."""
        return self.nearest(rearrange(latent_BChw, "B C h w -> B (h w) C"))

    def embed(self, content: Tensor, size: tuple[int, int]) -> Tensor:
        """Token map to latent_BChw, float32.

        Args:
            content: Codes (B, h*w) int64, or weights over all codes (B, h*w, V) float, which are averaged with.
            size: (h, w).
        """
        with torch.autocast(content.device.type, enabled=False):
            vectors_BlC = content.float() @ self.vectors if content.is_floating_point() else self.vectors[content]
        return rearrange(vectors_BlC, "B (h w) C -> B C h w", h=size[0], w=size[1])

    def latent(self, moments_BMhw: Tensor, noise_BChw: Tensor | None = None) -> Tensor:
        return moments_BMhw.float()

    @abstractmethod
    def quantize(self, latent_BChw: Tensor) -> Tensor:
        """latent_BChw -> the latent_BChw that its codes stand for.

        Raises:
            ValueError: The quantizer has scales of its own, which do not end at the latent's size.
        """

    @abstractmethod
    def scale_by_scale(self, latent_BChw: Tensor, schedule: ScaleSchedule) -> Iterator[tuple[Tensor, Tensor]]:
        """Codes (B, l) of each scale, and the latent_BChw to decode once this scale is known."""


class VectorQuantizer(Quantizer):
    """Every cell becomes its nearest code (LlamaGen's and FlexVAR's quantizer; paper section 3.3, eq. 4).

    Latents of any size can be quantised and decoded; only training at several sizes (`sizes` of `TokenizerModule`)
    makes them decode well.

    Args:
        latent_channels: C.
        num_codes: V.
        normalise: Compare directions only, as the official code does; the paper says Euclidean distance (False).
    """

    penalties = frozenset({"codebook", "commitment", "entropy"})
    scales_freely = True

    def __init__(self, latent_channels: int, num_codes: int, normalise: bool = True) -> None:
        super().__init__(latent_channels, num_codes, normalise)

    def quantize(self, latent_BChw: Tensor) -> Tensor:
        return self.embed(self.codes(latent_BChw), latent_BChw.shape[-2:])

    def scale_by_scale(self, latent_BChw: Tensor, schedule: ScaleSchedule) -> Iterator[tuple[Tensor, Tensor]]:
        for size in schedule.sizes:
            codes_Bl = self.codes(F.adaptive_avg_pool2d(latent_BChw, size))
            yield codes_Bl, self.embed(codes_Bl, size)

    def forward(self, moments_BMhw: Tensor, request: TrainingRequest, num_elements: int) -> list[Passage]:
        maps = [moments_BMhw, *(F.adaptive_avg_pool2d(moments_BMhw, size) for size in request.sizes)]
        return [self.passage(latent_BChw, "entropy" in request.penalties) for latent_BChw in maps]

    def passage(self, latent_BChw: Tensor, entropy: bool = False) -> Passage:
        """Quantise for training.

        Args:
            latent_BChw: Of any size.
            entropy: Also compute the penalty `entropy`, whose (n, V) probabilities take time and memory.

        Returns:
            Codebook vectors, whose gradient goes to the latent before quantisation (straight through). Penalties are
            `codebook`, which pulls codes to latents, `commitment`, latents to codes, and `entropy` if asked for.
        """
        size = tuple(latent_BChw.shape[-2:])
        with torch.autocast(latent_BChw.device.type, enabled=False):
            vectors_BlC = self.scaled(rearrange(latent_BChw, "B C h w -> B (h w) C"))
            latent_BChw = rearrange(vectors_BlC, "B (h w) C -> B C h w", h=size[0])
            codes_Bl = self.nearest(vectors_BlC)
            quantized_BChw = self.embed(codes_Bl, size)
            penalties = {
                "codebook": (quantized_BChw - latent_BChw.detach()).square().mean(),
                "commitment": (quantized_BChw.detach() - latent_BChw).square().mean(),
            }
            if entropy:
                penalties["entropy"] = assignment_entropy(vectors_BlC.flatten(0, 1), self.vectors)
        straight_BChw = latent_BChw + (quantized_BChw - latent_BChw).detach()
        return Passage(straight_BChw, penalties, Quantized([codes_Bl], [vectors_BlC.detach()]))


def assignment_entropy(vectors_nC: Tensor, codes_VC: Tensor, temperature: float = 0.01) -> Tensor:
    """Mean entropy of each vector's soft assignment less the entropy of the mean assignment (MaskGIT, LlamaGen).

    Low when every vector is sure of its code and all codes are used alike. The small constants are LlamaGen's.
    """
    affinity_nV = -torch.cdist(vectors_nC, codes_VC, compute_mode="use_mm_for_euclid_dist").square() / temperature
    probability_nV, logarithm_nV = affinity_nV.softmax(1), (affinity_nV + 1e-5).log_softmax(1)
    mean_V = probability_nV.mean(0)
    of_each = -(probability_nV * logarithm_nV).sum(1).mean()
    return of_each + (mean_V * (mean_V + 1e-5).log()).sum()


@contextmanager
def _float32_products(device_type: str) -> Iterator[None]:
    """Matrix products in full float32: no autocast, no TF32, no bfloat16 passes."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
