"""What a search may change follows from the classes of a model's settings, and from what is typed."""

from dataclasses import dataclass

import pytest
from model_fixtures import NUM_CLASSES, make_code_model, make_model

from scalear.flow import FlowSolver
from scalear.guidance import Guidance
from scalear.sampling import Sampling
from scalear.scales import ScaleSchedule
from scalear.token_sampling import TokenSampling
from scalear.tuning.space import Settings, holds, search_space, usual_space

SCHEDULE = ScaleSchedule.parse("1,2,4")
FLOW = Settings(Guidance(2.0), FlowSolver("ab2", 8, "late"))
GUIDANCE = ["model.guidance.weight", "model.guidance.ramp"]


@pytest.mark.parametrize(
    "model, more",
    [
        (make_model(), ["model.guidance.start_time", "model.guidance.end_time", "model.sampling.num_steps"]),
        (make_code_model("flexvar"), ["model.sampling.temperature", "model.sampling.top_p"]),
        (make_code_model("var"), ["model.sampling.temperature", "model.sampling.top_p"]),
    ],
    ids=["flowar", "flexvar", "var"],
)
def test_the_space_is_that_of_the_family(model, more):
    settings = Settings(model.guidance, model.sampling)
    space = search_space(settings, model.schedule, {}, NUM_CLASSES)
    assert list(space) == GUIDANCE + more
    for name, entry in space.items():
        for value in entry:
            assert settings.changed({name: value})[name] == value  # which the model takes
            model.generator.check_sampling(settings.changed({name: value}).sampling)


@dataclass(frozen=True)
class Cooled(Sampling):
    """Of somebody's own head."""

    searched = {"heat": [0, 2]}
    heat: float = 1.0

    def check(self, schedule, guidance) -> None: ...


def test_settings_of_your_own_bring_their_space():
    space = search_space(Settings(Guidance(), Cooled()), SCHEDULE, {}, NUM_CLASSES)
    assert list(space) == [*GUIDANCE, "model.sampling.heat"]
    assert space["model.sampling.heat"] == [0.0, 2.0] and isinstance(space["model.sampling.heat"][0], float)


def test_what_is_typed_changes_the_space():
    changes = {"model.guidance.weight": [1, 3], "model.sampling.method": ["ab2", "ab3"], "model.guidance.ramp": None}
    space = search_space(FLOW, SCHEDULE, changes, NUM_CLASSES)
    assert space["model.guidance.weight"] == [1.0, 3.0] and space["model.sampling.method"] == ["ab2", "ab3"]
    assert "model.guidance.ramp" not in space and "model.sampling.num_steps" in space


def test_an_entry_holds_what_lies_in_it():
    assert holds([1.0, 2.0], 1.5) and not holds([1.0, 2.0], 2.5) and not holds([0.0, 0.5], None)
    assert holds([4, 8, 16], 8) and not holds([4, 8, 16], 5) and holds([None, 3.0], None) and not holds([1, 2], [1])


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"model.guidance.wight": [1, 2]},
            "model.guidance.wight: there is no such setting; there are model.guidance.w",
        ),
        ({"model.head": [1, 2]}, "there is no such setting"),
        ({"model.guidance.weight": 3}, "3 is neither a range, as in .* and --model.guidance.weight sets it"),
        ({"model.guidance.weight": [3, 1]}, r"\[3, 1\] is no range, for its first end is not below the second"),
        ({"model.guidance.weight": [-1, 1]}, "-1 cannot be taken: guidance weight must be a number >= 0"),
        ({"model.guidance.ramp": ["linear", "bogus"]}, "bogus cannot be taken: .*'constant', 'flexvar'"),
        ({"model.sampling.num_steps": [1.5, 4]}, "1.5 cannot be taken"),
        ({"model.sampling.num_steps": [[1, 2], 4]}, "num_steps has 2 entries for 3 scales"),
        ({"model.sampling.num_steps": [[1, 2, 3], 4]}, r"\[1, 2, 3\] cannot be searched"),
        (dict.fromkeys(usual_space(FlowSolver)), "leaves nothing to search"),
    ],
)
def test_what_cannot_be_searched_is_refused(changes, message):
    with pytest.raises(ValueError, match=rf"(?s)--search .*{message}"):
        search_space(FLOW, SCHEDULE, changes, NUM_CLASSES)


def test_codes_have_no_flow_time():
    with pytest.raises(ValueError, match="0.1 cannot be taken: guidance.start_time 0.1 is a time of the flow"):
        search_space(
            Settings(Guidance(), TokenSampling()), SCHEDULE, {"model.guidance.start_time": [0.1, 0.3]}, NUM_CLASSES
        )


def test_without_classes_guidance_is_not_searched():
    assert list(search_space(FLOW, SCHEDULE, {}, 0)) == ["model.sampling.num_steps"]
    codes = search_space(Settings(Guidance(), TokenSampling()), SCHEDULE, {"model.guidance.weight": None}, 0)
    assert list(codes) == ["model.sampling.temperature", "model.sampling.top_p"]
    with pytest.raises(ValueError, match="--search model.guidance.weight: there are no classes to guide to"):
        search_space(FLOW, SCHEDULE, {"model.guidance.weight": [1, 2]}, 0)
