"""Training and testing tokenizers with a codebook: sizes, healthy codes, a start from another's weights."""

import json
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tokenizer_fixtures
import torch
from data_fixtures import write_images
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional as F
from training_fixtures import assert_resumes_exactly, make_trainer

from scalear.data.datamodule import ShardDataModule
from scalear.evaluation.images import to_uint8
from scalear.scales import ScaleSchedule
from scalear.tokenizers.autoencoder import ConvTokenizer
from scalear.tokenizers.objective import TokenizerLoss
from scalear.tokenizers.quantizer import VectorQuantizer
from scalear.tokenizers.weights import save_tokenizer
from scalear.training.loggers import RunLogger
from scalear.training.optim import OptimizerSettings
from scalear.training.tokenizer import codebook as codebook_file
from scalear.training.tokenizer.codebook import CodebookCare
from scalear.training.tokenizer.latent_sizes import RandomSizes
from scalear.training.tokenizer.metrics import CodePerplexity, CodeUsage
from scalear.training.tokenizer.module import TokenizerModule
from scalear.training.tokenizer.scale_picture import ScalePicture

pytestmark = pytest.mark.integration

WEIGHTS = {"codebook": 1.0, "commitment": 0.25}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("images")
    write_images(directory)
    return directory


def make_vq(**changes) -> ConvTokenizer:
    return tokenizer_fixtures.make_vq(
        **{"normalise": False, "channel_multipliers": (1, 1), "feature_channels": 8} | changes
    )


def make_residual(**changes) -> ConvTokenizer:
    return tokenizer_fixtures.make_residual(**{"channel_multipliers": (1, 1)} | changes)


def make_module(tokenizer, penalty_weights: dict | None = None, **settings) -> TokenizerModule:
    loss = TokenizerLoss(penalty_weights=WEIGHTS | (penalty_weights or {}))
    return TokenizerModule(tokenizer, OptimizerSettings(lr=1e-3), loss, **settings)


def make_data(dataset: Path, batch_size: int = 4) -> ShardDataModule:
    return ShardDataModule(str(dataset), batch_size=batch_size, eval_batch_size=4)


def test_random_sizes_are_distinct_below_full_and_a_function_of_seed_and_step():
    sizes, seen = RandomSizes(3), Counter()
    for step in range(400):
        drawn = sizes.draw(0, step, (8, 8))
        assert drawn == sizes.draw(0, step, (8, 8)) and len(set(drawn)) == 3
        seen.update(drawn)
    assert seen.keys() == {(side, side) for side in range(1, 8)}
    assert min(seen.values()) > 400 * 3 / 7 * 0.8
    assert [sizes.draw(seed, 0, (8, 8)) for seed in range(9)] != [drawn] * 9
    assert RandomSizes(5).draw(0, 0, (2, 4)) == [(1, 1), (1, 2), (2, 3)]  # all there are
    assert RandomSizes(5).draw(0, 0, (1, 1)) == []
    with pytest.raises(ValueError, match="count must be at least 1"):
        RandomSizes(0)


@pytest.mark.parametrize("make, settings", [(make_vq, {"sizes": RandomSizes(2)}), (make_residual, {})])
def test_resumed_training_equals_uninterrupted_training(dataset, tmp_path, make, settings):
    """With k-means at the start, codes that are revived, and counts of uses on both sides of the break."""

    def fit(folder: str, steps: int, resume: Path | None = None) -> TokenizerModule:
        saver = ModelCheckpoint(tmp_path / folder, filename="end", every_n_train_steps=steps)
        callbacks = [CodebookCare(kmeans_steps=3, revive_every=2, min_usage=0.5), saver]
        module = make_module(make(), **settings)
        trainer = make_trainer(tmp_path, max_steps=steps, callbacks=callbacks, enable_checkpointing=True)
        trainer.fit(module, datamodule=make_data(dataset), ckpt_path=resume)
        return module

    assert_resumes_exactly(fit, tmp_path)
    exported = make(weights=str(tmp_path / "tokenizer.safetensors"))
    exported.load_weights()
    assert not exported.latent_mean.any() and (exported.latent_std == 1).all()


