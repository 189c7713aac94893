"""Every command that writes a file, where one is: nothing is replaced unasked, and no work is begun."""

import tarfile

import pytest
from cli_fixtures import Experiment, run, write_folders

FLOWAR, FLEXVAR = "configs/fashion/flowar.yaml", "configs/fashion/flexvar.yaml"
# The file that a command would write, and its command line; what it reads is not there, and so is not looked at first.
COMMANDS = {
    "evaluate": ("numbers.json", "evaluate absent.npz --reference=absent.npz --json={}"),
    "stats": ("statistics.npz", "stats absent {}"),
    "convert": ("model.safetensors", "convert absent.pth {}"),
    "convert back": ("model.pth", "convert absent.safetensors {} --reverse"),
    "benchmark": ("numbers.json", f"benchmark train -c {FLOWAR} --json={{}}"),
    "benchmark solver": ("numbers.json", f"benchmark solver -c {FLOWAR} --ckpt_path=absent.ckpt --json={{}}"),
    "edit": ("edited.png", f"edit refine -c {FLEXVAR} --image=absent.png --label=0 --out={{}}"),
    "edit's sheet": ("edited-sheet.png", f"edit refine -c {FLEXVAR} --image=absent.png --label=0 --out={{edited}}.png"),
    "pictures": ("flexible.png", f"pictures -c {FLEXVAR} --ckpt_path=absent.ckpt --output_dir={{folder}}"),
    "export": ("config.json", f"export -c {FLOWAR} --ckpt_path=absent.ckpt --output_dir={{folder}}"),
    "data pack": (
        "index.json",
        "data pack --source=ImageFolder --source.root=absent --image_size=8 --output_dir={folder}",
    ),
    "data index": ("index.json", "data index {folder}"),
    "demo": ("notes.txt", "demo --output_dir={folder}"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_is_there_is_not_replaced_unasked(command, tmp_path, capsys):
    name, line = COMMANDS[command]
    precious = tmp_path / "results" / name
    precious.parent.mkdir()
    precious.write_text("precious")
    typed = line.format(precious, folder=precious.parent, edited=precious.parent / "edited").split()
    assert run(*typed) == 2
    error = capsys.readouterr().err
    assert str(precious.parent) in error and error.count("\n") == 1
    assert [path.read_text() for path in precious.parent.iterdir()] == ["precious"]


@pytest.mark.parametrize("command", ["data pack", "cache latents"])
def test_shards_of_others_are_not_replaced(experiment: Experiment, command, tmp_path, capsys):
    """Though no index says what they are."""
    names = {"data pack": "train-00000.tar", "cache latents": "train-000-00000.tar"}
    precious = tmp_path / "latents" / names[command]
    precious.parent.mkdir()
    with tarfile.open(precious, "w") as tar:
        tar.add(__file__, "0.jpg")
    before = precious.read_bytes()
    if command == "data pack":
        write_folders(tmp_path / "in", 1)
        source = ("--source=ImageFolder", f"--source.root={tmp_path / 'in'}")
        code = run("data", "pack", *source, "--image_size=8", "--num_workers=0", f"--output_dir={precious.parent}")
    else:
        code = run("predict", *experiment.tokenizer(tmp_path), f"--ckpt_path={experiment.checkpoint('kl')}")
    assert code == 2 and f"{precious.name}" in capsys.readouterr().err
    assert precious.read_bytes() == before and len(list(precious.parent.iterdir())) == 1
