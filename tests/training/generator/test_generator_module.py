"""Generators through real Trainers, on images of 8x8 and latents of 2x2."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import training_fixtures
from data_fixtures import write_images
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from model_fixtures import NUM_CLASSES, network_class, transformer_class
from tokenizer_fixtures import make_kl

from scalear.data.datamodule import ShardDataModule
from scalear.draws import SeededDraws
from scalear.flow import FlowSolver
from scalear.guidance import Guidance
from scalear.models.flow_head import FlowHead
from scalear.pyramid import LatentPyramid
from scalear.training.checkpoints import check_checkpoint
from scalear.training.ema import EMA
from scalear.training.generator.module import GeneratorModule
from scalear.training.generator.sample_grid import SampleGrid
from scalear.training.generator.samples import SampleRequest
from scalear.training.guarded_module import NonFiniteLossError
from scalear.training.interruption import SaveOnInterrupt
from scalear.training.optim import OptimizerSettings
from scalear.training.performance import Performance

pytestmark = pytest.mark.integration

DECAY = 0.5


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("images")
    write_images(directory)
    return directory


def make_module(dropout: float = 0.1, **settings) -> GeneratorModule:
    torch.manual_seed(0)
    tokenizer = make_kl(2, channel_multipliers=(1,), patch_size=4)
    parts = {"pyramid": LatentPyramid, "transformer": transformer_class("1,2", dropout=dropout)}
    parts |= {"head": partial(FlowHead, network=network_class()), "samples": SampleRequest(num_per_class=2)}
    parts |= {"optimizer": OptimizerSettings(lr=1e-2), "sampling": FlowSolver(num_steps=2), "guidance": Guidance(2.0)}
    return GeneratorModule(tokenizer, **parts | settings)


def make_trainer(folder: Path, **settings) -> Trainer:
    plain = {"check_val_every_n_epoch": None, "enable_checkpointing": "callbacks" in settings}
    return training_fixtures.make_trainer(folder, **plain | settings)


def fit(
    dataset: Path, folder: Path, steps: int, ckpt: Path | None = None, module=None, batch_size: int = 4, **settings
) -> GeneratorModule:
    module = module or make_module()
    saver = ModelCheckpoint(folder, filename="end", every_n_train_steps=steps)
    settings["callbacks"] = [*settings.get("callbacks", ()), saver]
    data = ShardDataModule(str(dataset), batch_size=batch_size)
    make_trainer(folder, max_steps=steps, **settings).fit(module, datamodule=data, ckpt_path=ckpt)
    return module


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def assert_equal_states(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def state(module: GeneratorModule) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


class Watch(Callback):
    """Keeps the weights after every step and in every validation, and the loss of every batch."""

    def __init__(self) -> None:
        self.raw: list[dict[str, torch.Tensor]] = []
        self.validated: list[dict[str, torch.Tensor]] = []
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.raw.append(state(pl_module))
        self.losses.append(outputs["loss"].item())

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        self.validated.append(state(pl_module))


class NanAt(Callback):
    """Turns the inputs of one batch into NaN."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            batch.inputs.fill_(float("nan"))


