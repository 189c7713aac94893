"""What is to be run: the rows of a study, in the order in which they need each other."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from scalear.yaml_files import read_yaml

Settings = Mapping[str, Any]
"""Options of a command by their dotted names."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """What is chosen once for all rows of a group.

    Attributes:
        images: Of each training.
        seeds: Trainings of each row.
        samples: Images that are measured.
        trials: Of the search for guidance, with the first seed; 0 leaves guidance as it is.
        trial_samples: Images of a trial.
        speed: Sampling is timed, and its arithmetic counted.
    """

    images: int
    seeds: tuple[int, ...]
    samples: int = 0
    trials: int = 0
    trial_samples: int = 1000
    speed: bool = False


@dataclass(frozen=True, kw_only=True)
class StudyRow:
    """Something that has a result.

    Attributes:
        name: GROUP/NAME.
    """

    name: str

    @property
    def seeds(self) -> tuple[int, ...]:
        """Each has a result of its own."""
        return (0,)

    @property
    def needs(self) -> Sequence["StudyRow"]:
        """Rows whose runs must be there."""
        return ()


@dataclass(frozen=True, kw_only=True)
class TrainedRow(StudyRow):
    """A training.

    Attributes:
        group: How long, and with which seeds.
        files: Config and overlays, in their order.
        settings: Typed over them.
    """

    group: Group
    files: tuple[str, ...]
    settings: Settings = field(default_factory=dict)

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.group.seeds

    @property
    def batch_size(self) -> int:
        """Images of an optimizer step."""
        return self.settings.get("data.batch_size") or self._config("data", "init_args", "batch_size")

    @property
    def steps(self) -> int:
        """Of the optimizer."""
        return max(1, self.group.images // self.batch_size)

    @property
    def callbacks(self) -> list[Any]:
        """As the config has them."""
        return self._config("trainer", "callbacks")

    def _config(self, *names: str) -> Any:
        """Of the last file that has it, a null included.

        Raises:
            ValueError: None has.
        """
        for content in reversed([read_yaml(file) for file in self.files]):
            for name in names:
                content = content.get(name, _MISSING) if isinstance(content, dict) else _MISSING
            if content is not _MISSING:
                return content
        raise ValueError(f"{self.name}: {' and '.join(self.files)} do not say {'.'.join(names)}")


_MISSING = object()


@dataclass(frozen=True, kw_only=True)
class TokenizerRow(TrainedRow):
    """A tokenizer, which rows of generators share."""


@dataclass(frozen=True, kw_only=True)
class GeneratorRow(TrainedRow):
    """A generator, sampled and measured.

    Attributes:
        tokenizer: Of its latents.
    """

    tokenizer: TokenizerRow

    @property
    def reads_latents(self) -> bool:
        """Cached ones; where its config says null, it encodes images in every step."""
        return self._config("data", "init_args", "latents_dir") is not None

    @property
    def needs(self) -> Sequence[StudyRow]:
        return (self.tokenizer,)


@dataclass(frozen=True, kw_only=True)
class SamplingRow(StudyRow):
    """Images of other scales, from the first seed of a generator.

    Attributes:
        of: The generator.
        scales: Of the images.
        samples: Images that are measured; 0 draws a sheet alone, for images of another size.
    """

    of: GeneratorRow
    scales: str
    samples: int = 0

    @property
    def needs(self) -> Sequence[StudyRow]:
        return (self.of,)


@dataclass(frozen=True, kw_only=True)
class ReconstructionRow(StudyRow):
    """Images through tokenizers at several scales.

    Attributes:
        of: The tokenizer that is measured.
        beside: Others that are drawn beside it, by what the picture calls them.
    """

    of: TokenizerRow
    beside: Mapping[str, TokenizerRow]

    @property
    def needs(self) -> Sequence[StudyRow]:
        return (self.of, *self.beside.values())


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows beside each other, as a paper has them.

    Attributes:
        title: Where it is in the paper, and what it is about.
        rows: FID and IS of the paper by name of the row: infinite where training fails there, None without any.
        orders: Rows from the best to the worst, as the paper claims.
        curves: Rows whose losses are drawn.
        remark: What is to be said of the result.
    """

    title: str
    rows: Mapping[str, tuple[float, float] | None]
    orders: Sequence[Sequence[str]]
    curves: Sequence[str] = ()
    remark: str = ""


