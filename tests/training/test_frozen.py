import copy
import pickle

import pytest
import torch
from torch import nn

from scalear.training.frozen import freeze


def make_parent() -> nn.ModuleDict:
    parent = nn.ModuleDict({"part": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), "own": nn.Linear(2, 2)})
    freeze(parent, "part")
    return parent


@pytest.mark.parametrize(
    "duplicate", [lambda x: x, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["itself", "copy", "pickle"]
)
def test_a_frozen_part_stays_frozen_in_every_copy(duplicate):
    parent = duplicate(make_parent())
    wrapper = nn.Sequential(parent).train()
    assert parent.own.training and not any(module.training for module in parent.part.modules())
    assert parent.part.train() is parent.part
    assert [name for name, tensor in parent.named_parameters() if tensor.requires_grad] == ["own.weight", "own.bias"]
    assert list(wrapper.state_dict()) == ["0.own.weight", "0.own.bias"]

    before = {name: tensor.clone() for name, tensor in parent.part.state_dict().items()}
    wrapper.load_state_dict({"0.own.weight": torch.ones(2, 2), "0.own.bias": torch.ones(2)})
    assert parent.own.weight.eq(1).all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in parent.part.state_dict().items())
    with pytest.raises(RuntimeError, match="own.bias"):
        wrapper.load_state_dict({"0.own.weight": torch.ones(2, 2)})
