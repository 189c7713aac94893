"""Official VAR and FlexVAR transformers.

Keys and constructor arguments are those of `models/var.py` and `models/flexvar.py`; their tokenizers are other
files, in `scalear.interop.official.vq`.
"""

from abc import abstractmethod
from collections.abc import Collection

import torch

from scalear.interop.official.family import Arguments, Family, State, attention_mask, count, node, scales_of_levels
from scalear.interop.official.tables import BATCHED, Constant, Row, affine, prefixed, viewed, weight
from scalear.models.generator import Generator
from scalear.models.norms import ModulatedNorm
from scalear.models.positions import GridPositions, LevelPositions
from scalear.models.token_head import TokenHead
from scalear.models.transformer import ScaleTransformer
from scalear.models.var_block import VARBlock

_RELEASED_SCALES = {
    680: [1, 2, 3, 4, 5, 6, 8, 10, 13, 16],  # 256 px
    2240: [1, 2, 3, 4, 6, 9, 13, 18, 24, 32],  # 512 px
}
_RELEASED_HEAD_WIDTH = 64  # and as many heads as blocks
_NORM_EPS = 1e-6


class VARLike(Family):
    """What VAR and FlexVAR share: everything but positions."""

    part = "generator"
    arguments = frozenset(
        "num_classes depth embed_dim num_heads mlp_ratio drop_rate attn_drop_rate drop_path_rate norm_eps shared_aln "
        "cond_drop_rate token_dropout_p attn_l2_norm patch_nums flash_if_available fused_if_available".split()
    )

    def config(self, state: State, arguments: Arguments) -> dict:
        dim, context_dim = state["word_embed.weight"].shape
        depth = count(state, "blocks.")
        num_classes = state["class_emb.weight"].shape[0] - 1
        shapes = {"embed_dim": dim, "depth": depth, "num_classes": num_classes}
        for name, found in shapes.items():
            arguments.agree(name, found)
        if arguments.choose("norm_eps", _NORM_EPS) != _NORM_EPS:
            raise ValueError(f"norm_eps {arguments.choose('norm_eps', None)} is not supported: {_NORM_EPS} is")
        block = node(
            VARBlock,
            num_heads=_num_heads(state, dim, depth, arguments),
            normalise=arguments.agree("attn_l2_norm", "blocks.0.attn.scale_mul_1H11" in state),
            mlp_ratio=arguments.choose("mlp_ratio", state["blocks.0.ffn.fc1.weight"].shape[0] / dim),
            drop_path=arguments.choose("drop_path_rate", 0.1 * depth / 24),
            shared_modulation=arguments.agree("shared_aln", "shared_ada_lin.1.weight" in state),
        )
        transformer = node(
            ScaleTransformer,
            dim=dim,
            depths=[depth],
            num_classes=num_classes,
            scales=self.scales(state, arguments),
            positions=self.positions,
            block=block,
            norm=node(ModulatedNorm),
            var_init=True,
        )
        return node(
            Generator,
            content={"dim": context_dim, "num_codes": state["head.weight"].shape[0]},
            transformer=transformer,
            head=node(TokenHead),
            label_drop_prob=arguments.choose("cond_drop_rate", 0.1),
        )

    def rows(self, model: Generator, official_keys: Collection[str]) -> list[Row]:
        (stack,) = model.transformer.stacks
        rows = [
            *weight("transformer.class_embedding", "class_emb"),
            *affine("transformer.context_proj", "word_embed"),
            Row("transformer.positions.0.start", ("pos_start",), viewed(1, 1, -1)),
            *affine("transformer.norms.0.modulation", "head_nm.ada_lin.1"),
            *affine("head.output_proj", "head"),
        ]
        if stack[0].shares_modulation:
            rows += affine("transformer.shared_modulation", "shared_ada_lin.1")
        for index, block in enumerate(stack):
            rows += prefixed(_block_rows(block), f"transformer.stacks.0.{index}.", f"blocks.{index}.")
        return rows

    def constants(self, model: Generator) -> list[Constant]:
        (stack,) = model.transformer.stacks
        zeros = torch.zeros(model.transformer.dim)
        return [Constant(f"blocks.{index}.attn.zero_k_bias", zeros) for index in range(len(stack))]

    @abstractmethod
    def scales(self, state: State, arguments: Arguments) -> list[int]:
        """Sides of the scales."""

    positions: dict


