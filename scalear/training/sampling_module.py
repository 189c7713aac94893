"""`test` and `predict` of a module that generates images: which ones, where they go, how they are measured.

Legend: B batch.
"""

from abc import abstractmethod

from torch import Tensor
from torch.utils.data import DataLoader

from scalear.evaluation.image_set import SampleSet
from scalear.evaluation.images import to_uint8
from scalear.training.gradients import GuardedModule
from scalear.training.report import SampleReport
from scalear.training.sampling import SampleRequest, SampleStore


class SamplingModule(GuardedModule):
    """Samples the requested labels into `samples.npz` and `grid.png`; `test` also measures them.

    Args:
        num_classes: Classes of the model.
        samples: What is sampled.
        report: How `test` measures samples; None writes them only.
    """

    def __init__(self, num_classes: int, samples: SampleRequest, report: SampleReport | None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.samples = samples
        self.report = report
        self._store: SampleStore | None = None

    @abstractmethod
    def generate_images(self, label_B: Tensor, streams: list[tuple[int, ...]]) -> Tensor:
        """Sampled image_BCHW in [-1, 1] of labels, with the random numbers of the named streams."""

    def setup(self, stage: str) -> None:
        if stage in ("test", "predict"):
            self.samples.labels(self.num_classes)

    def test_dataloader(self) -> DataLoader:
        return self.samples.loader(self.num_classes, self.global_rank, self.trainer.world_size)

    def predict_dataloader(self) -> DataLoader:
        return self.test_dataloader()

    def on_test_start(self) -> None:
        self._store = SampleStore(self.trainer.default_root_dir, self.samples.labels(self.num_classes), self.trainer)

    def on_predict_start(self) -> None:
        self.on_test_start()

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        index_B, label_B = batch
        streams = [(self.samples.seed, index) for index in index_B.tolist()]
        self._store.add(index_B, to_uint8(self.generate_images(label_B, streams)))

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.test_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self._store.close(self.samples)
        if self.report is not None and self.trainer.is_global_zero:
            self.report.measure(SampleSet(self._store.path, self.num_classes), self)

    def on_predict_epoch_end(self) -> None:
        self._store.close(self.samples)
