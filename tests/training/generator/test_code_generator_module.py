"""VAR and FlexVAR through real Trainers, on images of 8x8 and latents of 4x4."""

from functools import partial
from pathlib import Path

import pytest
import torch
from cli_fixtures import CLASSIFIER
from data_fixtures import write_images
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from model_fixtures import NUM_CLASSES, NUM_CODES, DoublingCodes, var_transformer_class
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_generator_module import assert_equal_states, fit, load, make_trainer
from tokenizer_fixtures import make_residual, make_vq

from scalear.evaluation.extractors import ClassifierFeatures
from scalear.evaluation.images import load_samples
from scalear.guidance import Guidance
from scalear.models.positions import GridPositions, LevelPositions
from scalear.models.token_head import TokenHead
from scalear.pyramid import CodePyramid, ResidualPyramid
from scalear.schedules import PaperSchedules, ScheduleSampler
from scalear.token_sampling import TokenSampling
from scalear.training.generator.module import GeneratorModule
from scalear.training.generator.report import SampleReport
from scalear.training.generator.sample_grid import SampleGrid
from scalear.training.generator.samples import SampleRequest
from scalear.training.optim import OptimizerSettings

RANDOM = PaperSchedules(side=4, max_between=2, drop_prob=0.5)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("images")
    write_images(directory)
    return directory


def make_module(
    kind: str,
    schedules: ScheduleSampler | None = None,
    guidance: Guidance | None = None,
    sample_posterior: bool = False,
    **samples,
) -> GeneratorModule:
    torch.manual_seed(0)
    make_tokenizer = make_vq if kind == "flexvar" else make_residual
    tokenizer = make_tokenizer(num_codes=NUM_CODES, channel_multipliers=(1,), patch_size=2)
    flexible = kind == "flexvar"
    positions = partial(GridPositions, side=4) if flexible else LevelPositions
    return GeneratorModule(
        tokenizer,
        CodePyramid if flexible else ResidualPyramid,
        var_transformer_class(positions=positions),
        TokenHead,
        optimizer=OptimizerSettings(lr=1e-2),
        sampling=TokenSampling(top_k=8),
        guidance=guidance or Guidance(2.0),
        samples=SampleRequest(num_per_class=2, **samples),
        schedules=schedules,
        sample_posterior=sample_posterior,
    )


def test_settings_that_codes_have_no_use_for_are_refused_or_said(dataset, tmp_path, caplog):
    for time in (0.1, 0.3):  # 0.1 is what a flow has where nothing is typed
        with pytest.raises(ValueError, match=f"start_time {time} is a time of the flow, and codes are sampled without"):
            fit(dataset, tmp_path, 1, module=make_module("var", guidance=Guidance(2.0, start_time=time)))
    with pytest.raises(ValueError, match="end_time 0.7 is a time of the flow, and codes are sampled without"):
        fit(dataset, tmp_path, 1, module=make_module("var", guidance=Guidance(2.0, end_time=0.7)))
    fit(dataset, tmp_path, 1, module=make_module("var", sample_posterior=True))
    assert "sample_posterior is not used: the latents of" in caplog.text


@pytest.mark.parametrize("kind", ["var", "flexvar"])
def test_what_a_run_logs(dataset, tmp_path, kind):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    module = make_module(kind)
    settings = {"callbacks": [SampleGrid(every_n_steps=2, num_per_class=1)], "val_check_interval": 2}
    fit(dataset, tmp_path, 4, module=module, logger=logger, log_every_n_steps=1, **settings)
    events = EventAccumulator(str(tmp_path)).Reload()
    for name in ("loss", "accuracy"):
        tags = {f"{stage}/{name}{part}" for stage in ("train", "val") for part in ("", "_scale_1", "_scale_4")}
        assert tags <= set(events.Tags()["scalars"])
    assert set(events.Tags()["images"]) == {"pyramid/real", "samples/fixed_seeds"}
    checkpoint = load(tmp_path / "end.ckpt")
    assert all(name.startswith("model.generator.") for name in checkpoint["state_dict"])


def test_random_lists_of_scales_are_drawn_again_after_a_resume(dataset, tmp_path):
    seen = []

    class Lists(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args) -> None:
            seen.append({name for name in trainer.callback_metrics if name.startswith("train/accuracy_scale")})

    def run(folder: str, steps: int, ckpt: Path | None = None) -> None:
        module = make_module("flexvar", RANDOM)
        fit(dataset, tmp_path / folder, steps, ckpt, module=module, callbacks=[Lists()], limit_val_batches=0)

    run("straight", 6)
    straight, seen[:] = list(seen), []
    assert straight[0] != straight[-1]
    run("first", 3)
    run("second", 6, tmp_path / "first" / "end.ckpt")
    one, other = (load(tmp_path / name / "end.ckpt")["state_dict"] for name in ("straight", "second"))
    assert_equal_states(one, other)


def test_samples_of_another_shape(tmp_path):
    module = make_module("flexvar", scales="1,2x3,4x6")
    make_trainer(tmp_path).predict(module, return_predictions=False)
    images, labels = load_samples(tmp_path / "samples.npz")
    assert images.shape == (2 * NUM_CLASSES, 8, 12, 1) and labels.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    "weights, images, scales, message",
    [
        ("absent", None, None, "no classifier at absent"),
        (CLASSIFIER, "nowhere", None, "there is nothing at nowhere"),
        (CLASSIFIER, None, "1,2,3", "samples are 6x6 pixels, the real images .* 8x8: set model.report"),
    ],
)
def test_what_cannot_be_measured_is_not_sampled(dataset, tmp_path, weights, images, scales, message):
    module = make_module("flexvar", scales=scales)
    module.report = SampleReport(ClassifierFeatures(weights), images or str(dataset))
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path).test(module)
    assert not list(tmp_path.glob("samples*"))


def test_a_model_with_one_list_refuses_random_ones(dataset, tmp_path):
    with pytest.raises(ValueError, match="learned positions for scales 1,2,4 and cannot do"):
        fit(dataset, tmp_path, 4, module=make_module("var", PaperSchedules(4, max_between=8)))
    with pytest.raises(ValueError, match="scales 8 end at 8 tokens, but the latent has only 4x4"):
        fit(dataset, tmp_path, 4, module=make_module("flexvar", PaperSchedules(8, max_between=8)))
    with pytest.raises(ValueError, match=r"model.schedules \(PaperSchedules\) does not fit: scales 3 end at 3 tokens"):
        fit(dataset, tmp_path, 4, module=make_module("flexvar", PaperSchedules(3, max_between=8)))


def test_scales_to_sample_are_checked_before_the_first_step(dataset, tmp_path):
    module = make_module("flexvar", scales="1,3,4")
    module.model.pyramid = DoublingCodes(module.model.tokenizer)
    with pytest.raises(ValueError, match="scales must double, got 1,3,4"):
        fit(dataset, tmp_path, 1, module=module)
