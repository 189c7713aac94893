"""Numbers of a generator: samples against real images, on the console, in TensorBoard and in metrics.json."""

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info

from scalear.data.index import DatasetIndex
from scalear.distributed.patient_ranks import PatientRanks
from scalear.evaluation.evaluate import choose_metrics, default_metrics, evaluate_samples, summary
from scalear.evaluation.features import FeatureExtractor
from scalear.evaluation.image_set import ImageSet, ShardSet
from scalear.evaluation.side import Side
from scalear.training.run_metrics import write_metrics


class SampleReport:
    """Measures samples with a named feature extractor, always beside the floor of real images.

    Args:
        extractor: Network whose features are compared.
        data_dir: Dataset of real images.
        reference_split: Split that samples are compared with.
        floor_split: Split whose images, as many as samples, give the floor.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        data_dir: str,
        reference_split: str = "val",
        floor_split: str = "train",
    ) -> None:
        self.extractor = extractor
        self.data_dir = data_dir
        self.reference_split = reference_split
        self.floor_split = floor_split

    def check(self, num_samples: int, image_size: tuple[int, int]) -> None:
        """Find out before anything is sampled what would end the measurement of (H, W) images after it.

        Raises:
            ValueError: A file is missing, there are too few real images, or their size is not that of the samples.
        """
        _ = self.extractor.network
        self._real(num_samples)
        side = DatasetIndex.load(self.data_dir).image_size
        if image_size != (side, side):
            raise ValueError(
                f"samples are {image_size[0]}x{image_size[1]} pixels, the real images in {self.data_dir} "
                f"{side}x{side}: set model.report.data_dir to such images, or model.report to null to sample only"
            )

    def measure(self, samples: ImageSet, module: LightningModule, ranks: PatientRanks) -> None:
        """Evaluate samples and report. Runs on all ranks, which share the work."""
        sides = [Side.of(images) for images in (samples, *self._real(len(samples)))]
        scores = self.score(*sides, module.device, ranks)
        rank_zero_info("\n" + summary(scores, *sides, self.extractor))
        protocol = {"num_samples": len(samples), "extractor": self.extractor.name}
        if ranks.rank == 0:
            write_metrics(module.trainer, scores | protocol)
        module.log_dict({f"test/{name}": value for name, value in scores.items()}, rank_zero_only=True)

    def score(
        self, samples: Side, reference: Side, floor: Side, device: torch.device, ranks: PatientRanks
    ) -> dict[str, float]:
        """Numbers by name, as `evaluate_samples` gives them; further ones by a subclass."""
        metrics = choose_metrics(default_metrics(), self.extractor, reference, samples)
        return evaluate_samples(samples, reference, self.extractor, metrics, floor, device=device, ranks=ranks)

    def _real(self, num_samples: int) -> tuple[ShardSet, ShardSet]:
        """Images to compare samples with, and those that give the floor."""
        return ShardSet(self.data_dir, self.reference_split), ShardSet(self.data_dir, self.floor_split, num_samples)
