"""The KL-16 autoencoder of MAR, which FlowAR uses."""

from collections.abc import Collection

from torch import Tensor

from scalear.interop.official.conv_tables import LDM, latent_statistics, layout, tokenizer_node, tokenizer_rows
from scalear.interop.official.family import Arguments, Family, State, node
from scalear.interop.official.tables import Row
from scalear.tokenizers.autoencoder import ConvTokenizer
from scalear.tokenizers.gaussian import Gaussian

# MAR and FlowAR multiply latents by this number; it goes into the statistics of the converted tokenizer.
_LATENT_SCALE = 0.2325


class KL16(Family):
    """`AutoencoderKL` of MAR's `models/vae.py`, any width and number of levels."""

    name = "kl16"
    part = "tokenizer"
    sizes = {66_456_019: "KL-16"}
    arguments = frozenset(
        "embed_dim ch_mult ch num_res_blocks resolution use_variational ckpt_path double_z z_channels in_channels "
        "out_ch attn_resolutions dropout resamp_with_conv".split()
    )

    def recognises(self, state: State) -> bool:
        return "encoder.mid.attn_1.q.weight" in state and "quantize.embedding.weight" not in state

    def config(self, state: State, arguments: Arguments) -> dict:
        ours = layout(state, LDM)
        for theirs, name in (("ch", "channels"), ("ch_mult", "channel_multipliers"), ("num_res_blocks",) * 2):
            arguments.agree(theirs, ours[name])
        latent_channels = state["post_quant_conv.weight"].shape[1]
        for name in ("embed_dim", "z_channels"):
            arguments.agree(name, latent_channels)
        bottleneck = node(Gaussian, latent_channels=latent_channels)
        return tokenizer_node(state, ours | {"decoder_attention": False}, bottleneck)

    def rows(self, model: ConvTokenizer, official_keys: Collection[str]) -> list[Row]:
        return tokenizer_rows(model, LDM)

    def extra(self, model: ConvTokenizer) -> dict[str, Tensor]:
        return latent_statistics(model, 1.0 / _LATENT_SCALE)
