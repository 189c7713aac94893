"""`scalear benchmark` on tiny models: what it reports, not how fast."""

import json
import re
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_fixtures import run
from process_fixtures import SERVER

from scalear.benchmark import comparison, timing, worker
from scalear.benchmark.image_files import ImageFiles
from scalear.benchmark.subject import Subject
from scalear.benchmark.time_shares import PARTS, part, shares
from scalear.benchmark.timing import Timing
from scalear.benchmark.work import counted_work, official_work
from scalear.benchmark.worker import Bench
from scalear.commands.benchmark import build_subject, changed
from scalear.data.datamodule import ShardDataModule
from scalear.hardware.precision import fastest

KEYS = ["job", "config", "batch", "threads", "precision", "machine", "seconds_per_image", "work_tflop", "work_source"]
KEYS += ["yardstick_tflops", "fraction", "peak_rss_bytes", "parts", "spread"]


class Here(Bench):
    """A bench of this process, in the place of a worker: a process of its own imports for seconds."""

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def ask(self, what: str) -> Any:
        return getattr(self, what)()


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(comparison, "Worker", Here)
    monkeypatch.setattr(timing, "_LONGEST", 0)  # seconds: the smallest yardstick will do


@pytest.fixture
def forked(monkeypatch):
    """Processes of workers are forked from one that has imported everything; memory's test has a fresh one."""
    monkeypatch.setattr(worker.multiprocessing, "get_context", lambda kind: SERVER)


def benchmark(experiment, tmp_path, *args: str) -> list[dict]:
    path = tmp_path / "report.json"
    settings = [arg for arg in experiment.generator("benchmark") if "samples" not in arg]
    assert run("benchmark", args[0], *settings, *args[1:], "--warmup=0", "--repeats=1", f"--json={path}") == 0
    results = json.loads(path.read_text())
    assert all(list(result) == KEYS for result in results)
    assert all(sum(result["parts"][name] for name in PARTS) == pytest.approx(1) for result in results)
    return results


def build_without_yardstick(args: list[str], device: torch.device) -> Subject:
    timing._LONGEST = 0  # in a process of its own
    return build_subject(args, device)


def test_memory_is_that_of_a_fresh_process(experiment, tmp_path, monkeypatch):
    monkeypatch.setattr("scalear.commands.benchmark.build_subject", build_without_yardstick)
    ballast = torch.ones(2**29)  # 2 GiB of this process
    (result,) = benchmark(experiment, tmp_path, "train", "--batch=3", "--threads=1")
    assert (result["job"], result["config"], result["batch"]) == ("train", "fashion/flowar", 3)
    assert result["fraction"] > 0 and 100e6 < result["peak_rss_bytes"] < ballast.nbytes
    assert result["parts"]["optimizer"] > 0 and result["parts"]["head/mlp"] > 0


def test_no_product_of_the_yardstick_takes_long(monkeypatch):
    sides = []

    def seconds(side: int, dtype: torch.dtype, device: torch.device) -> float:
        sides.append(side)
        return 2 * side**3 / (3e8 if dtype == torch.bfloat16 else 4e11)  # as measured on an AVX2 machine; with AMX

    monkeypatch.setattr(timing, "product_seconds", seconds)
    assert timing.yardstick(torch.device("cpu"), torch.bfloat16) == pytest.approx(3e-4) and max(sides) == 256
    assert timing.yardstick(torch.device("cpu"), torch.float32) == pytest.approx(0.4) and max(sides) == 2048


def test_a_precision_is_taken_only_if_it_is_typed(experiment, tmp_path, here):
    path, overlay = tmp_path / "report.json", tmp_path / "overlay.yaml"
    overlay.write_text("trainer: {precision: 16-mixed}")
    first, config, *typed = (
        arg for arg in experiment.generator("benchmark") if not re.search("samples|precision", arg)
    )
    configs, few = [first, config, "-c", overlay], ["--batch=2", "--repeats=1", "--warmup=0", f"--json={path}"]
    assert run("benchmark", "encode", *configs, *typed, *few, "--against=--trainer.precision=16-mixed") == 0
    precisions = [result["precision"] for result in json.loads(path.read_text())]
    assert precisions == [fastest(torch.device("cpu")), "16-mixed"]


def test_training_reads_the_configs_own_data(experiment, tmp_path, here):
    (result,) = benchmark(experiment, tmp_path, "train", "--loader", "--batch=2")
    assert result["parts"]["data"] > 0


@pytest.mark.parametrize("job, part", [("encode", "encoder"), ("load", "data")])
def test_tokenizers_and_loaders(experiment, tmp_path, job, part, here):
    (result,) = benchmark(experiment, tmp_path, job, "--batch=2")
    assert result["parts"][part] > 0
    assert (result["fraction"] is None) == (result["work_tflop"] is None) == (job == "load")


