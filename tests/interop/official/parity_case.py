"""A recording of the official code, and the account of which of its tensors ours were compared with.

Tensors are named `state.<official key>`, `in.<name>`, `mid.<name>` and `out.<name>`; metadata values are JSON.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from scalear.fast.accelerate import accelerate
from scalear.interop.official.convert import Conversion, convert_state
from scalear.interop.official.families import family_named
from scalear.interop.official.tables import to_official

FOLDER = Path(os.environ.get("SCALEAR_PARITY_DIR", Path(__file__).parents[2] / "parity"))
# Official class of a recording -> its modules, by the prefix of their keys, and the family that each converts by.
FAMILIES = {
    "models.flowar.FlowAR": {"": "flowar"},
    "models.flowmodel.SimpleTransformerAdaLN": {"": "flowar-head"},
    "models.vae.AutoencoderKL": {"": "kl16"},
    "models.vq_llama.VQModel": {"": "vq16"},
    "models.vqvae.VQVAE": {"": "var-vqvae"},
    "models.var.VAR": {"vae": "var-vqvae", "var": "var"},
    "models.flexvar.FlexVAR": {"vae": "vq16", "var": "flexvar"},
    "models.helpers.sample_with_top_k_top_p_": {},
}
# Where the constructor arguments of a module are recorded, where not at the top.
_ARGUMENTS = {"vae": ("vqvae", "vq"), "var": ("var_kwargs",)}


class Case:
    """One file.

    Args:
        path: Of the file.
        fast: Build models with the fast ways of `scalear.fast`.

    Attributes:
        name: Of the case.
        kind: The official class, such as `models.var.VAR`.
        constructor: Its arguments, and what was called.
        extra: Arguments of each run.
        inputs: `in.*` by the rest of the name.
    """

    def __init__(self, path: Path, fast: bool = False) -> None:
        with safe_open(path, "pt") as file:
            metadata = {key: json.loads(value) for key, value in file.metadata().items()}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        self.name = metadata["case"]
        self.fast = fast
        self.kind = metadata["upstream"]["class"]
        self.constructor = metadata["constructor"]
        self.extra = metadata["extra"]
        self._jitter = metadata["tolerances_seen"]["weight_jitter_6e-8_relative"]["per_tensor"]
        self.inputs = _below(tensors, "in.")
        self._state = _below(tensors, "state.")
        self._recorded = {key: tensor for key, tensor in tensors.items() if key.startswith(("mid.", "out."))}
        self._errors: dict[str, float] = {}

    def state(self, module: str = "") -> dict[str, Tensor]:
        """The official state dict, of one module where several share the file."""
        return _below(self._state, f"{module}." if module else "")

    def convert(self, module: str = "") -> Conversion:
        """Our model of the recorded constructor arguments, with the recorded weights, by the public converter."""
        recorded = self.constructor
        for name in _ARGUMENTS.get(module, ()):
            recorded = recorded.get(name, recorded)
        arguments = recorded.get("kwargs", recorded) | recorded.get("override", {})
        return convert_state(self.state(module), FAMILIES[self.kind][module], arguments)

    def build(self, conversion: Conversion) -> nn.Module:
        """The converted model."""
        model = conversion.model()
        if self.fast:
            accelerate(model)
        return model

    def names(self, prefix: str) -> list[str]:
        """The rest of every recorded name that begins so."""
        return list(_below(self._recorded, prefix))

    def recorded(self, name: str) -> Tensor:
        return self._recorded[name]

    def compare(self, name: str, ours: Tensor) -> None:
        """Note how far ours is from the recorded tensor, in units of what is allowed."""
        theirs, ours = self._recorded[name], ours.detach()
        assert ours.shape == theirs.shape, f"{name} has shape {tuple(ours.shape)}, recorded {tuple(theirs.shape)}"
        if not theirs.is_floating_point():
            wrong = int((ours != theirs).sum())
            self._errors[name] = float("inf") if wrong else 0.0
            return
        error = (ours.double() - theirs.double()).abs()
        error[ours == theirs] = 0.0  # of two infinities, too
        self._errors[name] = float(error.nan_to_num(float("inf")).max()) / self._tolerance(name, theirs)

    def maybe(self, name: str, ours: Callable[[], Tensor]) -> None:
        """Compare where the file holds the tensor: recordings leave out some of the large ones."""
        if name in self._recorded:
            self.compare(name, ours())

    def rows(self, name: str, ours: Tensor, dim: int, count: int) -> None:
        """As `maybe`, where ours has only the first `count` rows of a dimension."""
        if name in self._recorded:
            self._recorded[name] = self._recorded[name].narrow(dim, 0, count)
            self.compare(name, ours)

    def finish(self) -> str:
        """A line for the reader.

        Raises:
            AssertionError: A tensor is off, or an `out.*` tensor was never compared.
        """
        forgotten = [name for name in self._recorded if name.startswith("out.") and name not in self._errors]
        assert not forgotten, f"nothing was compared with {', '.join(forgotten)}"
        wrong = {name: error for name, error in self._errors.items() if not error <= 1.0}
        assert not wrong, "error over tolerance: " + ", ".join(f"{name} {error:.3g}" for name, error in wrong.items())
        worst = max(self._errors.values())
        name = f"{self.name}{' (fast)' if self.fast else ''}"
        return f"{name}: {len(self._errors)} of {len(self._recorded)} tensors, worst error/tolerance {worst:.3f}"

    def _tolerance(self, name: str, theirs: Tensor) -> float:
        if ".grad" in name:
            return 1e-3 * float(theirs.abs().max())
        return min(1e-3, max(1e-5, 20 * self._jitter.get(name, 0.0)))


@contextmanager
def watching(**modules: nn.Module) -> Iterator[dict[str, list]]:
    """Collect, by name, the (inputs, output) of every call of the given modules."""
    calls: dict[str, list] = {name: [] for name in modules}

    def note(name: str) -> Callable:
        return lambda module, args, output: calls[name].append((args, output))

    hooks = [module.register_forward_hook(note(name)) for name, module in modules.items()]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def numbered(prefix: str, modules: nn.ModuleList | list[nn.Module]) -> dict[str, nn.Module]:
    """Modules by prefix and index, for `watching`."""
    return {f"{prefix}{index}": module for index, module in enumerate(modules)}


def per_scale(inputs: dict[str, Tensor], prefix: str) -> dict[int, Tensor]:
    """Tensors of scales 0, 1 ... named prefix and number."""
    return {int(key): tensor for key, tensor in _below(inputs, prefix).items()}


def compare_gradients(case: Case, prefix: str, gradients: dict[str, Tensor]) -> None:
    """Their norm over all weights, and the recorded ones, by official key."""
    norm = torch.stack([gradient.double().square().sum() for gradient in gradients.values()]).sum().sqrt()
    case.maybe(f"{prefix}.grad_norm", lambda: norm)
    for key in case.names(f"{prefix}.grad."):
        if key in gradients:
            case.compare(f"{prefix}.grad.{key}", gradients[key])


def official_gradients(conversion: Conversion, model: nn.Module) -> dict[str, Tensor]:
    """Gradients by official key and in the official layout, of the weights that have one."""
    rows = family_named(conversion.family).rows(model, conversion.official_keys)
    ours = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return to_official(rows, [], ours).tensors


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