class VAR(VARLike):
    """VAR-d12 to -d36."""

    name = "var"
    sizes = {
        133_186_960: "VAR-d12",
        310_283_520: "VAR-d16",
        600_917_136: "VAR-d20",
        1_033_399_360: "VAR-d24",
        2_010_020_356: "VAR-d30",
        2_353_893_904: "VAR-d36",  # at its 512 px
        2_350_299_664: "VAR-d36 at 256 px",
    }
    positions = node(LevelPositions)

    def recognises(self, state: State) -> bool:
        return "word_embed.weight" in state and "lvl_embed.weight" in state

    def scales(self, state: State, arguments: Arguments) -> list[int]:
        found = scales_of_levels(state["lvl_1L"]) if "lvl_1L" in state else None
        return list(arguments.need("patch_nums", found, _RELEASED_SCALES.get(state["pos_1LC"].shape[1])))

    def rows(self, model: Generator, official_keys: Collection[str]) -> list[Row]:
        return [
            *super().rows(model, official_keys),
            Row("transformer.positions.0.table_LD", ("pos_1LC",), BATCHED),
            *weight("transformer.positions.0.level_embedding", "lvl_embed"),
        ]

    def constants(self, model: Generator) -> list[Constant]:
        return [
            Constant("lvl_1L", model.schedule.level_ids()[None]),
            Constant("attn_bias_for_masking", attention_mask(model.schedule)),
            *super().constants(model),
        ]


class FlexVAR(VARLike):
    """FlexVAR-d16 to -d30."""

    name = "flexvar"
    sizes = {
        315_561_936: "FlexVAR-d16",
        607_513_952: "FlexVAR-d20",
        1_041_314_576: "FlexVAR-d24",
        2_019_913_172: "FlexVAR-d30",
    }
    positions = node(GridPositions, side=32)

    def recognises(self, state: State) -> bool:
        return "word_embed.weight" in state and "pos_1LC" in state and "lvl_embed.weight" not in state

    def scales(self, state: State, arguments: Arguments) -> list[int]:
        # Any will do: these are only where training and sampling start from.
        return list(arguments.choose("patch_nums", _RELEASED_SCALES[680]))

    def rows(self, model: Generator, official_keys: Collection[str]) -> list[Row]:
        return [*super().rows(model, official_keys), Row("transformer.positions.0.grid_Dhw", ("pos_1LC",), BATCHED)]

    def constants(self, model: Generator) -> list[Constant]:
        # The official mask is that of the last scale list that was trained on.
        mask = Constant("attn_bias_for_masking", attention_mask(model.schedule), fixed=False)
        return [mask, *super().constants(model)]


def _block_rows(block: VARBlock) -> list[Row]:
    rows = [
        *weight("mixer.qkv", "attn.mat_qkv"),
        Row("mixer.q_bias", ("attn.q_bias",)),
        Row("mixer.v_bias", ("attn.v_bias",)),
        *affine("mixer.proj", "attn.proj"),
        *affine("mlp.fc1", "ffn.fc1"),
        *affine("mlp.fc2", "ffn.fc2"),
    ]
    if block.mixer.log_scale_N is not None:
        rows.append(Row("mixer.log_scale_N", ("attn.scale_mul_1H11",), viewed(1, -1, 1, 1)))
    if block.shares_modulation:
        return [*rows, Row("modulation.table", ("ada_gss",), viewed(1, 1, 6, -1))]
    return [*rows, *affine("modulation", "ada_lin.1")]


def _num_heads(state: State, dim: int, depth: int, arguments: Arguments) -> int:
    temperatures = state.get("blocks.0.attn.scale_mul_1H11")
    found = None if temperatures is None else temperatures.numel()
    return arguments.need("num_heads", found, depth if dim == _RELEASED_HEAD_WIDTH * depth else None)
