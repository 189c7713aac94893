"""What a family of official checkpoints must say about itself to be converted."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from scalear.class_paths import class_path
from scalear.interop.official.tables import Constant, Row
from scalear.scales import ScaleSchedule

State = Mapping[str, Tensor]


class Arguments:
    """Arguments of the official constructor, where somebody gives them (`--config`).

    Args:
        given: By their official names.
        known: The names that the family understands.

    Raises:
        ValueError: An unknown name.
    """

    def __init__(self, given: Mapping[str, object], known: frozenset[str]) -> None:
        unknown = sorted(given.keys() - known)
        if unknown:
            raise ValueError(f"the official constructor has no argument {', '.join(unknown)}; known: {sorted(known)}")
        self._given = given

    def agree(self, name: str, found: object) -> object:
        """What the shapes say, which a given argument must not contradict.

        Raises:
            ValueError: It does; names both.
        """
        given = self._given.get(name, found)
        if given != found:
            raise ValueError(f"{name} is {found} by the shapes in the file, but {given} in --config: correct --config")
        return found

    def choose(self, name: str, default: object) -> object:
        """The given argument, or the default of the released models."""
        return self._given.get(name, default)

    def need(self, name: str, found: object | None, released: object | None = None) -> object:
        """What the file says, or else what is given, or else what the recognised size was released with.

        Raises:
            ValueError: None of them says anything.
        """
        if found is not None:
            return self.agree(name, found)
        value = self._given.get(name, released)
        if value is None:
            raise ValueError(
                f"the shapes in the file do not tell {name}, and the size is not a released one: "
                f"give it with --config FILE, a YAML file with the official argument `{name}: ...`"
            )
        return value


class Family(ABC):
    """One kind of official checkpoint.

    Attributes:
        name: As users write it after `--family`.
        part: Where configs of ours have such a model: `generator`, `tokenizer`, or `head` of the former.
        sizes: Parameter counts of the released models and their names.
        arguments: Official constructor arguments that are understood; those without influence on the weights or on
            what is computed are understood too, and ignored.
    """

    name: str
    part: str
    sizes: Mapping[int, str]
    arguments: frozenset[str]

    @abstractmethod
    def recognises(self, state: State) -> bool:
        """Whether these keys are of this family."""

    @abstractmethod
    def config(self, state: State, arguments: Arguments) -> dict:
        """Our model as class_path and init_args, with shapes from the tensors and the rest from `arguments`.

        Raises:
            ValueError: The two contradict each other, or something is known from neither.
        """

    @abstractmethod
    def rows(self, model: nn.Module, official_keys: Collection[str]) -> list[Row]:
        """The key table of our model; the official keys at hand choose between spellings of the same model."""

    def constants(self, model: nn.Module) -> list[Constant]:
        """Buffers of official files that are no weights."""
        return []

    def extra(self, model: nn.Module) -> dict[str, Tensor]:
        """Tensors of ours that no official file holds."""
        return {}


def node(cls: type, **init_args: object) -> dict:
    """A part of a model as configs write it."""
    return {"class_path": class_path(cls), "init_args": init_args}


def count(state: State, prefix: str) -> int:
    """Modules of the list at `prefix`: one more than the highest index after it."""
    indices = [int(key[len(prefix) :].split(".")[0]) for key in state if key.startswith(prefix)]
    return max(indices, default=-1) + 1


def scales_of_levels(level_L: Tensor) -> list[int]:
    """Sides of square scales from the level of each token.

    Raises:
        ValueError: A level is not square.
    """
    lengths = torch.bincount(level_L.flatten()).tolist()
    sides = [round(length**0.5) for length in lengths]
    if [side * side for side in sides] != lengths:
        raise ValueError(f"levels of {lengths} tokens are not square: the file's token levels are damaged")
    return sides


def attention_mask(schedule: ScaleSchedule) -> Tensor:
    """The additive mask (1, 1, L, L) that official models keep as a buffer."""
    visible_LL = schedule.block_causal_mask()
    return torch.zeros(1, 1, *visible_LL.shape).masked_fill(~visible_LL, -torch.inf)
