"""Official tokenizers with a codebook: LlamaGen's and FlexVAR's VQ-16, and VAR's multi-scale VQVAE."""

from collections.abc import Collection

from torch import Tensor

from scalear.interop.official.conv_tables import (
    LLAMAGEN,
    VAR,
    latent_statistics,
    layout,
    tokenizer_node,
    tokenizer_rows,
)
from scalear.interop.official.family import Arguments, Family, State, node
from scalear.interop.official.tables import Constant, Row, affine
from scalear.scales import ScaleSchedule
from scalear.tokenizers.autoencoder import ConvTokenizer
from scalear.tokenizers.quantizer import VectorQuantizer
from scalear.tokenizers.residual import ResidualQuantizer

_RELEASED_SCALES = [1, 2, 3, 4, 5, 6, 8, 10, 13, 16]  # of VAR at 256 px
_CODEBOOK = Row("bottleneck.codebook", ("quantize.embedding.weight",))
_PHI = "quantize.quant_resi."
_SHARED, _PARTIALLY_SHARED, _ONE_EACH = "qresi", "qresi_ls.{index}", "{index}"


class VQ16(Family):
    """`VQModel` of LlamaGen and of FlexVAR's `models/vq_llama.py`, which adds nothing but the size of its codebook."""

    name = "vq16"
    part = "tokenizer"
    sizes = {72_049_827: "VQ-16 with 8912x32 codes (FlexVAR)", 71_883_403: "VQ-16 with 16384x8 codes (LlamaGen)"}
    arguments = frozenset(
        "codebook_size codebook_embed_dim codebook_l2_norm codebook_show_usage commit_loss_beta entropy_loss_ratio "
        "encoder_ch_mult decoder_ch_mult z_channels dropout_p ch num_res_blocks".split()
    )

    def recognises(self, state: State) -> bool:
        return "encoder.mid.1.q.weight" in state and "quantize.embedding.weight" in state

    def config(self, state: State, arguments: Arguments) -> dict:
        ours = layout(state, LLAMAGEN)
        num_codes, latent_channels = state["quantize.embedding.weight"].shape
        feature_channels = state["quant_conv.weight"].shape[1]
        shapes = {"codebook_size": num_codes, "codebook_embed_dim": latent_channels, "z_channels": feature_channels}
        _agree(arguments, ours, shapes, multipliers=("encoder_ch_mult", "decoder_ch_mult"))
        bottleneck = node(
            VectorQuantizer,
            latent_channels=latent_channels,
            num_codes=num_codes,
            normalise=arguments.choose("codebook_l2_norm", True),
        )
        return tokenizer_node(state, ours | {"feature_channels": feature_channels}, bottleneck)

    def rows(self, model: ConvTokenizer, official_keys: Collection[str]) -> list[Row]:
        return [*tokenizer_rows(model, LLAMAGEN), _CODEBOOK]

    def extra(self, model: ConvTokenizer) -> dict[str, Tensor]:
        return latent_statistics(model, 1.0)

    def constants(self, model: ConvTokenizer) -> list[Constant]:
        return [Constant("quantize.codebook_used")]


class VARVQVAE(Family):
    """`VQVAE` of VAR."""

    name = "var-vqvae"
    part = "tokenizer"
    sizes = {108_948_355: "VAR VQVAE"}
    arguments = frozenset(
        "vocab_size z_channels ch dropout beta using_znorm quant_conv_ks quant_resi share_quant_resi "
        "default_qresi_counts v_patch_nums test_mode ch_mult num_res_blocks".split()
    )

    def recognises(self, state: State) -> bool:
        return "encoder.mid.attn_1.qkv.weight" in state and "quantize.embedding.weight" in state

    def config(self, state: State, arguments: Arguments) -> dict:
        ours = layout(state, VAR)
        num_codes, latent_channels = state["quantize.embedding.weight"].shape
        conv_size = state["quant_conv.weight"].shape[-1]
        shapes = {"vocab_size": num_codes, "z_channels": latent_channels, "quant_conv_ks": conv_size}
        _agree(arguments, ours, shapes, multipliers=("ch_mult",))
        scales = list(arguments.need("v_patch_nums", None, _released_scales(state)))
        spelling = _phi_spelling(state)
        bottleneck = node(
            ResidualQuantizer,
            latent_channels=latent_channels,
            num_codes=num_codes,
            scales=str(ScaleSchedule.parse(scales)),
            num_phis=sum(key.endswith(".weight") for key in state if key.startswith(_PHI)) or 1,
            phi_ratio=abs(arguments.choose("quant_resi", 0.5)) if spelling is not None else 0.0,
            normalise=arguments.choose("using_znorm", False),
        )
        return tokenizer_node(state, ours | {"conv_size": conv_size}, bottleneck)

    def rows(self, model: ConvTokenizer, official_keys: Collection[str]) -> list[Row]:
        rows = [*tokenizer_rows(model, VAR), _CODEBOOK]
        spelling = _phi_spelling(official_keys) or _default_phi_spelling(model)
        for index in range(len(model.bottleneck.phis)):
            rows += affine(f"bottleneck.phis.{index}", _PHI + spelling.format(index=index))
        return rows

    def extra(self, model: ConvTokenizer) -> dict[str, Tensor]:
        return latent_statistics(model, 1.0)

    def constants(self, model: ConvTokenizer) -> list[Constant]:
        return [Constant("quantize.ema_vocab_hit_SV")]


def _phi_spelling(keys: Collection[str]) -> str | None:
    """How the convolutions phi are named, by who shares them; None where there are none."""
    for spelling in (_SHARED, _PARTIALLY_SHARED, _ONE_EACH):
        if f"{_PHI}{spelling.format(index=0)}.weight" in keys:
            return spelling
    return None


def _default_phi_spelling(model: ConvTokenizer) -> str:
    num_phis = model.bottleneck.num_phis
    if num_phis == 1:
        return _SHARED
    return _ONE_EACH if num_phis == model.schedule.num_scales else _PARTIALLY_SHARED


def _released_scales(state: State) -> list[int] | None:
    hits_SV = state.get("quantize.ema_vocab_hit_SV")
    num_scales = len(_RELEASED_SCALES) if hits_SV is None else len(hits_SV)
    released = state["encoder.conv_in.weight"].shape[0] == 160 and num_scales == len(_RELEASED_SCALES)
    return _RELEASED_SCALES if released else None


def _agree(arguments: Arguments, ours: dict, shapes: dict[str, int], multipliers: tuple[str, ...]) -> None:
    for name, found in {**shapes, "ch": ours["channels"], "num_res_blocks": ours["num_res_blocks"]}.items():
        arguments.agree(name, found)
    for name in multipliers:
        arguments.agree(name, ours["channel_multipliers"])
