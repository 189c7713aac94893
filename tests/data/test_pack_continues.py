"""Packing that ended too early: nothing is lost, and the same command goes on."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest
from pack_fixtures import content_of, make_tree, noise, pack_here

from scalear.data.index import INDEX_NAME
from scalear.data.progress import PROGRESS_NAME
from scalear.data.shards import ShardFile, read_samples
from scalear.data.sources import ImageFolder


def test_other_settings_are_refused_until_finished(tmp_path, monkeypatch):
    root = make_tree(tmp_path / "in")
    fill_disk(monkeypatch, after=5)
    with pytest.raises(OSError):
        pack_here(ImageFolder(str(root)), tmp_path / "out", shard_size=2)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="image_size was 16, now 8"):
        pack_here(ImageFolder(str(root)), tmp_path / "out", 8, shard_size=2)
    noise((8, 8)).save(root / "cat" / "new.png")
    with pytest.raises(ValueError, match="images was"):
        pack_here(ImageFolder(str(root)), tmp_path / "out", shard_size=2)
    (root / "cat" / "new.png").unlink()
    pack_here(ImageFolder(str(root)), tmp_path / "out", shard_size=2)
    with pytest.raises(ValueError, match="finished dataset"):
        pack_here(ImageFolder(str(root)), tmp_path / "out", shard_size=2)


def fill_disk(monkeypatch, after):
    """The disk is full after so many samples, and stays so: closing the file fails as well."""
    write, written = ShardFile.write, []

    def write_or_fail(self, *arguments):
        written.append(arguments)
        if len(written) > after:
            self._closing.callback(no_space)
            no_space()
        write(self, *arguments)

    def no_space():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ShardFile, "write", write_or_fail)


@pytest.mark.parametrize("compress", [False, True])
def test_full_disk_loses_nothing(tmp_path, monkeypatch, compress):
    source = ImageFolder(str(make_tree(tmp_path / "in")))
    pack_here(source, tmp_path / "whole", shard_size=2, compress=compress, name="x")
    fill_disk(monkeypatch, after=5)
    with pytest.raises(OSError, match="disk is full.*same command again") as error:
        pack_here(source, tmp_path / "out", shard_size=2, compress=compress, name="x")
    assert error.value.errno == errno.ENOSPC
    monkeypatch.undo()
    names = {path.name.partition(".")[0] for path in (tmp_path / "out").iterdir()}
    assert names == {"train-00000", "train-00001", PROGRESS_NAME.partition(".")[0]}
    pack_here(source, tmp_path / "out", shard_size=2, compress=compress, name="x")
    assert content_of(tmp_path / "out") == content_of(tmp_path / "whole")


def test_rerun_skips_whole_shards_and_repairs_others(tmp_path, monkeypatch):
    source = ImageFolder(str(make_tree(tmp_path / "in")))
    pack_here(source, tmp_path / "whole", shard_size=2, name="x")
    fill_disk(monkeypatch, after=7)
    with pytest.raises(OSError):
        pack_here(source, tmp_path / "out", shard_size=2, name="x")
    monkeypatch.undo()
    (tmp_path / "out" / "train-00001.tar").write_bytes(b"damaged")
    with open(tmp_path / "out" / PROGRESS_NAME, "a") as file:
        file.write('{"name": "train-0')  # as a kill leaves it
    before = (tmp_path / "out" / "train-00000.tar").stat().st_mtime_ns
    pack_here(source, tmp_path / "out", shard_size=2, name="x")
    assert (tmp_path / "out" / "train-00000.tar").stat().st_mtime_ns == before
    assert content_of(tmp_path / "out") == content_of(tmp_path / "whole")


# Each worker is quick with its first shards and then so slow that no test can miss its end.
SCRIPT = """
import signal, sys, time
from scalear.data.pack import pack
from scalear.data.sources import ImageFolder

class Slow(ImageFolder):
    count = 0

    def image(self, entry):
        Slow.count += 1
        time.sleep(0.0 if Slow.count <= 50 else 0.2)
        return super().image(entry)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let what runs in the background ignore Ctrl-C
    pack(Slow(sys.argv[1]), sys.argv[2], 64, shard_size=20, num_workers=2, name="x")
"""


@pytest.mark.integration
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_stopped_packing_continues(tmp_path, signal_number):
    root = make_tree(tmp_path / "in", ("a", "b", "c"), count=20, size=(80, 80))
    for number in range(1000):  # many names, few files
        (root / "a" / f"link{number}.png").symlink_to(root / "b" / "photo.1.png")
    (tmp_path / "run.py").write_text(SCRIPT)
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "run.py"), str(root), str(out)],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    while len(list(out.glob("*.tar"))) < 3:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    if signal_number == signal.SIGINT:
        os.killpg(process.pid, signal_number)  # Ctrl-C reaches the whole group
    else:
        process.send_signal(signal_number)  # a kill only its target, whose workers must notice
    _, errors = process.communicate(timeout=120)
    assert process.returncode
    deadline = time.monotonic() + 60
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.02)

    assert not (out / INDEX_NAME).exists()
    shards = list(out.glob("*.tar"))
    assert 3 <= len(shards) < 53
    for path in shards:  # what looks whole is whole
        assert len(read_samples(path.read_bytes())) == 20
    if signal_number == signal.SIGINT:
        assert "run the same command again to continue" in errors
        assert not list(out.glob("*.partial"))
    pack_here(ImageFolder(str(root)), out, 64, shard_size=20, name="x")
    pack_here(ImageFolder(str(root)), tmp_path / "whole", 64, shard_size=20, name="x")
    assert content_of(out) == content_of(tmp_path / "whole")
