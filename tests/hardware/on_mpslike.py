"""What `test_no_float64.py` runs in a process of its own: each family on a device that has no float64.

Nothing needs to be let through: what is left in float64 on purpose (time grids, inverse CDFs, latent statistics, FID)
is on the CPU, which the device tells from its own tensors.
"""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import test_code_generator_module as code
import test_code_tokenizer_module as code_tokenizer
import test_editing as editing
import test_generator_module as generator
import test_tokenizer_module as tokenizer
import torch
from cli_fixtures import CLASSIFIER
from data_fixtures import write_images
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from model_fixtures import make_model, randomise
from mpslike import DEVICE, NAME

from scalear.data.datamodule import ShardDataModule
from scalear.diffusion import DDIM
from scalear.draws import SeededDraws
from scalear.evaluation.extractors import ClassifierFeatures
from scalear.evaluation.feature_set import Needs, extract
from scalear.evaluation.image_set import ArraySet
from scalear.evaluation.images import load_samples
from scalear.flow import FlowSolver
from scalear.guidance import Guidance
from scalear.hardware import float64
from scalear.models.diffusion_head import DiffusionHead
from scalear.models.injections import SequenceConcatenation
from scalear.pyramid import ImagePyramid
from scalear.tokenizers.discriminator import AdversarialLoss
from scalear.tokenizers.objective import TokenizerLoss
from scalear.training.ema import EMA
from scalear.training.generator.sample_grid import SampleGrid
from scalear.training.tokenizer.codebook import CodebookCare

float64._WITHOUT_FLOAT64.add(NAME)
CPU = torch.device("cpu")


