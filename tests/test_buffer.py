"""The buffer's order, ages, draws, and the exact rollout counts of the paper."""

import pickle
import statistics

import numpy as np
import pytest
import torch

from buffer import Buffer, Response, fresh_prompts
from siblings import REPLAYS, failed_again, with_contrast


def group(step, size=2, name=0):
    return [Response([name], [1, 2], torch.zeros(2), True, float(j), step) for j in range(size)]


@pytest.mark.parametrize(
    "T, steps, group_size, rollouts",
    [
        (50, 100, 1, 20_480),
        (100, 350, 1, 79_360),
        (100, 500, 1, 117_760),
        (50, 100, 8, 163_840),
        (50, 200, 8, 368_640),
    ],
)
def test_the_papers_rollout_counts(T, steps, group_size, rollouts):
    prompts = sum(fresh_prompts(t, 256, 0.4 if t <= T else 0.0) for t in range(1, steps + 1))
    assert prompts * group_size == rollouts


def test_fresh_prompts_carries_the_remainder():
    assert [fresh_prompts(t, 256, 0.4) for t in range(1, 6)] == [153, 154, 153, 154, 154]
    assert sum(fresh_prompts(t, 256, 0.4) for t in range(1, 101)) == 15_360
    assert all(fresh_prompts(t, 256, 0.0) == 256 for t in range(1, 10))
    assert sum(fresh_prompts(t, 10, 0.1) for t in range(1, 11)) == 90  # 0.1 is no binary fraction


def drawn(buffer, count, seed=0, fresh=(), score=None):
    return [g for _, g in buffer.draw(count, np.random.default_rng(seed), fresh, score)]


def test_fifo_of_whole_steps():
    buffer = Buffer(2)
    for step in range(1, 5):
        buffer.push([group(step), group(step)], step)
    groups = drawn(buffer, 99)
    # N = 2: ages 1 and 2 in step 5
    assert len(groups) == len(buffer) == 4 and {g[0].step for g in groups} == {3, 4}
    assert all(len(g) == 2 for g in groups)


def test_draw_is_uniform_without_replacement_and_seeded():
    buffer = Buffer(2)
    for step in (1, 2):
        buffer.push([group(step, name=10 * step + i) for i in range(5)], step)
    counts = np.zeros(30)
    for seed in range(2000):
        names = [g[0].prompt[0] for g in drawn(buffer, 4, seed)]
        assert len(set(names)) == 4
        counts[names] += 1
    expected = 2000 * 4 / 10
    assert np.abs(counts[counts > 0] - expected).max() < 5 * np.sqrt(expected * 0.6)  # 5 sigma
    assert (counts > 0).sum() == 10
    assert [id(g) for g in drawn(buffer, 4, 7)] == [id(g) for g in drawn(buffer, 4, 7)]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_shares_of_all_ranks_make_one_buffer(tmp_path, ranks):
    """Every group lies on one rank only, the ranks draw the same groups in the same order, and a
    saved state can be taken up by another number of ranks."""
    groups = {step: [group(step, name=10 * step + i) for i in range(5)] for step in (1, 2, 3)}
    whole, shares = Buffer(2), [Buffer(2, rank=rank, ranks=ranks) for rank in range(ranks)]
    for step in groups:
        for buffer in (whole, *shares):
            buffer.push(groups[step], step)
    held = [sum(entry.group is not None for entry in share.entries) for share in shares]
    assert sum(held) == 10 and max(held) - min(held) <= 2
    rng = np.random.default_rng
    parts = sorted(pair for share in shares for pair in share.draw(6, rng(3)))
    assert [place for place, _ in parts] == list(range(6)) and [g for _, g in parts] == drawn(
        whole, 6, 3
    )

    stored = [
        g
        for _, g in sorted(
            (pair for share in shares for pair in share.stored()), key=lambda pair: pair[0]
        )
    ]
    torch.save(shares[-1].state_dict(stored), tmp_path / "b.pt")
    others = [Buffer(2, rank=rank, ranks=4) for rank in range(4)]
    for other in others:
        other.load_state_dict(torch.load(tmp_path / "b.pt", weights_only=True))
    again = sorted(
        (pair for other in others for pair in other.draw(6, rng(3))), key=lambda pair: pair[0]
    )
    assert [g[0].prompt for _, g in again] == [g[0].prompt for g in drawn(whole, 6, 3)]


