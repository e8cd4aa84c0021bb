"""Ranks: who computes what, and how it becomes one result. With one rank most of this does nothing.

Batch        what a forward pass gets; its fields are the legend of shapes of the whole project
deal         samples -> micro-batches of the ranks, at the least cost
micro_batches, frozen_pass, backward, clip_gradients     the pieces of a step that know of ranks
park, fetch, here     --offload: a network or an optimizer off the device, and back
shard        FSDP2 around a model; gather, on_every_rank: what all ranks have to agree on

B responses of a micro-batch; T response tokens; L tokens of prompt + response; H hidden size. Rows
are right-padded without an attention mask: under causal attention no token sees a pad to its right.
"""

import functools
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from buffer import Response

# ------------------------------------------------------------------------------- the ranks of a job


def become_a_rank() -> None:
    """The variables that torchrun sets, where it did not start this process: a job of one rank, on
    any free port. torch.distributed wants them, and so does vLLM."""
    if "RANK" not in os.environ:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def init_distributed() -> tuple[int, int, str]:
    """-> rank, ranks, device. A plain `python remix.py` becomes a job of one rank."""
    become_a_rank()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Rank 0 alone reads and writes whole models, the others wait: hence the hours. A rank that dies
    # is torchrun's to notice, not a timeout's
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "cpu:gloo"
    dist.init_process_group(backend, timeout=timedelta(hours=2))
    return dist.get_rank(), dist.get_world_size(), device


