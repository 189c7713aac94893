import json
import re
from pathlib import Path

import pytest
import torch
from data_fixtures import write_images
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tokenizer_fixtures import make_kl
from torch import nn
from torchvision.models.vgg import cfgs, make_layers
from training_fixtures import assert_resumes_exactly, make_trainer

from scalear.data.datamodule import ShardDataModule
from scalear.evaluation.fid import FrechetFeatureDistance
from scalear.evaluation.images import to_uint8
from scalear.tokenizers.autoencoder import ConvTokenizer
from scalear.tokenizers.diffusers_adapters import DiffusersKL
from scalear.tokenizers.discriminator import AdversarialLoss
from scalear.tokenizers.objective import TokenizerLoss
from scalear.tokenizers.perceptual import LPIPS, FeatureDistance
from scalear.training.ema import EMA
from scalear.training.optim import OptimizerSettings
from scalear.training.tokenizer.module import TokenizerModule

pytestmark = pytest.mark.integration


class PixelFID(FrechetFeatureDistance):
    """FID of the mean and the spread of an image's pixels."""

    def __init__(self) -> None:
        super().__init__(num_features=2)

    def update(self, image_BCHW: torch.Tensor, real: bool) -> None:
        pixels = image_BCHW.flatten(1).float()
        super().update(torch.stack([pixels.mean(1), pixels.std(1)], dim=1), real)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("images")
    write_images(directory)
    return directory


def make_data(dataset: Path, batch_size: int = 4, **settings) -> ShardDataModule:
    return ShardDataModule(str(dataset), batch_size=batch_size, eval_batch_size=4, **settings)


def make_tokenizer(weights: str | None = None, **changes) -> ConvTokenizer:
    return make_kl(weights=weights, **{"channel_multipliers": (1, 1)} | changes)


def make_module(loss: TokenizerLoss | None = None, tokenizer=None, **settings) -> TokenizerModule:
    torch.manual_seed(0)
    tokenizer = tokenizer or make_tokenizer()
    return TokenizerModule(tokenizer, OptimizerSettings(lr=1e-3), loss or TokenizerLoss(), **settings)


def adversarial_loss(start_step: int = 0) -> TokenizerLoss:
    torch.manual_seed(0)  # a frozen network is in no checkpoint
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    return TokenizerLoss(
        perceptual=FeatureDistance(network, ["1"]),
        adversarial=AdversarialLoss(image_channels=1, start_step=start_step, channels=8, num_layers=1),
    )


