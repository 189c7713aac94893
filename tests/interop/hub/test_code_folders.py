"""VAR and FlexVAR (also with Mamba) as folders and pipelines: FlowAR's code, with other parts in config.json."""

import numpy as np
import pytest
import torch
from cli_fixtures import run
from code_fixtures import train_flexvar, train_var
from model_fixtures import NUM_CLASSES, NUM_CODES, randomise
from tokenizer_fixtures import tokenizer_part

from scalear.class_paths import Part, settings_part
from scalear.draws import SeededDraws
from scalear.evaluation.images import load_samples, to_uint8
from scalear.interop.hub.diffusers import ScaleARPipeline
from scalear.interop.hub.pretrained import ScaleARModel
from scalear.token_sampling import TokenSampling
from scalear.tokenizers.quantizer import VectorQuantizer
from scalear.tokenizers.residual import ResidualQuantizer

FLOAT32 = {"precision": "32-true"}  # as what is compared with


def part(class_path: str, **init_args) -> Part:
    return {"class_path": f"scalear.{class_path}", "init_args": init_args}


def make_model(kind: str, **sampling) -> ScaleARModel:
    flexible = kind != "var"
    block = part("models.mamba.MambaBlock") if kind == "mamba" else part("models.var_block.VARBlock", num_heads=2)
    transformer = part(
        "models.transformer.ScaleTransformer",
        dim=24,
        depths=[2],
        num_classes=NUM_CLASSES,
        scales=[1, 2, 4],
        positions=part("models.positions.GridPositions", side=4)
        if flexible
        else part("models.positions.LevelPositions"),
        block=block,
        norm=part("models.norms.ModulatedNorm"),
        var_init=True,
    )
    pyramid = part("pyramid.CodePyramid" if flexible else "pyramid.ResidualPyramid")
    codes = {"latent_channels": 4, "num_codes": NUM_CODES}
    tokenizer = tokenizer_part(VectorQuantizer, codes, channel_multipliers=[1, 1], feature_channels=32)
    if not flexible:
        codes |= {"scales": [1, 2, 4], "num_phis": 2}
        tokenizer = tokenizer_part(ResidualQuantizer, codes, channel_multipliers=[1, 1])
    torch.manual_seed(0)
    parts = {"transformer": transformer, "head": part("models.token_head.TokenHead"), "pyramid": pyramid}
    parts |= {"tokenizer": tokenizer, "sampling": settings_part(TokenSampling(**sampling))}
    parts |= {"guidance": {"weight": 2.5, "ramp": "flexvar" if flexible else "linear"}}
    model = ScaleARModel(part("image_model.ImageModel", **parts))
    randomise(model, std=0.2)
    return model


@pytest.mark.parametrize("kind", ["var", "flexvar", "mamba"])
@pytest.mark.parametrize("sampling", [{"top_k": 5, "top_p": 0.9}, {"more_smooth": True}], ids=["codes", "smooth"])
def test_folders_and_pipelines_sample_what_the_parts_do(kind, sampling, tmp_path):
    model = make_model(kind, **sampling)
    labels = [0, 1, 2, NUM_CLASSES]
    draws = SeededDraws([(0, i) for i in range(4)])
    with torch.no_grad():
        expected = to_uint8(model.model.sample(torch.tensor(labels), draws)).permute(0, 2, 3, 1).numpy()

    model.save_pretrained(tmp_path / "own")
    loaded = ScaleARModel.from_pretrained(tmp_path / "own")
    assert np.array_equal(loaded.generate(labels, output_type="np", **FLOAT32), expected)
    ScaleARPipeline.from_model(model).save_pretrained(tmp_path / "pipeline")
    pipe = ScaleARPipeline.from_pretrained(tmp_path / "pipeline")
    images = pipe(labels, generator=torch.Generator().manual_seed(0), output_type="np", **FLOAT32).images
    assert np.array_equal((images * 255).round(), expected)


@pytest.mark.parametrize(
    "train, changes",
    [(train_var, []), (train_flexvar, ["--model.samples.scales=1,2,3x4,5x6"])],
    ids=["var", "flexvar"],
)
def test_exported_runs_sample_what_predict_does(train, changes, images, tmp_path):
    trained = train(tmp_path, images)
    changes = [
        *changes,
        "--model.samples.num_per_class=2",
        "--model.samples.batch_size=6",
        "--trainer.precision=32-true",
    ]
    assert run("predict", *trained.model, f"--trainer.default_root_dir={tmp_path / 'predicted'}", *changes) == 0
    expected, labels = load_samples(tmp_path / "predicted" / "samples.npz")
    for kind in ("scalear", "diffusers"):
        output = f"--output_dir={tmp_path / kind}"
        assert run("export", *trained.model, output, f"--format={kind}", *changes) == 0
    model = ScaleARModel.from_pretrained(tmp_path / "scalear")
    assert np.array_equal(model.generate(labels.tolist(), output_type="np", **FLOAT32), expected)
    pipe = ScaleARPipeline.from_pretrained(tmp_path / "diffusers")
    sampled = pipe(labels.tolist(), generator=torch.Generator().manual_seed(0), output_type="np", **FLOAT32).images
    assert np.array_equal((sampled * 255).round(), expected)


@pytest.mark.parametrize("kind", ["var", "flexvar", "mamba"])
def test_half_precision_runs(kind):
    model = make_model(kind, top_k=1)
    for dtype in (torch.bfloat16, torch.float16):
        assert model.to(dtype).generate([0, 1], output_type="np").shape == (2, 32, 32, 1)


def test_flexvar_samples_other_scales():
    model = make_model("flexvar", top_k=1)
    assert model.generate([0], scales="1,2,3,6")[0].size == (48, 48)
    pipe = ScaleARPipeline.from_model(model)
    assert pipe([0], scales="1,2x4", output_type="np").images.shape == (1, 16, 32, 1)
    model.scales = "1,3"
    assert model.generate([0])[0].size == (24, 24)


def test_parts_that_do_not_fit_are_refused():
    model = make_model("var")
    parts = model.model_part["init_args"]
    other = make_model("flexvar").tokenizer_part
    with pytest.raises(ValueError, match="take a tokenizer with ResidualQuantizer"):
        ScaleARModel(part("image_model.ImageModel", **parts | {"tokenizer": other}))
    flow = {"class_path": "scalear.flow.FlowSolver", "init_args": {}}
    with pytest.raises(ValueError, match="TokenHead cannot sample with FlowSolver"):
        ScaleARModel(part("image_model.ImageModel", **parts | {"sampling": flow}))
