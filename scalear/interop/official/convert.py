"""Official state dicts to ours and back: `scalear convert`."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from scalear.class_paths import Part, build
from scalear.interop.official.families import family_named, recognise
from scalear.interop.official.family import Arguments, Family
from scalear.interop.official.tables import to_official, to_ours

_LISTED = 40  # keys in a message


@dataclass
class Conversion:
    """One official model in our naming.

    Attributes:
        family: Name of its family.
        config: Our model, as class_path and init_args.
        tensors: Its weights and buffers.
        official_keys: Keys of the source, in their order.
        constants: Those of them that hold no weights.
        carried: Constants that cannot be derived bit by bit, kept for the way back.
    """

    family: str
    config: Part
    tensors: dict[str, Tensor]
    official_keys: list[str] = field(default_factory=list)
    constants: list[str] = field(default_factory=list)
    carried: dict[str, Tensor] = field(default_factory=dict)

    @property
    def num_parameters(self) -> int:
        """Parameters of our model, as the papers count them."""
        return sum(parameter.numel() for parameter in _empty(self.config).parameters())

    @property
    def size(self) -> str:
        """Name of the released model with as many parameters, or "custom"."""
        return family_named(self.family).sizes.get(self.num_parameters, "custom")

    def model(self) -> nn.Module:
        """Our model with the converted weights (the tensors themselves, not copies), in eval mode."""
        model = _empty(self.config)
        model.load_state_dict(self.tensors, assign=True)
        return model.eval()

    def title(self) -> str:
        """What it is, and how large."""
        return f"family      {self.family} ({self.size})\nparameters  {self.num_parameters:,}"

    def report(self) -> str:
        """What became of the keys of the source, in a few lines."""
        kept = f", {len(self.carried)} of them kept for --reverse" if self.carried else ""
        return "\n".join(
            [
                self.title(),
                f"used        {len(self.official_keys) - len(self.constants)} source keys, "
                f"for {len(self.tensors)} of ours",
                f"constants   {len(self.constants)} source keys{kept}: {_list(self.constants)}",
                "unused      0 source keys",
                "missing     0 of ours",
            ]
        )


def convert_state(
    state: Mapping[str, Tensor],
    family: str | None = None,
    arguments: Mapping[str, object] | None = None,
    config: Part | None = None,
) -> Conversion:
    """An official state dict to our model and its weights.

    Args:
        state: Official keys and tensors.
        family: Name of the family; None recognises it.
        arguments: Official constructor arguments, for what shapes do not tell.
        config: Our model as class_path and init_args, instead of one made from shapes and `arguments`.

    Returns:
        Our model and its tensors; shapes are checked, and nothing is left over on either side.

    Raises:
        ValueError: The family is not recognised or another one, the size is ambiguous, or tensors do not fit; lists
            the keys.
    """
    chosen = recognise(state, family)
    if config is None:
        try:
            config = chosen.config(state, Arguments(arguments or {}, chosen.arguments))
        except KeyError as error:
            raise ValueError(f"the file looks like {chosen.name}, but lacks {error}") from error
    model = _empty(config)
    translation = to_ours(chosen.rows(model, state), chosen.constants(model), state)
    translation.tensors.update(chosen.extra(model))
    wanted = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    _check(
        chosen,
        {
            "source keys that our model has no place for": translation.unused,
            "source keys that are missing": translation.absent,
            "our keys that got no value": [key for key in wanted if key not in translation.tensors],
            "tensors of another shape": [
                f"{key} (file {tuple(tensor.shape)}, model {wanted.get(key)})"
                for key, tensor in translation.tensors.items()
                if tuple(tensor.shape) != wanted.get(key)
            ],
        },
    )
    return Conversion(
        family=chosen.name,
        config=config,
        tensors=translation.tensors,
        official_keys=list(state),
        constants=translation.constants,
        carried=translation.carried,
    )


def revert_state(conversion: Conversion) -> dict[str, Tensor]:
    """Our tensors to the official state dict: the inverse of `convert_state`, bit by bit.

    Without the keys of a source, every constant that can be derived is written.

    Raises:
        ValueError: Tensors are missing or left over; lists the keys.
    """
    family = family_named(conversion.family)
    model = _empty(conversion.config)
    statistics = family.extra(model).keys()
    ours = {key: tensor for key, tensor in conversion.tensors.items() if key not in statistics}
    translation = to_official(family.rows(model, conversion.official_keys), family.constants(model), ours)
    official = translation.tensors | conversion.carried
    _check(
        family,
        {
            "our keys that the official model has no place for": translation.unused,
            "our keys that are missing": translation.absent,
            "official keys that got no value": [key for key in conversion.official_keys if key not in official],
        },
    )
    keys = conversion.official_keys or list(official)
    return {key: official[key] for key in keys}


def _empty(config: Part) -> nn.Module:
    """The model on the meta device: names and shapes without memory."""
    with torch.device("meta"):
        return build(nn.Module, config)


def _check(family: Family, problems: dict[str, list[str]]) -> None:
    text = "; ".join(f"{what}: {_list(keys)}" for what, keys in problems.items() if keys)
    if text:
        raise ValueError(f"not a {family.name} model of the recognised size: {text}")


def _list(keys: list[str]) -> str:
    more = len(keys) - _LISTED
    return ", ".join(keys[:_LISTED]) + (f" and {more} more" if more > 0 else "")