def test_fit_exports_the_averaged_tokenizer_with_statistics_also_in_the_checkpoint(dataset, tmp_path):
    average = EMA(decay=0.5)
    saver = ModelCheckpoint(tmp_path, filename="end", every_n_train_steps=4, save_last=True)
    module = make_module()
    make_trainer(tmp_path, max_steps=4, callbacks=[average, saver], enable_checkpointing=True).fit(
        module, datamodule=make_data(dataset)
    )

    exported = make_tokenizer(weights=str(tmp_path / "tokenizer.safetensors"))
    exported.load_weights()
    checkpoint = torch.load(tmp_path / "end.ckpt", weights_only=True)
    for name, tensor in exported.state_dict().items():
        torch.testing.assert_close(checkpoint["state_dict"][f"tokenizer.{name}"], tensor, rtol=0, atol=0)
    weight = "tokenizer.decoder.conv_out.weight"
    assert not torch.equal(checkpoint["current_model_state"][weight], checkpoint["state_dict"][weight])

    images = torch.cat([batch.inputs for batch in make_data(dataset).predict_dataloader()[0]])
    assert len(images) == 22
    with torch.no_grad():
        posterior = exported.eval().posterior(images)
        samples = torch.cat([posterior.sample(torch.randn(posterior.mean_BChw.shape)) for _ in range(200)])
    torch.testing.assert_close(exported.latent_mean, samples.mean((0, 2, 3)), rtol=0.02, atol=0.02)
    torch.testing.assert_close(exported.latent_std, samples.std((0, 2, 3)), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("loss", [TokenizerLoss, adversarial_loss])
def test_resumed_training_equals_uninterrupted_training(dataset, tmp_path, loss):
    def fit(folder: str, steps: int, resume: Path | None = None) -> TokenizerModule:
        saver = ModelCheckpoint(tmp_path / folder, filename="end", every_n_train_steps=steps)
        settings = {"max_steps": steps, "accumulate_grad_batches": 2, "gradient_clip_val": 0.1}
        trainer = make_trainer(tmp_path / folder, callbacks=[saver], enable_checkpointing=True, **settings)
        module = make_module(loss())
        trainer.fit(module, datamodule=make_data(dataset, batch_size=3), ckpt_path=resume)
        return module

    assert_resumes_exactly(fit, tmp_path)


def test_the_perceptual_network_is_frozen_and_in_no_checkpoint():
    module = make_module(adversarial_loss()).train()
    network = module.loss.perceptual
    assert not any(part.training for part in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not any("perceptual" in name for name in module.state_dict())
    module.load_state_dict(module.state_dict())


def test_players_are_clipped_apart(dataset, tmp_path):
    module = make_module(adversarial_loss())
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.fit(module, datamodule=make_data(dataset))
    for player in (module.tokenizer, module.loss):
        for parameter in player.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.full_like(parameter, 10.0)
    module.configure_gradient_clipping(trainer.optimizers[0], 1.0, "norm")
    for player in (module.tokenizer, module.loss):
        norms = [parameter.grad.norm() for parameter in player.parameters() if parameter.requires_grad]
        torch.testing.assert_close(torch.stack(norms).norm(), torch.tensor(1.0))


def test_test_measures_prints_and_shows_reconstructions(dataset, tmp_path, capsys):
    module = make_module(rfid=PixelFID())
    logger = TensorBoardLogger(tmp_path, name="", version="")
    make_trainer(tmp_path, logger=logger).test(module, datamodule=make_data(dataset))
    results = json.loads((tmp_path / "metrics.json").read_text())
    # 8x8 images are too small for SSIM.
    assert results.keys() == {"psnr", "rfid", "line", "trainer_precision", "machine"}
    assert re.match(r"rFID-7 [\d.]+, PSNR [\d.]+ \(7 images of tiny val, 32-true on .*, scalear ", results["line"])

    module.eval()
    images = torch.cat([batch.inputs for batch in make_data(dataset).val_dataloader()])
    with torch.no_grad():
        decoded = module.tokenizer.decode(module.tokenizer.encode(images))
    error = ((decoded * 127.5 + 127.5).round() - (images * 127.5 + 127.5)).div(255).square().mean((1, 2, 3))
    assert results["psnr"] == pytest.approx(-10 * error.log10().mean().item(), abs=1e-3)
    assert "val/rfid" in capsys.readouterr().out
    events = EventAccumulator(str(tmp_path)).Reload()
    assert "val/reconstructions" in events.Tags()["images"]
    assert "val/psnr" in events.Tags()["scalars"]


def test_no_images_are_shown_where_none_are_wanted(dataset, tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    make_trainer(tmp_path, logger=logger).test(make_module(grid_images=0), datamodule=make_data(dataset))
    assert EventAccumulator(str(tmp_path)).Reload().Tags()["images"] == []


def test_lpips_is_measured_on_stored_levels_and_is_in_no_checkpoint(dataset, tmp_path):
    module = make_module(lpips=LPIPS(str(tmp_path / "vgg16.pth"))).eval()
    with pytest.raises(ValueError, match="no VGG-16 weights"):
        make_trainer(tmp_path).test(module, datamodule=make_data(dataset))
    backbone = make_layers(cfgs["D"], batch_norm=False).state_dict()
    torch.save({f"features.{name}": tensor for name, tensor in backbone.items()}, tmp_path / "vgg16.pth")
    make_trainer(tmp_path).test(module, datamodule=make_data(dataset))  # reads it
    assert "lpips" not in json.loads((tmp_path / "metrics.json").read_text())  # for 8x8 images are too small

    lpips, image = module.metrics.lpips, torch.rand(3, 1, 32, 32) * 2 - 1
    with torch.no_grad():
        module.metrics.update(module.tokenizer, image)
        expected = lpips(*(to_uint8(x) / 127.5 - 1 for x in (image, module.tokenizer.reconstruction(image)))).mean()
    assert module.metrics.named()["lpips"].compute() == pytest.approx(expected.item(), rel=1e-4)
    assert not any("lpips." in name for name in module.state_dict())
    assert not any(parameter.requires_grad for parameter in lpips.parameters())


def test_predict_gives_moments_of_the_image_and_its_mirror_image(dataset, tmp_path):
    module, data = make_module(), make_data(dataset)
    of_splits = make_trainer(tmp_path).predict(module, datamodule=data)
    loaders = data.predict_dataloader()
    assert len(of_splits) == len(loaders) == 2
    for outputs, loader in zip(of_splits, loaders, strict=True):
        images = torch.cat([batch.inputs for batch in loader])
        for name, seen in (("moments", images), ("flipped", images.flip(-1))):
            with torch.no_grad():
                expected = module.eval().tokenizer.moments(seen)
            moments = torch.cat([output[name] for output in outputs])
            assert moments.shape == (len(images), 8, 4, 4)
            torch.testing.assert_close(moments, expected, rtol=1e-4, atol=1e-5)


def test_a_loss_that_is_not_finite_names_step_and_samples(dataset, tmp_path):
    module = make_module()
    module.tokenizer.decoder.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"not finite at step 0: .*batch keys: \['image0"):
        make_trainer(tmp_path, max_steps=1).fit(module, datamodule=make_data(dataset))


@pytest.mark.parametrize(
    "module, message",
    [
        (lambda: make_module(tokenizer=make_tokenizer(image_channels=3)), "set tokenizer.image_channels to 1"),
        (lambda: make_module(tokenizer=make_tokenizer(patch_size=8)), "not a multiple of the tokenizer's stride 16"),
        (lambda: make_module(tokenizer=DiffusersKL({"in_channels": 1, "out_channels": 1})), "cannot be trained here"),
        (lambda: make_module(tokenizer=make_tokenizer("absent.safetensors")), "no tokenizer weights at absent"),
        (
            lambda: make_module(TokenizerLoss(adversarial=AdversarialLoss(image_channels=1, channels=8))),
            "8x8 are too small for this discriminator, which needs 24",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_training(dataset, tmp_path, module, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, max_steps=1).fit(module(), datamodule=make_data(dataset))
