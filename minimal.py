"""ReMix (arXiv 2507.06892) on one page: PPO or GRPO with Mix-PPG, UTD, KL-Convex, reincarnation.

`python minimal.py` takes two to three minutes on a laptop. It shares no code with remix.py but the
task; tests/test_minimal.py holds one to the other. Opens as a notebook.
"""

import copy
from fractions import Fraction
from math import ceil

import torch
import transformers
from numpy.random import default_rng

import tiny

# %% Settings, under the paper's names
ALGO = "ppo"  # or "grpo"
P, G, MINI = (128, 1, 32) if ALGO == "ppo" else (16, 8, 4)  # prompts, responses to each, mini-batch
p, N, m, T = Fraction("0.4"), 2, 2, 12  # share replayed, from N steps; UTD ratio; reincarnation
EPS, BETA, C = 0.2, 0.001, 0.001 if ALGO == "ppo" else 0  # clip, weights of KL-Convex and entropy
LR, CRITIC_LR, DECAY, GRAD_CLIP, VALUE_CLIP = 3e-4, 1e-3, 0.01, 1.0, 0.5
STEPS, EVAL_EVERY, SEED, W, S = 24, 5, 0, 16, 128  # W prompt tokens, S response tokens
tokenizer = tiny.make_tokenizer()
PAD = tokenizer.pad_token_id


# %% Mix-PPG: PPO's clip, but around pi_k, the policy at the start of the step, whoever sampled
def mix_ppg(logp, logp_k, logp_b, A):  # (B, S) each: B responses of S tokens; and so is the result
    r = torch.exp(logp - logp_b)  # pi_theta / pi_b, the policy that sampled
    c = torch.exp(logp_k - logp_b)  # pi_k / pi_b; on fresh data 1, and this is PPO
    return -torch.min(r * A, torch.clamp(r, c - EPS, c + EPS) * A)  # Eq. 3


# %% KL-Convex: stay near pi_base, later also near pi_{k-1}, the policy of a step ago
def lam(t):  # the paper's 50 and 10, of hundreds of steps, are 4 and 2 here; goes on after T
    return max(1 - 0.1 * ceil(max(t - 4, 0) / 2), 0.5)


def kl_convex(logp, logp_base, logp_prev, t):
    k3_base, k3_prev = (torch.exp(x) - x - 1 for x in (logp_base - logp, logp_prev - logp))
    return lam(t) * k3_base + (1 - lam(t)) * k3_prev  # L_KLC


# %% Rollouts, of the unfiltered policy, or r would lie; reward 1 for right format and answer
def reward(text, answer):  # nothing but the box after </think>
    return float(text.partition("</think>")[2].replace(" ", "") == f"\\boxed{{{answer}}}")


def sample(lm, problems, temperature=1.0, top_p=1.0):  # -> ids (B, W + S), rewards R (B, 1)
    x = [f"<|user|> {q['problem']}<|assistant|><think>" for q in problems]
    x = tokenizer(x, padding="max_length", max_length=W, padding_side="left", return_tensors="pt")
    how = dict(do_sample=True, temperature=temperature, top_p=top_p, top_k=0, max_new_tokens=S)
    ids = torch.nn.functional.pad(lm.generate(**x, **how), (0, S), value=PAD)[:, : W + S]
    out = tokenizer.batch_decode(ids[:, W:], skip_special_tokens=True)
    return ids, torch.tensor([[reward(y, q["answer"])] for y, q in zip(out, problems, strict=True)])


def evaluate(lm):  # pass@1 on the held-out problems, two samples of each
    return sample(lm, tiny.embedded_problems("test") * 2, 0.6, 0.95)[1].mean().item()


# %% The update: what is frozen during the step, advantages, then m passes of mini-batches
def log_probs(lm, ids):  # of the response tokens, and the entropy before each: (B, S)
    logp = torch.log_softmax(lm(ids, attention_mask=ids != PAD).logits[:, W - 1 : -1], -1)
    return logp.gather(-1, ids[:, W:, None])[..., 0], -(logp.exp() * logp).sum(-1)


