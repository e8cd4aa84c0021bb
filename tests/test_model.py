"""Policy, critic, batching: against the whole logits in float64, for any split into micro-batches,
with eos learnt."""

import gc
import itertools
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import loss
import model
import parallel
from buffer import Response
from model import Critic, Policy, copy_weights, full_weights, load_model
from parallel import collate, deal


def response(prompt, tokens):
    return Response(prompt, tokens, torch.full((len(tokens),), -1.0), True, 1.0, 0)


RESPONSES = [
    response([5, 6, 7], [8, 9, 10, 11]),
    response([12], [13]),
    response([5, 9], [3, 4, 300 % 256, 8, 1]),
]


def policy_of(base, temperature=1.0, **kw):
    return load_model(Policy, base, device="cpu", dtype="float32", temperature=temperature, **kw)


def numpy_log_softmax(base, r, temperature):
    """(T, V) of one response, unpadded, from the plain Hugging Face model; the softmax in numpy
    float64."""
    lm = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        logits = lm(torch.tensor([r.prompt + r.tokens])).logits[0].double().numpy() / temperature
    logits = logits[len(r.prompt) - 1 : -1]
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [2**25, 700])  # 700: two rows a chunk
def test_logp_and_entropy_of_a_padded_batch(base, group, monkeypatch, temperature, chunk):
    monkeypatch.setattr(model, "LOGITS_PER_CHUNK", chunk)
    batch = collate(RESPONSES)
    logp, entropy, kl = policy_of(base, temperature)(batch)
    assert kl == {}  # to no anchor
    for b, r in enumerate(RESPONSES):
        expected, n = numpy_log_softmax(base, r, temperature), len(r.tokens)
        np.testing.assert_allclose(logp[b, :n].detach(), expected[range(n), r.tokens], atol=2e-5)
        np.testing.assert_allclose(
            entropy[b, :n].detach(), -(np.exp(expected) * expected).sum(-1), atol=2e-5
        )
        assert (logp[b, n:] == 0).all() and (entropy[b, n:] == 0).all()


def test_packed_rows_do_not_see_each_other(base, group):
    """The padding-free way of flash attention, run through SDPA, which a CPU has: equal to the
    padded one."""
    trunk, batch = policy_of(base).lm.base_model, collate(RESPONSES)
    padded = trunk(input_ids=batch.ids, use_cache=False).last_hidden_state
    packed = model.packed_states(trunk, batch)
    for b, r in enumerate(RESPONSES):
        n = len(r.prompt) + len(r.tokens)
        torch.testing.assert_close(packed[b, :n], padded[b, :n], atol=2e-5, rtol=1e-5)
        assert (packed[b, n:] == 0).all()


def token_terms(*args):
    return model.TokenTerms.apply(*args, ())


def whole_logits(rows, weight, bias, labels, temperature):
    log_p = torch.log_softmax(
        (rows @ weight.T + (0 if bias is None else bias)) / temperature, dim=-1
    )
    return log_p.gather(-1, labels[:, None]).squeeze(-1), -(torch.exp(log_p) * log_p).sum(-1)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("chunk, part", [(2**25, 2**20), (2**25, 100), (7 * 50, 3 * 50), (1, 1)])