def averages_of(raw: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    """By hand: the first weights, then d * average + (1 - d) * weights, d rising to the decay."""
    averages = [raw[0]]
    for update, weights in enumerate(raw[1:], start=1):
        decay = min(DECAY, (1 + update) / (10 + update))
        averages.append({name: decay * averages[-1][name] + (1 - decay) * weights[name] for name in weights})
    return averages


def test_the_average_is_saved_beside_the_raw_weights_and_validation_sees_it(dataset, tmp_path):
    watch = Watch()
    module = fit(dataset, tmp_path, 5, callbacks=[EMA(DECAY), watch], val_check_interval=3)
    averages, checkpoint = averages_of(watch.raw), load(tmp_path / "end.ckpt")
    assert_equal_states(checkpoint["current_model_state"], watch.raw[-1])
    for name, tensor in averages[-1].items():
        torch.testing.assert_close(checkpoint["state_dict"][name], tensor)
    assert_equal_states(module.state_dict(), checkpoint["state_dict"])  # what is left after training

    assert len(watch.validated) == 2  # two batches, after step 3
    for validated in watch.validated:
        for name, tensor in averages[2].items():
            torch.testing.assert_close(validated[name], tensor)
    straight = Watch()
    fit(dataset, tmp_path / "unvalidated", 5, callbacks=[EMA(DECAY), straight], limit_val_batches=0)
    assert_equal_states(straight.raw[-1], watch.raw[-1])  # validation left no trace


def test_checkpoints_written_after_training_or_in_validation_hold_average_and_raw_weights(dataset, tmp_path):
    class SaveAt(Callback):
        def on_validation_batch_end(self, trainer, *args) -> None:
            trainer.save_checkpoint(tmp_path / "validating.ckpt")

    watch = Watch()
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=100, save_last=True)
    settings = {"callbacks": [saver, EMA(DECAY), watch, SaveAt()], "val_check_interval": 3}
    fit(dataset, tmp_path, 3, **settings)
    for name in ("end", "last", "validating"):
        checkpoint = load(tmp_path / f"{name}.ckpt")
        assert_equal_states(checkpoint["current_model_state"], watch.raw[-1])
        assert_equal_states(checkpoint["state_dict"], load(tmp_path / "end.ckpt")["state_dict"])
    assert not torch.equal(*(next(iter(checkpoint[part].values())) for part in ("state_dict", "current_model_state")))


def test_validation_before_the_first_step_sees_the_loaded_weights(dataset, tmp_path):
    watch = Watch()
    fit(dataset, tmp_path, 1, callbacks=[EMA(DECAY), watch], num_sanity_val_steps=1)
    assert_equal_states(watch.validated[0], make_module().state_dict())


@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}])
def test_a_resumed_run_equals_the_uninterrupted_one(dataset, tmp_path, settings):
    fit(dataset, tmp_path / "straight", 6, callbacks=[EMA(DECAY)], **settings)
    fit(dataset, tmp_path / "first", 3, callbacks=[EMA(DECAY)], **settings)
    fit(dataset, tmp_path / "second", 6, tmp_path / "first" / "end.ckpt", callbacks=[EMA(DECAY)], **settings)
    straight, resumed = load(tmp_path / "straight" / "end.ckpt"), load(tmp_path / "second" / "end.ckpt")
    for part in ("state_dict", "current_model_state", "averaging_state"):
        assert_equal_states(resumed[part], straight[part])
    for one, other in zip(*(run["optimizer_states"][0]["state"].values() for run in (resumed, straight)), strict=True):
        assert_equal_states(one, other)


def test_test_reads_the_average(dataset, tmp_path):
    fit(dataset, tmp_path, 3, callbacks=[EMA(DECAY)])
    module = make_module()
    make_trainer(tmp_path, callbacks=[EMA(DECAY)]).test(module, ckpt_path=tmp_path / "end.ckpt", verbose=False)
    checkpoint = load(tmp_path / "end.ckpt")
    assert_equal_states(module.state_dict(), checkpoint["state_dict"])
    name = "model.generator.head.network.output_proj.weight"
    assert not torch.equal(module.state_dict()[name], checkpoint["current_model_state"][name])
    assert (tmp_path / "samples.npz").is_file() and (tmp_path / "grid.png").is_file()


def test_the_tokenizer_is_frozen_in_eval_mode_and_in_no_checkpoint(dataset, tmp_path):
    before = make_module().model.tokenizer.fingerprint()
    modes = []

    class Modes(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args) -> None:
            modes.append(
                (pl_module.model.generator.training, any(part.training for part in pl_module.model.tokenizer.modules()))
            )

    module = fit(dataset, tmp_path, 2, callbacks=[EMA(DECAY), Modes()])
    assert modes == [(True, False)] * 2
    assert not any(parameter.requires_grad for parameter in module.model.tokenizer.parameters())
    assert module.model.tokenizer.fingerprint() == before
    checkpoint = load(tmp_path / "end.ckpt")
    for part in ("state_dict", "current_model_state"):
        assert checkpoint[part] and all(name.startswith("model.generator.") for name in checkpoint[part])
    trained = {id(tensor) for group in module.optimizers().param_groups for tensor in group["params"]}
    assert trained == {id(parameter) for parameter in module.model.generator.parameters()}


