"""`scalear app` on folders of all kinds: what it opens, how it ends, what it refuses."""

import http.client
import json
import signal
import socket
import time

import pytest
from cli_fixtures import NUM_CLASSES, run
from process_fixtures import start

from scalear.app.server import HOST, PageServer
from scalear.class_paths import class_path
from scalear.training.generator.module import GeneratorModule


@pytest.fixture
def opened(monkeypatch) -> list:
    """What the page of each command was made with; the command then ends."""
    found = []
    monkeypatch.setattr(PageServer, "serve", lambda self: found.append(self.playground))
    return found


def free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        return free.getsockname()[1]


def ask(port: int, method: str, path: str, content: object = None) -> list[dict]:
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    connection.request(method, path, content and json.dumps(content))
    return [json.loads(line) for line in connection.getresponse()]


@pytest.mark.integration
def test_the_page_of_a_run_makes_pictures_until_it_is_stopped(experiment):
    port = free_port()
    command = start("app", f"--run={experiment.root / 'flowar'}", f"--port={port}", "--precision=32-true")
    for _ in range(600):
        try:
            [model] = ask(port, "GET", "/model")
            break
        except ConnectionError:
            assert command.returncode is None
            time.sleep(0.1)
    assert model["classes"] == [f"class{label}" for label in range(NUM_CLASSES)] + ["no class"]
    steps = ask(port, "POST", "/sample", {"labels": [2], "seeds": [7]})
    assert len(steps) == len(model["scales"]) and steps[-1]["pictures"]
    command.send_signal(signal.SIGINT)
    output = command.finish()
    assert command.returncode == 0, output
    assert f"The page is at http://{HOST}:{port}, for this machine alone; Ctrl-C ends it\n" in output
    assert output.endswith("The page has ended\n") and "Traceback" not in output


def test_it_opens_runs_folders_of_one_run_and_exported_models(experiment, tmp_path, opened, capsys):
    """All with the same weights and names."""
    exported = tmp_path / "exported"
    last = f"--ckpt_path={experiment.checkpoint('flowar')}"
    assert run("export", *experiment.generator("flowar"), last, f"--output_dir={exported}") == 0
    (tmp_path / "try").mkdir()
    for name in ("kl", "flowar"):
        (tmp_path / "try" / name).symlink_to(experiment.root / name)
    for folder in (experiment.root / "flowar", tmp_path / "try", exported):
        assert run("app", f"--run={folder}", "--port=0", "--precision=32-true") == 0
    one, *others = ([*page.sample({"labels": [1], "seeds": [3]})][-1]["pictures"] for page in opened)
    assert len(others) == 2 and one == others[0] == others[1]
    assert {tuple(page.class_names) for page in opened} == {("class0", "class1", "class2")}
    for typed in ("--model.fast=false", "--ckpt_path=best"):
        assert run("app", f"--run={exported}", "--port=0", typed) == 2
        assert f"exported model, with one set of weights and no config: leave out {typed}" in capsys.readouterr().err
    assert run("app", f"--run={experiment.root / 'flowar'}", "--port=0", "--model.guidance.weight=2.5") == 0
    assert opened[-1].sliders()["model.guidance.weight"]["value"] == 2.5


def test_what_cannot_be_opened_is_told_in_one_line(tmp_path, capsys):
    def refused(*args: str) -> str:
        assert run("app", *args) == 2
        error = capsys.readouterr().err
        assert error.count("scalear: error:") == 1 and "Traceback" not in error
        return error

    kind = class_path(GeneratorModule)
    assert "there is no folder" in refused(f"--run={tmp_path / 'absent'}")
    assert "these arguments are missing: run" in refused()
    assert "--port must be from 0 to 65535, got 65536" in refused(f"--run={tmp_path}", "--port=65536")
    assert "holds neither fit.yaml nor config.json" in refused(f"--run={tmp_path}")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "fit.yaml").write_text(f"model: {{class_path: {kind}}}")
    error = refused(f"--run={tmp_path}")
    assert f"holds several generators, {tmp_path / 'one'}, {tmp_path / 'two'}: name one of them" in error
    (tmp_path / "two/fit.yaml").write_text("model: FlowAR")
    assert "two/fit.yaml is no record of a run, for it names no class of its model" in refused(f"--run={tmp_path}")
    with PageServer(0) as taken:
        error = refused(f"--run={tmp_path / 'one'}", f"--port={taken.server_port}")
    assert f"--port {taken.server_port} cannot be had" in error and "give another one" in error


def test_a_run_without_a_checkpoint_and_a_tokenizer_are_refused(experiment, tmp_path, capsys):
    (tmp_path / "fit.yaml").write_text((experiment.root / "flowar/fit.yaml").read_text())
    assert run("app", f"--run={tmp_path}", "--port=0") == 2
    assert f"there is no whole checkpoint in {tmp_path / 'checkpoints'}" in capsys.readouterr().err
    assert run("app", f"--run={experiment.root / 'kl'}", "--port=0") == 2
    assert "a TokenizerModule generates nothing" in capsys.readouterr().err
