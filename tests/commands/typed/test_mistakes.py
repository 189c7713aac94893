"""Which errors end in one message, and which in a traceback: whoever's code raised them decides."""

import argparse

import pytest
import torch
from cli_fixtures import Experiment, run
from lightning.fabric.utilities.exceptions import MisconfigurationException

from scalear.commands.typed.messages import message_of
from scalear.commands.typed.mistakes import is_mistake, of_constructor

WORKER = "Caught {} in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  ...\n{}: a bug"
PROCESS = """\


-- Process 1 terminated with the following error:
Traceback (most recent call last):
  File "spawn.py", line 78, in _wrap
    fn(i, *args)
  File "mine.py", line 266, in setup
    raise {error}(
{error}: a global batch of 30 x 2
is too large
"""


def raised(error: str, package: str, **names: object) -> Exception:
    """An error of the code of some package, which ends in the statement that raises it."""
    scope = {"__name__": f"{package}.module", "torch": torch, **names}
    exec(f"def work():\n    {error}", scope)
    with pytest.raises(Exception) as caught:
        scope["work"]()
    return caught.value


MATMUL = "torch.ones(2, 3) @ torch.ones(2, 3)"  # a RuntimeError, raised in PyTorch
ATTRIBUTE = "torch.nn.Linear(1, 1).backbone"  # an AttributeError, of a frame of PyTorch


@pytest.mark.parametrize(
    "error, package, mistake",
    [
        ("raise ValueError('of a setting')", "mine", True),
        ("open('/absent')", "mine", True),
        ("import absent", "mine", True),
        ("1 + None", "mine", False),
        ("raise RuntimeError('of mine')", "mine", False),
        (MATMUL, "mine", False),
        ("1 + None", "scalear", False),
        (MATMUL, "scalear", True),
        ("1 + None", "lightning", True),
        (ATTRIBUTE, "lightning", True),
        (ATTRIBUTE, "mine", False),
        (f"raise TypeError({WORKER.format('TypeError', 'TypeError')!r})", "lightning", False),
        (f"raise RuntimeError({WORKER.format('RuntimeError', 'RuntimeError')!r})", "lightning", True),
    ],
)
def test_who_raised_an_error_decides(error, package, mistake):
    assert is_mistake(raised(error, package)) is mistake


def test_what_is_about_settings_by_its_type():
    assert is_mistake(argparse.ArgumentError(None, "an option"))
    assert is_mistake(raised("raise given", "mine", given=MisconfigurationException("a flag")))


@pytest.mark.parametrize(
    "name, mistake",
    [
        ("ValueError", True),
        ("RuntimeError", True),
        ("FileNotFoundError", True),
        ("scalear.training.guarded_module.NonFiniteLossError", True),
        ("lightning.fabric.utilities.exceptions.MisconfigurationException", True),
        ("TypeError", False),
        ("mine.Error", False),
    ],
)
def test_errors_of_started_processes_are_told_as_those_of_this_one(name, mistake):
    error = raised("raise Exception(text)", "torch", text=PROCESS.format(error=name))
    assert is_mistake(error) is mistake
    assert message_of(error) == "a global batch of 30 x 2\nis too large"


def test_a_constructor_that_fails_without_a_word_is_named_by_its_place():
    told = of_constructor(raised("1 / 'abc'", "mine"))
    assert str(told) == "TypeError in <string>, line 2: unsupported operand type(s) for /: 'int' and 'str'"
    assert str(of_constructor(raised("raise ValueError('must be a number')", "mine"))) == "must be a number"
    assert str(of_constructor(raised("raise TypeError('`devices` is wrong')", "lightning"))) == "`devices` is wrong"


CALLBACKS = '''
from lightning.pytorch import Callback

class Halving(Callback):
    """Takes half of a number."""
    def __init__(self, number):
        self.half = number / 2

class Faulty(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 2:
            1 + None

class Deaf(Callback):
    def on_train_batch_end(self, trainer):
        pass
'''


@pytest.fixture
def mine(tmp_path, monkeypatch) -> None:
    (tmp_path / "mine.py").write_text(CALLBACKS)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(
    "callback, message",
    [
        (["mine.Halving", "--trainer.callbacks.number=abc"], "TypeError in {}/mine.py, line 7: unsupported operand"),
        (["mine.Deaf"], "Deaf.on_train_batch_end() takes 2 positional arguments but 6 were given"),
        (
            ["lightning.pytorch.callbacks.LearningRateFinder"],
            "should have one of these fields: ('lr', 'learning_rate')",
        ),
        (["lightning.pytorch.callbacks.BackboneFinetuning"], "has no attribute 'backbone'"),
    ],
)
def test_what_lightning_and_constructors_refuse_is_one_message(
    experiment: Experiment, mine, tmp_path, callback, message, capsys
):
    name, *settings = callback
    assert run("fit", *experiment.generator(tmp_path / "run"), f"--trainer.callbacks+={name}", *settings) == 2
    error = capsys.readouterr().err
    assert message.format(tmp_path) in error and "Traceback" not in error


def test_a_fault_of_a_users_class_keeps_its_traceback_and_the_last_good_step(experiment: Experiment, mine, tmp_path):
    """From which training goes on as if it had not been."""
    typed = experiment.generator(tmp_path / "run")
    with pytest.raises(TypeError, match="unsupported operand"):
        run("fit", *typed, "--trainer.callbacks+=mine.Faulty")
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["last_good.ckpt"]
    assert run("fit", *typed, "--ckpt_path=last") == 0
    resumed, straight = (
        torch.load(path, weights_only=True)
        for path in (tmp_path / "run/checkpoints/last.ckpt", experiment.checkpoint("flowar"))
    )
    assert resumed["global_step"] == straight["global_step"] == 4
    for name, tensor in straight["current_model_state"].items():
        assert torch.equal(resumed["current_model_state"][name], tensor), name
