"""Reading checkpoints of the official repositories, without running what is in them."""

import argparse
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

# Where state dicts sit in the files of FlowAR (model_ema, model), MAR and LlamaGen (model), VAR and FlexVAR (trainer).
AVERAGED = ("model_ema", "ema", "trainer/var_ema")
RAW = ("model", "trainer/var_wo_ddp", "trainer/vae_local", "state_dict", "")


def read_official(path: str | Path) -> dict[str, dict[str, Tensor]]:
    """All state dicts of a file, by the path of keys that leads to them; "" is the file itself.

    Args:
        path: A PyTorch file or a safetensors file.

    Raises:
        ValueError: The file is missing, damaged, holds code, or has no state dict in a known place.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}")
    content = _load(path)
    found = {}
    for place in AVERAGED + RAW:
        value = content
        for key in filter(None, place.split("/")):
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, Mapping) and value and all(isinstance(item, Tensor) for item in value.values()):
            found[place] = _without_prefix(value)
    if not found:
        keys = sorted(map(str, content))[:10] if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{path} holds no state dict in a known place ({', '.join(RAW[:-1])}, or by itself): {keys}")
    return found


def _without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys without what all begin with, such as `module.` of DDP or `_orig_mod.` of torch.compile."""
    shared = os.path.commonprefix(list(state))
    shared = shared[: shared.rfind(".") + 1] if len(state) > 1 else ""
    return {key.removeprefix(shared): tensor for key, tensor in state.items()}


def _load(path: Path) -> object:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is not a readable safetensors file ({error}): download it again") from error
    try:
        # FlowAR's training checkpoints hold the command line beside the weights; nothing else may be unpickled.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # damaged files fail anywhere inside the reader
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = (
            f"wants to call {refused[1]}, which is never done" if refused else "is damaged or no PyTorch checkpoint"
        )
        raise ValueError(f"{path} {reason}: only files of tensors are read; download it again") from error
