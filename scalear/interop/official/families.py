"""The families of official checkpoints, and which of them a file is."""

from collections.abc import Mapping

from torch import Tensor

from scalear.interop.official.family import Family
from scalear.interop.official.flowar import FlowAR, FlowARHead
from scalear.interop.official.kl16 import KL16
from scalear.interop.official.reading import AVERAGED
from scalear.interop.official.var import VAR, FlexVAR
from scalear.interop.official.vq import VARVQVAE, VQ16

_ALL = (FlowAR(), FlexVAR(), VAR(), FlowARHead(), KL16(), VQ16(), VARVQVAE())
FAMILIES: dict[str, Family] = {family.name: family for family in _ALL}


def family_named(name: str) -> Family:
    """The family that `--family` means.

    Raises:
        ValueError: There is none of that name; lists them.
    """
    if name not in FAMILIES:
        raise ValueError(f"there is no family {name!r}; choose from {', '.join(FAMILIES)}")
    return FAMILIES[name]


def recognise(state: Mapping[str, Tensor], family: str | None = None) -> Family:
    """The family that these keys are of.

    Args:
        state: An official state dict.
        family: The only one to consider.

    Raises:
        ValueError: None, or not the wanted one.
    """
    fitting = [candidate for candidate in FAMILIES.values() if candidate.recognises(state)]
    if family is not None:
        wanted = family_named(family)
        if wanted not in fitting:
            looks = f"it looks like {fitting[0].name}" if fitting else f"its keys are {_some(state)}"
            raise ValueError(f"the file is not of the family {family}: {looks}")
        return wanted
    if len(fitting) != 1:
        names = ", ".join(candidate.name for candidate in fitting)
        raise ValueError(f"the file fits {names}: say which with --family" if fitting else _unknown(state))
    return fitting[0]


def pick(
    found: Mapping[str, Mapping[str, Tensor]], family: str | None, averaged: bool
) -> tuple[str, Family, Mapping[str, Tensor]]:
    """The state dict to convert, of all that a file holds.

    Args:
        found: State dicts by their place, of `read_official`.
        family: The only family to consider; None takes what is there.
        averaged: Prefer averaged (EMA) weights to raw ones.

    Returns:
        Its place, its family and its tensors.

    Raises:
        ValueError: None fits, or several families do.
    """
    fitting: dict[str, Family] = {}
    problems = []
    for place, state in found.items():
        try:
            fitting[place] = recognise(state, family)
        except ValueError as error:
            problems.append(str(error))
    if not fitting:
        raise ValueError(problems[0])
    if len({chosen.name for chosen in fitting.values()}) > 1:
        places = ", ".join(f"{chosen.name} in {place}" for place, chosen in fitting.items())
        raise ValueError(f"the file holds {places}: say which with --family")
    place = sorted(fitting, key=lambda place: (place in AVERAGED) != averaged)[0]
    return place, fitting[place], found[place]


def _unknown(state: Mapping[str, Tensor]) -> str:
    return f"the file is of no known family ({', '.join(FAMILIES)}); its keys are {_some(state)}"


def _some(state: Mapping[str, Tensor]) -> str:
    keys = list(state)
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
