"""The buffer's order, ages, draws, and the exact rollout counts of the paper."""

import numpy as np
import pytest
import torch

from buffer import Buffer, Response, fresh_prompts


def group(step, size=2, name=0):
    return [Response([name], [1, 2], torch.zeros(2), True, float(j), step) for j in range(size)]


@pytest.mark.parametrize(
    "T, steps, group_size, rollouts",
    [(50, 100, 1, 20_480), (100, 350, 1, 79_360), (100, 500, 1, 117_760), (50, 100, 8, 163_840), (50, 200, 8, 368_640)],
)
def test_the_papers_rollout_counts(T, steps, group_size, rollouts):
    prompts = sum(fresh_prompts(t, 256, 0.4 if t <= T else 0.0) for t in range(1, steps + 1))
    assert prompts * group_size == rollouts


def test_fresh_prompts_carries_the_remainder():
    assert [fresh_prompts(t, 256, 0.4) for t in range(1, 6)] == [153, 154, 153, 154, 154]
    assert sum(fresh_prompts(t, 256, 0.4) for t in range(1, 101)) == 15_360
    assert all(fresh_prompts(t, 256, 0.0) == 256 for t in range(1, 10))
    assert sum(fresh_prompts(t, 10, 0.1) for t in range(1, 11)) == 90  # 0.1 is no binary fraction


def test_fifo_of_whole_steps():
    buffer = Buffer(2)
    for step in range(1, 5):
        buffer.push([group(step), group(step)])
    drawn = buffer.draw(99, np.random.default_rng(0))
    assert len(drawn) == len(buffer) == 4 and {g[0].step for g in drawn} == {3, 4}  # N = 2: ages 1 and 2 in step 5
    assert all(len(g) == 2 for g in drawn)


def test_draw_is_uniform_without_replacement_and_seeded():
    buffer = Buffer(2)
    for step in (1, 2):
        buffer.push([group(step, name=10 * step + i) for i in range(5)])
    counts = np.zeros(30)
    for seed in range(2000):
        names = [g[0].prompt[0] for g in buffer.draw(4, np.random.default_rng(seed))]
        assert len(set(names)) == 4
        counts[names] += 1
    expected = 2000 * 4 / 10
    assert np.abs(counts[counts > 0] - expected).max() < 5 * np.sqrt(expected * 0.6)  # 5 sigma
    assert (counts > 0).sum() == 10
    first, again = (buffer.draw(4, np.random.default_rng(7)) for _ in range(2))
    assert [id(g) for g in first] == [id(g) for g in again]


def test_state_dict_round_trip_through_a_file(tmp_path):
    buffer = Buffer(2)
    for step in (1, 2, 3):
        buffer.push([group(step, name=step)])
    buffer.batches[0][0][0].logp_base = torch.tensor([0.5, 0.25])
    torch.save(buffer.state_dict(), tmp_path / "b.pt")
    other = Buffer(2)
    other.load_state_dict(torch.load(tmp_path / "b.pt", weights_only=True))
    assert [g[0].step for b in other.batches for g in b] == [2, 3] and other.batches.maxlen == 2
    assert other.batches[0][0][0].logp_base.tolist() == [0.5, 0.25]
    assert other.state_dict()[1][0][1]["reward"] == 1.0


def test_push_drops_what_is_valid_within_a_step_only():
    buffer, response = Buffer(1), group(1)[0]
    response.logp_k = response.values = torch.zeros(2)
    response.logp_base = torch.ones(2)
    buffer.push([[response]])
    assert response.logp_k is None and response.values is None and response.logp_base is not None
