import contextlib
import dataclasses
import itertools
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from data_fixtures import image_of, moments_of, numbers, pixels, png, sample, write_images
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from scalear.data.batch import Batch
from scalear.data.datamodule import ShardDataModule
from scalear.data.dataset import Augmentation, ShardDataset, ShardLoader
from scalear.data.index import DatasetIndex, Shard
from scalear.data.plan import TrainBatches, TrainPlan
from scalear.data.reader import ShardReader
from scalear.training.optim import OptimizerSettings, RunLength
from scalear.training.run_length import run_length

NUM_TRAIN = 22


def stream(directory: Path, num_epochs: int, *, world_size: int = 1, num_workers: int = 0) -> list[list[Batch]]:
    """What each rank trains on, with a global batch of 6."""
    data = ShardDataModule(str(directory), 1)
    reader_args = (str(directory), data.index, "train", 2)
    plan = TrainPlan([shard.num_samples for shard in data.index.shards("train")], seed=0, shuffle_shards=2)
    loaders = []
    for rank in range(world_size):
        batches = TrainBatches(NUM_TRAIN, 6 // world_size, rank, world_size)
        dataset = ShardDataset(ShardReader(*reader_args), batches, Augmentation(flip=True, crop=None), plan)
        loaders.append(ShardLoader.build(dataset, num_workers))
    seen: list[list[Batch]] = [[] for _ in loaders]
    position = 0
    for _ in range(num_epochs):
        for loader, rank_seen in zip(loaders, seen, strict=True):
            loader.dataset.batches.seek(position)
            rank_seen += loader
        position = seen[0][-1].stream_end
    return seen


@pytest.mark.parametrize("kind", ["images", "latents"])
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_ranks_and_workers_see_every_sample_once_per_epoch(request, kind: str, world_size: int, num_workers: int):
    directory = request.getfixturevalue(kind)
    reference = stream(directory, 3)[0]
    ranks = stream(directory, 3, world_size=world_size, num_workers=num_workers)

    assert Counter([n for batch in reference for n in numbers(batch)][: 3 * NUM_TRAIN]) == dict.fromkeys(range(22), 3)
    for whole, *parts in zip(reference, *ranks, strict=True):
        assert numbers(whole) == [n for part in parts for n in numbers(part)]
        assert torch.equal(whole.inputs, torch.cat([part.inputs for part in parts]))
        assert torch.equal(whole.label, torch.cat([part.label for part in parts]))
        assert torch.equal(whole.position, torch.cat([part.position for part in parts]))
        assert {part.stream_end for part in parts} == {whole.stream_end}


def flips(batches: list[Batch]) -> list[bool]:
    """Whether each sample was flipped, and that it is right otherwise."""
    found = []
    for batch in batches:
        assert batch.label.tolist() == [number % 3 for number in numbers(batch)]
        for number, content in zip(numbers(batch), batch.inputs, strict=True):
            if batch.kind == "images":
                flipped = pixels(content)[0, 0] != number
                np.testing.assert_array_equal(
                    pixels(content)[:, ::-1] if flipped else pixels(content), image_of(number)
                )
            else:
                flipped = bool(content[0, 0, 0] != number)
                assert torch.equal(content, moments_of([number], flipped=flipped)[0])
            found.append(bool(flipped))
    return found


def test_half_of_the_samples_are_flipped_by_their_position_only(images: Path, latents: Path):
    of_images, of_latents = stream(images, 6)[0], stream(latents, 6)[0]
    assert (of_images[0].kind, of_latents[0].kind) == ("images", "latents")
    assert of_images[0].inputs.dtype == torch.float32
    assert of_latents[0].inputs.dtype == torch.float16  # as it is stored
    assert flips(of_images) == flips(of_latents)
    assert 0.35 < np.mean(flips(of_images)) < 0.65


def test_evaluation_is_complete_in_order_and_not_augmented(images: Path, latents: Path):
    for directory in (images, latents):
        data = ShardDataModule(str(directory), 4, eval_batch_size=3, num_workers=2)
        batches = list(data.val_dataloader())
        assert [n for batch in batches for n in numbers(batch)] == list(range(100, 107))
        assert torch.cat([batch.position for batch in batches]).tolist() == list(range(7))
        first = batches[0].inputs[0].float()
        expected = moments_of([100])[0] if batches[0].kind == "latents" else torch.tensor(image_of(100)) / 127.5 - 1
        torch.testing.assert_close(first.reshape(expected.shape), expected)
        for split, loader in zip(data.predict_splits, data.predict_dataloader(), strict=True):
            assert sum(len(batch) for batch in loader) == {"train": 22, "val": 7}[split]


def test_without_a_trainer_the_stream_goes_on_from_position(images: Path):
    data, seen = ShardDataModule(str(images), 5), []
    for _ in range(2):
        for batch in data.train_dataloader():
            seen += numbers(batch)
            data.position = batch.stream_end
    assert Counter(seen[:44]) == dict.fromkeys(range(22), 2)
    assert data.position == 45


# What is refused


def test_another_batch_size_holds_from_the_next_loader_on(images: Path):
    data = ShardDataModule(str(images), batch_size=1)
    first = next(iter(data.train_dataloader()))
    data.position, data.batch_size = first.stream_end, 4
    batch = next(iter(data.train_dataloader()))
    assert len(batch) == 4 and batch.position.tolist() == [1, 2, 3, 4]


def test_broken_samples_are_refused_by_default(tmp_path: Path):
    write_images(tmp_path, replaced={7: sample(7) | {"png": png(image_of(7))[:-30]}})
    with pytest.raises(ValueError, match="train-1.tar.*image007.*max_bad_fraction"):
        list(ShardDataModule(str(tmp_path), 4).train_dataloader())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_broken_samples_are_left_out_up_to_a_fraction(tmp_path: Path, caplog, num_workers: int):
    broken = {n: sample(n) | {"png": b"not an image"} for n in (7, 8)}
    write_images(tmp_path, replaced=broken)
    data = ShardDataModule(str(tmp_path), 11, max_bad_fraction=2.5 / 22, num_workers=num_workers)
    with caplog.at_level(logging.WARNING):
        batches = list(data.train_dataloader())
    seen = [n for batch in batches for n in numbers(batch)]
    assert not {7, 8} & set(seen)
    assert [batch.stream_end for batch in batches] == [11, 22]  # positions are as without
    for batch in batches:
        assert len(batch.inputs) == len(batch.label) == len(batch.position) == len(batch)
    if num_workers == 0:  # else the workers log
        assert "train-1.tar" in caplog.text and "image007" in caplog.text and "image008" in caplog.text

    data = ShardDataModule(str(tmp_path), 11, max_bad_fraction=1.5 / 22, num_workers=num_workers)
    with pytest.raises(ValueError, match="2 broken samples"):
        list(data.train_dataloader())


def test_a_config_can_be_built_where_its_data_is_not(tmp_path: Path):
    data = ShardDataModule(str(tmp_path / "nowhere"), 4)
    with pytest.raises(ValueError, match="nowhere"):
        data.train_dataloader()


def test_a_global_batch_larger_than_the_dataset_is_refused(images: Path):
    with pytest.raises(ValueError, match="23 x 1 ranks.*lower data.batch_size"):
        ShardDataModule(str(images), 23).train_dataloader()


QUIET = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "reload_dataloaders_every_n_epochs": 1}