def test_shards_are_compared_with_the_same_images_as_files(experiment, tmp_path, capsys, here):
    args = ["--batch=2", "--baseline"]
    ours, plain = benchmark(experiment, tmp_path, "load", *args, "--data.latents_dir=null")
    assert (ours["config"], plain["config"]) == ("fashion/flowar", "fashion/flowar (plain)")
    assert run("benchmark", "load", *experiment.generator("benchmark"), *args) == 2
    assert "the plain loader reads image files" in capsys.readouterr().err

    data = ShardDataModule(str(experiment.images), batch_size=1, flip=False)
    files = ImageFiles(data)
    as_files = torch.cat([image for image, _ in files.loader()]).flatten(1)
    as_shards = torch.cat([batch.inputs for batch in data.train_dataloader()]).flatten(1)
    torch.testing.assert_close(as_files.unique(dim=0), as_shards.unique(dim=0), rtol=0, atol=1e-6)
    assert len(as_files) == len(as_shards)

    data.batch_size = 1000
    with pytest.raises(ValueError, match="a batch of 1000 is larger"):
        files.loader()


def test_settings_are_compared_in_one_run(experiment, tmp_path, capsys, here):
    more = "--against=--model.head.network.depth=2 --decoder=out"
    one, plain, two = benchmark(experiment, tmp_path, "sample", "--batch=2", "--baseline", more)
    assert plain["config"] == "fashion/flowar (plain)" and plain["work_tflop"] == one["work_tflop"]
    assert "plain path" in one["work_source"] and two["work_tflop"] != one["work_tflop"]
    assert two["parts"]["decoder"] == 0 < one["parts"]["decoder"]
    out = capsys.readouterr().out
    assert "x as fast as fashion/flowar (plain)" in out and "(--model.head.network.depth=2 --decoder=out)" in out


@pytest.mark.parametrize("job", ["train", "solver"])
@pytest.mark.parametrize(("file", "message"), [("", "is a folder: name a file"), ("file/a.json", "file is a file")])
def test_results_have_a_place_before_anything_is_measured(job, file, message, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert run("benchmark", job, "-c", "configs/fashion/flowar.yaml", "--json", str(tmp_path / file)) == 2
    assert message in capsys.readouterr().err


def test_another_config_takes_the_place_of_the_first(tmp_path, here):
    path = tmp_path / "report.json"
    settings = ["--model.tokenizer.weights=null", "--model.transformer.dim=48", "--model.transformer.depths=[1]"]
    settings += ["--batch=1", "--repeats=1", "--warmup=0"]
    other = "--against=-c configs/fashion/var.yaml"
    assert run("benchmark", "train", "-c", "configs/fashion/flowar.yaml", *settings, other, f"--json={path}") == 0
    flowar, var = json.loads(path.read_text())
    assert (flowar["config"], var["config"]) == ("fashion/flowar", "fashion/var (-c configs/fashion/var.yaml)")
    assert flowar["parts"]["head/attention"] > 0 and "head/attention" not in var["parts"]


def test_a_config_of_the_other_setting_replaces_those_of_the_first():
    both = changed(["sample", "-c", "a.yaml", "--batch", "2"], ["--batch=3", "--config", "b.yaml", "-c", "c.yaml"])
    assert both == ["sample", "--config", "b.yaml", "-c", "c.yaml", "--batch", "2", "--batch=3"]
    assert changed(["sample", "-c", "a.yaml"], ["--batch=3"]) == ["sample", "-c", "a.yaml", "--batch=3"]


def build_printing_into(path: Path, args: list[str], device: torch.device) -> Subject:
    with open(path, "w") as file, redirect_stdout(file):
        return build_subject(args, device)


def test_options_that_end_a_command_end_it_well(experiment, tmp_path, forked, monkeypatch):
    printed = tmp_path / "printed.txt"
    monkeypatch.setattr("scalear.commands.benchmark.build_subject", partial(build_printing_into, printed))
    with pytest.raises(SystemExit) as end:
        run("benchmark", "sample", *experiment.generator("benchmark"), "--print_config")
    assert end.value.code == 0 and "flow_head" in printed.read_text()


def test_a_tokenizer_has_nothing_to_sample(experiment, capsys, forked):
    assert run("benchmark", "sample", *experiment.tokenizer()) == 2
    assert "needs a generator: try `encode`" in capsys.readouterr().err


def test_a_fraction_is_that_of_the_machine_around_each_repeat():
    repeats = Timing()
    for seconds, yardstick in [(1.0, 0.4), (2.0, 0.2), (4.0, 0.4)]:  # the second was slow with the machine
        repeats.add(seconds, yardstick)
    assert repeats.fraction(0.1) == pytest.approx(0.25) and repeats.spread == pytest.approx(1.5)


def test_work_counts_matrix_products_of_one_image():
    a = torch.randn(10, 20)
    assert counted_work(lambda: a @ a.T, images=5).tflop == pytest.approx(2 * 10 * 20 * 10 / 5 / 1e12)
    assert official_work("train", "imagenet256/flowar", False).source == "official code"
    assert official_work("train", "fashion/flowar", False) is None


def test_time_in_backward_belongs_to_the_part_that_was_forward():
    x = torch.randn(500, 500, requires_grad=True)

    def run_once() -> None:
        with part("mlp"):
            y = x @ x
        with part("optimizer"):
            pass
        y.sum().backward()

    parts = shares(run_once, torch.nn.Linear(1, 1))
    assert parts["mlp"] > 0.5