def test_state_dict_round_trip_through_a_file(tmp_path):
    buffer = Buffer(2)
    for step in (1, 2, 3):
        buffer.push([group(step, name=step)], step)
    buffer.failed.append(17)
    buffer.entries[0].group[0].base = torch.tensor([0.5, 0.25])
    torch.save(buffer.state_dict([g for _, g in buffer.stored()]), tmp_path / "b.pt")
    other = Buffer(2)
    other.load_state_dict(torch.load(tmp_path / "b.pt", weights_only=True))
    assert [entry.step for entry in other.entries] == [2, 3] and list(other.failed) == [17]
    assert other.entries[0].group[0].base.tolist() == [0.5, 0.25]
    assert other.entries[1].reward == 0.5 and other.entries[1].group[1].reward == 1.0


def test_what_is_valid_within_a_step_only_is_dropped_and_never_stored():
    buffer, response = Buffer(1), group(1)[0]
    response.logp_k = response.values = torch.zeros(2)
    response.base, response.replayed = torch.ones(2), True
    buffer.push([[response]], 1)
    row = buffer.state_dict([[response]])["entries"][0]["group"][0]
    assert set(row) == set("prompt tokens logp_b finished reward step base weight".split())
    response.end_step()
    assert response.logp_k is None and response.values is None and response.replayed is False
    assert response.base is not None


# ----------------------------------------------------------------------------- other ways to replay


def test_repo_keeps_the_last_groups_of_each_prompt_and_draws_those_of_the_fresh_ones():
    buffer = Buffer(2, REPLAYS["repo"])
    for step, names in enumerate([[1, 2], [1, 3], [1, 4]], 1):
        buffer.push([group(step, name=name) for name in names], step)
    kept = sorted((e.prompt[0], e.step) for e in buffer.entries)
    assert kept == [(1, 2), (1, 3), (2, 1), (3, 2), (4, 3)]
    fresh = [group(4, name=name) for name in (1, 2, 9)]
    groups = drawn(buffer, 3, fresh=fresh)
    assert [(g[0].prompt[0], g[0].step) for g in groups] == [(1, 3), (1, 2), (2, 1)]  # newest first
    assert len(drawn(buffer, 1, fresh=fresh[:1])) == 1 and drawn(buffer, 3, fresh=fresh[2:]) == []


def test_buffer_matters_replays_recent_middling_groups():
    def rated(step, reward):
        return [
            Response([step], [1], torch.zeros(1), True, float(i < 4 * reward), step)
            for i in range(4)
        ]

    buffer = Buffer(3, REPLAYS["buffer_matters"])
    for step in (1, 2, 3, 4):
        buffer.push([rated(step, 0.0), rated(step, 0.5), rated(step, 1.0)], step)
    assert [g[0].step for g in drawn(buffer, 9)] == [4, 3, 2]
    assert [g[0].step for g in drawn(buffer, 2)] == [4, 3]


def test_buffer_matters_asks_failed_problems_again_and_keeps_contrast():
    buffer, taken = Buffer(3, REPLAYS["buffer_matters"]), []

    def upcoming(n):
        taken.append(n)
        return list(range(100, 100 + n))

    assert failed_again(buffer, 8, upcoming) == list(range(100, 108))
    wrong, mixed = group(1), group(1)
    for r in wrong:
        r.reward = 0.0
    assert with_contrast(buffer, [wrong, mixed, wrong, wrong], [7, 8, 9, 10]) == [mixed]
    assert list(buffer.failed) == [7, 9, 10]
    assert failed_again(buffer, 8, upcoming)[:3] == [7, 9, 100]  # at most a quarter
    assert taken == [8, 6] and list(buffer.failed) == [10]
    assert with_contrast(buffer, [wrong], [11]) == [wrong]  # all, if none has contrast


