"""What a packing run has finished, so that a killed run continues. Exists only while a dataset is unfinished."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scalear.data.index import Shard
from scalear.data.shards import file_sha256
from scalear.files import PARTIAL_SUFFIX, write_bytes

PROGRESS_NAME = "pack-progress.jsonl"


class PackProgress:
    """A journal: the settings of the run, then one line per finished shard.

    Args:
        directory: Of the dataset. What a killed run left half-written there is removed.
        settings: All that decides the bytes of the shards; JSON types only.
        names: Of the shards to be.

    Raises:
        ValueError: The unfinished dataset in `directory` has other settings; or such shards are there of none.
    """

    def __init__(self, directory: Path, settings: dict[str, Any], names: Sequence[str]) -> None:
        self.path = directory / PROGRESS_NAME
        records = self._read()
        if records:
            self._check(records[0], settings)
        elif there := [name for name in names if (directory / name).exists()]:
            raise ValueError(
                f"{directory} holds {there[0]}, which no unfinished run has left: move it away, or choose another "
                "output_dir"
            )
        own = {PROGRESS_NAME, *names}
        for leftover in directory.glob(f".*{PARTIAL_SUFFIX}"):
            if leftover.name[1:].rsplit(".", 2)[0] in own:
                leftover.unlink(missing_ok=True)
        self._finished = {record["name"]: Shard(**record) for record in records[1:]}
        # Written anew: a kill may have torn the last line, and a line appended to that would be lost as well.
        self._rewrite([settings, *map(asdict, self._finished.values())])

    def finished(self, path: Path) -> Shard | None:
        """The shard at `path`, if it was recorded and still has the recorded bytes."""
        shard = self._finished.get(path.name)
        return shard if shard is not None and path.is_file() and file_sha256(path) == shard.sha256 else None

    def record(self, shard: Shard) -> None:
        """Note that `shard` is in place."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(shard)) + "\n")

    def remove(self) -> None:
        """The dataset is complete."""
        self.path.unlink()

    def _check(self, found: dict[str, Any], settings: dict[str, Any]) -> None:
        differences = [
            f"{key} was {found.get(key)!r}, now {settings.get(key)!r}"
            for key in sorted(found.keys() | settings.keys())
            if found.get(key) != settings.get(key)
        ]
        if differences:
            raise ValueError(
                f"{self.path.parent} holds an unfinished dataset with other settings ({'; '.join(differences)}); "
                "finish it with those, or delete the folder, or choose another"
            )

    def _read(self) -> list[dict[str, Any]]:
        records = []
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        for line in lines:
            try:
                records.append(json.loads(line))
            except ValueError:  # the torn line; its shard is packed again
                break
        return records

    def _rewrite(self, records: list[dict[str, Any]]) -> None:
        write_bytes(self.path, "".join(json.dumps(record) + "\n" for record in records).encode())