def learn(lm, critic, optimizer, t, pi_k, pi_base, pi_prev, n, ids, R, logp_b):
    logp_k, logp_base, logp_prev = (log_probs(pi, ids)[0] for pi in (pi_k, pi_base, pi_prev))
    V_k = critic(ids, attention_mask=ids != PAD).logits[:, W - 1 : -1, 0].detach()
    mask = ids[:, W:] != PAD
    A = R - V_k  # GAE with gamma = lambda = 1: the return of every token is the reward
    A = (A - A[mask].mean()) / torch.sqrt(A[mask].var() + 1e-8)  # whitened
    if ALGO == "grpo":  # no critic: the responses to one prompt are compared
        g = R.view(-1, G)
        A = ((g - g.mean(1, True)) / (g.std(1, keepdim=True) + 1e-6)).view(-1, 1).expand_as(V_k)
    for rng in [default_rng([SEED, 3, t, i]) for i in range(m if t <= T else 1)]:  # UTD
        fresh, old = rng.permutation(n), n + rng.permutation(len(ids) // G - n)
        k = ceil(len(ids) / (G * MINI))
        for j in range(k):  # mini-batches mix fresh and replayed groups as the whole batch does
            b = [g * G + x for g in [*fresh[j::k], *old[k - 1 - j :: k]] for x in range(G)]
            logp, H = log_probs(lm, ids[b])
            pg = mix_ppg(logp, logp_k[b], logp_b[b], A[b])
            klc = kl_convex(logp, logp_base[b], logp_prev[b], t)
            V = critic(ids[b], attention_mask=ids[b] != PAD).logits[:, W - 1 : -1, 0]
            near = V_k[b] + torch.clamp(V - V_k[b], -VALUE_CLIP, VALUE_CLIP)
            vf = torch.maximum((V - R[b]) ** 2, (near - R[b]) ** 2) / 2 * (ALGO == "ppo")
            optimizer.zero_grad()
            (pg - C * H + BETA * klc + vf)[mask[b]].mean().backward()
            norm = torch.nn.utils.clip_grad_norm_(lm.parameters(), GRAD_CLIP)
            torch.nn.utils.clip_grad_norm_(critic.parameters(), GRAD_CLIP)
            optimizer.step()
            yield torch.stack([pg, klc, H, vf])[:, mask[b]].detach(), norm


# %% ReMix
def train(lm, problems):  # trains lm; yields each step's number, fresh rewards and updates
    critic = copy.deepcopy(lm)
    critic.lm_head = torch.nn.Linear(lm.config.hidden_size, 1)  # a value in place of logits
    list(map(torch.nn.init.zeros_, critic.lm_head.parameters()))  # V = 0 at first
    models = [dict(params=lm.parameters(), lr=LR), dict(params=critic.parameters(), lr=CRITIC_LR)]
    optimizer = torch.optim.AdamW(models, weight_decay=DECAY)
    order = (i for e in range(STEPS) for i in default_rng([SEED, 1, e]).permutation(len(problems)))
    pi_base = pi_k = copy.deepcopy(lm).requires_grad_(False)
    buffer, owed = [], 0
    for t in range(1, STEPS + 1):
        pi_prev, pi_k = pi_k, copy.deepcopy(lm).requires_grad_(False)
        if t == T + 1:  # policy reincarnation, and from here on plain PPO / GRPO
            pi_base, buffer = pi_k, []  # pi_base <- pi_T
        n, owed = divmod(owed + (1 - p if t <= T else 1) * P, 1)  # (1-p)P; the remainder is owed
        ids, R = sample(pi_k, [q for _ in range(n) for q in [problems[next(order)]] * G])
        fresh = ids, R, log_probs(pi_k, ids)[0]
        pool = [torch.cat(x).unflatten(0, (-1, G)) for x in zip(fresh, *buffer, strict=True)]
        draw = n + default_rng([SEED, 2, t]).permutation(len(pool[0]) - n)[: P - n]
        batch = [x[[*range(n), *draw]].flatten(0, 1) for x in pool]  # n fresh, pP replayed
        buffer = [*buffer, fresh][-N:]  # first in, first out
        yield t, R, [*learn(lm, critic, optimizer, t, pi_k, pi_base, pi_prev, n, *batch)]


# %% Before, during and after
if __name__ == "__main__":
    torch.manual_seed(SEED)
    path = tiny.make_base_model(settings=tiny.named("tiny:mending=0"))
    lm = transformers.AutoModelForCausalLM.from_pretrained(path)
    before = evaluate(lm)
    for t, R, updates in train(lm, tiny.embedded_problems("train")):
        score = f"  pass@1 {evaluate(lm):.1%}" if t % EVAL_EVERY == 0 else ""
        print(f"step {t:2d}  reward {R.mean():.2f}  {len(R)} fresh  {len(updates)} updates{score}")
    print(f"pass@1 {before:.1%} before, {evaluate(lm):.1%} after")
