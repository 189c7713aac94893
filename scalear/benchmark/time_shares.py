"""Which part of a model the time goes to, forward and backward.

Modules announce themselves to torch's profiler through hooks. A backward operation belongs to the part whose forward
operation made it; the profiler gives both the same sequence number.
"""

import contextlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator

from torch import nn
from torch.autograd.profiler import profile, record_function

PARTS = ("attention", "mlp", "norms_modulation", "head", "decoder", "encoder", "optimizer", "data", "other")
_SCOPE = "scalear part: "
_MIXERS = ("attention", "cross_attention", "mixer")
_BACKWARD = "autograd::engine::evaluate_function"


def part(name: str) -> record_function:
    """A context whose time belongs to the part `name`."""
    return record_function(_SCOPE + name)


def shares(run: Callable[[], object], model: nn.Module) -> dict[str, float]:
    """Run once under the profiler; the share of the CPU's time of each part.

    Args:
        run: The job.
        model: Holds a `head`, blocks with `attention` and `mlp`, or none of these.

    Returns:
        Shares of the names in `PARTS` that sum to one, and for the head what is in it: `head/attention`, ...
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler announces itself on stderr, and misses a GPU there
    with _announced(model), profile() as profiler:
        run()
    events = profiler.function_events
    forward: dict[int, str] = {}
    for event in events:  # parents come before their children, and forward before backward
        if event.sequence_nr >= 0 and not event.name.startswith(_BACKWARD):
            forward.setdefault(event.sequence_nr, _part_of(event, {}))
    seconds: dict[str, float] = defaultdict(float)
    for event in events:
        seconds[_part_of(event, forward)] += event.self_cpu_time_total
    total = sum(seconds.values())
    result = dict.fromkeys(PARTS, 0.0)
    for name, spent in seconds.items():
        result[name.split("/")[0]] += spent / total
        if "/" in name:
            result[name] = spent / total
    return result


def _part_of(event, forward: dict[int, str]) -> str:
    """The innermost scope around an event, in backward the scope of its forward operation."""
    while event is not None:
        if event.name.startswith(_SCOPE):
            return event.name.removeprefix(_SCOPE)
        if event.name.startswith(_BACKWARD) and event.sequence_nr in forward:
            return forward[event.sequence_nr]
        event = event.cpu_parent
    return "other"


@contextlib.contextmanager
def _announced(model: nn.Module) -> Iterator[None]:
    """Hooks on every module that begins a part."""
    with contextlib.ExitStack() as undo:
        for path, module in model.named_modules():
            if (name := _part_name(path, module)) is not None:
                scopes: list[record_function] = []
                enter = module.register_forward_pre_hook(lambda *_, name=name, scopes=scopes: _enter(scopes, name))
                leave = module.register_forward_hook(lambda *_, scopes=scopes: _leave(scopes), always_call=True)
                undo.callback(enter.remove)
                undo.callback(leave.remove)
        for method in ("loss", "sample") if hasattr(model, "head") else ():  # a head works outside its forward, too
            setattr(model.head, method, part("head")(getattr(model.head, method)))
            undo.callback(delattr, model.head, method)
        yield


def _part_name(path: str, module: nn.Module) -> str | None:
    name = path.rpartition(".")[2]
    inside = "head/" if path.startswith("head.") else ""
    if path == "head":
        return path
    if name in _MIXERS:
        return inside + "attention"
    if any(hasattr(module, child) for child in _MIXERS):
        return inside + "norms_modulation"  # what a block does outside its attention and MLP
    return inside + "mlp" if name == "mlp" else None


def _enter(scopes: list[record_function], name: str) -> None:
    scopes.append(part(name))
    scopes[-1].__enter__()


def _leave(scopes: list[record_function]) -> None:
    scopes.pop().__exit__(None, None, None)
