"""The networks: policy, frozen anchors and critic around any `AutoModelForCausalLM`, sharded with FSDP2 where needed.

Shapes: B responses x T response tokens, right-padded; L tokens of prompt + response; H hidden; V vocabulary.
A batch is right-padded without an attention mask: under causal attention no real token ever sees a pad to its right,
and SDPA keeps its fast causal kernel. Temperature and precision live here, so that every log-prob of the trainer is of
the distribution that the sampler draws from.
"""

import functools
import os
from collections.abc import Iterable
from datetime import timedelta
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from buffer import Response
from rollout import become_a_rank


def init_distributed() -> tuple[int, int, str]:
    """-> rank, ranks, device. A plain `python remix.py` becomes a job of one rank."""
    become_a_rank()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Rank 0 alone reads and writes whole models, the others wait; a rank that dies is torchrun's to notice, not a timeout's
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device == "cuda" else "cpu:gloo", timeout=timedelta(hours=2)
    )
    return dist.get_rank(), dist.get_world_size(), device


def gather(items: list) -> list:
    """Every rank's list in one, the same on every rank: rank 0's items first."""
    if dist.get_world_size() == 1:
        return items
    parts: list = [None] * dist.get_world_size()
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def gather_in_order(items: list[tuple]) -> list:
    """Every rank's (place, item) pairs -> the items by place, the same on every rank."""
    return [item for _, item in sorted(gather(items), key=lambda pair: pair[0])]


LOGITS_PER_CHUNK = (
    2**27
)  # held at a time: 883 rows at Qwen's vocabulary of 151,936, 512 MiB in float32
LOGITS_PER_PART = (
    2**18
)  # in float32 math at a time: 1 MiB, so its temporaries stay in a CPU's cache
LOGITS_PER_PART_GPU = 2**25  # 128 MiB: few launches


class Reference(NamedTuple):
    """A frozen policy to stay near, for the exact KL: its share (lambda or 1 - lambda), its last hidden states, its head."""

    share: float
    states: Tensor  # (N, H), or (B, T, H) on the way to Policy.forward
    weight: Tensor  # (V, H)
    bias: Tensor | None


