"""Commands in a command, and how they end."""

import pytest

from scalear.commands.staged import stages
from scalear.commands.staged.stages import CommandError, DivergedError, run_command
from scalear.training.guarded_module import NonFiniteLossError


@pytest.mark.parametrize(
    "code, error",
    [(130, KeyboardInterrupt), (2, CommandError), (1, CommandError), (NonFiniteLossError.exit_code, DivergedError)],
)
@pytest.mark.parametrize("exits", [False, True])
def test_an_exit_code_becomes_an_error(monkeypatch, code, error, exits):
    def main(args: list[str]) -> int:
        if exits:  # as training does at a signal
            raise SystemExit(code)
        return code

    monkeypatch.setattr(stages, "main", main)
    with pytest.raises(error) as caught:
        run_command(["fit"], "stage 1 failed")
    assert caught.type is error and str(caught.value) in ("stage 1 failed", "")


def test_a_command_that_ends_well_says_what_it_was(monkeypatch, capsys):
    monkeypatch.setattr(stages, "main", lambda args: 0)
    run_command(["fit", "-c", "x.yaml"], "")
    assert capsys.readouterr().out == "scalear fit -c x.yaml\n"
