"""Ways from hidden states to log-probs and entropy and back, on CPU: peak memory, time and error.

    python benchmarks/head.py   1,024 tokens, vocabulary 151,936, hidden 1,536
    python benchmarks/head.py --tokens 8192 --ways chunked   full size (plain: some 30 GiB there)

chunked            model.TokenTerms
plain              all logits, log-softmax, loss.entropy
checkpointed       plain on chunks of 220 rows under activation checkpointing
trl                logits, TRL's `selective_log_softmax` (trl/trainer/utils.py: the label's logit
                   minus logsumexp, a row at a time), loss.entropy
linear_ce          torch's F.linear_cross_entropy: log-probs, no entropy
linear_ce chunked  the same with LinearCrossEntropyOptions()
... exact KL       with the KL to a reference over the whole vocabulary as a third term; its head
                   and hidden states are there before and do not count

Each way runs in a process of its own.
Peak: the largest resident set, minus what was resident when the weight stood there and the
libraries were warm, minus the weight's gradient. So hidden states and their gradient count. (A way
that peaks before its weight gradient exists, as plain and trl do, looks smaller by that gradient.)
Time: CPU seconds of the process, the least of --repeats; steadier on a shared machine than the wall
clock, which is also given.
Error: the largest difference from float64 on 64 tokens, of gradients relative to their largest
entry (weight gradient: of a run on these tokens alone).
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
WAYS = ["plain", "chunked", "checkpointed", "trl", "linear_ce", "linear_ce chunked"]
WAYS_KL = ["plain exact KL", "chunked exact KL"]
MiB = 2**20


def run(way: str, hidden, weight, labels, reference=None):
    """-> log-prob and entropy (None where the way has none), (N,) each.

    The KL to the reference, (hidden, weight), is added to the entropy.
    """
    import torch.nn.functional as F
    from torch import cat, log_softmax, stack
    from torch.utils.checkpoint import checkpoint

    import loss
    import model

    def plain(rows, y):
        logits = F.linear(rows, weight).float()
        return log_softmax(logits, -1).gather(-1, y[:, None]).squeeze(-1), loss.entropy(logits)

    if way == "chunked exact KL":
        anchors = (model.Anchor(*reference, None),)
        logp, entropy, kl = model.TokenTerms.apply(hidden, weight, None, labels, 1.0, anchors)
        return logp, entropy + kl
    if way == "plain exact KL":
        logits = F.linear(hidden, weight).float()
        log_p = log_softmax(logits, -1)
        kl = loss.kl(log_p, log_softmax(F.linear(reference[0], reference[1]).float(), -1), "exact")
        return log_p.gather(-1, labels[:, None]).squeeze(-1), loss.entropy(logits) + kl
    if way == "chunked":
        return model.TokenTerms.apply(hidden, weight, None, labels, 1.0, ())
    if way == "plain":
        return plain(hidden, labels)
    if way == "checkpointed":
        n = max(1, 2**25 // len(weight))
        pairs = zip(hidden.split(n), labels.split(n), strict=True)
        parts = [checkpoint(plain, rows, y, use_reentrant=False) for rows, y in pairs]
        return tuple(cat(part) for part in zip(*parts, strict=True))
    if way == "trl":
        logits = F.linear(hidden, weight).float()
        lse = stack([row.logsumexp(-1) for row in logits])
        return logits.gather(-1, labels[:, None]).squeeze(-1) - lse, loss.entropy(logits)
    from torch.nn import LinearCrossEntropyOptions

    options = LinearCrossEntropyOptions() if way.endswith("chunked") else None
    return -F.linear_cross_entropy(hidden, weight, labels, reduction="none", options=options), None


def exact(hidden, weight, labels, d_logp, d_H, reference=None):
    """log-prob, entropy, gradients of hidden and weight in float64, by slices of the vocabulary."""
    import torch

    rows, y = hidden.double(), labels[:, None]
    log_p = torch.log_softmax(torch.cat([rows @ w.double().T for w in weight.split(8192)], -1), -1)
    p = log_p.exp()
    H = -(p * log_p).sum(-1)
    if reference is None:
        d = -p * (d_logp[:, None] + d_H[:, None] * (log_p + H[:, None])).double()
    else:  # H + KL is the cross entropy -sum p log q
        states = reference[0].double()
        log_q = torch.cat([states @ w.double().T for w in reference[1].split(8192)], -1)
        log_q = torch.log_softmax(log_q, -1)
        H = -(p * log_q).sum(-1)
        d = -p * (d_logp[:, None] + d_H[:, None] * (log_q + H[:, None])).double()
    d.scatter_add_(-1, y, d_logp[:, None].double())
    slices = zip(d.split(8192, -1), weight.split(8192), strict=True)
    d_rows = sum(part @ w.double() for part, w in slices)
    return log_p.gather(-1, y).squeeze(-1), H, d_rows, (d.T @ rows).float()


def measure(way: str, options) -> dict:
    import torch

    import model

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    N, H, V = options.tokens, options.hidden, options.vocab
    weight = torch.randn(V, H).requires_grad_()
    labels, (d_logp, d_H) = torch.randint(V, (N,)), torch.randn(2, N)

    reference = None
    if way in WAYS_KL:
        other = torch.randn(N, H).mul_(3 / H**0.5)
        reference = other, (weight + torch.randn(V, H).mul_(0.3)).detach()

    def step(hidden, at):
        of = reference and (reference[0][at], reference[1])
        logp, entropy = run(way, hidden, weight, labels[at], of)
        total = (logp * d_logp[at]).sum()
        (total if entropy is None else total + (entropy * d_H[at]).sum()).backward()
        return logp.detach(), None if entropy is None else entropy.detach()

    def states(n):
        return torch.randn(n, H).mul_(3 / H**0.5).requires_grad_()  # logits of deviation 3

    small = weight[:64].detach().requires_grad_()  # starts the thread pool and the libraries
    of = reference and (reference[0][:8], reference[1][:64])
    run(way, states(8), small, labels[:8] % 64, of)[0].sum().backward()
    with open("/proc/self/statm") as file:
        before = int(file.read().split()[1]) * resource.getpagesize()
    hidden, cpu, wall = states(N), [], []
    for _ in range(options.repeats):
        weight.grad = hidden.grad = None
        start = time.process_time(), time.perf_counter()
        logp, entropy = step(hidden, slice(None))
        cpu.append(time.process_time() - start[0])
        wall.append(time.perf_counter() - start[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before - weight.numel() * 4
    chunk = min(N, model.LOGITS_PER_CHUNK // V) * V * 4

    at = torch.arange(0, N, max(1, N // 64))[:64]
    some = hidden.detach()[at].requires_grad_()
    weight.grad = None
    step(some, at)
    d_H = d_H * (entropy is not None)
    of = reference and (reference[0][at], reference[1])
    true = exact(some.detach(), weight.detach(), labels[at], d_logp[at], d_H[at], of)
    ours = (logp[at], None if entropy is None else entropy[at], hidden.grad[at], weight.grad)
    scale = (1, 1, true[2].abs().max(), true[3].abs().max())
    pairs = zip(ours, true, scale, strict=True)
    error = [None if a is None else float((a - b).abs().max() / s) for a, b, s in pairs]
    one = (N * H * 4 + chunk) / MiB  # hidden states and one chunk of logits
    sizes = dict(peak_mib=peak / MiB, unit_mib=one)
    return dict(way=way, **sizes, cpu_s=min(cpu), wall_s=min(wall), error=error)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = dict(vocab=151_936, tokens=1024, hidden=1536, threads=1, repeats=1)
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    parser.add_argument("--ways", nargs="+", choices=WAYS + WAYS_KL, default=WAYS)
    parser.add_argument("--out", help="a file to append one JSON line a way to")
    parser.add_argument("--one", choices=WAYS + WAYS_KL, help=argparse.SUPPRESS)  # in this process
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options)))
        return
    sizes = {name: getattr(options, name) for name in defaults}
    print(", ".join(f"{name} {value:,}" for name, value in sizes.items()), end="\n\n")
    print(
        "| way | peak MiB | / (hidden + chunk) | CPU s | / plain | wall s | error: log-prob | "
        "entropy | d hidden | d weight |"
    )
    print("|---|" + "---:|" * 9)
    plain = None
    for way in options.ways:
        flags = [text for name, value in sizes.items() for text in (f"--{name}", str(value))]
        env = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
        command = [sys.executable, __file__, "--one", way, *flags]
        done = subprocess.run(command, stdout=subprocess.PIPE, env=env)
        if done.returncode:
            print(f"| {way} | failed, exit status {done.returncode} |", flush=True)
            continue
        r = json.loads(done.stdout)
        plain = r["cpu_s"] if way.startswith("plain") else plain
        ratio = f"{r['cpu_s'] / plain:.2f}" if plain else "-"
        errors = " | ".join("-" if e is None else f"{e:.0e}" for e in r["error"])
        memory = f"{r['peak_mib']:,.0f} | {r['peak_mib'] / r['unit_mib']:.2f}"
        times = f"{r['cpu_s']:.2f} | {ratio} | {r['wall_s']:.2f}"
        print(f"| {way} | {memory} | {times} | {errors} |", flush=True)
        if options.out:
            with open(options.out, "a") as file:
                file.write(json.dumps(sizes | r) + "\n")


if __name__ == "__main__":
    main()