class TokenTerms(torch.autograd.Function):
    """Log-prob of the label, entropy and exact KL to the references, (N,) each, of p = softmax(logits / temperature), logits =
    rows weight^T + bias, with their gradients.

    rows (N, H), weight (V, H), bias (V,) or None, labels (N,). The logits (N, V) never exist as a whole: a buffer holds those
    of a chunk of rows, as the head's dtype has them (each reference has one too, all of them together LOGITS_PER_CHUNK), and
    float32 math goes through it in small parts. The backward pass computes the logits again (the last chunk's are still
    there) and turns them in place into the gradient. KL = sum_a share_a KL(p || q_a); as the shares add up to 1, that is
    KL(p || q) with log q = sum_a share_a log q_a.
        d logp / d logits = onehot(label) - p,   d H / d logits = -p (log p + H),   d KL / d logits = p (log p - log q - KL),
    all / temperature. Without references KL is 0.
    """

    @staticmethod
    def forward(
        ctx, rows, weight, bias, labels, temperature: float, references: tuple[Reference, ...] = ()
    ):
        heads = [(rows, weight, bias), *(reference[1:] for reference in references)]
        chunk = min(max(1, LOGITS_PER_CHUNK // (len(weight) * len(heads))), max(1, len(rows)))
        ctx.part = max(1, (LOGITS_PER_PART_GPU if rows.is_cuda else LOGITS_PER_PART) // len(weight))
        ctx.temperature, ctx.heads, ctx.shares = (
            temperature,
            heads[1:],
            [reference.share for reference in references],
        )
        ctx.chunk, ctx.buffers = chunk, [rows.new_empty(chunk, len(weight)) for _ in heads]
        exact = torch.promote_types(rows.dtype, torch.float32)
        logp, H, KL = rows.new_zeros(3, len(rows), dtype=exact)
        for start in range(0, len(rows), chunk):
            at = slice(start, start + chunk)
            logits = [
                head_logits(r[at], w, b, buffer)
                for (r, w, b), buffer in zip(heads, ctx.buffers, strict=True)
            ]
            for z, *others, y, logp_y, h, kl in parts(
                ctx.part, *logits, labels[at], logp[at], H[at], KL[at]
            ):
                log_p = torch.log_softmax(z.to(exact) / temperature, dim=-1)
                logp_y.copy_(log_p.gather(-1, y[:, None]).squeeze(-1))
                p = torch.exp(log_p)
                h.copy_(-(p * log_p).sum(-1))
                if others:
                    kl.copy_((p * (log_p - log_mixture(others, ctx.shares, temperature))).sum(-1))
        ctx.save_for_backward(rows, weight, bias, labels, H, KL)
        return logp, H, KL

    @staticmethod
    def backward(ctx, d_logp: Tensor, d_H: Tensor, d_KL: Tensor):
        rows, weight, bias, labels, H, KL = ctx.saved_tensors
        d_rows, d_weight = torch.empty_like(rows), torch.zeros_like(weight)
        d_bias = None if bias is None else torch.zeros_like(bias)
        heads = [(rows, weight, bias), *ctx.heads]
        buffers, ctx.buffers = (
            ctx.buffers,
            None,
        )  # a second backward pass must not take them for logits
        there = buffers is not None
        buffers = buffers or [rows.new_empty(ctx.chunk, len(weight)) for _ in heads]
        starts = range(0, len(rows), ctx.chunk)
        for start in reversed(starts):
            at = slice(start, start + ctx.chunk)
            if there and start == starts[-1]:
                logits = [buffer[: len(rows) - start] for buffer in buffers]
            else:
                logits = [
                    head_logits(r[at], w, b, buffer)
                    for (r, w, b), buffer in zip(heads, buffers, strict=True)
                ]
            by_row = (x[at, None] for x in (labels, H, KL, d_logp, d_H, d_KL))
            for z, *others, y, h, kl, dl, dh, dk in parts(ctx.part, *logits, *by_row):
                log_p = torch.log_softmax(z.to(H.dtype) / ctx.temperature, dim=-1)
                of_p = dl + dh * (log_p + h)
                if others:
                    of_p -= dk * (log_p - log_mixture(others, ctx.shares, ctx.temperature) - kl)
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


def log_mixture(logits: list[Tensor], shares: list[float], temperature: float) -> Tensor:
    """sum_a share_a log q_a over the references, q_a = softmax(logits_a / temperature); at least float32."""
    exact = torch.promote_types(logits[0].dtype, torch.float32)
    of_each = (
        torch.log_softmax(z.to(exact) / temperature, dim=-1).mul_(w)
        for z, w in zip(logits, shares, strict=True)
    )
    return functools.reduce(torch.add, of_each)


def head_logits(rows: Tensor, weight: Tensor, bias: Tensor | None, buffer: Tensor) -> Tensor:
    """(n, H) -> (n, V), written into the top of the buffer."""
    out = buffer[: len(rows)]
    return (
        torch.mm(rows, weight.T, out=out)
        if bias is None
        else torch.addmm(bias, rows, weight.T, out=out)
    )


def hidden_states(trunk: nn.Module, ids: Tensor, index: Tensor) -> Tensor:
    """Last hidden states (B, L, H) of right-padded ids (B, L), whose last real token stands at index.max() + 1 of its row.
    With flash attention the rows run end to end as one, told apart by their positions: no padding is computed."""
    if trunk.config._attn_implementation != "flash_attention_2":
        return trunk(input_ids=ids, use_cache=False).last_hidden_state
    return packed_states(trunk, ids, index)


def packed_states(trunk: nn.Module, ids: Tensor, index: Tensor) -> Tensor:
    place = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    real = place <= index.max(1, keepdim=True).values + 1
    packed = trunk(
        input_ids=ids[real][None], position_ids=place[real][None], use_cache=False
    ).last_hidden_state[0]
    return packed.new_zeros(*ids.shape, packed.shape[-1]).index_put(
        real.nonzero(as_tuple=True), packed
    )


class Policy(nn.Module):
    """Log-probs (and entropy) of the response tokens under a language model at the sampling temperature."""

    def __init__(self, lm: nn.Module, temperature: float):
        super().__init__()
        self.lm, self.temperature = lm, temperature

    def forward(
        self, ids: Tensor, index: Tensor, labels: Tensor, mask: Tensor, references: tuple[Reference, ...] = (),
        states: bool = False,
    ):  # fmt: skip
        """ids (B, L); index (B, T): where in ids the hidden state that predicts response token t stands;
        labels, mask (B, T) -> logp, entropy, exact KL to the references (0 without), each (B, T) float32 nats, 0 where mask is 0.
        states: these hidden states themselves, (B, T, H), for a Reference to this policy.
        """
        hidden = hidden_states(self.lm.base_model, ids, index)  # (B, L, H)
        where = mask.nonzero(as_tuple=True)
        rows = hidden[
            where[0], index[where]
        ]  # (N, H): only the N response tokens pass through the head
        if states:
            return rows.new_zeros(*mask.shape, rows.shape[-1]).index_put(where, rows)
        head = self.lm.get_output_embeddings()
        here = tuple(reference._replace(states=reference.states[where]) for reference in references)
        terms = TokenTerms.apply(
            rows, head.weight, head.bias, labels[where], self.temperature, here
        )
        return [term.new_zeros(mask.shape).index_put(where, term) for term in terms]


class Critic(nn.Module):
    """V(prefix) before each response token: the base model's trunk and a linear head that starts at 0."""

    def __init__(self, trunk: nn.Module):
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(trunk.config.get_text_config().hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, ids: Tensor, index: Tensor, mask: Tensor) -> Tensor:
        """-> values (B, T) float32, 0 where mask is 0; arguments as in Policy.forward."""
        hidden = hidden_states(self.trunk, ids, index)  # (B, L, H)
        hidden = hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))
        return self.head(hidden).squeeze(-1).float() * mask


@functools.cache
def device_mesh(device: str, shard: str) -> DeviceMesh:
    """The ranks as FSDP2 sees them. "all": one line of shards over every rank. "node": where there are several nodes, each
    holds a whole set of shards (HSDP), so that only gradients cross the network, once a mini-batch (`last_micro_batch`).
    "none": the same with every rank as a node of its own."""
    world = dist.get_world_size()
    gpus = dict(all=world, node=int(os.environ.get("LOCAL_WORLD_SIZE", world)), none=1)[shard]
    if gpus == world:
        return init_device_mesh(device, (world,))
    return init_device_mesh(device, (world // gpus, gpus), mesh_dim_names=("nodes", "gpus"))


def load_model(
    kind: type, name: str, *, device: str, dtype: str, temperature: float = 1.0, frozen: bool = False,
    checkpointing: bool = False, attention: str = "sdpa", shard: str = "node",
) -> nn.Module:  # fmt: skip
    """A Policy or Critic from a folder or hub name. Trained weights are float32 masters computed in `dtype`; frozen
    ones are stored in `dtype`. FSDP2 does the sharding and the mixed precision: rank 0 reads the weights and hands them
    out tensor by tensor, the others never hold a whole model. A float32 model on CPU that is not sharded is a plain module."""
    compute = getattr(torch, dtype)
    auto = AutoModelForCausalLM if kind is Policy else AutoModel
    how = dict(dtype=compute if frozen else torch.float32, attn_implementation=attention)

    def build(whole: bool) -> nn.Module:
        net = (
            auto.from_pretrained(name, **how)
            if whole
            else auto.from_config(AutoConfig.from_pretrained(name), **how)
        )
        if checkpointing and not frozen:
            net.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs=dict(use_reentrant=False)
            )
        return Policy(net, temperature) if kind is Policy else Critic(net)

    if device == "cpu" and dtype == "float32" and (shard == "none" or dist.get_world_size() == 1):
        return build(whole=True).train(not frozen).requires_grad_(not frozen)
    source = build(whole=True) if dist.get_rank() == 0 else None
    with torch.device("meta"):  # shapes without memory
        model = build(whole=False)
    model.train(not frozen).requires_grad_(not frozen)
    precision = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    sharding = dict(mesh=device_mesh(device, shard), mp_policy=precision)
    for layer in (model.lm if kind is Policy else model.trunk).base_model.layers:
        fully_shard(layer, **sharding)
    fully_shard(model, **sharding)
    model.to_empty(device=device)  # only this rank's shards
    weights = source.state_dict() if source else {}
    set_model_state_dict(
        model, weights, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    )
    values = iter(source.buffers()) if source else None  # rotary frequencies: in no state dict
    for buffer in model.buffers():
        if values:
            buffer.copy_(next(values))
        dist.broadcast(buffer, 0)
    return model


def average_gradients(model: nn.Module) -> None:
    """Plain modules on several ranks: the mean of their gradients, in one message. FSDP2 has done it already."""
    if dist.get_world_size() > 1 and not isinstance(model, FSDPModule):
        grads = [p.grad for p in model.parameters()]
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        for g, part in zip(
            grads, flat.div_(dist.get_world_size()).split([g.numel() for g in grads]), strict=True
        ):
            g.copy_(part.view_as(g))


def last_micro_batch(models: Iterable[nn.Module], last: bool) -> None:
    """HSDP: nodes add up their gradients after the last micro-batch only. Without it, and where there is one node, nothing."""
    for model in models:
        if isinstance(model, FSDPModule):
            model.set_requires_all_reduce(last)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; the tensor itself where nothing is sharded."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


@torch.no_grad()
def copy_weights(target: nn.Module, source: nn.Module) -> None:
    """target <- source, tensor by tensor (same architecture and sharding; the dtype may differ)."""
    for t, s in zip(target.parameters(), source.parameters(), strict=True):
        local(t).copy_(local(s))


def whole_head(policy: Policy, dtype: str) -> tuple[Tensor, Tensor | None]:
    """A copy of the output layer's weight (V, H) and bias, whole on every rank, for a Reference; every rank must call it."""
    head = policy.lm.get_output_embeddings()
    weight, bias = (
        None if t is None else t.detach().to(getattr(torch, dtype), copy=True)
        for t in (head.weight, head.bias)
    )
    return tuple(t.full_tensor() if hasattr(t, "full_tensor") else t for t in (weight, bias))


def full_weights(policy: Policy, dtype: str | None = None):
    """(name, whole tensor) over the language model's state_dict, one at a time; every rank must iterate to the end.
    dtype: what the sampler computes in; the shards are cast before they travel. None: as they are stored."""
    for name, tensor in policy.lm.state_dict().items():
        tensor = tensor.detach() if dtype is None else tensor.detach().to(getattr(torch, dtype))
        yield name, tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def collate(responses: list[Response], device: str) -> dict[str, Tensor]:
    """Right-padded ids (B, L), index, labels, mask (B, T) for Policy.forward and Critic.forward."""
    ids = pad([torch.tensor(r.prompt + r.tokens) for r in responses], "cpu")
    labels = pad([torch.tensor(r.tokens) for r in responses], "cpu")
    start = torch.tensor([[len(r.prompt)] for r in responses])  # (B, 1)
    size = torch.tensor([[len(r.tokens)] for r in responses])
    place = torch.arange(labels.shape[1])
    mask = place < size
    index = torch.where(mask, start - 1 + place, 0)  # the state before token t predicts it
    mask = mask.float()
    return {
        k: v.to(device) for k, v in dict(ids=ids, index=index, labels=labels, mask=mask).items()
    }


def pad(rows: list[Tensor], device: str) -> Tensor:
    """(T_b,) or (T_b, V) each -> (B, T) or (B, T, V), zeros to the right."""
    return nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)


MICRO_BATCH_COST = (
    128  # tokens: what a micro-batch costs by itself, in launches, collectives and Python
)


def micro_batches(lengths: list[int], budget: int, world: int) -> list[list[list[int]]]:
    """Deal samples to ranks and cut the ranks' shares into micro-batches of similar length, the k-th of all ranks alike.

    lengths: tokens of each sample; budget: padded tokens a micro-batch (a longer sample goes alone). With FSDP each layer
    waits for all ranks, so what counts is the longest of the k-th micro-batches, and neighbours by length go to different
    ranks. The cuts, at the same places on every rank, are those of the fewest padded tokens, a micro-batch counting as
    MICRO_BATCH_COST more.
    -> for each rank its micro-batches (lists of indices); as many for every rank, some may be empty: FSDP's collectives
    need every rank to run each of them. Depends on nothing but its arguments, so all ranks agree without talking.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    hands = [
        order[n : n + world] for n in range(0, len(order), world)
    ]  # a sample for each rank, longest hands first
    hands[1::2] = [
        hand[::-1] for hand in hands[1::2]
    ]  # to and fro, so that no rank gets the longest of every hand
    cost = np.array([0] + [np.inf] * len(hands))  # the least, of the first so many hands
    cut = np.zeros(len(hands) + 1, dtype=int)  # where their last micro-batch starts
    for start, hand in enumerate(hands):
        longest = max(lengths[i] for i in hand)
        ends = slice(start + 1, min(start + max(1, budget // longest), len(hands)) + 1)
        price = cost[start] + MICRO_BATCH_COST + longest * np.arange(1, ends.stop - start)
        better = price < cost[ends]
        cost[ends][better], cut[ends][better] = price[better], start
    rounds, end = [], len(hands)
    while end:
        rounds.insert(0, hands[cut[end] : end])
        end = cut[end]
    return [
        [[hand[rank] for hand in part if rank < len(hand)] for part in rounds]
        for rank in range(world)
    ]