def test_head_in_chunks_equals_the_whole_logits(monkeypatch, chunk, part, with_bias):
    """Value and gradient, for one chunk and several (the last one shorter), to 1e-6 of the whole
    logits."""
    monkeypatch.setattr(model, "LOGITS_PER_CHUNK", chunk)
    monkeypatch.setattr(model, "LOGITS_PER_PART", part)
    draw = torch.Generator().manual_seed(0)
    N, H, V = 24, 16, 50
    rows, weight, bias = (
        torch.randn(*s, generator=draw).div_(2).requires_grad_() for s in ((N, H), (V, H), (V,))
    )
    labels, (a, b) = torch.randint(V, (N,), generator=draw), torch.randn(2, N, generator=draw)
    inputs = [rows, weight, bias] if with_bias else [rows, weight]
    results = []
    for head in (token_terms, whole_logits):
        logp, H = head(rows, weight, bias if with_bias else None, labels, 0.7)
        total = (logp * a).sum() + (H * b).sum()
        first = torch.autograd.grad(total, inputs, retain_graph=True)
        again = torch.autograd.grad(total, inputs)
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
        results.append([logp, H, *first])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)

    wide = [t.detach().double().requires_grad_() for t in (rows[:4], weight[:9], bias[:9])]
    wide[2] = wide[2] if with_bias else None
    assert torch.autograd.gradcheck(lambda r, w, b: token_terms(r, w, b, labels[:4] % 9, 0.7), wide)


@pytest.mark.parametrize("chunk, part", [(2**25, 2**20), (5 * 3 * 50, 2 * 50), (1, 1)])
@pytest.mark.parametrize("anchors", [1, 2])
def test_exact_kl_in_chunks_equals_the_whole_vocabulary(monkeypatch, chunk, part, anchors):
    """Value and gradient of log-prob, entropy and the KL to each anchor, against loss.kl on whole
    log-softmaxes in float64."""
    monkeypatch.setattr(model, "LOGITS_PER_CHUNK", chunk)
    monkeypatch.setattr(model, "LOGITS_PER_PART", part)
    draw = torch.Generator().manual_seed(0)
    N, H, V, temperature = 23, 16, 50, 0.7
    double = dict(generator=draw, dtype=torch.float64)
    rows, weight = (torch.randn(n, H, **double).requires_grad_() for n in (N, V))
    labels, weights = torch.randint(V, (N,), generator=draw), torch.randn(2 + anchors, N, **double)
    states = [torch.randn(N, H, **double) for _ in range(anchors)]
    heads = [torch.randn(V, H, **double) for _ in range(anchors)]

    log_p = torch.log_softmax(rows @ weight.T / temperature, -1)
    whole = [*whole_logits(rows, weight, None, labels, temperature)]
    for r, w in zip(states, heads, strict=True):
        whole.append(loss.kl(log_p, torch.log_softmax(r @ w.T / temperature, -1), "exact"))
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        ours_in = [t.detach().to(dtype).requires_grad_() for t in (rows, weight)]
        here = tuple(
            model.Anchor(r.to(dtype), w.to(dtype), None) for r, w in zip(states, heads, strict=True)
        )
        ours = model.TokenTerms.apply(*ours_in, None, labels, temperature, here)
        gradients = []
        for terms, inputs in ((ours, ours_in), (whole, [rows, weight])):
            pairs = zip(terms, weights, strict=True)
            total = sum((term * k.to(term.dtype)).sum() for term, k in pairs)
            gradients.append(torch.autograd.grad(total, inputs, retain_graph=True))
        for x, y in zip([*ours, *gradients[0]], [*whole, *gradients[1]], strict=True):
            torch.testing.assert_close(x.double(), y, atol=tolerance, rtol=10 * tolerance)


