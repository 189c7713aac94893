"""The numbers of the official code, from recordings: same weights in, same numbers out.

Reads every file of `tests/parity`, or of the folder that SCALEAR_PARITY_DIR names.
"""

import parity_flowar
import parity_tokenizers
import parity_var
import pytest
import torch
from parity_case import FAMILIES, FOLDER, Case

from scalear.interop.official.convert import revert_state

pytestmark = pytest.mark.integration  # `make test-parity`

FILES = sorted(FOLDER.glob("*.safetensors"))
REPLAYS = {
    "models.flowar.FlowAR": parity_flowar.replay_flowar,
    "models.flowmodel.SimpleTransformerAdaLN": parity_flowar.replay_flow_head,
    "models.vae.AutoencoderKL": parity_tokenizers.replay_kl16,
    "models.vq_llama.VQModel": parity_tokenizers.replay_vq16,
    "models.vqvae.VQVAE": parity_tokenizers.replay_var_vqvae,
    "models.var.VAR": parity_var.replay_var,
    "models.flexvar.FlexVAR": parity_var.replay_flexvar,
    "models.helpers.sample_with_top_k_top_p_": parity_var.replay_filter,
}


def test_there_are_recordings():
    assert FILES, f"no *.safetensors in {FOLDER}"


@pytest.mark.parametrize("fast", [False, True], ids=["plain", "fast"])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_same_numbers_as_the_official_code(path, fast, capsys):
    case = Case(path, fast)
    assert case.kind in REPLAYS, f"no replay for recordings of {case.kind}"
    REPLAYS[case.kind](case)
    line = case.finish()
    with capsys.disabled():
        print(f"\n{line}", end=" ")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_official_weights_come_back_bit_by_bit(path):
    case = Case(path)
    for module in FAMILIES[case.kind]:
        official = case.state(module)
        back = revert_state(case.convert(module))
        assert list(back) == list(official)
        assert all(torch.equal(back[key], tensor) for key, tensor in official.items())
