"""Official FlowAR checkpoints, and its flow network alone.

Keys and constructor arguments are those of `models/flowar.py` and `models/flowmodel.py` of the release.
"""

from collections.abc import Collection

import torch
from torch import Tensor

from scalear.interop.official.family import Arguments, Family, State, attention_mask, count, node, scales_of_levels
from scalear.interop.official.tables import BATCHED, NEGATED, Constant, Row, affine, prefixed, stacked, weight
from scalear.models.blocks import FlowARBlock
from scalear.models.flow_head import FlowHead
from scalear.models.generator import Generator
from scalear.models.injections import CrossSpatialAdaLN, FlowTransformer, SpatialAdaLN
from scalear.models.norms import PlainNorm
from scalear.models.positions import TokenPositions
from scalear.models.transformer import ScaleTransformer

_RELEASED_HEADS = {768: 12, 1024: 16, 1536: 16}  # by width of the autoregressive transformer
_RELEASED_SCALES = {341: [1, 2, 4, 8, 16]}  # by number of tokens
_RELEASED_SIDE = 16  # of the finest scale
_FLOW_HEAD_WIDTH = 64


class FlowAR(Family):
    """FlowAR-S, -B, -L and -H, transformer and flow network in one file."""

    name = "flowar"
    part = "generator"
    sizes = {
        171_718_072: "FlowAR-S",
        299_270_584: "FlowAR-B (inferred)",
        586_862_912: "FlowAR-L",
        1_913_316_880: "FlowAR-H",
    }
    arguments = frozenset(
        "img_size vae_stride patch_size encoder_embed_dim encoder_depth encoder_num_heads decoder_embed_dim "
        "decoder_depth decoder_num_heads mlp_ratio norm_layer vae_embed_dim label_drop_prob class_num attn_dropout "
        "proj_dropout buffer_size diffloss_d diffloss_w num_sampling_steps diffusion_batch_mul grad_checkpointing "
        "use_checkpoint cross scale".split()
    )

    def recognises(self, state: State) -> bool:
        return "diffusion_pos_embed_learned" in state and "flownet.input_proj.weight" in state

    def config(self, state: State, arguments: Arguments) -> dict:
        num_tokens, dim = state["encoder_pos_embed_learned"].shape[1:]
        for stack in ("encoder", "decoder"):
            arguments.agree(f"{stack}_embed_dim", dim)
        depths = [
            arguments.agree(f"{stack}_depth", count(state, f"{stack}_blocks.")) for stack in ("encoder", "decoder")
        ]
        for name in ("patch_size", "buffer_size"):
            if arguments.choose(name, {"patch_size": 1, "buffer_size": 0}[name]) not in (0, 1):
                raise ValueError(f"{name} {arguments.choose(name, None)} was never released and cannot be converted")
        scales = arguments.need("scale", _scales(state), _RELEASED_SCALES.get(num_tokens))
        attention_dropout, dropout = (arguments.choose(f"{part}_dropout", 0.1) for part in ("attn", "proj"))
        if attention_dropout != dropout:
            raise ValueError(f"attn_dropout {attention_dropout} and proj_dropout {dropout} must be equal here")
        flow = _below(state, "flownet.")
        network = network_node(flow)
        arguments.agree("diffloss_w", network["init_args"]["dim"])
        arguments.agree("diffloss_d", network["init_args"]["depth"])
        arguments.agree("cross", _crosses(flow))
        token_dim = arguments.agree("vae_embed_dim", state["z_proj.weight"].shape[1])
        num_classes = arguments.agree("class_num", state["class_emb.weight"].shape[0] - 1)
        transformer = node(
            ScaleTransformer,
            dim=dim,
            depths=depths,
            num_classes=num_classes,
            scales=scales,
            positions=node(TokenPositions),
            block=node(FlowARBlock, num_heads=_num_heads(state, dim, arguments), dropout=dropout),
            norm=node(PlainNorm),
            input_norm=True,
            output_positions=True,
        )
        return node(
            Generator,
            content={"dim": token_dim},
            transformer=transformer,
            head=node(FlowHead, network=network),
            label_drop_prob=arguments.choose("label_drop_prob", 0.1),
        )

    def rows(self, model: Generator, official_keys: Collection[str]) -> list[Row]:
        rows = [
            Row("transformer.class_embedding.weight", ("class_emb.weight",)),
            *affine("transformer.context_proj", "z_proj"),
            *weight("transformer.input_norm", "z_proj_ln"),
            *affine("transformer.between.0", "decoder_embed"),
        ]
        for index, name in enumerate(("encoder", "decoder", "diffusion")):
            rows.append(Row(f"transformer.positions.{index}.table_LD", (f"{name}_pos_embed_learned",), BATCHED))
        for index, name in enumerate(("encoder", "decoder")):
            rows += weight(f"transformer.norms.{index}", f"{name}_norm")
            for block in range(len(model.transformer.stacks[index])):
                rows += prefixed(
                    _adaln_block("ada_lin.1", affine("mixer.qkv", "attn.qkv")),
                    f"transformer.stacks.{index}.{block}.",
                    f"{name}_blocks.{block}.",
                )
        return rows + prefixed(network_rows(model.head.network), "head.network.", "flownet.")

    def constants(self, model: Generator) -> list[Constant]:
        transformer = model.transformer
        frequencies = rotary_frequencies(transformer.stacks[0][0].mixer.head_dim)
        blocks = [
            Constant(f"{name}_blocks.{block}.attn.rope.freqs", frequencies)
            for name, stack in zip(("encoder", "decoder"), transformer.stacks, strict=True)
            for block in range(len(stack))
        ]
        flow = [
            Constant(f"flownet.{constant.key}", constant.value) for constant in network_constants(model.head.network)
        ]
        return [Constant("mask", attention_mask(transformer.schedule)), *blocks, *flow]