@pytest.mark.parametrize("chunk", [2**25, 7 * 50])
def test_A3_a_scale_and_a_cap_of_the_logits(monkeypatch, chunk):
    """Cohere's scale and Gemma 2's cap, together: value and gradient of log-prob, entropy and exact
    KL against whole logits in float64."""
    monkeypatch.setattr(model, "LOGITS_PER_CHUNK", chunk)
    monkeypatch.setattr(model, "LOGITS_PER_PART", 100)
    draw = dict(generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    N, H, V, temperature, scale, cap = 11, 8, 50, 0.7, 0.3, 1.5
    rows, weight, bias = (torch.randn(*s, **draw).requires_grad_() for s in ((N, H), (V, H), (V,)))
    labels, weights = torch.arange(N), torch.randn(3, N, **draw)
    anchor = model.Anchor(torch.randn(N, H, **draw), torch.randn(V, H, **draw), None)

    def log_p(logits):
        return torch.log_softmax(cap * torch.tanh(scale * logits / cap) / temperature, -1)

    p, q = log_p(rows @ weight.T + bias), log_p(anchor.states @ anchor.weight.T)
    whole = [p[range(N), labels], -(p.exp() * p).sum(-1), loss.kl(p, q, "exact")]
    inputs = (rows, weight, bias)
    args = (labels, temperature / scale, (anchor,), cap / scale)  # as Policy has them
    ours = model.TokenTerms.apply(*inputs, *args)
    gradients = []
    for terms in (ours, whole):
        total = sum((term * k).sum() for term, k in zip(terms, weights, strict=True))
        gradients.append(torch.autograd.grad(total, inputs))
    for x, y in zip([*ours, *gradients[0]], [*whole, *gradients[1]], strict=True):
        torch.testing.assert_close(x, y, atol=1e-12, rtol=1e-10)
    assert (rows @ weight.T).abs().max() * scale > cap  # it bites
    assert torch.autograd.gradcheck(lambda *x: model.TokenTerms.apply(*x, *args), inputs)


def test_a_policy_is_at_no_distance_from_itself_and_at_the_exact_one_from_another(base, group):
    policy, other, batch = policy_of(base), policy_of(base), collate(RESPONSES)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.05)
    for reference, moved in ((policy, False), (other, True)):
        batch.anchors["base"] = reference(batch, states=True).detach()
        _, _, kl = policy(batch, dict(base=model.whole_head(reference, "float32")))
        kl = kl["base"]
        for b, r in enumerate(RESPONSES):
            ours = policy.lm(torch.tensor([r.prompt + r.tokens])).logits[0, len(r.prompt) - 1 : -1]
            theirs = reference.lm(torch.tensor([r.prompt + r.tokens])).logits[
                0, len(r.prompt) - 1 : -1
            ]
            expected = loss.kl(torch.log_softmax(ours, -1), torch.log_softmax(theirs, -1), "exact")
            torch.testing.assert_close(kl[b, : len(r.tokens)], expected, atol=1e-5, rtol=1e-4)
            assert not moved or expected.min() > 1e-3
            assert (kl[b, len(r.tokens) :] == 0).all()


def test_head_in_bfloat16_has_float32_math_and_no_rows_no_gradient():
    draw = torch.Generator().manual_seed(0)
    rows, weight = (
        torch.randn(n, 16, generator=draw).bfloat16().requires_grad_() for n in (30, 50)
    )
    labels = torch.randint(50, (30,), generator=draw)
    logp, H = token_terms(rows, weight, None, labels, 1.0)
    expected = torch.log_softmax((rows @ weight.T).float(), dim=-1)
    assert logp.dtype == H.dtype == torch.float32
    torch.testing.assert_close(
        logp, expected.gather(-1, labels[:, None]).squeeze(-1), atol=1e-6, rtol=1e-6
    )
    d_weight = torch.autograd.grad(logp.sum() + H.sum(), weight)[0]
    assert d_weight.dtype == torch.bfloat16 and d_weight.abs().max() > 0
    logp, H = token_terms(rows[:0], weight, None, labels[:0], 1.0)
    assert logp.shape == H.shape == (0,) and (torch.autograd.grad(logp.sum(), weight)[0] == 0).all()


def test_A8_the_heads_gradient_in_bfloat16_is_as_good_in_many_chunks(monkeypatch):
    """Its sum over the chunks is float32: what is left is the rounding of the logits."""
    draw = torch.Generator().manual_seed(0)
    rows, weight = (torch.randn(n, 16, generator=draw).bfloat16() for n in (512, 50))
    labels, ups = torch.randint(50, (512,), generator=draw), torch.randn(512, generator=draw)
    wide = weight.double().requires_grad_()
    exact = whole_logits(rows.double(), wide, None, labels, 1.0)[0]
    (exact,) = torch.autograd.grad((exact * ups).sum(), wide)
    errors = []
    for chunk in (2**25, 2 * 50):  # 1 and 256
        monkeypatch.setattr(model, "LOGITS_PER_CHUNK", chunk)
        head = weight.clone().requires_grad_()
        total = (token_terms(rows, head, None, labels, 1.0)[0] * ups).sum()
        (d_weight,) = torch.autograd.grad(total, head)
        errors.append(((d_weight.double() - exact).norm() / exact.norm()).item())
    assert errors[0] < 0.006 and errors[1] < 1.2 * errors[0]