def engine_share(items: list, tensor_parallel: int) -> list:
    """This rank's engine's part of the items: `tensor_parallel` ranks in a row hold one engine, and
    all of them sample the same."""
    engines = dist.get_world_size() // tensor_parallel
    return items[dist.get_rank() // tensor_parallel :: engines]


def gather(items: list, tensor_parallel: int = 1) -> list:
    """Every engine's list in one (by default every rank's), the same on every rank, rank 0's items
    first."""
    if dist.get_world_size() == 1:
        return items
    parts: list = [None] * dist.get_world_size()
    dist.all_gather_object(parts, items if dist.get_rank() % tensor_parallel == 0 else [])
    return [item for part in parts for item in part]


def gather_in_order(items: list[tuple], tensor_parallel: int = 1) -> list:
    """Every engine's (place, item) pairs -> the items by place, the same on every rank."""
    return [item for _, item in sorted(gather(items, tensor_parallel), key=lambda pair: pair[0])]


def on_every_rank(check: Callable, *args):
    """check(*args) on every rank; where any of them raises ValueError all do, so that none waits
    for one that has ended."""
    try:
        result, error = check(*args), ""
    except ValueError as problem:
        result, error = None, str(problem)
    errors = [text for text in gather([error]) if text]
    if errors:
        raise ValueError(errors[0])
    return result


# ------------------------------------------------------------------------------------ a micro-batch


@dataclass
class Batch:
    """A micro-batch of B responses. float32; log-probs in nats; 0 on pads. Its optional fields are
    None in frozen passes, and where the settings need none of it."""

    ids: Tensor  # (B, L) prompt and response tokens
    index: Tensor  # (B, T) where in ids the hidden state stands that predicts response token t
    labels: Tensor  # (B, T) response tokens
    mask: Tensor  # (B, T) 1 on response tokens, eos included
    logp_b: Tensor | None = None  # (B, T) behaviour policy pi_{k-i}, which sampled the response
    logp_k: Tensor | None = None  # (B, T) pi_k, the policy at the start of the step
    # "base": pi_base, "prev": pi_{k-1}: log-probs (B, T), or states (B, T, H) for the exact KL
    anchors: dict[str, Tensor] = field(default_factory=dict)
    advantages: Tensor | None = None  # (B, T) A^{pi_k}
    values: Tensor | None = None  # (B, T) the critic's at the start of the step
    returns: Tensor | None = None  # (B, T)
    weight: Tensor | float = 1.0  # (B, T) for the engine's own error (--engine_weight)
    age: Tensor | None = None  # (B,) steps since the response was sampled
    replayed: Tensor | None = None  # (B,) True if it came out of the buffer
    responses: list[Response] = field(default_factory=list)  # what was collated for the update

    def to(self, device: str) -> "Batch":
        def there(x):
            if isinstance(x, dict):
                return {k: there(v) for k, v in x.items()}
            return x.to(device) if isinstance(x, Tensor) else x

        return Batch(**{k: there(v) for k, v in vars(self).items()})


def pad(rows: list[Tensor]) -> Tensor:
    """(T_b,) or (T_b, H) each -> (B, T) or (B, T, H), zeros to the right."""
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


def collate(responses: list[Response]) -> Batch:
    """What any forward pass needs of the responses, on the CPU."""
    ids = pad([torch.tensor(r.prompt + r.tokens) for r in responses])
    labels = pad([torch.tensor(r.tokens) for r in responses])
    start = torch.tensor([[len(r.prompt)] for r in responses])  # (B, 1)
    size = torch.tensor([[len(r.tokens)] for r in responses])
    place = torch.arange(labels.shape[1])
    mask = place < size
    index = torch.where(mask, start - 1 + place, 0)  # the state before token t predicts it
    return Batch(ids, index, labels, mask.float())


def collate_for_update(responses: list[Response], step: int) -> Batch:
    """The same with everything that the losses need; step: the present one, for ages."""
    x = collate(responses)
    for name in ("logp_b", "logp_k", "advantages", "values", "returns"):
        if getattr(responses[0], name) is not None:
            setattr(x, name, pad([getattr(r, name) for r in responses]))
    for name in ("base", "prev"):
        if getattr(responses[0], name) is not None:
            x.anchors[name] = pad([getattr(r, name) for r in responses])
    if responses[0].weight is not None:
        x.weight = pad([r.weight for r in responses])
    x.age = torch.tensor([step - r.step for r in responses])
    x.replayed = torch.tensor([r.replayed for r in responses])
    x.responses = responses
    return x


# --------------------------------------------------------------------------- dealing, frozen passes

MICRO_BATCH_COST = 128  # tokens: what one costs by itself, in launches, collectives and Python


def deal(lengths: list[int], budget: int, world: int) -> list[list[list[int]]]:
    """Deal samples to ranks; cut the shares into micro-batches of similar length, all ranks alike.

    lengths: tokens of each sample; budget: padded tokens a micro-batch (a longer sample goes
    alone). With FSDP a layer waits for all ranks, so what counts is the longest of the k-th
    micro-batches: neighbours by length go to different ranks, and every rank is cut at the same
    places. The cuts are those of the fewest padded tokens, a micro-batch counting as
    MICRO_BATCH_COST more. -> for each rank its micro-batches (lists of indices); as many for every
    rank, some may be empty: FSDP's collectives need every rank to run each of them. Depends on its
    arguments alone, so all ranks agree without talking.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    hands = [order[n : n + world] for n in range(0, len(order), world)]  # one for each rank
    hands[1::2] = [hand[::-1] for hand in hands[1::2]]  # to and fro: none gets all the longest
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
    shares = range(world)
    return [
        [[hand[rank] for hand in part if rank < len(hand)] for part in rounds] for rank in shares
    ]


def my_share(responses: list[Response], budget: int) -> list[list[int]]:
    lengths = [len(r.prompt) + len(r.tokens) for r in responses]
    return deal(lengths, budget, dist.get_world_size())[dist.get_rank()]


def micro_batches(
    responses: list[Response], step: int, budget: int, device: str, models: Iterable[nn.Module]
) -> Iterator[Batch]:
    """This rank's micro-batches of a mini-batch. Their losses add up to the mini-batch's."""
    share = my_share(responses, budget)
    for i, indices in enumerate(share, 1):
        for model in models:  # HSDP: nodes add up their gradients after the last one only
            if isinstance(model, FSDPModule):
                model.set_requires_all_reduce(i == len(share))
        x = collate_for_update([responses[i] for i in indices or [0]], step)
        if not indices:  # out of work: run along, FSDP's collectives need it, and learn nothing
            x.mask.zero_()
            x.responses = []
        yield x.to(device)


@torch.no_grad()
def frozen_pass(
    model: nn.Module, responses: list[Response], budget: int, device: str, states: bool = False
) -> list[Tensor]:
    """Log-probs (of a Policy; with states its last hidden states) or values (of a Critic) of the
    responses, the ranks sharing the work -> a CPU tensor (T,) float32, or (T, H) as the model
    computes them, for each, on every rank: every pass of an update deals the responses anew."""
    if not responses:
        return []
    sizes = [len(r.tokens) for r in responses]
    flat = None  # all responses end to end, 0 where another rank computes
    with here(model):
        for indices in my_share(responses, budget):
            # [0]: out of work, see above
            x = collate([responses[i] for i in indices or [0]]).to(device)
            rows = model(x, states=True) if states else model(x)
            rows = (rows if isinstance(rows, Tensor) else rows[0]).cpu()
            if flat is None:
                flat = rows.new_zeros(sum(sizes), *rows.shape[2:])
                results = flat.split(sizes)
            for b, i in enumerate(indices):
                results[i].copy_(rows[b, : sizes[i]])
        if is_sharded(model):
            model.reshard()  # without a backward pass the root would stay whole on every rank
    if dist.get_world_size() > 1:
        dist.all_reduce(flat)
    return [result.clone() for result in results]  # on its own: the buffer keeps some for steps


# ---------------------------------------------------------------------------------------- gradients


def backward(loss: Tensor) -> None:
    """The loss is a sum over the ranks, and gradients are averaged over them: hence the factor."""
    (loss * dist.get_world_size()).backward()


def clip_gradients(model: nn.Module, most: float) -> float:
    """The mini-batch's gradient on every rank, cut down to the norm `most` -> its norm before."""
    world = dist.get_world_size()
    if world > 1 and not is_sharded(model):  # FSDP2 has averaged already
        used = [p for p in model.parameters() if p.requires_grad]
        for p in used:  # no token of this rank may have seen an expert that others trained
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        grads = [p.grad for p in used]
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        for g, part in zip(grads, flat.div_(world).split([g.numel() for g in grads]), strict=True):
            g.copy_(part.view_as(g))
    norm = nn.utils.clip_grad_norm_(model.parameters(), most)
    return whole(norm).item()


# --------------------------------------------------------- what a phase does not need (--offload)

# A network or an optimizer off the device -> its storages there, each with its bytes on the host
away: dict[nn.Module | torch.optim.Optimizer, list[tuple[torch.UntypedStorage, Tensor]]] = {}


@torch.no_grad()
def park(*things: nn.Module | torch.optim.Optimizer) -> None:
    """Off the device, weights or optimizer states, into host memory (pinned, where there is a GPU).
    Their storages are emptied, as FSDP2 does with gathered weights: whoever has a view of one,
    FSDP2 or a tied layer, holds no memory, and sees the values again after `fetch`."""
    for thing in things:
        assert thing not in away, "its values would be lost"
        if isinstance(thing, nn.Module):
            tensors = [*thing.parameters()]
        else:
            tensors = [t for state in thing.state.values() for t in state.values()]
        for t in tensors:
            if not local(t).untyped_storage().resizable():  # a plain model's, read from a file
                t.data = t.data.clone()
        storages = [local(t).untyped_storage() for t in tensors]
        away[thing] = []
        for storage in {s.data_ptr(): s for s in storages if s.nbytes()}.values():
            there = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
            kept = torch.empty(len(there), dtype=torch.uint8, pin_memory=there.is_cuda)
            away[thing].append((storage, kept.copy_(there)))
            storage.resize_(0)


def fetch(*things: nn.Module | torch.optim.Optimizer | None) -> list:
    """Back onto the device -> those that were away, for `park`. The others stay as they are."""
    fetched = [thing for thing in things if thing in away]
    for thing in fetched:
        for storage, kept in away.pop(thing):
            storage.resize_(kept.nbytes)
            storage.copy_(kept.untyped_storage())
    return fetched


@contextmanager
def here(*things: nn.Module | torch.optim.Optimizer) -> Iterator[None]:
    """On the device inside, and afterwards where they were before."""
    fetched = fetch(*things)
    try:
        yield
    finally:
        park(*fetched)


# ----------------------------------------------------------------------------------------- sharding


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor in full, which every rank must ask for; the tensor itself where it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; the tensor itself where nothing is sharded."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def is_sharded(model: nn.Module) -> bool:
    """By FSDP2, or an adapter on a model that is (lora.py)."""
    return hasattr(model, "reshard")


@functools.cache
def device_mesh(device: str, kind: str) -> DeviceMesh:
    """The ranks as FSDP2 sees them (--shard). "all": one line of shards over every rank. "node":
    each of several nodes holds a whole set of shards (HSDP), so that only gradients cross the
    network, once a mini-batch. "none": the same with every rank as a node of its own."""
    world = dist.get_world_size()
    gpus = dict(all=world, node=int(os.environ.get("LOCAL_WORLD_SIZE", world)), none=1)[kind]
    if gpus == world:
        return init_device_mesh(device, (world,))
    return init_device_mesh(device, (world // gpus, gpus), mesh_dim_names=("nodes", "gpus"))


def shard(
    model: nn.Module, layers: Iterable[nn.Module], exact: Iterable[nn.Module],
    source: nn.Module | None, device: str, dtype: torch.dtype, kind: str,
) -> None:  # fmt: skip
    """FSDP2 around a model on the meta device, computing in dtype, `exact` in float32; kind:
    --shard. layers: what is gathered at a time. Rank 0 hands out the weights of `source` (None on
    the others) tensor by tensor, so no other rank ever holds a whole model."""
    precision = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    mesh = device_mesh(device, kind)
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=precision)
    for layer in exact:
        in_full = MixedPrecisionPolicy(param_dtype=torch.float32, reduce_dtype=torch.float32)
        fully_shard(layer, mesh=mesh, mp_policy=in_full)
    fully_shard(model, mesh=mesh, mp_policy=precision)
    model.to_empty(device=device)  # only this rank's shards
    weights = source.state_dict() if source else {}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, weights, options=options)
    values = iter(source.buffers()) if source else None  # rotary frequencies: in no state dict
    for buffer in model.buffers():
        if values:
            buffer.copy_(next(values))
        dist.broadcast(buffer, 0)
