"""Files and folders that are there completely or not at all."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from scalear import files
from scalear.files import (
    atomic_file,
    atomic_folder,
    atomic_path,
    check_new_file,
    check_new_folder,
    check_writable,
    claimed,
    write_bytes,
    write_json,
)
from scalear.tensor_files import read_tensors, write_tensors


class Broken(Exception):
    """What goes wrong half way."""


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture(params=[False, True])
def sole_writer(request) -> bool:
    return request.param


def test_a_file_is_whole_and_nothing_else_is_left(tmp_path, sole_writer):
    path = tmp_path / "deep" / "er" / "file.bin"
    for content in (b"first", b"second, longer"):
        with atomic_file(path, sole_writer) as file:
            file.write(content)
            assert not path.exists() or path.read_bytes() == b"first"
        assert path.read_bytes() == content
    assert names(path.parent) == ["file.bin"]


@pytest.mark.parametrize("error", [Broken, OSError, KeyboardInterrupt])
def test_an_error_half_way_leaves_the_old_file(tmp_path, sole_writer, error):
    path = tmp_path / "file.bin"
    for before in ([], [b"old"]):
        for content in before:
            write_bytes(path, content)
        with pytest.raises(error), atomic_file(path, sole_writer) as file:
            file.write(b"new, but")
            file.flush()
            raise error
        assert [path.read_bytes() for path in tmp_path.iterdir()] == before


def test_an_error_of_the_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.bin"
    write_bytes(path, b"old")

    def refuse(descriptor: int) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(files.os, "fsync", refuse)
    with pytest.raises(OSError, match="gone"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and names(tmp_path) == ["file.bin"]


def test_content_is_on_disk_before_it_takes_its_name_and_the_name_afterwards(tmp_path, monkeypatch):
    events = []
    replace, fsync = files.os.replace, files.os.fsync
    monkeypatch.setattr(files.os, "replace", lambda *paths: events.append("replace") or replace(*paths))
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: events.append("fsync") or fsync(descriptor))
    write_bytes(tmp_path / "file.bin", b"content")
    assert events == ["fsync", "replace", "fsync"]
    events.clear()
    with atomic_folder(tmp_path / "folder") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file.bin").write_bytes(b"content")
    assert events == ["fsync"] * 3 + ["replace", "fsync"]


def test_several_writers_at_once_leave_the_content_of_one(tmp_path):
    path, contents = tmp_path / "file.bin", [bytes([number]) * 100_000 for number in range(8)]
    ready = threading.Barrier(len(contents))

    def write(content: bytes) -> None:
        with atomic_file(path) as file:
            file.write(content[:50_000])
            ready.wait()  # all of them are half way
            file.write(content[50_000:])

    threads = [threading.Thread(target=write, args=[content]) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents and names(tmp_path) == ["file.bin"]


@pytest.mark.integration
def test_a_sole_writer_that_is_killed_over_and_over_leaves_one_file_which_the_next_one_takes(tmp_path):
    path = tmp_path / "last.ckpt"
    kill = "import os; file.write(b'half'); file.flush(); os._exit(9)"
    script = f"from scalear.files import atomic_file\nwith atomic_file({str(path)!r}, sole_writer=True) as file: {kill}"
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", script]).returncode == 9
        assert names(tmp_path) == [".last.ckpt.partial"]
    with atomic_file(path, sole_writer=True) as file:
        file.write(b"whole")
    assert names(tmp_path) == ["last.ckpt"] and path.read_bytes() == b"whole"


def test_libraries_that_want_a_name_get_one_and_the_file_is_not_for_its_owner_alone(tmp_path):
    write_tensors(tmp_path / "by_name.safetensors", {"a": torch.ones(3)}, {"what": "ones"})
    tensors, text = read_tensors(tmp_path / "by_name.safetensors")
    assert torch.equal(tensors["a"], torch.ones(3)) and text == {"what": "ones"}
    write_bytes(tmp_path / "by_us", b"")
    assert (tmp_path / "by_name.safetensors").stat().st_mode == (tmp_path / "by_us").stat().st_mode
    with pytest.raises(Broken), atomic_path(tmp_path / "array.npy") as partial:
        with open(partial, "wb") as file:
            np.save(file, np.ones(3))
        raise Broken
    assert names(tmp_path) == ["by_name.safetensors", "by_us"]


def test_json_is_for_people_too(tmp_path):
    write_json(tmp_path / "numbers.json", {"fid": 1.5, "parts": [1]})
    text = (tmp_path / "numbers.json").read_text()
    assert json.loads(text) == {"fid": 1.5, "parts": [1]} and text.endswith("}\n") and text.count("\n") > 3
    with pytest.raises(TypeError):
        write_json(tmp_path / "numbers.json", {"fid": object()})
    assert (tmp_path / "numbers.json").read_text() == text


def test_a_device_takes_what_comes_and_stays_a_device(tmp_path):
    device = Path("/dev/null")
    if not device.exists():
        pytest.skip("needs /dev/null")
    write_json(device, {"fid": 1.5})
    assert device.is_char_device()


def test_a_folder_in_the_place_of_a_file_stays(tmp_path):
    (tmp_path / "name" / "inner").mkdir(parents=True)
    with pytest.raises(OSError):
        write_bytes(tmp_path / "name", b"content")
    assert names(tmp_path) == ["name", "name/inner"]


def fill(folder: Path, content: str = "new", *more: str) -> None:
    for name in ("config.json", *more):
        (folder / name).write_text(content)


def test_a_folder_appears_at_once_under_its_name(tmp_path):
    folder = tmp_path / "deep" / "model"
    with atomic_folder(folder) as partial:
        fill(partial)
        save_file({"a": torch.ones(3)}, partial / "model.safetensors")
        assert partial.name == "model" and not folder.exists()
    assert names(tmp_path / "deep") == ["model", "model/config.json", "model/model.safetensors"]
    assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode


@pytest.mark.parametrize("force", [False, True])
def test_an_error_half_way_leaves_the_old_folder(tmp_path, force):
    folder = tmp_path / "model"
    before = ["model", "model/config.json"] if force else []
    if force:
        folder.mkdir()
        fill(folder, "old")
    with pytest.raises(Broken), atomic_folder(folder, force) as partial:
        fill(partial)
        raise Broken
    assert names(tmp_path) == before and (not force or (folder / "config.json").read_text() == "old")


def test_a_folder_is_replaced_only_when_asked_and_only_as_a_whole(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    fill(folder, "old", "notes.txt")
    with pytest.raises(ValueError, match="is not empty; choose another folder, or replace it with --force"):
        with atomic_folder(folder):
            pytest.fail("must be refused before the work begins")
    with pytest.raises(ValueError, match="also holds notes.txt; move them away"), atomic_folder(folder, True) as new:
        fill(new)
    assert (folder / "config.json").read_text() == "old" and names(tmp_path) == [
        "model",
        "model/config.json",
        "model/notes.txt",
    ]
    with atomic_folder(folder, force=True) as new:
        fill(new, "new", "notes.txt", "more.txt")
    assert {path.read_text() for path in folder.iterdir()} == {"new"}
    assert names(tmp_path) == ["model", "model/config.json", "model/more.txt", "model/notes.txt"]


def test_of_two_writers_of_a_folder_the_first_one_wins(tmp_path):
    folder = tmp_path / "model"
    with pytest.raises(ValueError, match="is not empty"), atomic_folder(folder) as slow:
        fill(slow, "slow")
        with atomic_folder(folder) as quick:
            fill(quick, "quick")
    assert (folder / "config.json").read_text() == "quick" and names(tmp_path) == ["model", "model/config.json"]


def test_the_old_folder_comes_back_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    folder, replace = tmp_path / "model", files.os.replace
    folder.mkdir()
    fill(folder, "old")

    def refuse(source: Path, target: Path) -> None:
        if Path(source).name == Path(target).name == "model" and "partial" in str(source) and target == folder:
            if (Path(source) / "config.json").read_text() == "new":
                raise OSError("no")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(OSError, match="no"), atomic_folder(folder, force=True) as new:
        fill(new)
    assert (folder / "config.json").read_text() == "old" and names(tmp_path) == ["model", "model/config.json"]


def test_where_a_folder_may_be_made(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("content")
    check_new_folder(tmp_path / "absent", force=False)
    check_new_folder(tmp_path / "empty", force=False)
    check_new_folder(tmp_path, force=True)
    with pytest.raises(ValueError, match="file is a file; choose another folder"):
        check_new_folder(tmp_path / "file", force=True)
    with pytest.raises(ValueError, match="is not empty"):
        check_new_folder(tmp_path, force=False)


def test_where_a_file_may_be_made(tmp_path):
    (tmp_path / "file").write_text("content")
    check_new_file(tmp_path / "absent", force=False)
    check_new_file(tmp_path / "file", force=True)
    with pytest.raises(ValueError, match="file is there already: choose another place, or replace it with --force"):
        check_new_file(tmp_path / "file", force=False)
    with pytest.raises(ValueError, match="is a folder: name a file"):
        check_new_file(tmp_path, force=True)
    with pytest.raises(ValueError, match="cannot be made, for .*file is a file"):
        check_new_file(tmp_path / "file" / "deep" / "er", force=False)
    check_new_file("/dev/null", force=False)  # as /dev/stdout


def test_what_is_claimed_is_nobody_elses_until_it_is_given_back(tmp_path):
    pytest.importorskip("fcntl")
    with pytest.raises(Broken), claimed(tmp_path / "lock", "works here"):
        with pytest.raises(ValueError, match="another process works here: wait for it"):
            with claimed(tmp_path / "lock", "works here"):
                pass
        raise Broken
    with claimed(tmp_path / "lock", "works here"):
        pass


def test_a_folder_is_made_or_refused_and_nothing_is_left_in_it(tmp_path):
    check_writable(tmp_path / "deep" / "er")
    assert names(tmp_path) == ["deep", "deep/er"]
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write into .*file.er: .* choose another folder"):
        check_writable(tmp_path / "file" / "er")


@pytest.mark.integration
def test_files_are_written_without_torch():
    script = "import sys, scalear.files, scalear.hardware.cpus; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