def gradient(policy, responses, budget, n_tokens):
    policy.zero_grad()
    lengths = [len(r.prompt) + len(r.tokens) for r in responses]
    for indices in deal(lengths, budget, 1)[0]:
        batch = collate([responses[i] for i in indices])
        logp, entropy, _ = policy(batch)
        loss.token_mean(-logp - 0.1 * entropy, batch.mask, n_tokens).backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters()])


def test_any_token_budget_gives_the_same_gradient(base, group):
    policy = policy_of(base)
    rng = np.random.default_rng(0)
    responses = [
        response(
            rng.integers(0, 200, rng.integers(1, 9)).tolist(), rng.integers(0, 200, n).tolist()
        )
        for n in rng.integers(1, 30, 20)
    ]
    n_tokens = sum(len(r.tokens) for r in responses)
    whole = gradient(policy, responses, 10**9, n_tokens)
    assert whole.norm() > 0.1
    for budget in (1, 40, 200):
        assert (gradient(policy, responses, budget, n_tokens) - whole).norm() < 1e-5 * whole.norm()


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_micro_batches_deal_everything_once_and_run_in_step(world):
    lengths = np.random.default_rng(1).integers(1, 100, 30).tolist()
    shares = deal(lengths, 150, world)
    assert sorted(i for share in shares for batch in share for i in batch) == list(range(30))
    assert len({len(share) for share in shares}) == 1
    for batch in (batch for share in shares for batch in share if batch):
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= 150
    tokens = [sum(lengths[i] for batch in share for i in batch) for share in shares]
    assert max(tokens) - min(tokens) <= 100
    assert deal([5], 10, 2) == [[[0]], [[]]]


@pytest.mark.parametrize("world, most", [(1, 1.0), (8, 1.05), (32, 1.1)])
def test_no_rank_waits_long_for_another(world, most):
    """FSDP: the k-th micro-batches take as long as the longest of them."""
    lengths = np.random.default_rng(2).gamma(2.0, 1500, 512).clip(50, 8192).astype(int).tolist()
    rounds = zip(*deal(lengths, 16384, world), strict=True)
    padded = [
        [max([0, *(lengths[i] for i in batch)]) * len(batch) for batch in batches]
        for batches in rounds
    ]
    assert sum(map(max, padded)) <= most * sum(map(sum, padded)) / world


@pytest.mark.parametrize("budget", [16384, 65536])
def test_realistic_lengths_are_padded_by_less_than_five_percent(budget):
    lengths = np.random.default_rng(2).gamma(2.0, 1500, 256).clip(50, 8192).astype(int).tolist()
    batches = deal(lengths, budget, 1)[0]
    assert sum(max(lengths[i] for i in b) * len(b) for b in batches) < 1.05 * sum(lengths)


def test_a_large_budget_does_not_pad_short_samples_to_the_longest():
    lengths = [256, 256, 144, 144, 80, 80, 48, 48, 32, 32, 24, 24, 16, 16, 12, 12]
    batches = deal(lengths, 10**6, 1)[0]
    assert 1 < len(batches) < 8
    assert sum(max(lengths[i] for i in b) * len(b) for b in batches) < 1.15 * sum(lengths)


