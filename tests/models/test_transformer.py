"""The transformer as FlowAR has it, with and without fast ways."""

import gc
import weakref

import numpy as np
import pytest
import torch
from model_fixtures import make_transformer, randomise, stepwise, transformer_inputs
from torch import nn

from scalear.fast.accelerate import accelerate
from scalear.models.attention import Rotary, RotaryAttention
from scalear.models.blocks import AdaLNBlock
from scalear.models.layers import GatedMlp, zero_linear
from scalear.models.norms import rms_norm
from scalear.models.transformer import ScaleTransformer
from scalear.scales import ScaleSchedule


def make(fast: bool, scales: str = "1,2,4", **changes) -> ScaleTransformer:
    transformer = randomise(make_transformer(scales, **changes))
    if fast:
        accelerate(transformer)
    return transformer


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("changed", [0, 1, 2])
def test_a_scale_changes_nothing_before_it(changed, fast):
    transformer = make(fast)
    schedule = transformer.schedule
    context, cond = transformer_inputs(schedule, torch.float32)
    before = transformer(context, cond, schedule)
    if changed == 0:
        cond = cond + 1.0
    else:
        start, end = (offset - schedule.lengths[0] for offset in schedule.offsets[changed : changed + 2])
        context[:, start:end] += 1.0
    after = transformer(context, cond, schedule)
    for k, (one, other) in enumerate(zip(schedule.split(before), schedule.split(after), strict=True)):
        if k < changed:
            assert torch.equal(one, other)
        else:
            assert not torch.isclose(one, other, atol=1e-4).all(-1).any()  # and every token after it sees it


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("scales", ["1,2,4", "1,1x2,2x3,3x5", "1,4"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-13), (torch.float32, 1e-5)])
@torch.no_grad()
def test_cached_steps_equal_the_masked_forward(scales, dtype, tolerance, fast):
    transformer = make(fast, scales).to(dtype)
    schedule = transformer.schedule
    context, cond = transformer_inputs(schedule, dtype)
    whole = transformer(context, cond, schedule)
    torch.testing.assert_close(stepwise(transformer, schedule, context, cond), whole, rtol=0, atol=tolerance)


@pytest.mark.parametrize("fast", [False, True])
def test_a_fresh_block_is_the_identity(fast):
    schedule = ScaleSchedule.parse("1,2")
    block = AdaLNBlock(
        rms_norm(16, False), RotaryAttention(16, 2, Rotary(8, 2), True), GatedMlp(16), zero_linear(12, 96)
    )
    if fast:
        accelerate(block)
    x_BLD = torch.randn(2, schedule.num_tokens, 16)
    for cond in (torch.randn(2, 1, 12), torch.randn(2, schedule.num_tokens, 12)):
        assert torch.equal(block(x_BLD, cond, schedule), x_BLD)


@pytest.mark.parametrize("fast", [False, True])
def test_checkpointed_blocks_give_the_same_loss_and_gradients(fast):
    schedule = ScaleSchedule.parse("1,2,4")
    context, cond = transformer_inputs(schedule, torch.float32)

    def gradients(checkpoint_blocks: bool) -> list[torch.Tensor]:
        transformer = make(fast, checkpoint_blocks=checkpoint_blocks, dropout=0.2).train()
        torch.manual_seed(5)
        out = transformer(context, cond, schedule)
        return [out.detach(), *torch.autograd.grad(out.square().mean(), transformer.stacks.parameters())]

    for one, other in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("checkpoint_blocks", [False, True])
def test_checkpointed_blocks_keep_nothing_from_inside(checkpoint_blocks, fast):
    transformer, memories = make(fast, "1,2", checkpoint_blocks=checkpoint_blocks), []

    def use(module: nn.Module, args: tuple, out: torch.Tensor) -> torch.Tensor:
        array = np.ones(1, dtype=np.float32)  # alive as long as a tensor made of it, in autograd or elsewhere
        memories.append(weakref.ref(array))
        return out * torch.from_numpy(array)

    for stack in transformer.stacks:
        for block in stack:
            block.mixer.proj.register_forward_hook(use)
    out = transformer(*transformer_inputs(ScaleSchedule.parse("1,2"), torch.float32), ScaleSchedule.parse("1,2"))
    gc.collect()
    assert [memory() is None for memory in memories] == [checkpoint_blocks] * 3
    out.sum().backward()


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: make_transformer(dim=25), "dim 25 is not a multiple of num_heads 2"),
        (lambda: make_transformer("4,2"), "scales go from coarse to fine"),
    ],
)
def test_parts_that_cannot_be_built_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