def test_kmeans_lowers_the_error_and_dead_codes_move_to_where_it_is_large():
    torch.manual_seed(0)
    quantizer, generator = VectorQuantizer(3, 8, normalise=False), torch.Generator().manual_seed(0)
    vectors = torch.cat([torch.randn(400, 3), torch.full((5, 3), 500.0)])  # few are far away

    def error() -> float:
        return (quantizer.vectors[quantizer.nearest(vectors)] - vectors).square().sum(1).mean().item()

    def pool(vectors: torch.Tensor, codes: torch.Tensor) -> codebook_file._Pool:
        return codebook_file._Pool(vectors, codes, torch.ones(len(vectors)))

    with torch.no_grad():
        codebook_file._lloyd(quantizer, pool(vectors, quantizer.nearest(vectors)), True, generator)
        errors = [error()]
        for _ in range(6):
            codebook_file._lloyd(quantizer, pool(vectors, quantizer.nearest(vectors)), False, generator)
            errors.append(error())
        assert all(after <= before for before, after in zip(errors, errors[1:], strict=False))
        quantizer.codebook.zero_()
        quantizer.codebook[1:, 0] -= 10_000.0  # nobody's
        codes = quantizer.nearest(vectors)
        codebook_file._move(quantizer, torch.tensor([2]), pool(vectors, codes), generator)
        assert (quantizer.codebook[2] == 500.0).all()
        before = quantizer.codebook.clone()
        codebook_file._move(quantizer, torch.tensor([1]), pool(quantizer.codebook[codes], codes), generator)
        assert torch.equal(quantizer.codebook, before)  # nothing is far from its code


@pytest.mark.parametrize("make", [make_vq, make_residual])
def test_care_uses_more_codes(dataset, tmp_path, make):
    def usage(callbacks: list) -> float:
        module = make_module(make())
        trainer = make_trainer(tmp_path, max_steps=8, callbacks=callbacks)
        trainer.fit(module, datamodule=make_data(dataset, batch_size=8))
        return trainer.validate(module, datamodule=make_data(dataset), verbose=False)[0]["val/usage"]

    assert usage([CodebookCare(kmeans_steps=5, revive_every=2)]) > max(0.5, usage([]))


def test_usage_and_perplexity_count_codes():
    usage, perplexity = CodeUsage(8), CodePerplexity(8)
    for codes in ([[0, 1], [1, 0]], [[3, 3], [7, 7]]):
        usage.update(torch.tensor(codes))
        perplexity.update(torch.tensor(codes))
    assert usage.compute() == 0.5
    assert perplexity.compute() == pytest.approx(4.0)


@pytest.mark.parametrize("make", [make_vq, make_residual])
def test_test_prints_a_table_over_scales_and_draws_them(dataset, tmp_path, make, caplog):
    suffixes = ["_scale_1", "_scale_2", "_scale_4"]
    save_tokenizer(make_residual(num_codes=8), tmp_path / "other.safetensors")
    picture = ScalePicture("1,2,4", {"other": str(tmp_path / "other.safetensors")})
    module = make_module(make(), scales="1,2,4")
    trainer = make_trainer(tmp_path, callbacks=[picture], logger=RunLogger(str(tmp_path)))
    trainer.test(module, datamodule=make_data(dataset))
    results = json.loads((tmp_path / "metrics.json").read_text())
    measured = [f"{name}{scale}" for name in ("psnr", "usage", "perplexity") for scale in ("", *suffixes)]
    assert results.keys() >= set(measured)
    for name in ("1", "2", "4"):
        assert f"{name:>5}{results[f'psnr_scale_{name}']:>12.4f}" in caplog.text
    assert Image.open(tmp_path / "scales.png").size == (2 * (3 * 10 + 2), 2 * (9 * 10 + 2))  # 3 scales; 3 rows a time 3

    images = torch.cat([batch.inputs for batch in make_data(dataset).val_dataloader()])
    tokenizer = module.tokenizer.eval()
    with torch.no_grad():
        steps = list(tokenizer.quantizer.scale_by_scale(tokenizer.encode(images), ScaleSchedule.parse("1,2,4")))
        decoded = tokenizer.decode(steps[1][1])
        torch.testing.assert_close(tokenizer.decode(steps[2][1]), tokenizer.reconstruction(images))
    target = F.adaptive_avg_pool2d(images, decoded.shape[-2:])
    error = ((decoded * 127.5 + 127.5).round() - (target * 127.5 + 127.5).round()).div(255).square().mean((1, 2, 3))
    assert results["psnr_scale_2"] == pytest.approx(-10 * error.log10().mean().item(), abs=1e-2)
    assert results["usage_scale_2"] == len(steps[1][0].unique()) / tokenizer.num_codes

    (event,) = EventAccumulator(str(tmp_path)).Reload().Images("val/reconstructions_of_scales")
    grid = np.asarray(Image.open(BytesIO(event.encoded_image_string)).convert("L"))
    assert grid.shape == (2 * (4 * 10 + 2), 2 * (3 * 10 + 2))  # of a batch of three: the images, then three scales
    shown = [grid[2 * (10 * row + 2) : 2 * (10 * row + 10) : 2, 4:20:2] for row in range(4)]
    as_large = F.interpolate(decoded, images.shape[-2:])
    for row, image_BCHW in ((0, images), (2, as_large)):
        np.testing.assert_allclose(shown[row], to_uint8(image_BCHW)[0, 0], atol=1)


def test_moments_are_predicted_before_quantisation(dataset, tmp_path):
    module = make_module(make_vq())
    first = make_trainer(tmp_path).predict(module, datamodule=make_data(dataset))[0][0]["moments"]
    image = next(iter(make_data(dataset).predict_dataloader()[0])).inputs
    with torch.no_grad():
        torch.testing.assert_close(first, module.tokenizer.eval().encode(image))
    assert first.dtype == module.tokenizer.moments_dtype == torch.float32