def test_a_global_batch_that_the_trainer_does_not_give_is_refused(images: Path, tmp_path: Path):
    data = ShardDataModule(str(images), 2, global_batch=12)
    data.trainer = Trainer(**QUIET, default_root_dir=tmp_path, max_epochs=1, accumulate_grad_batches=3)
    message = r"1 devices x 1 nodes x batch_size 2 x accumulate_grad_batches 3 = 6: set trainer.accumulate_grad_batches"
    with pytest.raises(ValueError, match=f"{message} to 6, or data.batch_size to 4, or trainer.num_nodes to 2, or"):
        data.setup("fit")
    data.setup("test")
    data.batch_size = 4
    data.setup("fit")
    data.batch_size = 5  # x 3 does not divide 12
    with pytest.raises(ValueError, match=r"= 15: set data.batch_size to 4, or data.global_batch to 15"):
        data.setup("fit")


class Watch(LightningModule):
    """Notes the batches that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[Batch] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        self.expected = run_length(self.trainer)
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch)
        return self.layer.weight.sum()


@pytest.mark.parametrize("epochs, accumulated, global_batch", [(3, 1, None), (3, 2, None), (2, 1, 5), (3, 2, 10)])
def test_how_many_steps_epochs_take_is_known_before(images: Path, tmp_path: Path, epochs, accumulated, global_batch):
    """Of 22 images in batches of 5."""

    module, settings = Watch(), {"max_epochs": epochs, "accumulate_grad_batches": accumulated}
    quiet = QUIET | {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(**quiet, **settings, limit_val_batches=0, default_root_dir=tmp_path)
    trainer.fit(module, datamodule=ShardDataModule(str(images), 5, global_batch=global_batch))
    assert module.expected == RunLength(5 * accumulated, 22 / (5 * accumulated), trainer.global_step)
    if global_batch is not None:
        assert trainer.global_step == round(epochs * 22 / global_batch)


def test_a_changing_accumulation_is_refused_where_something_follows_from_the_batch(images: Path, tmp_path: Path):
    changing = GradientAccumulationScheduler({0: 1, 1: 3})
    data = ShardDataModule(str(images), 2, global_batch=2)
    data.trainer = Trainer(**QUIET, default_root_dir=tmp_path, max_epochs=2, callbacks=[changing])
    with pytest.raises(ValueError, match="global_batch is 2, and GradientAccumulationScheduler changes it within the"):
        data.setup("fit")
    data.global_batch = None
    data.setup("fit")
    data.trainer.datamodule = data
    assert run_length(data.trainer) == RunLength()
    with pytest.raises(ValueError, match="set optimizer.lr"):
        OptimizerSettings(base_lr=1e-4).resolve(run_length(data.trainer))
    data.trainer = Trainer(**QUIET, default_root_dir=tmp_path, max_steps=7, max_epochs=-1, callbacks=[changing])
    data.trainer.datamodule = data
    assert run_length(data.trainer) == RunLength(total_steps=7)


@pytest.mark.parametrize("wanted", [2, 0.5])
def test_overfitting_repeats_the_first_batches(images: Path, tmp_path: Path, wanted):
    quiet = QUIET | {"enable_progress_bar": False, "enable_model_summary": False}
    module, data = Watch(), ShardDataModule(str(images), 5)
    trainer = Trainer(**quiet, max_epochs=3, overfit_batches=wanted, limit_val_batches=0, default_root_dir=tmp_path)
    trainer.fit(module, datamodule=data)
    first = [numbers(batch) for batch in itertools.islice(ShardDataModule(str(images), 5).train_dataloader(), 2)]
    assert [numbers(batch) for batch in module.seen] == 3 * first
    assert module.seen[-1].stream_end == 30  # so that noise and augmentation go on
    assert module.expected == RunLength(5, 2, 6) and trainer.global_step == 6


def test_a_batch_that_a_callback_changes_is_found(images: Path, tmp_path: Path):
    class Doubling(Callback):
        def on_train_epoch_start(self, trainer, pl_module) -> None:
            trainer.accumulate_grad_batches = 1 + trainer.current_epoch

    quiet = QUIET | {"enable_progress_bar": False, "enable_model_summary": False, "callbacks": [Doubling()]}
    trainer = Trainer(**quiet, max_epochs=3, limit_val_batches=0, default_root_dir=tmp_path)
    with pytest.raises(ValueError, match="accumulate_grad_batches 2 = 10"):
        trainer.fit(Watch(), datamodule=ShardDataModule(str(images), 5, global_batch=5))
    assert trainer.current_epoch == 1


def test_latents_of_another_tokenizer_are_refused(images: Path, latents: Path):
    ShardDataModule(str(latents), 4).check_tokenizer("f00d")
    ShardDataModule(str(images), 4).check_tokenizer("beef")
    with pytest.raises(ValueError, match="f00d.*beef"):
        ShardDataModule(str(latents), 4).check_tokenizer("beef")


@pytest.mark.parametrize("known", [True, False])
def test_latents_of_images_that_were_packed_again_are_refused(images: Path, latents: Path, tmp_path: Path, known):
    """Of as many images as before only where the latents know what they were made of."""
    index = DatasetIndex.load(latents)
    assert index.latents.images.keys() == {"train", "val"}
    if not known:
        index = dataclasses.replace(index, latents=dataclasses.replace(index.latents, images={}))
    index.save(tmp_path / "latents")

    def check(packed: DatasetIndex) -> None:
        packed.save(tmp_path)
        _ = ShardDataModule(str(tmp_path), 4, latents_dir=str(tmp_path / "latents")).index

    packed = DatasetIndex.load(images)
    check(packed)
    train = packed.splits["train"]
    with pytest.raises(ValueError, match="number of train samples is 22 there and 27 here. Set data.latents_dir"):
        check(dataclasses.replace(packed, splits=packed.splits | {"train": [*train, Shard("more.tar", 5, "0")]}))
    others = dataclasses.replace(packed, splits=packed.splits | {"train": [Shard("others.tar", 22, "0")]})
    with pytest.raises(ValueError, match="checksum of train is") if known else contextlib.nullcontext():
        check(others)


def test_latents_that_are_not_there_are_told_with_what_can_be_done(images, tmp_path):
    with pytest.raises(ValueError, match=r"no latents in .*: `scalear predict` .* or to null to encode the images"):
        _ = ShardDataModule(str(images), 4, latents_dir=str(tmp_path)).index


def test_another_dataset_or_order_cannot_be_resumed(images: Path, tmp_path: Path):
    state = ShardDataModule(str(images), 4).state_dict()
    assert all(isinstance(value, int | str) for value in state.values())
    other = ShardDataModule(str(images), 4)
    train = other.index.splits["train"]
    other.index.splits["train"] = [dataclasses.replace(train[0], sha256="0" * 64), *train[1:]]
    with pytest.raises(ValueError, match="checksum"):
        other.load_state_dict(state)
    other.index.splits["train"] = train[:-1]
    with pytest.raises(ValueError, match="num_samples 22"):
        other.load_state_dict(state)
    with pytest.raises(ValueError, match="seed 0"):
        ShardDataModule(str(images), 4, seed=1).load_state_dict(state)


def test_trainers_that_would_break_the_order_are_refused(images: Path, tmp_path: Path):
    data = ShardDataModule(str(images), 4)
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "default_root_dir": tmp_path}
    data.trainer = Trainer(**quiet, max_epochs=1)
    with pytest.raises(ValueError, match="reload_dataloaders_every_n_epochs is 0, must be 1"):
        data.setup("fit")
    data.setup("test")
    data.trainer = Trainer(**quiet, max_epochs=1, devices=2, strategy="ddp", reload_dataloaders_every_n_epochs=1)
    with pytest.raises(ValueError, match="use_distributed_sampler to false"):
        data.setup("fit")


def test_prediction_through_lightning_reads_all_splits(images: Path, tmp_path: Path):
    class Predictor(LightningModule):
        def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> tuple[int, list[int]]:
            return dataloader_idx, numbers(batch)

    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    data = ShardDataModule(str(images), 4)
    parts = [part for loader in trainer.predict(Predictor(), datamodule=data) for part in loader]
    assert data.predict_splits == ["train", "val"]
    assert [n for idx, part in parts if idx == 0 for n in part] == list(range(22))
    assert [n for idx, part in parts if idx == 1 for n in part] == list(range(100, 107))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_are_pinned_where_there_is_a_gpu(images):
    loader = ShardDataModule(str(images), 4).train_dataloader()
    for batch in loader:
        assert all(tensor.is_pinned() for tensor in (batch.inputs, batch.label, batch.position))
        assert len(batch.keys) == len(batch) == 4 and batch.kind == "images"


def test_pinning_a_batch_keeps_what_is_in_it(images, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)  # page-locked memory needs a GPU
    batch = next(iter(ShardDataModule(str(images), 4).train_dataloader()))
    pinned = torch.utils.data._utils.pin_memory.pin_memory(batch)
    for name in ("inputs", "label", "position"):
        assert torch.equal(getattr(pinned, name), getattr(batch, name))
        assert getattr(pinned, name) is not getattr(batch, name)
    assert (pinned.keys, pinned.stream_end, pinned.kind) == (batch.keys, batch.stream_end, batch.kind)
