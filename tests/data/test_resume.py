"""Interrupted runs through Lightning's own loops, each compared with one that was never interrupted."""

from pathlib import Path
from typing import Any

import pytest
import torch
from data_fixtures import IMAGE_SIZE, numbers
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from scalear.data.batch import Batch
from scalear.data.datamodule import ShardDataModule

pytestmark = pytest.mark.integration


def same(one: Batch, other: Batch) -> bool:
    tensors = ("inputs", "label", "position")
    return (one.keys, one.stream_end, one.kind) == (other.keys, other.stream_end, other.kind) and all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in tensors
    )


class Recorder(LightningModule):
    """Trains a tiny network; keeps the batches it saw."""

    def __init__(self, manual: bool = False) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(IMAGE_SIZE**2, 8), nn.Linear(8, 1))
        self.automatic_optimization = not manual
        self.seen: list[tuple[int, int, Batch]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor | None:
        self.seen.append((self.current_epoch, batch_idx, batch))
        loss = self.net(batch.inputs.flatten(1)).square().mean()
        if self.automatic_optimization:
            return loss
        for optimizer in self.optimizers():  # generator and discriminator
            optimizer.zero_grad()
            self.manual_backward(self.net(batch.inputs.flatten(1)).square().mean())
            optimizer.step()
        return None

    def validation_step(self, batch: Batch, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> Any:
        if self.automatic_optimization:
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
        return [torch.optim.SGD(part.parameters(), lr=0.01) for part in self.net]


class SaveAt(Callback):
    """Writes a checkpoint in one hook, after `num_batches` training batches."""

    def __init__(self, path: Path, hook: str, num_batches: int) -> None:
        self.path, self.num_batches = path, num_batches
        setattr(self, hook, self.save)

    def save(self, trainer: Trainer, module: Recorder, *args: Any) -> None:
        if len(module.seen) == self.num_batches:
            trainer.save_checkpoint(self.path)


def fit(
    directory: Path, root: Path, *, manual: bool = False, ckpt: Path | None = None, data: dict | None = None, **options
) -> tuple[Recorder, Trainer]:
    torch.manual_seed(0)
    module = Recorder(manual)
    trainer = Trainer(
        default_root_dir=root,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        **{"max_steps": 14, "max_epochs": -1, "enable_checkpointing": False} | options,
    )
    trainer.fit(module, datamodule=ShardDataModule(str(directory), **{"batch_size": 4} | (data or {})), ckpt_path=ckpt)
    return module, trainer


SAVES = [
    pytest.param("on_train_batch_end", 4, {}, id="mid-epoch"),
    pytest.param("on_train_batch_end", 6, {}, id="last-batch-of-long-epoch"),
    pytest.param("on_train_batch_end", 11, {}, id="last-batch-before-a-longer-epoch"),
    pytest.param("on_train_epoch_end", 6, {}, id="epoch-end"),
    pytest.param("on_train_epoch_end", 11, {}, id="epoch-end-before-a-longer-epoch"),
    pytest.param("on_train_epoch_start", 6, {}, id="epoch-start"),
    pytest.param("on_validation_end", 6, {}, id="validation-end-at-epoch-end"),
    pytest.param("on_validation_end", 4, {"val_check_interval": 2}, id="validation-end-mid-epoch"),
    pytest.param("on_train_batch_end", 4, {"val_check_interval": 2}, id="before-validation"),
    pytest.param(
        "on_validation_end", 9, {"val_check_interval": 3, "check_val_every_n_epoch": None}, id="validation-by-steps"
    ),
    pytest.param("on_train_batch_end", 8, {"max_steps": -1, "max_epochs": 3}, id="epochs-mid-epoch"),
    pytest.param("on_train_batch_end", 11, {"max_steps": -1, "max_epochs": 3}, id="epochs-last-batch"),
    pytest.param("on_train_epoch_end", 11, {"max_steps": -1, "max_epochs": 3}, id="epochs-epoch-end"),
    pytest.param("on_train_batch_end", 7, {"limit_train_batches": 3}, id="limited-mid-epoch"),
    pytest.param("on_train_epoch_end", 6, {"limit_train_batches": 0.5}, id="limited-epoch-end"),
]
SAVES_IN_WINDOWS = [
    pytest.param("on_train_batch_end", 4, {"accumulate_grad_batches": 4}, id="window-end"),
    pytest.param("on_train_batch_end", 3, {"accumulate_grad_batches": 2}, id="inside-a-window"),
    pytest.param("on_before_backward", 9, {"accumulate_grad_batches": 2}, id="inside-a-step"),
    pytest.param(
        "on_validation_end", 3, {"accumulate_grad_batches": 2, "val_check_interval": 3}, id="validation-in-a-window"
    ),
    pytest.param("on_train_batch_end", 6, {"accumulate_grad_batches": 4}, id="short-window-at-epoch-end"),
]


def _check_resume(images: Path, tmp_path: Path, hook: str, num_batches: int, options: dict, manual: bool) -> None:
    ckpt = tmp_path / "at.ckpt"
    whole, whole_trainer = fit(images, tmp_path, manual=manual, callbacks=[SaveAt(ckpt, hook, num_batches)], **options)
    resumed, trainer = fit(images, tmp_path, manual=manual, ckpt=ckpt, **options)

    window = options.get("accumulate_grad_batches", 1)
    assert num_batches - window < len(whole.seen) - len(resumed.seen) <= num_batches
    for (epoch, batch_idx, expected), (other_epoch, other_idx, found) in zip(
        reversed(whole.seen), reversed(resumed.seen), strict=False
    ):
        assert (epoch, batch_idx) == (other_epoch, other_idx)
        assert same(expected, found)
    for expected, found in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(expected, found)  # so every window was whole
    assert (trainer.global_step, trainer.current_epoch) == (whole_trainer.global_step, whole_trainer.current_epoch)
    loops = trainer.fit_loop.epoch_loop, whole_trainer.fit_loop.epoch_loop
    assert loops[0]._batches_that_stepped == loops[1]._batches_that_stepped  # where loggers put their points


@pytest.mark.parametrize(("hook", "num_batches", "options"), SAVES + SAVES_IN_WINDOWS)
def test_a_resumed_run_sees_the_batches_of_the_uninterrupted_run(
    images: Path, tmp_path: Path, hook, num_batches, options
):
    _check_resume(images, tmp_path, hook, num_batches, options, manual=False)


@pytest.mark.parametrize(("hook", "num_batches", "options"), SAVES)
def test_so_does_one_with_two_optimizers(images: Path, tmp_path: Path, hook, num_batches, options):
    steps = {} if options.get("max_steps") == -1 else {"max_steps": 28}  # each optimizer's step counts
    _check_resume(images, tmp_path, hook, num_batches, options | steps, manual=True)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_can_be_resumed_again_and_again(images: Path, tmp_path: Path, num_workers: int):
    """Every two batches a new process, with other workers; through Lightning's own ModelCheckpoint."""
    whole, _ = fit(images, tmp_path, max_steps=14)
    seen, ckpt = [], None
    for steps in range(2, 15, 2):
        saver = ModelCheckpoint(tmp_path, f"{num_workers}-{steps}", every_n_train_steps=2, save_top_k=-1)
        options = {"callbacks": [saver], "enable_checkpointing": True, "data": {"num_workers": num_workers}}
        module, _ = fit(images, tmp_path, ckpt=ckpt, max_steps=steps, **options)
        assert len(module.seen) == 2
        seen += module.seen
        ckpt = saver.best_model_path
    for (epoch, batch_idx, expected), (other_epoch, other_idx, found) in zip(whole.seen, seen, strict=True):
        assert (epoch, batch_idx) == (other_epoch, other_idx)
        assert same(expected, found)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), module.parameters(), strict=True))