@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 2}])
def test_a_loss_that_is_not_finite_leaves_the_last_good_step(dataset, tmp_path, settings):
    fit(dataset, tmp_path / "good", 3, callbacks=[EMA(DECAY)], **settings)
    with pytest.raises(NonFiniteLossError, match=r"not finite at step 3: .*'loss_scale_2': nan.*keys: \['image0"):
        callbacks = [EMA(DECAY), NanAt(3), SaveOnInterrupt()]
        fit(dataset, tmp_path / "bad", 6, callbacks=callbacks, **settings)
    path = tmp_path / "bad/checkpoints/last_good.ckpt"
    check_checkpoint(path, make_module())
    bad, good = load(path), load(tmp_path / "good" / "end.ckpt")
    for part in ("state_dict", "current_model_state"):
        assert_equal_states(bad[part], good[part])

    fit(dataset, tmp_path / "straight", 6, callbacks=[EMA(DECAY)], **settings)
    fit(dataset, tmp_path / "resumed", 6, path, callbacks=[EMA(DECAY)], **settings)
    straight, resumed = (load(tmp_path / name / "end.ckpt") for name in ("straight", "resumed"))
    assert_equal_states(straight["current_model_state"], resumed["current_model_state"])


class SpoilGradient(Callback):
    """Makes a gradient of one step NaN or infinite after a loss that was finite."""

    def __init__(self, step: int, value: float) -> None:
        self.step = step
        self.value = value

    def on_after_backward(self, trainer, pl_module) -> None:
        if trainer.global_step == self.step:
            pl_module.model.generator.head.network.cond_proj.weight.grad[0, 0] = self.value


@pytest.mark.parametrize(
    "settings, value", [({"gradient_clip_val": 1.0}, float("nan")), ({"accumulate_grad_batches": 2}, float("inf"))]
)
def test_a_gradient_that_is_not_finite_is_never_stepped(dataset, tmp_path, settings, value):
    fit(dataset, tmp_path / "good", 3, callbacks=[EMA(DECAY)], **settings)
    pattern = (
        r"gradient is not finite at step 3, .* in model.generator.head.network.cond_proj.weight; .*keys: \['image0"
    )
    with pytest.raises(NonFiniteLossError, match=pattern) as caught:
        callbacks = [EMA(DECAY), SpoilGradient(3, value), SaveOnInterrupt()]
        fit(dataset, tmp_path / "bad", 6, callbacks=callbacks, **settings)
    assert str(caught.value).count("image0") == 4 * settings.get("accumulate_grad_batches", 1)
    path = tmp_path / "bad/checkpoints/last_good.ckpt"
    bad, good = load(path), load(tmp_path / "good" / "end.ckpt")
    for part in ("state_dict", "current_model_state"):
        assert_equal_states(bad[part], good[part])


class SpoilValidation(Callback):
    """Turns the inputs of validation into NaN."""

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        batch.inputs.fill_(float("nan"))


def test_a_validation_that_is_not_finite_is_no_score(dataset, tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"val/loss is nan, .*val/loss_scale_2 is nan at step 2: the weights"):
        callbacks = [EMA(DECAY), SpoilValidation(), SaveOnInterrupt()]
        fit(dataset, tmp_path, 4, callbacks=callbacks, val_check_interval=2)
    assert load(tmp_path / "checkpoints/last_good.ckpt")["global_step"] == 2


def test_loss_scaling_leaves_out_steps_itself(dataset, tmp_path):
    watch = Watch()
    scaled = [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=128.0))]
    fit(dataset, tmp_path, 4, callbacks=[SpoilGradient(2, float("inf")), watch], plugins=scaled, gradient_clip_val=1.0)
    assert_equal_states(watch.raw[2], watch.raw[1])
    name = "model.generator.head.network.cond_proj.weight"
    assert not torch.equal(watch.raw[3][name], watch.raw[2][name])


