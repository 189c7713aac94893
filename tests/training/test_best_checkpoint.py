"""The best checkpoint of a run stays the best, whatever it is resumed from."""

import shutil
from pathlib import Path

import pytest
import torch
from data_fixtures import write_images
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from safetensors.torch import load_file
from test_generator_module import DECAY, assert_equal_states, fit, load, make_trainer
from test_tokenizer_module import make_data
from test_tokenizer_module import make_module as make_tokenizer_module

from scalear.training.checkpoints import BestCheckpoint, continues
from scalear.training.ema import EMA

pytestmark = pytest.mark.integration


class Say(Callback):
    """Makes these the scores of validations, by step."""

    def __init__(self, scores: dict[int, float]) -> None:
        self.scores = scores

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        pl_module.log("val/score", self.scores[trainer.global_step])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("images")
    write_images(directory)
    return directory


def run(dataset: Path, folder: Path, steps: int, scores: dict[int, float], ckpt: Path | None = None) -> None:
    keeper = BestCheckpoint("val/score")
    keeper.dirpath = str(folder)
    fit(dataset, folder, steps, ckpt, callbacks=[EMA(DECAY), Say(scores), keeper], val_check_interval=2)


def test_nothing_worse_replaces_the_best(dataset, tmp_path):
    folder, best = tmp_path / "run", tmp_path / "run" / "best.ckpt"
    run(dataset, folder, 3, {2: 3.0})
    early = shutil.copy(folder / "end.ckpt", folder / "early.ckpt")
    run(dataset, folder, 7, {4: 1.0, 6: 2.0}, early)
    assert load(best)["global_step"] == 4

    # What is resumed is older than the best, and knows a worse one alone; the run may also have been moved.
    before = best.read_bytes()
    run(dataset, folder, 5, {4: 2.0}, early)
    shutil.move(folder, tmp_path / "moved")
    folder, best, early = (tmp_path / "moved" / name for name in ("", "best.ckpt", "early.ckpt"))
    run(dataset, folder, 5, {4: 2.0}, early)
    assert best.read_bytes() == before
    run(dataset, folder, 5, {4: 0.5}, early)
    assert best.read_bytes() != before

    best.unlink()
    run(dataset, folder, 5, {4: 2.0}, early)
    assert load(best)["global_step"] == 4


def test_a_new_run_in_its_place_knows_nothing_of_it(dataset, tmp_path):
    folder, best = tmp_path / "run", tmp_path / "run" / "best.ckpt"
    run(dataset, folder, 3, {2: 1.0})
    run(dataset, tmp_path / "other", 1, {})
    run(dataset, folder, 3, {2: 9.0}, tmp_path / "other" / "end.ckpt")  # begins anew, from another folder
    assert load(best)["callbacks"][BestCheckpoint("val/score").state_key]["best_model_score"] == 9.0


def test_a_callback_that_was_added_later_asks_the_file_too(dataset, tmp_path):
    fit(dataset, tmp_path, 1, callbacks=[EMA(DECAY)])
    early = shutil.copy(tmp_path / "end.ckpt", tmp_path / "early.ckpt")
    run(dataset, tmp_path, 3, {2: 1.0}, early)
    before = (tmp_path / "best.ckpt").read_bytes()
    run(dataset, tmp_path, 3, {2: 2.0}, early)
    assert (tmp_path / "best.ckpt").read_bytes() == before


def test_a_run_goes_on_from_it_as_if_it_had_not_been_stopped(dataset, tmp_path):
    scores = {2: 2.0, 4: 1.0, 6: 3.0}
    run(dataset, tmp_path / "straight", 7, scores)
    run(dataset, tmp_path / "resumed", 7, scores, tmp_path / "straight" / "best.ckpt")
    straight, resumed = (load(tmp_path / name / "end.ckpt") for name in ("straight", "resumed"))
    for part in ("state_dict", "current_model_state"):
        assert_equal_states(resumed[part], straight[part])


def test_the_exported_best_is_that_of_the_file(dataset, tmp_path):
    def train(steps: int, scores: dict[int, float], ckpt: Path | None = None, seed: int = 0, **settings) -> None:
        keeper = BestCheckpoint("val/score")
        keeper.dirpath = str(tmp_path)
        every = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
        settings |= {"max_steps": steps, "val_check_interval": 1}
        trainer = make_trainer(tmp_path, callbacks=[Say(scores), keeper, every], **settings)
        trainer.fit(make_tokenizer_module(seed=seed), datamodule=make_data(dataset), ckpt_path=ckpt)

    def exported(name: str) -> dict[str, torch.Tensor]:
        return load_file(tmp_path / f"{name}.safetensors")

    train(2, {1: 5.0, 2: 1.0})
    best, last = exported("tokenizer-best"), exported("tokenizer")
    assert_equal_states(best, last)
    train(2, {2: 2.0}, tmp_path / "step=1.ckpt", seed=1)  # another end, of the same step, and worse
    assert_equal_states(exported("tokenizer-best"), best)
    assert not torch.equal(exported("tokenizer")["latent_std"], last["latent_std"])
    stored = load(tmp_path / "best.ckpt")["state_dict"]
    assert_equal_states({name: stored[f"tokenizer.{name}"] for name in best}, best)
    trainer = make_trainer(tmp_path)
    for place in ("step=1.ckpt", "checkpoints/last.ckpt"):  # also where nothing is kept now
        assert continues(trainer, tmp_path / place)


def test_what_is_not_measured_is_told_and_training_goes_on(dataset, tmp_path, caplog):
    keeper = BestCheckpoint("val/rfid")
    keeper.dirpath = str(tmp_path / "kept")
    fit(dataset, tmp_path, 2, callbacks=[keeper], num_sanity_val_steps=1, val_check_interval=1)
    told = "no best.ckpt is kept: there is no val/rfid, only val/loss, val/loss_scale_1, val/loss_scale_2"
    assert caplog.text.count(told) == 1  # not in the sanity check, and not at the second validation
    assert not (tmp_path / "kept").exists()
