import math

import pytest
import torch
import torch.nn.functional as F
from recorded_draws import RecordedDraws

from scalear.draws import SeededDraws
from scalear.scales import ScaleSchedule
from scalear.token_sampling import TokenSampling, inverse_cdf

SCHEDULE = ScaleSchedule.parse("1,2,3,7,8")


def random_logits(*shape: int) -> torch.Tensor:
    return 2.0 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def filtered_by_hand(logits: list[float], top_k: int | None, top_p: float) -> set[int]:
    """Codes that survive."""
    best_first = sorted(range(len(logits)), key=lambda code: -logits[code])
    if top_k is not None:
        kth = logits[best_first[min(top_k, len(logits)) - 1]]
        best_first = [code for code in best_first if logits[code] >= kth]
    weights = [math.exp(logits[code]) for code in best_first]
    kept = set()
    for place, code in enumerate(best_first):
        # The share of this code and of all that are less likely
        if place == 0 or sum(weights[place:]) / sum(weights) > 1 - top_p:
            kept.add(code)
    return kept


@pytest.mark.parametrize(
    "top_k, top_p", [(None, 1.0), (1, 1.0), (10, 1.0), (99, 1.0), (None, 0.9), (10, 0.8), (1, 0.5)]
)
def test_filter_equals_brute_force(top_k, top_p):
    logits = random_logits(3, 4, 32)
    kept = TokenSampling(top_k=top_k, top_p=top_p).filter(logits)
    for row, kept_row in zip(logits.flatten(0, 1), kept.flatten(0, 1), strict=True):
        expected = filtered_by_hand(row.tolist(), top_k, top_p)
        assert set(kept_row.isfinite().nonzero()[:, 0].tolist()) == expected
        assert torch.equal(kept_row[kept_row.isfinite()], row[kept_row.isfinite()])


def test_what_equals_the_kth_code_survives():
    logits = torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0, 0.0])
    assert TokenSampling(top_k=2).filter(logits).isfinite().tolist() == [False, True, True, True, True, False]


def test_codes_come_with_their_probability_and_never_without():
    logits = torch.tensor([[-math.inf, 0.0, math.log(3.0), -math.inf]]).expand(1001, -1)
    uniform = torch.arange(1001) / 1001
    codes = inverse_cdf(logits, uniform)
    assert torch.equal(codes, torch.where(uniform < 0.25, 1, 2))
    assert inverse_cdf(logits[:2], torch.tensor([0.0, 1 - 2**-24])).tolist() == [1, 2]


def test_temperature_and_one_uniform_number_per_token():
    logits, uniform = random_logits(2, 4, 8), torch.rand(2, 4, generator=torch.Generator().manual_seed(1))
    draws = RecordedDraws({"token_1": uniform})
    codes = TokenSampling(temperature=0.5).sample(logits, 1, SCHEDULE, draws)
    cumulative = (2 * logits.double()).softmax(-1).cumsum(-1)
    assert torch.equal(codes, (cumulative <= uniform[..., None]).sum(-1))


def test_chunks_change_nothing(monkeypatch):
    logits, sampling = random_logits(5, 9, 32), TokenSampling(top_k=9, top_p=0.9)

    def sample() -> torch.Tensor:
        return sampling.sample(logits, 2, SCHEDULE, SeededDraws([(0, i) for i in range(5)]))

    whole = sample()
    monkeypatch.setattr("scalear.token_sampling._CHUNK", 64)
    assert torch.equal(sample(), whole)


@pytest.mark.parametrize("greedy, expected", [(None, ""), (0, "1,2,3,7,8"), (3, "7,8"), ("flexvar", "7")])
def test_greedy_scales(greedy, expected):
    sampling = TokenSampling(greedy=greedy)
    chosen = [size for size in SCHEDULE.sizes if sampling.greedy_at(size)]
    assert chosen == list(ScaleSchedule.parse(expected).sizes if expected else [])
    assert TokenSampling(greedy="flexvar").greedy_at((24, 24)) and not TokenSampling(greedy="flexvar").greedy_at(
        (5, 16)
    )
    logits = random_logits(2, 49, 8)
    if greedy is not None:
        assert torch.equal(sampling.sample(logits, 3, SCHEDULE, RecordedDraws({})), logits.argmax(-1))


def test_smooth_codes_are_weights_that_sharpen():
    logits, draws = random_logits(2, 4, 8), SeededDraws([(0, 0), (0, 1)])
    sampling = TokenSampling(more_smooth=True, top_k=3)
    weights = [sampling.sample(logits, k, SCHEDULE, draws) for k in (0, 4)]
    for weight in weights:
        torch.testing.assert_close(weight.sum(-1), torch.ones(2, 4))
        assert ((weight > 0).sum(-1) <= 3).all()
    entropy = [-(weight * weight.clamp_min(1e-30).log()).sum(-1).mean() for weight in weights]
    assert entropy[1] < 0.2 * entropy[0]
    greedy = TokenSampling(more_smooth=True, greedy=0).sample(logits, 0, SCHEDULE, draws)
    assert torch.equal(greedy, F.one_hot(logits.argmax(-1), 8).float())


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"temperature": 0.0}, "temperature must be positive, got 0.0; greedy: 0"),
        ({"top_k": 0}, "top_k must be at least 1, got 0; null keeps all"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0; 1 keeps all"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TokenSampling(**settings)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("settings", [{}, {"greedy": 0}, {"more_smooth": True}, {"top_k": 2, "top_p": 0.5}], ids=str)
def test_logits_that_are_not_finite_are_no_codes(value, settings):
    logits = random_logits(1, 9, 6)
    logits[0, 3, 2] = value
    with pytest.raises(
        ValueError, match=r"logits of scale 3 are not finite: .* take an earlier checkpoint, or float32"
    ):
        TokenSampling(**settings).sample(logits, 2, SCHEDULE, SeededDraws([(0, 0)]))


def test_codes_may_be_excluded_but_not_all():
    logits = random_logits(1, 9, 6)
    logits[..., 1:] = float("-inf")
    assert not TokenSampling().sample(logits, 2, SCHEDULE, SeededDraws([(0, 0)])).any()
    logits[0, 3, 0] = float("-inf")
    with pytest.raises(ValueError, match="logits of scale 3 are not finite"):
        TokenSampling().sample(logits, 2, SCHEDULE, SeededDraws([(0, 0)]))
