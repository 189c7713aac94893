"""Models as diffusers pipelines: saved, loaded and moved by diffusers, and the same images as `scalear predict`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from cli_fixtures import Experiment, run
from diffusers import DiffusionPipeline
from PIL import Image

from scalear.class_paths import settings_part
from scalear.evaluation.images import load_samples
from scalear.guidance import Guidance
from scalear.interop.hub.diffusers import ScaleARPipeline, ScaleARScheduler
from scalear.interop.hub.pretrained import ScaleARModel


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def folder(experiment) -> Path:
    places = (f"--ckpt_path={experiment.checkpoint('flowar')}", f"--output_dir={experiment.root / 'pipeline'}")
    assert run("export", *experiment.generator("flowar"), *places, "--format=diffusers") == 0
    return experiment.root / "pipeline"


@pytest.fixture
def pipe(folder) -> ScaleARPipeline:
    loaded = ScaleARPipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def predict(experiment: Experiment, seed: int) -> tuple[np.ndarray, list[int]]:
    settings = ("--model.samples.batch_size=12", f"--model.samples.seed={seed}")
    checkpoint = f"--ckpt_path={experiment.checkpoint('flowar')}"
    assert run("predict", *experiment.generator("for_diffusers"), checkpoint, *settings, "--force") == 0
    images, labels = load_samples(experiment.root / "for_diffusers" / "samples.npz")
    return images, labels.tolist()


def test_a_freshly_seeded_generator_gives_the_images_of_predict(experiment, pipe):
    assert isinstance(pipe, DiffusionPipeline)
    images, labels = predict(experiment, seed=3)
    pictures = pipe(labels, generator=seeded(3), precision="32-true").images
    assert all(isinstance(picture, Image.Image) for picture in pictures)
    assert np.array_equal(np.stack([np.asarray(picture)[..., None] for picture in pictures]), images)
    floats = pipe(class_labels=labels, generator=seeded(3), output_type="np", precision="32-true").images
    assert floats.dtype == np.float32 and np.array_equal((floats * 255).round(), images)


def test_a_round_trip_through_diffusers_changes_nothing(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = ScaleARPipeline.from_pretrained(tmp_path)
    first, second = (each([0, 2], generator=seeded(0), output_type="pt").images for each in (pipe, again))
    assert torch.equal(first, second)
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    parts = {f"{part}/{name}" for part in ("transformer", "vae") for name in ("config.json", WEIGHTS)}
    assert files == parts | {"model_index.json", "scheduler/scheduler_config.json"}


def is_fast(pipe: ScaleARPipeline) -> bool:
    return any("forward" in vars(module) for part in (pipe.transformer, pipe.vae) for module in part.modules())


def test_it_is_one_model_and_as_fast_as_its_run(experiment, folder, pipe, tmp_path):
    pipe([0])
    model = pipe.image_model
    assert is_fast(pipe) and pipe.image_model is model
    pipe.scheduler = ScaleARScheduler.from_config(pipe.scheduler.config, guidance=settings_part(Guidance(9.0)))
    assert pipe.image_model.guidance.weight == 9.0
    plain = ScaleARPipeline.from_pretrained(folder, fast=False)

    places = (f"--ckpt_path={experiment.checkpoint('flowar')}", f"--output_dir={tmp_path / 'plain'}")
    assert run("export", *experiment.generator("flowar"), *places, "--model.fast=false") == 0
    exported = ScaleARModel.from_pretrained(tmp_path / "plain")
    for slow in (plain, ScaleARPipeline.from_model(exported)):
        slow([0])
        assert not is_fast(slow)
        slow.save_pretrained(tmp_path / "again")
        assert ScaleARPipeline.from_pretrained(tmp_path / "again").config.fast is False
    fast = ScaleARModel.from_pretrained(tmp_path / "plain", fast=True)
    assert is_fast(ScaleARPipeline.from_model(fast)) and fast.fast


WEIGHTS = "diffusion_pytorch_model.safetensors"


def test_it_samples_what_the_model_does(experiment, folder, pipe):
    places = (f"--ckpt_path={experiment.checkpoint('flowar')}", f"--output_dir={experiment.root / 'as_model'}")
    assert run("export", *experiment.generator("flowar"), *places) == 0
    model = ScaleARModel.from_pretrained(experiment.root / "as_model")
    converted = ScaleARPipeline.from_model(model)
    expected = model.generate(["class2", 0], output_type="np")
    for each in (pipe, converted):
        floats = each(["class2", 0], generator=seeded(0), output_type="np").images
        assert np.array_equal((floats * 255).round(), expected)


def test_a_generator_moves_on_and_a_list_has_one_per_image(pipe):
    generator = seeded(0)
    first, second = (pipe([1, 1], generator=generator, output_type="latent").images for _ in range(2))
    assert first.shape == (2, 4, 4, 4)
    assert not torch.equal(first, second)
    generator.manual_seed(0)
    assert torch.equal(pipe([1, 1], generator=generator, output_type="latent").images, first)
    listed = pipe([2, 1], generator=[seeded(9), seeded(0)], output_type="latent").images
    assert torch.allclose(listed[1], first[0], atol=1e-4)
    torch.manual_seed(4)
    one = pipe([1], output_type="latent").images
    other = pipe([1], output_type="latent").images
    torch.manual_seed(4)
    assert not torch.equal(one, other) and torch.equal(pipe([1], output_type="latent").images, one)


def test_guidance_scales_and_tuples(pipe):
    def latent(**changes) -> torch.Tensor:
        return pipe([1], generator=seeded(0), output_type="latent", return_dict=False, **changes)[0]

    plain = latent()
    assert not torch.equal(latent(guidance_scale=1.0), plain)
    assert torch.equal(latent(guidance_scale=pipe.scheduler.guidance.weight, scales="1,2,4"), plain)
    with pytest.raises(ValueError, match="1,2,5"):
        latent(scales="1,2,5")
    with pytest.raises(ValueError, match="2 generators for 1 labels"):
        pipe([1], generator=[seeded(0), seeded(1)])
    with pytest.raises(ValueError, match="there is no class 'dog': classes are class0"):
        pipe(["dog"])
    with pytest.raises(ValueError, match="label 7 is out of range"):
        pipe([7])


def test_the_progress_bar_counts_scales(pipe, capsys):
    pipe.set_progress_bar_config(disable=False)
    pipe([0])
    assert "3/3" in capsys.readouterr().err


def test_it_moves_to_other_types_and_devices(folder, pipe):
    full = pipe([0, 1], generator=seeded(0), output_type="np").images
    for half in (pipe.to(torch.bfloat16), ScaleARPipeline.from_pretrained(folder, dtype=torch.bfloat16)):
        assert half.dtype == torch.bfloat16
        assert {parameter.dtype for parameter in half.transformer.parameters()} == {torch.bfloat16}
        images = half([0, 1], generator=seeded(0), output_type="np").images
        assert images.dtype == np.float32 and np.abs(images - full).mean() < 0.05
    assert half.to("cpu", torch.float32).dtype == torch.float32


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_it_samples_on_a_gpu(pipe):
    on_cpu = pipe([0, 1], generator=seeded(0), output_type="latent").images
    on_gpu = pipe.to("cuda")([0, 1], generator=seeded(0), output_type="latent").images
    assert on_gpu.device.type == "cuda" and torch.allclose(on_gpu.cpu(), on_cpu, atol=1e-2)
