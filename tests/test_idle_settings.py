"""Settings that the others leave without effect: refused where they are typed, said where a config may have them."""

import re

import pytest
from cli_fixtures import ROOT, Experiment, run

from scalear.benchmark.setting import JobOptions
from scalear.commands.running.trainer import RunTrainer
from scalear.guidance import Guidance
from scalear.idle_settings import idle_settings
from scalear.scales import ScaleSchedule
from scalear.schedules import PaperSchedules
from scalear.tasks.edit_requests import RefineRequest
from scalear.token_sampling import TokenSampling
from scalear.tokenizers.discriminator import AdversarialLoss
from scalear.tokenizers.objective import TokenizerLoss
from scalear.training.generator.samples import SampleRequest
from scalear.training.tokenizer.codebook import CodebookCare


@pytest.mark.parametrize(
    "owner, settings, idle",
    [
        (Guidance, {"ramp": "linear"}, {"flexvar_side": 8}),
        (Guidance, {"ramp": "constant"}, {"flexvar_side": 8}),
        (TokenSampling, {"greedy": 4}, {"flexvar_side": 8}),
        (AdversarialLoss, {"adaptive": False}, {"max_ratio": 10.0}),
        (TokenizerLoss, {"perceptual": None}, {"perceptual_weight": 0.5}),
        (PaperSchedules, {"side": 8, "max_between": 2, "drop_prob": 0.0}, {"max_drops": 2}),
        (CodebookCare, {"min_usage": 0.0}, {"revive_every": 7}),
        (RefineRequest, {"image": "a.png", "label": 1, "out": "absent/b.png"}, {"threshold": 0.25}),
        (JobOptions, {"job": "train"}, {"decoder": "out"}),
        (JobOptions, {"job": "sample"}, {"loader": True}),
        (RunTrainer, {"logger": False, "accelerator": "cpu"}, {"gradient_clip_algorithm": "value"}),
    ],
)
def test_what_another_setting_leaves_without_effect_is_refused(owner, settings, idle):
    owner(**settings)
    ((name, value),) = idle.items()
    with pytest.raises(ValueError, match=f"{name} {value} is not used, for .*leave (it|this) out"):
        owner(**settings, **idle)


def test_what_has_an_effect_is_not_refused():
    Guidance(2.0, ramp="flexvar", flexvar_side=8)
    TokenSampling(greedy="flexvar", flexvar_side=8)
    assert idle_settings(Guidance, "of the default", flexvar_side=16) == []  # as a resolved config spells it out


def test_what_a_config_may_have_for_other_settings_is_said():
    schedule = ScaleSchedule.parse("1,2,4")
    lines = TokenSampling(greedy=0, top_k=9, top_p=0.5).idle(schedule)
    assert [re.sub(" is .*", "", line) for line in lines] == ["top_k 9", "top_p 0.5"]
    assert TokenSampling(greedy=2, top_k=9).idle(schedule) == TokenSampling(greedy=0).idle(schedule) == []
    (line,) = SampleRequest(label_file="labels.txt", num_per_class=3).idle()
    assert line == "num_per_class 3 is not used, for label_file says every label"


def test_a_run_says_what_it_does_not_use(experiment: Experiment, tmp_path, caplog):
    typed = ["--model.statistics_samples=7", "--model.sizes=null", "--trainer.fast_dev_run"]
    assert run("fit", *experiment.code_tokenizer("vq", tmp_path), *typed) == 0
    for name in ("statistics_samples 7", "size_exponent 0.5"):
        assert f"{name} is not used, for" in caplog.text
    both = [f"--model.begin_from={experiment.weights}", f"--model.tokenizer.weights={experiment.weights}"]
    assert run("fit", *experiment.tokenizer(tmp_path), *both) == 2
    resumed = [f"--model.begin_from={experiment.weights}", f"--ckpt_path={experiment.checkpoint('kl')}"]
    assert run("fit", *experiment.tokenizer(tmp_path), *resumed, "--trainer.fast_dev_run") == 0
    assert f"model.begin_from {experiment.weights} is not used: {experiment.checkpoint('kl')} holds" in caplog.text


COMMANDS = [
    "evaluate {1} --reference={0}/data/fashion-mnist --samples_split=train",
    "stats {1} {1}/s.npz --split=val",
    "data pack --source=ImageFolder --source.root={1} --output_dir={1}/out --image_size=8 --quality=50",
    "convert {1}/a.safetensors {1}/b.pth --reverse --raw",
    "benchmark encode -c {0}/configs/fashion/vq.yaml --loader",
    "fit -c {0}/configs/fashion/flexvar.yaml --model.guidance.ramp=constant --model.guidance.flexvar_side=8",
]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_refuse_options_without_effect(line, tmp_path, capsys):
    assert run(*line.format(ROOT, tmp_path).split()) == 2
    error = capsys.readouterr().err
    assert "is not used, for" in error and error.count("\n") <= 2 and not list(tmp_path.iterdir())