class Study:
    """Rows, and the tables that they are for.

    Args:
        config: Such as configs/study.yaml, which explains itself.
        tables: Such as docs/study/tables.yaml.

    Attributes:
        data: Folder of the dataset.
        pack: Options of `scalear data pack` that make it; none where it must be there.
        extractor: File of the network that measures.
        search: Of guidance, as `scalear tune --search` takes it.
        tables: In order.

    Raises:
        ValueError: A file cannot be read, or names what is not there.
    """

    def __init__(self, config: str, tables: str) -> None:
        self._config = read_yaml(config)
        self._path = config
        with _written_in(config):
            self.data: str = self._config["data"]
            self.pack: Settings = self._config.get("pack") or {}
            self.extractor: str = self._config["extractor"]
            self.search: dict[str, Any] = self._config.get("search") or {}
            groups = self._config["groups"].items()
            self._groups = {name: Group(**group | {"seeds": tuple(group["seeds"])}) for name, group in groups}
        with _written_in(tables):
            self.tables = [_table(title, content) for title, content in read_yaml(tables).items()]

    @cached_property
    def rows(self) -> dict[str, StudyRow]:
        """Those that the tables name and those that they need, each after what it needs."""
        rows: dict[str, StudyRow] = {}

        def add(row: StudyRow) -> None:
            for needed in row.needs:
                add(needed)
            rows.setdefault(row.name, row)

        for table in self.tables:
            for name in (*table.rows, *table.curves):
                add(self.row(name))
        return rows

    def named(self, name: str | None) -> list[StudyRow]:
        """Rows of this name or group, without what they need; all without a name.

        Raises:
            ValueError: There are none.
        """
        wanted = [row for row in self.rows.values() if name in (None, row.name, row.name.partition("/")[0])]
        if not wanted:
            raise ValueError(f"{self._path} has no row {name}: it has {', '.join(self.rows)}")
        return wanted

    def row(self, name: str) -> StudyRow:
        """What GROUP/NAME means.

        Raises:
            ValueError: It means nothing, or what it means is not written as it must be.
        """
        with _written_in(self._path):
            return self._row(name)

    def _row(self, name: str) -> StudyRow:
        group, _, own = name.partition("/")
        if group == "samplings":
            return self._sampling(name, own)
        if group == "tokenizers":
            return self._tokenizer(own)
        chosen = (self._config.get("rows") or {}).get(name, {})
        family, _, overlay = own.partition("-")
        if family not in self._config["families"] or group not in self._groups:
            raise ValueError(f"{self._path}: {name} is of no group or family")
        overlays = chosen.get("overlays", [overlay] if overlay else [])
        folder = Path(self._config["configs"])
        files = [folder / f"{family}.yaml", *(folder / family / f"{overlay}.yaml" for overlay in overlays)]
        return GeneratorRow(
            name=name,
            group=self._groups[group],
            files=_there(files, name),
            settings=chosen.get("settings", {}),
            tokenizer=self._tokenizer(chosen.get("tokenizer", self._config["families"][family])),
        )

    def _tokenizer(self, own: str) -> TokenizerRow:
        name = f"tokenizers/{own}"
        if own not in self._config["tokenizers"]:
            raise ValueError(f"{self._path} has no tokenizer {own}")
        chosen = self._config["tokenizers"][own]
        files = [Path(self._config["configs"], f"{chosen.get('config', own)}.yaml")]
        return TokenizerRow(
            name=name,
            group=self._groups["tokenizers"],
            files=_there(files, name),
            settings=chosen.get("settings", {}),
        )

    def _sampling(self, name: str, own: str) -> StudyRow:
        for key, chosen in (self._config.get("samplings") or {}).items():
            if "beside" in chosen and key == own:
                beside = {title: self._tokenizer(other) for title, other in chosen["beside"].items()}
                return ReconstructionRow(name=name, of=self.row(chosen["of"]), beside=beside)
            for which, scales in chosen.get("scales", {}).items():
                if own == f"{key}-{which}":
                    of = self.row(chosen["of"])
                    return SamplingRow(name=name, of=of, scales=scales, samples=chosen.get("samples", 0))
        raise ValueError(f"{self._path} has no sampling {own}")


@contextmanager
def _written_in(path: str) -> Iterator[None]:
    """Inside, what a file does not have, or has of another kind, is told as a mistake in it."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} does not describe a study: {reason}") from error


def _table(title: str, content: dict[str, Any]) -> Table:
    group = content.get("group", "ablations")

    def named(names: Sequence[str]) -> list[str]:
        return [f"{group}/{name}" for name in names]

    rows = {name: _numbers(numbers) for name, numbers in content.get("rows", {}).items()}
    return Table(
        title=title,
        rows=dict(zip(named(list(rows)), rows.values(), strict=True)),
        orders=[named(order) for order in content.get("orders", [list(rows)])],
        curves=named(content.get("curves", [])),
        remark=content.get("remark", ""),
    )


def _numbers(numbers: Any) -> tuple[float, float] | None:
    return tuple(numbers) if isinstance(numbers, list) else None if numbers is None else (numbers, 0.0)


def _there(files: Sequence[Path], name: str) -> tuple[str, ...]:
    if missing := [str(file) for file in files if not file.is_file()]:
        raise ValueError(f"row {name}: {' and '.join(missing)} does not exist")
    return tuple(map(str, files))


def settings_of_tokenizer(row: TokenizerRow) -> dict[str, Any]:
    """What of its settings a generator on its latents must have, too: the shape of the tokenizer."""
    return {name: value for name, value in row.settings.items() if name.startswith("model.tokenizer.")}
