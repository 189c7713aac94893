"""The numbers of the official code, from recordings: same weights in, same numbers out.

Reads every file of `tests/parity`, or of the folder that SCALEAR_PARITY_DIR names.
"""

import os
from pathlib import Path

import parity_flowar
import parity_tokenizers
import pytest
from parity_case import Case

FOLDER = Path(os.environ.get("SCALEAR_PARITY_DIR", Path(__file__).parent / "parity"))
FILES = sorted(FOLDER.glob("*.safetensors"))
REPLAYS = {
    "models.flowar.FlowAR": parity_flowar.replay_flowar,
    "models.flowmodel.SimpleTransformerAdaLN": parity_flowar.replay_flow_head,
    "models.vae.AutoencoderKL": parity_tokenizers.replay_kl16,
    "models.vq_llama.VQModel": parity_tokenizers.replay_vq16,
    "models.vqvae.VQVAE": parity_tokenizers.replay_var_vqvae,
}


def test_there_are_recordings():
    assert FILES, f"no *.safetensors in {FOLDER}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_same_numbers_as_the_official_code(path, capsys):
    case = Case(path)
    assert case.kind in REPLAYS, f"no replay for recordings of {case.kind}"
    REPLAYS[case.kind](case)
    line = case.finish()
    with capsys.disabled():
        print(f"\n{line}", end=" ")
