"""Every YAML under configs/, as the command line reads it."""

import functools
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from scalear.commands.data import data_parser
from scalear.commands.run import ScalearCLI
from scalear.flow import FAST8, FlowSolver
from scalear.training.optim import split_parameters

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(path.relative_to(ROOT) for path in ROOT.glob("configs/**/*.yaml"))
OVERLAYS = [path for path in CONFIGS if path.parent == Path("configs")]
EXPERIMENTS = [path for path in CONFIGS if path not in OVERLAYS]
FACTS = json.loads((ROOT / "tests/parity/facts.json").read_text())
_FLOWAR, _VAR, _FLEXVAR = (FACTS[name]["parameters"] for name in ("FlowAR", "VAR", "FlexVAR"))
# Parameters of the official models, by the name of our config.
OFFICIAL_PARAMETERS = {
    "flowar-s": _FLOWAR["flowar_small"]["total"],
    "flowar-b": FACTS["FlowAR"]["flowar_b_candidates_within_1_percent"][0]["params"],  # inferred: none is official
    "flowar-l": _FLOWAR["flowar_large"]["total"],
    "flowar-h": _FLOWAR["flowar_huge"]["total"],
    **{f"var-{size}": count for size, count in _VAR.items() if size[1:].isdigit()},
    "var-d36": _VAR["d36_shared_aln"] + (2240 - 680) * 36 * 64,  # at 512 px; the fact is for the tokens of 256 px
    **{f"flexvar-{size}": count for size, count in _FLEXVAR.items() if size[1:].isdigit()},
    "tokenizer-kl16": FACTS["mar"]["parameters"]["kl16"],
    "tokenizer-vq16": _FLEXVAR["vq16_8912x32"],
    "tokenizer-rvq16": _VAR["vqvae_ch160_V4096_C32"],
}
PAPER_SIZES = [path for path in EXPERIMENTS if "imagenet" in path.parent.name and path.stem in OFFICIAL_PARAMETERS]


class Parsed(ScalearCLI):
    """The command line, read and checked but not carried out."""

    def instantiate_classes(self) -> None: ...

    def after_instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...


@functools.cache
def parsed(*args: str) -> Parsed:
    """Tests share what they read: a config takes half a second."""
    return Parsed(list(args))


@functools.cache
def model_on_meta(path: str) -> torch.nn.Module:
    cli = parsed("fit", "-c", path)
    with torch.device("meta"):
        return cli.parser.instantiate_classes(cli.config)["fit"].model


def commands(path: Path) -> list[list[str]]:
    """`scalear ...` in the comments of a file, as argument lists."""
    comments = "\n".join(re.findall(r"^# ?(.*)$", (ROOT / path).read_text(), re.MULTILINE))
    lines = re.sub(r"\\\n *", " ", comments).splitlines()
    found = [re.search(r"(?:-m |srun |^ *)scalear ((?:fit|validate|test|predict|data) -?.*)", line) for line in lines]
    # An explanation may follow a command, some spaces away.
    return [shlex.split(re.split(r"(?<=\S) {3,}", match[1])[0]) for match in found if match]


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("SLURM_NNODES", "2")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=str)
def test_every_experiment_parses_and_its_model_is_built_on_meta(path):
    model = model_on_meta(str(path))
    assert all(parameter.is_meta for parameter in model.parameters())
    stated = re.search(r"(\d+(?:,\d{3})+) .*parameters, all trainable", (ROOT / path).read_text().splitlines()[0])
    if stated:
        trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        assert trainable == int(stated[1].replace(",", ""))


@pytest.mark.parametrize("path", PAPER_SIZES, ids=str)
def test_paper_sizes_have_the_official_parameters(path):
    model = model_on_meta(str(path))
    part = model.model.generator if hasattr(model, "model") else model.tokenizer
    assert sum(parameter.numel() for parameter in part.parameters()) == OFFICIAL_PARAMETERS[path.stem]


def test_every_official_size_has_a_config():
    assert {path.stem for path in PAPER_SIZES} == OFFICIAL_PARAMETERS.keys() - {"flexvar-d30"}  # never released


@pytest.mark.parametrize("name", ["imagenet512/var-d36", "imagenet256/flexvar-d16"])
def test_what_is_not_decayed_is_what_the_official_code_exempts(name):
    generator = model_on_meta(f"configs/{name}.yaml").model.generator
    plain = {id(parameter) for parameter in split_parameters([generator])[1]}
    names = {name for name, parameter in generator.named_parameters() if id(parameter) in plain}
    exempt = ("bias", "class_embedding", "positions.", "modulation.table", "log_scale_N")
    assert names == {name for name, _ in generator.named_parameters() if any(word in name for word in exempt)}


@pytest.mark.parametrize(
    "overlay, path",
    [
        (overlay, path)
        for overlay, folder in (("debug", "fashion"), ("slurm", "imagenet256"))
        for path in EXPERIMENTS
        if path.parent.name == folder and "GeneratorModule" in (ROOT / path).read_text()
    ],
    ids=str,
)
def test_overlays_fit_every_generator_that_they_are_for(path, overlay):
    Parsed(["fit", "-c", str(path), "-c", f"configs/{overlay}.yaml"])


@pytest.mark.parametrize("path", [path for path in EXPERIMENTS if path.stem.startswith("flowar")], ids=str)
def test_the_fast_sampler_fits_every_flowar(path):
    sampling = Parsed(["fit", "-c", str(path), "-c", "configs/fast8.yaml"]).config.fit.model.init_args.sampling
    assert FlowSolver(**sampling.as_dict()) == FAST8


def test_null_can_be_typed_at_any_depth():
    names = ("data.cache_dir", "model.tokenizer.weights", "model.samples.label_file", "model.report")
    typed = [f"--{name}=null" for name in names] + ["--model.seed=3"]
    config = Parsed(["fit", "-c", "configs/fashion/flowar.yaml", *typed]).config.fit
    model = config.model.init_args
    assert model.tokenizer.init_args.weights is None and model.samples.label_file is None and model.report is None
    assert config.data.init_args.cache_dir is None and model.seed == 3
    source = ["--source", "ImageFolder", "--source.root=x", "--source.val_root", "null"]
    packed = data_parser().parse_args(["pack", *source, "--output_dir=y", "--image_size=8"])
    assert packed.pack.source.init_args.val_root is None


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_commands_in_comments_can_be_typed(path):
    found = commands(path)
    assert found, "no config without the command that uses it"
    for args in found:
        args = [arg.replace("$SLURM_NNODES", "2") for arg in args]
        if args[0] == "data":
            data_parser().parse_args(args[1:])
        else:
            parsed(*args)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=str)
def test_the_schedule_ends_when_training_does(path):
    config = yaml.safe_load((ROOT / path).read_text())
    optimizer = config["model"]["init_args"].get("optimizer")
    if optimizer and config.get("trainer", {}).get("max_steps"):
        optimizer = optimizer.get("init_args", optimizer)
        if optimizer.get("schedule") in ("cosine", "linear"):
            assert optimizer["total_steps"] == config["trainer"]["max_steps"]


def test_every_experiment_has_a_run_folder_of_its_own():
    folders = [yaml.safe_load((ROOT / path).read_text())["trainer"]["default_root_dir"] for path in EXPERIMENTS]
    assert len(set(folders)) == len(folders)
