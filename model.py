"""The networks: policy, frozen anchors and critic around any `AutoModelForCausalLM`.

B responses x T response tokens; L tokens of prompt + response; H hidden size; V vocabulary; N
response tokens of a micro-batch (parallel.Batch is the legend). Temperature and precision live
here, so that every log-prob of the trainer is of the distribution that the sampler draws from.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import parallel
from parallel import Batch

# ---------------------------------------------------------------------- the head, a chunk at a time

# Held at a time: 883 rows at Qwen's vocabulary of 151,936, 512 MiB float32
LOGITS_PER_CHUNK = 2**27
# In float32 math at a time: 1 MiB, so its temporaries stay in a CPU's cache
LOGITS_PER_PART = 2**18
LOGITS_PER_PART_GPU = 2**25  # 128 MiB: few launches


class Anchor(NamedTuple):
    """A frozen policy q to stay near, for the exact KL: its last hidden states and its head."""

    states: Tensor  # (N, H)
    weight: Tensor  # (V, H)
    bias: Tensor | None


class TokenTerms(torch.autograd.Function):
    """Log-prob of the label, entropy, and the exact KL to each anchor, (N,) each, with gradients,
    of p = softmax(logits / temperature), logits = rows weight^T + bias.

    rows (N, H), weight (V, H), bias (V,) or None, labels (N,) -> logp, H, KL_1, KL_2, ... float32.
    The logits (N, V) never exist as a whole: a buffer holds those of a chunk of rows, as the head's
    dtype has them (each anchor has one too, all of them together LOGITS_PER_CHUNK), and float32
    math goes through it in small parts. The backward pass computes the logits again (the last
    chunk's are still there) and turns them in place into the gradient:
        d logp / d logits = (onehot(label) - p) / temperature
        d H    / d logits = -p (log p + H) / temperature
        d KL_a / d logits =  p (log p - log q_a - KL_a) / temperature
    """

    @staticmethod
    def forward(ctx, rows, weight, bias, labels, temperature: float, anchors: tuple[Anchor, ...]):
        heads = [(rows, weight, bias), *anchors]
        chunk = min(max(1, LOGITS_PER_CHUNK // (len(weight) * len(heads))), max(1, len(rows)))
        per_part = LOGITS_PER_PART_GPU if rows.is_cuda else LOGITS_PER_PART
        ctx.part = max(1, per_part // len(weight))
        ctx.temperature, ctx.anchors, ctx.chunk = temperature, anchors, chunk
        ctx.buffers = [rows.new_empty(chunk, len(weight)) for _ in heads]
        exact = torch.promote_types(rows.dtype, torch.float32)
        terms = rows.new_zeros(2 + len(anchors), len(rows), dtype=exact)
        for start in range(0, len(rows), chunk):
            at = slice(start, start + chunk)
            logits = chunk_logits(heads, at, ctx.buffers)
            for row in parts(ctx.part, *logits, labels[at], *terms[:, at]):
                (z, *others), (y, logp, H, *kls) = row[: len(heads)], row[len(heads) :]
                log_p = log_softmax(z, temperature)
                logp.copy_(log_p.gather(-1, y[:, None]).squeeze(-1))
                p = torch.exp(log_p)
                H.copy_(-(p * log_p).sum(-1))
                for kl, other in zip(kls, others, strict=True):
                    kl.copy_((p * (log_p - log_softmax(other, temperature))).sum(-1))
        logp, *kept = terms.unbind()
        ctx.save_for_backward(rows, weight, bias, labels, *kept)
        return logp, *kept

    @staticmethod
    def backward(ctx, d_logp: Tensor, *d_terms: Tensor):
        rows, weight, bias, labels, *terms = ctx.saved_tensors
        d_rows, d_weight = torch.empty_like(rows), torch.zeros_like(weight)
        d_bias = None if bias is None else torch.zeros_like(bias)
        heads = [(rows, weight, bias), *ctx.anchors]
        buffers, ctx.buffers = ctx.buffers, None  # a second backward must not take them for logits
        there = buffers is not None
        buffers = buffers or [rows.new_empty(ctx.chunk, len(weight)) for _ in heads]
        starts = range(0, len(rows), ctx.chunk)
        n = len(heads)  # = the terms H, KL_1, KL_2, ...
        for start in reversed(starts):
            at = slice(start, start + ctx.chunk)
            if there and start == starts[-1]:
                logits = [buffer[: len(rows) - start] for buffer in buffers]
            else:
                logits = chunk_logits(heads, at, buffers)
            by_row = (x[at, None] for x in (labels, d_logp, *terms, *d_terms))
            for row in parts(ctx.part, *logits, *by_row):
                (z, *others), (y, dl) = row[:n], row[n : n + 2]
                (H, *kls), (dh, *d_kls) = row[n + 2 : 2 * n + 2], row[2 * n + 2 :]
                log_p = log_softmax(z, ctx.temperature)
                of_p = dl + dh * (log_p + H)
                for other, kl, dk in zip(others, kls, d_kls, strict=True):
                    of_p -= dk * (log_p - log_softmax(other, ctx.temperature) - kl)
                d = -torch.exp(log_p) * of_p
                z.copy_(d.scatter_add_(-1, y, dl).div_(ctx.temperature))
            torch.mm(logits[0], weight, out=d_rows[at])
            d_weight.addmm_(logits[0].T, rows[at])
            if bias is not None:
                d_bias += logits[0].sum(0)
        return d_rows, d_weight, d_bias, None, None, None


def parts(size: int, *tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """The tensors side by side, so many rows at a time (views)."""
    return zip(*(t.split(size) for t in tensors), strict=True)


def log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """(n, V) -> (n, V), at least in float32."""
    exact = torch.promote_types(logits.dtype, torch.float32)
    return torch.log_softmax(logits.to(exact) / temperature, dim=-1)


def chunk_logits(heads: list[tuple], at: slice, buffers: list[Tensor]) -> list[Tensor]:
    """The logits (n, V) of each head's rows `at`, written into the top of its buffer."""
    logits = []
    for (rows, weight, bias), buffer in zip(heads, buffers, strict=True):
        rows, out = rows[at], buffer[: len(rows[at])]
        if bias is None:
            logits.append(torch.mm(rows, weight.T, out=out))
        else:
            logits.append(torch.addmm(bias, rows, weight.T, out=out))
    return logits


# ------------------------------------------------------------------------------- policy and critic


def hidden_states(trunk: nn.Module, x: Batch) -> Tensor:
    """Last hidden states (B, L, H). With flash attention the rows run end to end as one, told apart
    by their positions: no padding is computed."""
    if trunk.config._attn_implementation == "flash_attention_2":
        return packed_states(trunk, x)
    return trunk(input_ids=x.ids, use_cache=False).last_hidden_state


def packed_states(trunk: nn.Module, x: Batch) -> Tensor:
    place = torch.arange(x.ids.shape[1], device=x.ids.device).expand_as(x.ids)
    real = place <= x.index.max(1, keepdim=True).values + 1  # up to the last response token
    packed = trunk(input_ids=x.ids[real][None], position_ids=place[real][None], use_cache=False)
    packed = packed.last_hidden_state[0]
    return packed.new_zeros(*x.ids.shape, packed.shape[-1]).index_put(
        real.nonzero(as_tuple=True), packed
    )


class Policy(nn.Module):
    """A language model at the sampling temperature."""

    def __init__(self, lm: nn.Module, temperature: float):
        super().__init__()
        self.lm, self.temperature = lm, temperature

    def forward(self, x: Batch, heads: dict[str, tuple] | None = None, states: bool = False):
        """-> logp, entropy (B, T) of the response tokens, float32 nats, 0 where the mask is; and
        the exact KL (B, T) to each anchor of `heads`, which holds their output layers
        (`whole_head`). states: their last hidden states instead, (B, T, H), which is what x.anchors
        then wants.
        """
        hidden = hidden_states(self.lm.base_model, x)  # (B, L, H)
        where = x.mask.nonzero(as_tuple=True)
        # (N, H): only response tokens pass through the head
        rows = hidden[where[0], x.index[where]]
        if states:
            return rows.new_zeros(*x.mask.shape, rows.shape[-1]).index_put(where, rows)
        anchors = tuple(
            Anchor(x.anchors[name][where].to(rows.dtype), *head)
            for name, head in (heads or {}).items()
        )
        head = self.lm.get_output_embeddings()
        labels = x.labels[where]
        terms = TokenTerms.apply(rows, head.weight, head.bias, labels, self.temperature, anchors)
        logp, H, *kl = (term.new_zeros(x.mask.shape).index_put(where, term) for term in terms)
        return logp, H, dict(zip(heads or (), kl, strict=True))


class Critic(nn.Module):
    """V(prefix) before each response token: the model's trunk and a linear head that starts at
    0."""

    def __init__(self, trunk: nn.Module):
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(trunk.config.get_text_config().hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Batch) -> Tensor:
        """-> values (B, T) float32, 0 where the mask is."""
        hidden = hidden_states(self.trunk, x)  # (B, L, H)
        hidden = hidden.gather(1, x.index[..., None].expand(-1, -1, hidden.shape[-1]))
        return self.head(hidden).squeeze(-1).float() * x.mask


def load_model(
    kind: type, name: str, *, device: str, dtype: str, temperature: float = 1.0,
    frozen: bool = False, checkpointing: bool = False, attention: str = "sdpa", shard: str = "node",
) -> nn.Module:  # fmt: skip
    """A Policy or Critic from a folder or hub name. Trained weights are float32 masters computed in
    `dtype`; frozen ones are stored in `dtype`. Rank 0 alone reads the weights where they are
    sharded (parallel.shard); a float32 model on CPU that is not sharded is a plain module."""
    compute = getattr(torch, dtype)
    auto = AutoModelForCausalLM if kind is Policy else AutoModel
    options = dict(dtype=compute if frozen else torch.float32, attn_implementation=attention)

    def build(whole: bool) -> nn.Module:
        if whole:
            net = auto.from_pretrained(name, **options)
        else:
            net = auto.from_config(AutoConfig.from_pretrained(name), **options)
        if checkpointing and not frozen:
            recompute = dict(use_reentrant=False)
            net.gradient_checkpointing_enable(gradient_checkpointing_kwargs=recompute)
        model = Policy(net, temperature) if kind is Policy else Critic(net)
        return model.train(not frozen).requires_grad_(not frozen)

    if device == "cpu" and dtype == "float32" and (shard == "none" or dist.get_world_size() == 1):
        return build(whole=True)
    source = build(whole=True) if dist.get_rank() == 0 else None
    with torch.device("meta"):  # shapes without memory
        model = build(whole=False)
    layers = (model.lm if kind is Policy else model.trunk).base_model.layers
    return parallel.shard(model, layers, source, device, compute, shard)


# ------------------------------------------------------------------------------------------ weights


@torch.no_grad()
def copy_weights(target: nn.Module, source: nn.Module) -> None:
    """target <- source, tensor by tensor (same architecture and sharding; the dtype may differ)."""
    for t, s in zip(target.parameters(), source.parameters(), strict=True):
        parallel.local(t).copy_(parallel.local(s))


def whole_head(policy: Policy, dtype: str) -> tuple[Tensor, Tensor | None]:
    """A copy of the output layer, weight (V, H) and bias or None, whole on every rank; all must
    call it. The exact KL needs the anchors' (Policy.forward)."""
    head = policy.lm.get_output_embeddings()
    to = getattr(torch, dtype)
    weight, bias = (
        None if t is None else parallel.whole(t.detach().to(to, copy=True))
        for t in (head.weight, head.bias)
    )
    return weight, bias


def full_weights(policy: Policy, dtype: str | None = None) -> Iterator[tuple[str, Tensor]]:
    """(name, whole tensor) over the language model's state_dict, one at a time; every rank must
    iterate to the end. dtype: what the sampler computes in; the shards are cast before they travel.
    None: as they are stored."""
    for name, tensor in policy.lm.state_dict().items():
        tensor = tensor.detach()
        yield name, parallel.whole(tensor if dtype is None else tensor.to(getattr(torch, dtype)))