class _Accelerator(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        pass


def make_trainer(folder: Path, device: torch.device, **settings) -> Trainer:
    one = {"strategy": SingleDeviceStrategy(device), "devices": 1, "enable_checkpointing": False}
    one["inference_mode"] = False  # in which torch wants no tensors like those of the device
    return generator.make_trainer(folder, accelerator=_Accelerator(), **one, **settings)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("images")
    write_images(directory)
    return directory


def on_both(run) -> tuple:
    """What `run` gives on the CPU and on the device."""
    return run(CPU), run(DEVICE)


def measured(trainer: Trainer) -> dict[str, float]:
    return {name: value.item() for name, value in trainer.callback_metrics.items()}


def test_the_device_refuses_float64_and_tensors_of_the_cpu():
    x = torch.ones(3, device=DEVICE)
    for make in (x.double, lambda: torch.zeros(3, dtype=torch.float64).to(DEVICE), lambda: x.to(torch.float64)):
        with pytest.raises(TypeError, match="float64"):
            make()
    with pytest.raises(RuntimeError, match="both mpslike and the CPU"):
        x + torch.ones(3)
    assert (x.cpu().double() + 1).tolist() == [2.0] * 3


make_tokenizers = {
    "kl": lambda: tokenizer.make_module(rfid=tokenizer.PixelFID()),
    "kl, adversarial": lambda: tokenizer.make_module(_adversarial(), rfid=tokenizer.PixelFID()),
    "vq": lambda: code_tokenizer.make_module(code_tokenizer.make_vq(), rfid=tokenizer.PixelFID()),
    "residual": lambda: code_tokenizer.make_module(code_tokenizer.make_residual(), rfid=tokenizer.PixelFID()),
}


def _adversarial() -> TokenizerLoss:
    torch.manual_seed(1)
    return TokenizerLoss(adversarial=AdversarialLoss(image_channels=1, start_step=0, channels=8, num_layers=1))


@pytest.mark.parametrize("kind", make_tokenizers)
def test_tokenizers_train_are_measured_and_export_their_statistics(dataset, tmp_path, kind):
    def train(device: torch.device):
        module = make_tokenizers[kind]()
        callbacks = [] if "kl" in kind else [CodebookCare(kmeans_steps=2, revive_every=1, min_usage=0.5)]
        trainer = make_trainer(tmp_path, device, max_steps=2, val_check_interval=2, callbacks=callbacks)
        trainer.fit(module, datamodule=tokenizer.make_data(dataset))
        return module.tokenizer.latent_std, measured(trainer)

    (deviation, values), (found_deviation, found) = on_both(train)
    assert "val/rfid" in found and found == pytest.approx(values, rel=1e-2)
    assert (deviation != 1).all() == ("kl" in kind)
    torch.testing.assert_close(found_deviation, deviation, rtol=1e-3, atol=0)


def test_the_statistics_of_fid_stay_on_the_cpu():
    metric = tokenizer.PixelFID().to(DEVICE)
    image_BCHW = torch.rand(8, 1, 4, 4)
    for real in (True, False):
        metric.update((image_BCHW * (1 + real)).to(DEVICE), real)
    assert metric.real_features_sum.device == metric.real_features_num_samples.device == CPU
    assert metric.compute().dtype == torch.float64
    metric.reset()
    assert metric.real_features_sum.device == CPU


def test_features_are_those_of_the_cpu_and_their_statistics_on_it():
    rng = np.random.default_rng(0)
    images = ArraySet(rng.integers(0, 256, (9, 32, 32, 1), np.uint8), np.full(9, -1), "noise")
    needs = Needs(points=frozenset({"logits"}), statistics=frozenset({"pooled"}))
    seen, found = on_both(lambda device: extract(ClassifierFeatures(CLASSIFIER), images, needs, 4, device))
    torch.testing.assert_close(found.points["logits"], seen.points["logits"])
    for name in ("mean_F", "covariance_FF"):
        torch.testing.assert_close(*(getattr(side.statistics["pooled"], name) for side in (found, seen)))


make_generators = {
    "flowar": generator.make_module,
    "flowar, diffusion on smaller images": lambda: generator.make_module(
        pyramid=ImagePyramid,
        head=partial(DiffusionHead, network=partial(SequenceConcatenation, dim=32, depth=1, num_heads=2)),
        sampling=DDIM(2),
    ),
    "flexvar": partial(code.make_module, "flexvar", code.RANDOM),
    "var": partial(code.make_module, "var"),
}


@pytest.mark.parametrize("family", make_generators)
def test_generators_train_and_sample(dataset, tmp_path, family):
    def run(device: torch.device):
        module, data = make_generators[family](), ShardDataModule(str(dataset), batch_size=4)
        if "flowar" in family:  # what it drops out, the device draws for itself
            module.model.generator.transformer.eval()
        settings = {"max_steps": 2, "val_check_interval": 2, "callbacks": [EMA(0.5), SampleGrid(2, 1)]}
        trainer = make_trainer(tmp_path, device, **settings)
        trainer.fit(module, datamodule=data)
        make_trainer(tmp_path, device).predict(module)
        return measured(trainer), load_samples(tmp_path / "samples.npz")[0]

    (values, images), (found, found_images) = on_both(run)
    assert "val/loss" in found and found == pytest.approx(values, rel=1e-2)
    assert found_images.shape == images.shape


def test_times_that_are_not_uniform_are_drawn_there():
    latent_BChw = torch.randn(2, 4, 4, 4)

    def run(device: torch.device) -> float:
        model, draws = randomise(make_model()).eval().to(device), SeededDraws([(0, 0), (0, 1)], device)
        model.generator.head.time_sampling = "logit_normal"
        return model.loss(latent_BChw.to(device), torch.tensor([0, 1]).to(device), draws).total.item()

    loss, found = on_both(torch.no_grad()(run))
    assert found == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize(
    "sampling", [FlowSolver(num_steps=5, grid="flowar"), FlowSolver("heun", 3), FlowSolver("ab3", 8, "late")]
)
def test_flows_are_solved_in_float32_and_see_official_times(sampling):
    def run(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        model, seen = randomise(make_model(cross_attention=True)).eval().to(device), []
        embedding = model.generator.head.network.time_embedding
        embedding.quantise = True
        embedding.register_forward_hook(lambda module, args, output: seen.append(module.thousandths(args[0])[0].cpu()))
        draws = SeededDraws([(0, 0), (0, 1)], device)
        label_B, guidance = torch.tensor([0, 1]).to(device), Guidance(2.0)
        latent_BChw = model.sample_latent(label_B, draws, sampling=sampling, guidance=guidance)
        return latent_BChw.cpu(), torch.cat(seen)

    (latent, thousandths), (found, found_thousandths) = on_both(run)
    torch.testing.assert_close(found, latent, rtol=1e-4, atol=1e-4)
    assert torch.equal(found_thousandths, thousandths)


@pytest.mark.parametrize("smooth", [False, True])
def test_flexvar_edits(smooth):
    def run(device: torch.device) -> torch.Tensor:
        editor = editing.make_editor()
        editor.model.to(device)
        image, mask, label = (x.to(device) for x in (editing.make_image(), editing.hole(), editing.LABEL))
        edit = editor.inpaint(image, mask, label, SeededDraws([(0, 0), (0, 1)], device))
        return edit.image_BCHW.cpu()

    image, found = on_both(torch.no_grad()(run))
    torch.testing.assert_close(found, image, rtol=0, atol=1e-3)