@pytest.mark.parametrize("budget", [5, 40, 100])
def test_micro_batches_are_cut_at_the_least_cost(budget):
    """Against every way to cut nine sorted samples."""
    lengths = sorted(np.random.default_rng(3).integers(1, 60, 9).tolist(), reverse=True)
    costs = []
    for cuts in itertools.product([False, True], repeat=8):
        ends = [i + 1 for i, cut in enumerate(cuts) if cut] + [9]
        parts = [lengths[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        if all(len(part) == 1 or part[0] * len(part) <= budget for part in parts):
            costs.append(sum(part[0] * len(part) + parallel.MICRO_BATCH_COST for part in parts))
    ours = deal(lengths, budget, 1)[0]
    assert sum(lengths[b[0]] * len(b) + parallel.MICRO_BATCH_COST for b in ours) == min(costs)


def test_eos_gets_a_gradient(base, group, tokenizer):
    """A rewarded response makes its own stopping more likely, also when the model pads with eos."""
    policy, eos = policy_of(base), tokenizer.eos_token_id
    responses = [response([5, 6], [8, 9, eos]), response([5, 6], [8, 9, 10, 11, eos])]
    for r in responses:  # only the last token, eos, carries an advantage
        r.advantages = torch.tensor([0.0] * (len(r.tokens) - 1) + [1.0])
    batch = collate(responses)
    assert batch.mask.sum() == 8 and batch.labels[0, 2] == eos
    A = parallel.pad([r.advantages for r in responses])
    logp, _, _ = policy(batch)
    before = logp.detach()
    loss.token_mean(loss.mix_ppg(logp, before, before, A, 0.2), batch.mask, 8).backward()
    with torch.no_grad():
        for p in policy.parameters():
            p -= 0.1 * p.grad
        after, _, _ = policy(batch)
    assert after[0, 2] > before[0, 2] + 1e-3 and after[1, 4] > before[1, 4] + 1e-3


def test_critic_starts_at_zero_and_sees_the_prefix_only(base, group):
    critic = load_model(Critic, base, device="cpu", dtype="float32")
    batch = collate(RESPONSES)
    del batch.labels
    assert (critic(batch) == 0).all()
    torch.nn.init.normal_(critic.head.weight)
    first = critic(batch)
    changed = [response([5, 6, 7], [8, 9, 10, 99])] + RESPONSES[1:]
    other = collate(changed)
    # V before the last token does not depend on it
    torch.testing.assert_close(critic(other), first)
    assert (first * (1 - batch.mask) == 0).all() and (first[0, :4] != 0).all()


def test_the_critic_is_float32_behind_a_trunk_in_bfloat16(base, group):
    """V moves by what its head's bias moves by, not in steps of bfloat16."""
    critic, batch = load_model(Critic, base, device="cpu", dtype="bfloat16"), collate(RESPONSES)
    for value in (1.0, 1.0 + 1e-5):
        with torch.no_grad():
            parallel.local(critic.head.bias).fill_(value)
        assert (critic(batch) == torch.tensor(value) * batch.mask).all()
    critic(batch).sum().backward()
    assert all(p.grad is not None and p.dtype == torch.float32 for p in critic.parameters())


def test_states_for_the_exact_kl_are_kept_as_they_are_computed(base, group):
    """In bfloat16 they take half the memory, and the KL to itself is 0 all the same."""
    for dtype in ("float32", "bfloat16"):
        policy = load_model(Policy, base, device="cpu", dtype=dtype)
        states = parallel.frozen_pass(policy, RESPONSES, 100, "cpu", states=True)
        assert all(s.dtype == getattr(torch, dtype) for s in states)
        assert all(
            v.dtype == torch.float32 for v in parallel.frozen_pass(policy, RESPONSES, 100, "cpu")
        )
        batch = collate(RESPONSES)
        batch.anchors["base"] = parallel.pad(states)
        with torch.no_grad():
            _, H, kl = policy(batch, dict(base=model.whole_head(policy, dtype)))
        assert kl["base"].abs().max() < 1e-4 < H.max()


def test_copy_weights_and_full_weights(base, group):
    policy, frozen = policy_of(base), policy_of(base, frozen=True)
    assert not any(p.requires_grad for p in frozen.parameters()) and all(
        p.requires_grad for p in policy.parameters()
    )
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.1)
    copy_weights(frozen, policy)
    ours, theirs = dict(full_weights(policy)), dict(full_weights(frozen))
    # The tied head is in: vLLM needs it
    assert ours.keys() == theirs.keys() and "lm_head.weight" in ours
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert ours["lm_head.weight"].data_ptr() != theirs["lm_head.weight"].data_ptr()


def memory_of_tensors() -> int:
    """Bytes of all storages that a tensor of this process has a view of."""
    gc.collect()
    tensors = [x for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter)]
    return sum({s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in tensors)}.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])  # a plain module; FSDP2's shards