def test_a_run_can_be_resumed_with_another_batch_size(images: Path, tmp_path: Path):
    """As on another number of ranks with the accumulation to match: the same samples make each step."""
    ckpt = tmp_path / "at.ckpt"
    fit(images, tmp_path, callbacks=[SaveAt(ckpt, "on_train_batch_end", 8)])
    whole, _ = fit(images, tmp_path)
    resumed, trainer = fit(images, tmp_path, ckpt=ckpt, data={"batch_size": 2}, accumulate_grad_batches=2, max_steps=11)
    assert [n for _, _, batch in resumed.seen for n in numbers(batch)] == [
        n for _, _, batch in whole.seen[8:11] for n in numbers(batch)
    ]
    assert trainer.global_step == 11 and [batch_idx for _, batch_idx, _ in resumed.seen] == [4, 5, 6, 7, 8, 9]


def test_a_new_trainer_starts_the_stream_anew(images: Path, tmp_path: Path):
    data, seen = ShardDataModule(str(images), 4), []
    for _ in range(2):
        module = Recorder()
        trainer = Trainer(
            max_steps=3,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            reload_dataloaders_every_n_epochs=1,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, datamodule=data)
        seen.append(module.seen)
    assert all(same(one, other) for (*_, one), (*_, other) in zip(*seen, strict=True))