def test_on_policyness_draws_in_proportion_to_the_likelihood():
    buffer = Buffer(1, REPLAYS["on_policyness"])
    buffer.push([group(1, name=i) for i in range(3)], 1)
    counts, chances = np.zeros(3), [0.2, 0.3, 0.5]

    def score():  # two responses a group: the mean over them, of the mean over their tokens
        return [[torch.log(torch.tensor([p, p])), torch.log(torch.tensor([p]))] for p in chances]

    for seed in range(3000):
        counts[drawn(buffer, 1, seed, score=score)[0][0].prompt[0]] += 1
    np.testing.assert_allclose(counts / 3000, chances, atol=5 * (0.25 / 3000) ** 0.5)
    assert len(drawn(buffer, 9, score=score)) == 3
    assert drawn(Buffer(1, REPLAYS["on_policyness"]), 2, score=score) == []


def rewarded(step, *rewards):
    return [Response([step], [1], torch.zeros(1), True, reward, step) for reward in rewards]


def test_advantage_draws_in_proportion_to_the_square_roots_of_the_advantages():
    buffer = Buffer(10, REPLAYS["advantage"])
    sets = [(1.0, 0.0, 0.0, 0.0), (1.0, 1.0, 0.0, 0.0), (0.1, 0.1, 0.1, 0.1), (9.0, 1.0, 1.0, 1.0)]
    weights = []
    for step, rewards in enumerate(sets, 1):
        buffer.push([rewarded(step, *rewards)], step)
        mean, std = statistics.mean(rewards), statistics.stdev(rewards)
        weights.append(sum((abs(r - mean) / (std + 1e-6) + 1e-6) ** 0.5 for r in rewards))
    counts = np.zeros(4)
    for seed in range(3000):
        counts[drawn(buffer, 1, seed)[0][0].step - 1] += 1
    chances = np.array(weights) / sum(weights)
    np.testing.assert_allclose(counts / 3000, chances, atol=5 * (0.25 / 3000) ** 0.5)
    assert chances[2] < 1e-3 and counts[2] <= 10  # without contrast: hardly ever, not never
    assert len(drawn(buffer, 9)) == 4
    assert drawn(Buffer(1, REPLAYS["advantage"]), 2) == []
    for step in range(5, 16):
        buffer.push([rewarded(step, 1.0, 0.0, 0.0, 0.0)], step)
    assert {e.step for e in buffer.entries} == set(range(6, 16))  # in step 16 of age 1 to 10


def test_popo_keeps_contrast_of_any_reward_and_takes_the_newest():
    buffer = Buffer(3, REPLAYS["popo"])
    replay = buffer.replay
    for step in range(1, 5):
        sampled = [rewarded(step, 0.0, 0.0), rewarded(step, -2.5, 0.5), rewarded(step, 1.0, 1.0)]
        kept = replay.keep(buffer, sampled, [1, 2, 3])
        assert kept == sampled[1:2]
        buffer.push(kept, step)
    assert [g[0].step for g in drawn(buffer, 2)] == [4, 3]
    assert [g[0].step for g in drawn(buffer, 9)] == [4, 3, 2]
    assert drawn(buffer, 0) == [] and replay.keep(buffer, sampled[:1], [1]) == []


def test_a_response_travels_between_ranks_as_it_is():
    logps = torch.randn(6).split([2, 4])  # views of one tensor, as frozen_pass makes them
    sent = Response([1, 2], [3, 4, 5, 6], logps[1], True, 1.0, 7, base=torch.randn(4, 3))
    got = pickle.loads(pickle.dumps(sent))
    for name, value in vars(sent).items():
        if isinstance(value, torch.Tensor):
            assert (
                torch.equal(getattr(got, name), value) and got.__dict__[name].dtype == value.dtype
            )
        else:
            assert getattr(got, name) == value
    got.logp_b += 1  # writable, and its own
    assert torch.equal(got.logp_b, logps[1] + 1)
    assert len(pickle.dumps(sent)) < len(pickle.dumps([1])) + 2000
