"""Settings without effect: what is typed is used, and what would do nothing is refused or said."""

import inspect
import json
from collections.abc import Callable
from typing import Any


def idle_settings(owner: Callable[..., Any], because: str, **settings: Any) -> list[str]:
    """What to say of settings that the others leave without effect: a line for each that was given.

    Args:
        owner: The class or function that they are arguments of. Its defaults are not given, also where a resolved
            config spells them out.
        because: What leaves them without effect, such as "ramp is linear".
        **settings: Their values by name.
    """
    given = {name: value for name, value in settings.items() if value != _default(owner, name)}
    return [f"{name} {value} is not used, for {because}" for name, value in given.items()]


def refuse_idle(owner: Callable[..., Any], because: str, **settings: Any) -> None:
    """Refuse settings that the others leave without effect; arguments as `idle_settings`.

    Raises:
        ValueError: One of them was given.
    """
    for name, value in settings.items():
        for said in idle_settings(owner, because, **{name: value}):
            raise ValueError(f"{said}: leave it out, or set it to {json.dumps(_default(owner, name))}")


def _default(owner: Callable[..., Any], name: str) -> Any:
    return inspect.signature(owner).parameters[name].default
