"""What validation measures of a tokenizer: PSNR, SSIM, rFID and LPIPS; with a codebook also every scale and code use.

Legend: B batch, C channels, H W pixels, h w latent, l tokens of a scale, V codes.
"""

from importlib.metadata import version

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from scalear.evaluation.fid import FeatureFID
from scalear.evaluation.images import to_uint8
from scalear.evaluation.protocol import short_count
from scalear.hardware.float64 import in_float64
from scalear.hardware.machine import describe as describe_machine
from scalear.scales import ScaleSchedule
from scalear.tokenizers.base import Tokenizer
from scalear.tokenizers.perceptual import LPIPS
from scalear.tokenizers.quantizer import Quantizer
from scalear.training.frozen import freeze

SSIM_WINDOW = 11  # pixels; smaller images have no SSIM


class CodeUsage(Metric):
    """Share of a codebook's codes that occur, in [0, 1]."""

    full_state_update = False

    def __init__(self, num_codes: int) -> None:
        super().__init__()
        self.add_state("uses_V", torch.zeros(num_codes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, codes: Tensor) -> None:
        """Count codes, int64 of any shape."""
        self.uses_V += codes.flatten().bincount(minlength=len(self.uses_V))

    def compute(self) -> Tensor:
        return (self.uses_V > 0).float().mean()


class CodePerplexity(CodeUsage):
    """exp(entropy) of how often codes occur: as many codes, used alike, would be as unpredictable."""

    def compute(self) -> Tensor:
        return torch.distributions.Categorical(in_float64(self.uses_V)).entropy().exp().float()


class TokenizerMetrics(nn.Module):
    """All metrics of a tokenizer, by the name that they are logged under.

    Images and reconstructions are compared as they would be stored, rounded to 8 bits. At a coarse scale, a scalable
    tokenizer is held to the image resized to that scale, a residual one to the whole image.

    Args:
        rfid: FID between images and reconstructions, if wanted.
        num_codes: Codes of the tokenizer; None if it has none.
        schedule: Scales that are measured one by one; None for none.
        lpips: Distance between images and reconstructions, if wanted; images of fewer pixels than it takes have none.
    """

    def __init__(
        self, rfid: Metric | None, num_codes: int | None, schedule: ScaleSchedule | None, lpips: LPIPS | None = None
    ) -> None:
        super().__init__()
        if schedule and num_codes is None:
            raise ValueError("only tokenizers with a codebook are measured at several scales: leave out `scales`")
        self.schedule = schedule
        self.whole = nn.ModuleDict(_image_metrics())
        if rfid is not None:
            self.whole["rfid"] = rfid
        self.lpips = lpips
        if lpips is not None:
            self.whole["lpips"] = MeanMetric()
            freeze(self, "lpips")
        if num_codes is not None:
            self.whole.update(_code_metrics(num_codes))
        names = schedule.names if schedule else ()
        self.scales = nn.ModuleList(nn.ModuleDict(_image_metrics() | _code_metrics(num_codes)) for _ in names)

    def update(self, tokenizer: Tokenizer, image_BCHW: Tensor) -> Tensor:
        """Measure a batch; gives its reconstructions, uint8."""
        original, reconstructed = to_uint8(image_BCHW), to_uint8(tokenizer.reconstruction(image_BCHW))
        _compare(self.whole, original, reconstructed)
        if "rfid" in self.whole:
            self.whole["rfid"].update(original, real=True)
            self.whole["rfid"].update(reconstructed, real=False)
        if self.lpips is not None and min(image_BCHW.shape[-2:]) >= self.lpips.minimum_size:
            with torch.autocast(image_BCHW.device.type, enabled=False):
                self.whole["lpips"].update(self.lpips(original / 127.5 - 1, reconstructed / 127.5 - 1))
        if tokenizer.quantizer is not None:
            self._update_codes(tokenizer, tokenizer.quantizer, image_BCHW)
        return reconstructed

    def _update_codes(self, tokenizer: Tokenizer, quantizer: Quantizer, image_BCHW: Tensor) -> None:
        latent_BChw = tokenizer.encode(image_BCHW)
        schedule = self.schedule or ScaleSchedule((tuple(latent_BChw.shape[-2:]),))
        for k, (codes_Bl, partial_BChw) in enumerate(quantizer.scale_by_scale(latent_BChw, schedule)):
            for metrics in (self.whole, *self.scales[k : k + 1]):
                metrics["usage"].update(codes_Bl)
                metrics["perplexity"].update(codes_Bl)
            if self.schedule:
                decoded_BCHW = tokenizer.decode(partial_BChw)
                target_BCHW = F.adaptive_avg_pool2d(image_BCHW, decoded_BCHW.shape[-2:])
                _compare(self.scales[k], to_uint8(target_BCHW), to_uint8(decoded_BCHW))

    def named(self) -> dict[str, Metric]:
        """Metrics by name, such as `psnr` and `psnr_scale_4`; those that measured nothing are left out."""
        named = dict(self.whole.items())
        for scale, metrics in zip(self.schedule.names if self.schedule else (), self.scales, strict=True):
            named |= {f"{name}_scale_{scale}": metric for name, metric in metrics.items()}
        return {name: metric for name, metric in named.items() if metric.update_called}

    @property
    def rfid(self) -> Metric | None:
        """The metric that was passed in."""
        return self.whole["rfid"] if "rfid" in self.whole else None

    def table(self, values: dict[str, float]) -> str:
        """Values by name for the console: those of the whole, what is to be known of them, a line for each scale."""
        lines = ["  ".join(f"{name} {values[name]:.4f}" for name in self.whole if name in values)]
        if isinstance(self.rfid, FeatureFID) and self.rfid.extractor.caution is not None:
            lines.append(self.rfid.extractor.caution)
        if self.schedule:
            names = ("psnr", "ssim", "usage", "perplexity")
            lines.append("scale" + "".join(f"{name:>12}" for name in names))
            for scale in self.schedule.names:
                cells = (values.get(f"{name}_scale_{scale}") for name in names)
                lines.append(f"{scale:>5}" + "".join(f"{'-' if cell is None else f'{cell:.4f}':>12}" for cell in cells))
        return "\n".join(lines)

    def line(self, values: dict[str, float], count: int, trainer: Trainer) -> str:
        """Numbers of the whole and how they were measured on one line, to be pasted into a paper.

        Args:
            values: By name.
            count: Images, of all ranks.
            trainer: Of `test`.
        """
        titles = {"rfid": f"rFID-{short_count(count)}", "psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS"}
        digits = {"rfid": 2, "psnr": 2, "ssim": 3, "lpips": 3}
        numbers = [f"{title} {values[name]:.{digits[name]}f}" for name, title in titles.items() if name in values]
        data = trainer.datamodule
        how = [
            *([self.rfid.extractor.title] if isinstance(self.rfid, FeatureFID) else []),
            *([f"{count:,} images of {data.index.name} {data.val_split}"] if data is not None else []),
            f"{trainer.precision} on {describe_machine(trainer.strategy.root_device)}",
            f"scalear {version('scalear')}",
        ]
        return f"{', '.join(numbers)} ({', '.join(how)})"


def _image_metrics() -> dict[str, Metric]:
    # PSNR is that of each image, then averaged.
    return {
        "psnr": PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2, 3)),
        "ssim": StructuralSimilarityIndexMeasure(data_range=1.0),
    }


def _code_metrics(num_codes: int) -> dict[str, Metric]:
    return {"usage": CodeUsage(num_codes), "perplexity": CodePerplexity(num_codes)}


def _compare(metrics: nn.ModuleDict, original_BCHW: Tensor, reconstructed_BCHW: Tensor) -> None:
    metrics["psnr"].update(reconstructed_BCHW / 255, original_BCHW / 255)
    if min(original_BCHW.shape[-2:]) >= SSIM_WINDOW:
        metrics["ssim"].update(reconstructed_BCHW / 255, original_BCHW / 255)