def test_what_is_parked_holds_no_memory_and_comes_back(base, group, dtype):
    """With each step's weights and Adam parked behind it, and a frozen pass and a copy meanwhile:
    the same run as without, bit for bit."""
    seen = []
    for offload in (False, True):
        load = partial(load_model, Policy, base, device="cpu", dtype=dtype)
        policy, frozen, numbers = load(), load(frozen=True), []
        optimizer = torch.optim.AdamW(policy.parameters(), 1e-2, fused=True)
        if offload:
            parallel.park(frozen, optimizer)  # before any use; the optimizer still empty
            parallel.fetch(optimizer)
        for _ in range(3):
            policy(collate(RESPONSES))[0].sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            if offload:
                states = [t for state in optimizer.state.values() for t in state.values()]
                tensors = [parallel.local(t.detach()) for t in [*policy.parameters(), *states]]
                size, before = sum(t.numel() * t.itemsize for t in tensors), memory_of_tensors()
                del states, tensors
                parallel.park(policy, optimizer)
                kept = [k for x in (policy, optimizer) for _, k in parallel.away[x]]
                assert sum(k.nbytes for k in kept) == size > 5e5
                assert (
                    memory_of_tensors() == before
                )  # with the copies, which here are no other kind
                del kept
            numbers += parallel.frozen_pass(policy, RESPONSES, 100, "cpu")
            copy_weights(frozen, policy)
            numbers += parallel.frozen_pass(frozen, RESPONSES, 100, "cpu")
            assert (frozen in parallel.away) == (policy in parallel.away) == offload
            parallel.fetch(policy, optimizer)
        parallel.fetch(frozen)
        seen.append([*numbers, *(tensor for _, tensor in full_weights(policy))])
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True)) and not parallel.away


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile wants a C++ compiler here")
@pytest.mark.parametrize(
    ("checkpointing", "dtype", "near"),
    [(False, "float32", 1e-5), (True, "float32", 1e-5), (True, "bfloat16", 0.05)],
)
def test_compiled_layers_compute_the_same(base, group, checkpointing, dtype, near):
    """Value and gradient, for two lengths, also under FSDP2; the compiled code is what runs."""
    responses = [[response([5] * n, [6, 7] * n)] for n in (3, 9)]
    terms, grads = [], []
    for compiled in (False, True):
        options = dict(device="cpu", dtype=dtype, compiled=compiled)
        policy = load_model(Policy, base, checkpointing=checkpointing, **options)
        assert parallel.is_sharded(policy) == (dtype == "bfloat16")
        out = [policy(parallel.collate(rs))[:2] for rs in responses]
        sum((logp - H).sum() for logp, H in out).backward()
        terms.append([term.detach() for pair in out for term in pair])
        grads.append([parallel.local(p.grad) for p in policy.parameters()])
        layer = policy.lm.model.layers[0]
        for part in (layer.forward, *(policy.math or [print])):
            assert hasattr(part, "_torchdynamo_orig_callable") == compiled
    for a, b in zip(*terms, strict=True):
        torch.testing.assert_close(a, b, atol=near, rtol=near)
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=10 * near, rtol=10 * near)