class FlowARHead(Family):
    """FlowAR's flow network alone."""

    name = "flowar-head"
    part = "head"
    sizes = {42_005_176: "of FlowAR-S", 281_495_552: "of FlowAR-L", 633_043_984: "of FlowAR-H"}
    arguments = frozenset("in_channels model_channels out_channels z_channels num_res_blocks cross".split())

    def recognises(self, state: State) -> bool:
        return "time_embed.mlp.0.weight" in state and "cond_embed.weight" in state

    def config(self, state: State, arguments: Arguments) -> dict:
        token_dim, cond_dim = state["input_proj.weight"].shape[1], state["cond_embed.weight"].shape[1]
        for theirs, found in (("in_channels", token_dim), ("out_channels", token_dim), ("z_channels", cond_dim)):
            arguments.agree(theirs, found)
        schedule = {"sizes": [[_RELEASED_SIDE, _RELEASED_SIDE]]}
        network = network_node(state, token_dim=token_dim, cond_dim=cond_dim, schedule=schedule)
        for theirs, ours in (("model_channels", "dim"), ("num_res_blocks", "depth")):
            arguments.agree(theirs, network["init_args"][ours])
        arguments.agree("cross", _crosses(state))
        return network

    def rows(self, model: FlowTransformer, official_keys: Collection[str]) -> list[Row]:
        return network_rows(model)

    def constants(self, model: FlowTransformer) -> list[Constant]:
        return network_constants(model)


def network_node(state: State, **given: object) -> dict:
    """Our flow network for the official one; time is quantised, as it was when the weights were trained.

    Args:
        state: The official network alone.
        given: What configs do not say, because it follows from other parts.
    """
    dim = state["input_proj.weight"].shape[0]
    return node(
        CrossSpatialAdaLN if _crosses(state) else SpatialAdaLN,
        **given,
        dim=dim,
        depth=count(state, "res_blocks."),
        num_heads=dim // _FLOW_HEAD_WIDTH,
        quantise_time=True,
    )


def network_rows(network: FlowTransformer) -> list[Row]:
    """Key table of the flow network."""
    rows = [
        *affine("time_embedding.mlp.0", "time_embed.mlp.0"),
        *affine("time_embedding.mlp.2", "time_embed.mlp.2"),
        *affine("cond_proj", "cond_embed"),
        *affine("input_proj", "input_proj"),
        *affine("final_modulation", "final_layer.adaLN_modulation.1"),
        *affine("output_proj", "final_layer.linear", NEGATED),
    ]
    spatial = _adaln_block("ada_lin", weight("mixer.qkv", "attn.qkv"))
    cross = [
        *weight("query_norm", "norm2_1"),
        *weight("key_norm", "norm2_2"),
        *weight("cross_attention.q", "crossattn.q"),
        *weight("cross_attention.kv", "crossattn.kv"),
        *affine("cross_attention.proj", "crossattn.proj"),
        *affine("attention_modulation", "ada_lin_attn"),
        *affine("mlp_modulation", "ada_lin_mlp"),
        *weight("attention.qkv", "attn.qkv"),
        *affine("attention.proj", "attn.proj"),
        *_mlp(),
    ]
    table = cross if isinstance(network, CrossSpatialAdaLN) else spatial
    for index in range(len(network.blocks)):
        rows += prefixed(table, f"blocks.{index}.", f"res_blocks.{index}.")
    return rows


def network_constants(network: FlowTransformer) -> list[Constant]:
    """Rotary frequencies, which official files repeat in every attention."""
    frequencies = rotary_frequencies(_FLOW_HEAD_WIDTH)
    names = ("attn", "crossattn") if isinstance(network, CrossSpatialAdaLN) else ("attn",)
    return [
        Constant(f"res_blocks.{index}.{name}.rope.freqs", frequencies)
        for index in range(len(network.blocks))
        for name in names
    ]


def rotary_frequencies(head_dim: int) -> Tensor:
    """As the official code computes them, to the last bit."""
    half = head_dim // 2
    return 1.0 / 10000.0 ** (torch.arange(0, half, 2).float() / half)


def _adaln_block(modulation: str, qkv: list[Row]) -> list[Row]:
    return [*qkv, *affine("mixer.proj", "attn.proj"), *_mlp(), *affine("modulation", modulation)]


def _mlp() -> list[Row]:
    return [*stacked("mlp.fc1", ("mlp.fc1_g", "mlp.fc1_x")), *affine("mlp.fc2", "mlp.fc2")]


def _crosses(state: State) -> bool:
    return "res_blocks.0.crossattn.q.weight" in state


def _num_heads(state: State, dim: int, arguments: Arguments) -> int:
    frequencies = state.get("encoder_blocks.0.attn.rope.freqs")
    found = None if frequencies is None else dim // (4 * len(frequencies))
    heads = [arguments.need(f"{stack}_num_heads", found, _RELEASED_HEADS.get(dim)) for stack in ("encoder", "decoder")]
    if heads[0] != heads[1]:
        raise ValueError(f"encoder_num_heads {heads[0]} and decoder_num_heads {heads[1]} must be equal here")
    return heads[0]


def _scales(state: State) -> list[int] | None:
    if "mask" not in state:
        return None
    # A token sees everything up to the end of its own scale.
    ends = (state["mask"][0, 0] == 0).sum(dim=1)
    return scales_of_levels(torch.unique(ends, return_inverse=True)[1])


def _below(state: State, prefix: str) -> State:
    return {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
