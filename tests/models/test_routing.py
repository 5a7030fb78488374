import numpy as np
import paddle
import pytest

from ppvilg.models import expert_index, uniform_boundaries, validate_boundaries

BOUNDARIES = [0, 100, 600, 1000]


def test_uniform_boundaries_cover_every_timestep_once():
    for num_experts in (1, 3, 7, 10, 1000):
        boundaries = uniform_boundaries(num_experts, 1000)
        assert validate_boundaries(boundaries, num_experts, 1000) == boundaries
        assert max(np.diff(boundaries)) - min(np.diff(boundaries)) <= 1
    assert uniform_boundaries(4, 1000) == [0, 250, 500, 750, 1000]


@pytest.mark.parametrize("num_experts", [0, -1, 1001])
def test_impossible_numbers_of_experts_are_refused(num_experts):
    with pytest.raises(ValueError, match=str(num_experts)):
        uniform_boundaries(num_experts, 1000)


@pytest.mark.parametrize(
    "boundaries, fault",
    [
        ([10, 500, 1000], "gap: timesteps below 10"),
        ([0, 500, 900], "gap: timesteps 900 to 999"),
        ([0, 500, 1200], "1200 lies above"),
        ([0, 1000], "need 3 boundaries, got 2"),
        ([0, 0, 1000], "expert 0 owns no timestep"),
        ([0, 1100, 1000], "overlap: boundary 1000 follows 1100"),
        ([0, 499.5, 1000], "whole timesteps"),
    ],
)
def test_gaps_and_overlaps_are_named(boundaries, fault):
    with pytest.raises(ValueError, match=fault):
        validate_boundaries(boundaries, 2, 1000)


def test_routing_agrees_for_every_kind_of_timestep():
    timesteps = np.array([0, 99, 100, 599, 600, 999])
    expected = [0, 0, 1, 1, 2, 2]
    assert [expert_index(int(t), BOUNDARIES) for t in timesteps] == expected
    assert [expert_index(t, BOUNDARIES) for t in timesteps] == expected
    array = expert_index(timesteps, BOUNDARIES)
    assert array.dtype == np.int64 and array.tolist() == expected
    tensor = expert_index(paddle.to_tensor(timesteps), BOUNDARIES)
    assert tensor.dtype == paddle.int64 and tensor.tolist() == expected
    assert isinstance(expert_index(5, BOUNDARIES), int)


def test_fractional_timesteps_belong_to_the_block_they_lie_in():
    assert [expert_index(t, BOUNDARIES) for t in (99.9, 100.0, 999.5)] == [0, 1, 2]


@pytest.mark.parametrize("timestep", [-1, 1000, float("nan"), np.array([5, 1000])])
def test_timesteps_outside_the_schedule_are_refused(timestep):
    with pytest.raises(ValueError, match="outside"):
        expert_index(timestep, BOUNDARIES)