def test_training_validation_and_sampling_never_share_random_numbers(dataset, tmp_path, monkeypatch):
    named = []
    begin = SeededDraws.__init__
    monkeypatch.setattr(SeededDraws, "__init__", lambda self, *args: (named.append(args[0]), begin(self, *args))[1])
    module = fit(dataset, tmp_path, 3)
    data = ShardDataModule(str(dataset), batch_size=4)
    make_trainer(tmp_path).validate(module, datamodule=data, verbose=False)
    make_trainer(tmp_path).test(module, verbose=False)
    streams = [stream for batch in named for stream in batch]
    assert len(set(streams)) == len(streams) == 3 * 4 + 7 + 2 * NUM_CLASSES


def test_a_loss_that_is_not_finite_names_its_scales(dataset, tmp_path):
    module = make_module()
    with torch.no_grad():
        module.model.generator.transformer.positions[2].table_LD[1:] = float("nan")  # the tokens of the last scale
    with pytest.raises(NonFiniteLossError) as caught:
        fit(dataset, tmp_path, 1, module=module)
    assert "'loss_scale_2': nan" in str(caught.value) and "loss_scale_1" not in str(caught.value)


def test_accumulated_gradients_equal_one_large_batch(dataset, tmp_path):
    def losses(batch_size: int, windows: int) -> tuple[torch.Tensor, GeneratorModule]:
        watch = Watch()
        folder = tmp_path / str(batch_size)
        settings = {"batch_size": batch_size, "accumulate_grad_batches": windows, "callbacks": [watch]}
        module = fit(dataset, folder, 4, module=make_module(dropout=0.0), **settings)
        return torch.tensor(watch.losses).view(-1, windows).sum(1), module

    large, module = losses(4, 1)
    accumulated, other = losses(2, 2)
    assert len(large) == 4 and large[0] != large[1]
    torch.testing.assert_close(accumulated, large, rtol=1e-5, atol=1e-5)
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, rtol=1e-2, atol=1e-4)


def test_what_a_run_logs(dataset, tmp_path):
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="", version="")
    callbacks = [EMA(DECAY), Performance(), SampleGrid(every_n_steps=2, num_per_class=1)]
    fit(dataset, tmp_path, 4, callbacks=callbacks, logger=logger, log_every_n_steps=1, val_check_interval=2)
    events = EventAccumulator(str(tmp_path)).Reload()
    losses = [f"{stage}/loss{part}" for stage in ("train", "val") for part in ("", "_scale_1", "_scale_2")]
    performance = ["perf/images_per_second", "train/grad_norm", "train/lr"]
    assert {*losses, *performance} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("train/loss")) == 4
    assert set(events.Tags()["images"]) == {"pyramid/real", "samples/fixed_seeds"}


def test_sample_grids_leave_training_as_it_is(dataset, tmp_path):
    from lightning.pytorch.loggers import TensorBoardLogger

    logger = TensorBoardLogger(tmp_path, name="", version="")
    fit(dataset, tmp_path / "watched", 3, callbacks=[SampleGrid(every_n_steps=1, num_per_class=1)], logger=logger)
    fit(dataset, tmp_path / "alone", 3)
    watched, alone = (load(tmp_path / name / "end.ckpt") for name in ("watched", "alone"))
    assert_equal_states(watched["state_dict"], alone["state_dict"])


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2])
def test_ema_decay_must_be_below_one(decay):
    with pytest.raises(ValueError, match=r"EMA decay must be in \[0, 1\)"):
        EMA(decay)


def test_grids_show_the_average_and_leave_the_weights_alone(dataset, tmp_path, monkeypatch):
    from lightning.pytorch.loggers import TensorBoardLogger

    def draw(module: GeneratorModule, label_B: torch.Tensor, seed: int, places: range) -> torch.Tensor:
        seen.append(state(module))
        return torch.zeros(len(label_B), 1, 4, 4)

    seen, watch, logger = [], Watch(), TensorBoardLogger(tmp_path, name="", version="")
    monkeypatch.setattr(GeneratorModule, "generate_images", draw)
    fit(dataset, tmp_path, 3, callbacks=[EMA(DECAY), watch, SampleGrid(3, num_per_class=1)], logger=logger)
    checkpoint = load(tmp_path / "end.ckpt")
    assert_equal_states(seen[0], checkpoint["state_dict"])
    assert_equal_states(watch.raw[2], checkpoint["current_model_state"])