def test_training_begins_from_another_tokenizers_encoder_and_decoder(dataset, tmp_path, caplog):
    source = make_vq(num_codes=32, latent_channels=3)
    torch.nn.init.normal_(source.encoder.conv_in.weight)
    path = tmp_path / "source.safetensors"
    save_tokenizer(source, path)
    module = make_module(make_vq(), begin_from=str(path))
    trainer = make_trainer(tmp_path, max_steps=1)
    codebook = module.tokenizer.quantizer.codebook.clone()
    module.optimizer = OptimizerSettings(lr=1e-30)  # a step that moves nothing
    trainer.fit(module, datamodule=make_data(dataset))
    for half in ("encoder", "decoder"):
        for name, tensor in getattr(source, half).state_dict().items():
            torch.testing.assert_close(getattr(module.tokenizer, half).state_dict()[name], tensor)
    torch.testing.assert_close(module.tokenizer.quantizer.codebook, codebook)
    for name in ("quant_conv.weight", "post_quant_conv.weight", "bottleneck.codebook"):
        assert f"'{name}'" in caplog.text
    assert "post_quant_conv.bias" not in caplog.text  # as wide in both


@pytest.mark.parametrize("source", ["begin_from", "weights"])
def test_kmeans_leaves_a_loaded_codebook_alone(dataset, tmp_path, source):
    saved = make_vq()
    torch.nn.init.normal_(saved.quantizer.codebook)
    path = str(tmp_path / "source.safetensors")
    save_tokenizer(saved, path)
    module = make_module(make_vq(weights=path)) if source == "weights" else make_module(make_vq(), begin_from=path)
    module.optimizer = OptimizerSettings(lr=1e-30)
    make_trainer(tmp_path, max_steps=1, callbacks=[CodebookCare()]).fit(module, datamodule=make_data(dataset))
    torch.testing.assert_close(module.tokenizer.quantizer.codebook, saved.quantizer.codebook)


def kl() -> ConvTokenizer:
    return tokenizer_fixtures.make_kl(channel_multipliers=(1, 1))


@pytest.mark.parametrize(
    "module, callbacks, message",
    [
        (
            lambda path: make_module(make_residual(), sizes=RandomSizes(1)),
            [],
            "ConvTokenizer with ResidualQuantizer has one latent size: leave out `sizes`, or take",
        ),
        (lambda path: make_module(kl(), {"kl": 1.0}), [CodebookCare()], "remove it from trainer.callbacks"),
        (lambda path: make_module(kl(), {"kl": 1.0}, scales="1,2"), [], "leave out `scales`"),
        (
            lambda path: make_module(make_residual(), {"entropy": 1.0}),
            [],
            "has 'entropy', but the penalties of ConvTokenizer with Residual",
        ),
        (
            lambda path: make_module(make_vq(), scales="1,2,8"),
            [],
            "8x8 of scales is larger than",
        ),
        (lambda path: make_module(make_residual(scales="1,2")), [], "end at 2 tokens, but the latent has 4"),
        (lambda path: make_module(make_vq(), begin_from="absent"), [], "no weights at absent to begin from"),
        (lambda path: make_module(make_vq(feature_channels=4), begin_from=path), [], "another encoder or decoder"),
    ],
)
def test_what_cannot_work_is_refused_before_training(dataset, tmp_path, module, callbacks, message):
    path = tmp_path / "source.safetensors"
    save_tokenizer(make_vq(), path)
    with pytest.raises(ValueError, match=message):
        trainer = make_trainer(tmp_path, max_steps=1, callbacks=callbacks)
        trainer.fit(module(str(path)), datamodule=make_data(dataset))


def test_a_picture_of_scales_needs_codes(dataset, tmp_path):
    save_tokenizer(kl(), tmp_path / "kl.safetensors")
    picture = ScalePicture("1,2", {"other": str(tmp_path / "kl.safetensors")})
    with pytest.raises(ValueError, match="must hold a tokenizer with a codebook, but it holds .* with Gaussian"):
        make_trainer(tmp_path, callbacks=[picture]).test(make_module(make_vq()), datamodule=make_data(dataset))
    with pytest.raises(ValueError, match="with a codebook, model.tokenizer is ConvTokenizer with Gaussian"):
        make_trainer(tmp_path, callbacks=[ScalePicture("1,2")]).test(
            make_module(kl(), {"kl": 1.0}), datamodule=make_data(dataset)
        )


@pytest.mark.parametrize("settings", [{"kmeans_steps": -1}, {"revive_every": 0}, {"min_usage": 1.0}])
def test_settings_of_care_are_checked(settings: dict):
    with pytest.raises(ValueError, match="need kmeans_steps >= 0"):
        CodebookCare(**settings)
