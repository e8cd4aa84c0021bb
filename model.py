"""The networks: policy, frozen anchors and critic around any `AutoModelForCausalLM`.

B responses x T response tokens; L tokens of prompt + response; H hidden size; V vocabulary; N
response tokens of a micro-batch (parallel.Batch is the legend). Temperature and precision live
here, so that every log-prob of the trainer is of the distribution that the sampler draws from.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import revert_weight_conversion

import parallel
from data import TRUST
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
    of p = softmax(logits / temperature), logits = rows weight^T + bias, and where the model has a
    cap: cap tanh(logits / cap). A scale of the logits is a part of the temperature.

    rows (N, H), weight (V, H), bias (V,) or None, labels (N,) -> logp, H, KL_1, KL_2, ... float32.
    The logits (N, V) never exist as a whole: a buffer holds those of a chunk of rows, as the head's
    dtype has them (each anchor has one too, all of them together LOGITS_PER_CHUNK), and float32
    math goes through it in small parts. The backward pass computes the logits again (the last
    chunk's are still there) and turns them in place into the gradient:
        d logp / d logits = (onehot(label) - p) / temperature
        d H    / d logits = -p (log p + H) / temperature
        d KL_a / d logits =  p (log p - log q_a - KL_a) / temperature
    and with a cap each times its slope, 1 - tanh^2(logits / cap).
    """

    @staticmethod
    def forward(
        ctx, rows, weight, bias, labels, temperature: float, anchors: tuple[Anchor, ...],
        cap: float | None = None, math: tuple[Callable, Callable] | None = None,
    ):  # fmt: skip
        ctx.of_terms, ctx.of_logits = math or (row_terms, row_gradients)
        heads = [(rows, weight, bias), *anchors]
        chunk = min(max(1, LOGITS_PER_CHUNK // (len(weight) * len(heads))), max(1, len(rows)))
        per_part = LOGITS_PER_PART_GPU if rows.is_cuda else LOGITS_PER_PART
        ctx.part = max(1, per_part // len(weight))
        ctx.temperature, ctx.anchors, ctx.chunk, ctx.cap = temperature, anchors, chunk, cap
        ctx.buffers = [rows.new_empty(chunk, len(weight)) for _ in heads]
        exact = torch.promote_types(rows.dtype, torch.float32)
        terms = rows.new_zeros(2 + len(anchors), len(rows), dtype=exact)
        for start in range(0, len(rows), chunk):
            at = slice(start, start + chunk)
            logits = chunk_logits(heads, at, ctx.buffers)
            for row in parts(ctx.part, *logits, labels[at], *terms[:, at]):
                (z, *others), (y, *out) = row[: len(heads)], row[len(heads) :]
                values = ctx.of_terms(z, others, y, temperature, cap)
                for term, value in zip(out, values, strict=True):
                    term.copy_(value)
        logp, *kept = terms.unbind()
        ctx.save_for_backward(rows, weight, bias, labels, *kept)
        return logp, *kept

    @staticmethod
    def backward(ctx, d_logp: Tensor, *d_terms: Tensor):
        rows, weight, bias, labels, *terms = ctx.saved_tensors
        # Sums over the chunks: in bfloat16 they would be the worse the more chunks there are
        exact = torch.promote_types(weight.dtype, torch.float32)
        d_rows, d_weight = torch.empty_like(rows), None
        if ctx.needs_input_grad[1]:  # not LoRA's, and it is large
            d_weight = torch.zeros_like(weight, dtype=exact)
        d_bias = None if bias is None else torch.zeros_like(bias, dtype=exact)
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
                (z, *others), (y, dl), own = row[:n], row[n : n + 2], row[n + 2 :]
                d = ctx.of_logits(z, others, y, dl, own[:n], own[n:], ctx.temperature, ctx.cap)
                z.copy_(d)
            torch.mm(logits[0], weight, out=d_rows[at])
            if d_weight is not None and weight.dtype == exact:
                d_weight.addmm_(logits[0].T, rows[at])
            elif d_weight is not None:
                d_weight += logits[0].T @ rows[at]
            if bias is not None:
                d_bias += logits[0].sum(0, dtype=exact)
        return d_rows, d_weight, d_bias, *[None] * 5


def row_terms(
    z: Tensor, others: list[Tensor], y: Tensor, temperature: float, cap: float | None
) -> tuple[Tensor, ...]:
    """Logits (n, V), those of each anchor, labels (n,) -> log-prob, H, KL_1, ... (n,) each."""
    log_p = log_softmax(z, temperature, cap)
    p = torch.exp(log_p)
    kls = ((p * (log_p - log_softmax(other, temperature, cap))).sum(-1) for other in others)
    return log_p.gather(-1, y[:, None]).squeeze(-1), -(p * log_p).sum(-1), *kls


def row_gradients(
    z: Tensor, others: list[Tensor], y: Tensor, dl: Tensor, terms: tuple, d_terms: tuple,
    temperature: float, cap: float | None,
) -> Tensor:  # fmt: skip
    """The gradient (n, V) for the logits z: of the log-probs' dl, and of the terms' d_terms, which
    are, like the labels, (n, 1)."""
    (H, *kls), (dh, *d_kls) = terms, d_terms
    dl, dh = dl / temperature, dh / temperature
    log_p = log_softmax(z, temperature, cap)
    # -(dl + dh (log p + H)): what walks over the vocabulary costs, so in one go
    of_p = torch.addcmul(-dl - dh * H, dh, log_p, value=-1)
    for other, kl, dk in zip(others, kls, d_kls, strict=True):
        of_p += dk / temperature * (log_p - log_softmax(other, temperature, cap) - kl)
    d = torch.exp(log_p).mul_(of_p).scatter_add_(-1, y, dl)
    if cap:
        d *= 1 - torch.tanh(z.to(d.dtype) / cap).square()
    return d


def parts(size: int, *tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """The tensors side by side, so many rows at a time (views)."""
    return zip(*(t.split(size) for t in tensors), strict=True)


def log_softmax(logits: Tensor, temperature: float, cap: float | None = None) -> Tensor:
    """(n, V) -> (n, V), at least in float32."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if cap:
        logits = cap * torch.tanh(logits / cap)
    return torch.log_softmax(logits if temperature == 1 else logits / temperature, dim=-1)


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
        self.lm, (scale, cap) = lm, output_function(lm.config)
        self.temperature, self.cap = temperature / scale, cap and cap / scale
        self.math = None  # of the head, where it is compiled

    def weights(self) -> Iterable[tuple[str, Tensor]]:
        """By their names in the language model, as they are sharded and stored."""
        return self.lm.state_dict().items()

    def forward(self, x: Batch, heads: dict[str, tuple] | None = None, states: bool = False):
        """-> logp, entropy (B, T) of the response tokens, float32 nats, 0 where the mask is; and
        the exact KL (B, T) to each anchor of `heads`, which holds their output layers
        (`whole_head`). states: their last hidden states instead, (B, T, H), which is what x.anchors
        then wants.
        """
        hidden = hidden_states(self.lm.get_decoder(), x)  # (B, L, H)
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
        terms = TokenTerms.apply(
            rows, head.weight, head.bias, labels, self.temperature, anchors, self.cap, self.math
        )
        logp, H, *kl = (term.new_zeros(x.mask.shape).index_put(where, term) for term in terms)
        return logp, H, dict(zip(heads or (), kl, strict=True))


class Critic(nn.Module):
    """V(prefix) before each response token: the language model's own trunk (of a multimodal one the
    part that reads text) and a linear head that starts at 0, always in float32: in bfloat16 V
    would move in steps of 0.004."""

    def __init__(self, lm: nn.Module):
        super().__init__()
        self.trunk, self.head = lm.get_decoder(), value_head(lm)

    def forward(self, x: Batch) -> Tensor:
        """-> values (B, T) float32, 0 where the mask is."""
        hidden = hidden_states(self.trunk, x)  # (B, L, H)
        hidden = hidden.gather(1, x.index[..., None].expand(-1, -1, hidden.shape[-1]))
        return self.head(hidden.float().flatten(0, 1)).view_as(x.mask) * x.mask


def value_head(lm: nn.Module) -> nn.Linear:
    head = nn.Linear(lm.get_output_embeddings().weight.shape[1], 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def load_model(
    kind: type, name: str, *, device: str, dtype: str, temperature: float = 1.0,
    frozen: bool = False, checkpointing: bool = False, attention: str = "sdpa", shard: str = "node",
    compiled: bool = False, adapt: Callable[[Policy], None] | None = None,
) -> nn.Module:  # fmt: skip
    """A Policy or Critic from a folder or hub name. Trained weights are float32 masters computed in
    `dtype`; frozen ones are stored in `dtype`. Rank 0 alone reads the weights where they are
    sharded (parallel.shard); a float32 model on CPU that is not sharded is a plain module.
    compiled: each layer by torch.compile, when it is first used.
    adapt: puts LoRA's adapters into a Policy; what they stand on is stored in `dtype`, too.
    ValueError, on every rank, if ReMix does not compute what the model does."""
    compute = getattr(torch, dtype)
    stored = compute if frozen or adapt else torch.float32

    def build(whole: bool) -> nn.Module:
        # What adapters stand on is read in float32, as it is compared with its own logits
        options = dict(dtype=torch.float32 if whole and adapt else stored)
        options |= model_options(name, attention)
        if whole:
            if attention != "sdpa":  # read on a CPU, which has no flash attention
                options["attn_implementation"] = "eager"
            lm = read_model(name, **options)
        else:
            lm = AutoModelForCausalLM.from_config(**options, **TRUST)
        if checkpointing and not frozen:
            if not lm.supports_gradient_checkpointing:
                raise ValueError(
                    f"--gradient_checkpointing: transformers has none for {name}, of the type "
                    f"{lm.config.model_type!r}; use --no_gradient_checkpointing"
                )
            recompute = dict(use_reentrant=False)
            lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs=recompute)
        model = Policy(lm, temperature) if kind is Policy else Critic(lm)
        model.train(not frozen).requires_grad_(False)
        for part in (lm.get_decoder(), lm.get_output_embeddings()) if kind is Policy else [model]:
            part.requires_grad_(not frozen)  # all but the vision tower of a multimodal model
        if adapt:
            adapt(model)
        return model

    if adapt:  # what it refuses is refused before weights are read
        with torch.device("meta"):
            build(whole=False)
    plain = (
        device == "cpu" and dtype == "float32" and (shard == "none" or dist.get_world_size() == 1)
    )

    def read() -> nn.Module | None:
        source = build(whole=True) if plain or dist.get_rank() == 0 else None
        if source and kind is Policy and not frozen:  # the others are of the same family
            check_policy(source, name, attention)
        return source

    source = parallel.on_every_rank(read)
    if plain:
        return compile_layers(source) if compiled else source
    with torch.device("meta"):  # shapes without memory
        model = build(whole=False)
    if source and adapt:
        for here, there in zip(source.parameters(), model.parameters(), strict=True):
            here.data = here.data.to(there.dtype)
    exact = [model.head] if hasattr(model, "head") else []
    parallel.shard(model, blocks(model), exact, source, device, compute, shard)
    if kind is Policy and not frozen:
        parallel.on_every_rank(check_shards, model, source, name, device)
    if source and kind is Policy:  # what an export needs, and a configuration alone does not have
        for kept in ("generation_config", "_weight_conversions"):
            setattr(model.lm, kept, getattr(source.lm, kept, None))
    return compile_layers(model) if compiled else model


def compile_layers(model: nn.Module) -> nn.Module:
    """--compile: the layers, and the float32 math of a Policy's head. The layers' forward alone, so
    that FSDP2's hooks and checkpointing stay outside; for any lengths, as every micro-batch has its
    own."""
    for block in blocks(model):
        block.forward = torch.compile(block.forward, dynamic=True)
    if isinstance(model, Policy):
        model.math = tuple(torch.compile(f, dynamic=True) for f in (row_terms, row_gradients))
    return model


def blocks(model: nn.Module) -> list[nn.Module]:
    """The layers that transformers itself never splits over devices, inner ones first."""
    lm = model.lm if isinstance(model, Policy) else model.trunk
    known = lm._no_split_modules  # by the class, of which FSDP2 makes a subclass
    inner_first = reversed([*lm.modules()])
    return [m for m in inner_first if any(c.__name__ in known for c in type(m).__mro__)]


# ------------------------------------------------------------------- what is special about a family

# config's names for a factor of the logits, and whether it multiplies or divides
SCALES = dict(logit_scale=1, lm_head_multiplier=1, output_multiplier=1, logits_scaling=-1)


def output_function(config) -> tuple[float, float | None]:
    """scale and cap of logits = cap tanh(scale (W h + b) / cap), by the family's configuration.
    Of what is not known here `check_policy` sees that it is missing."""
    text, scale = config.get_text_config(), 1.0
    for name, power in SCALES.items():
        scale *= (getattr(text, name, None) or 1.0) ** power
    return scale, getattr(text, "final_logit_softcapping", None) or None


def model_options(name: str, attention: str = "sdpa") -> dict:
    """How transformers must build a model, for the trainer and --engine hf alike: its config
    without noise, as a log-prob with dropout is not the sampled policy's, and an attention that
    knows the family's cap on its scores (SDPA leaves it out without a word)."""
    config = AutoConfig.from_pretrained(name, **TRUST)
    for part in {id(c): c for c in (config, config.get_text_config())}.values():
        for key, value in vars(part).items():
            if ("drop" in key or "jitter" in key) and isinstance(value, float):
                setattr(part, key, 0.0)
    if attention == "sdpa":  # None: the same, or eager where the family has nothing else
        capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
        attention = "eager" if capped else None
    return dict(config=config, attn_implementation=attention)


def read_model(name: str, **options) -> nn.Module:
    """The language model from a folder or hub name. ValueError in one sentence where it cannot be
    read, or where its files lack a weight: transformers would fill it at random, with a warning."""
    try:
        options |= TRUST | dict(output_loading_info=True)
        lm, report = AutoModelForCausalLM.from_pretrained(name, **options)
    except Exception as error:  # transformers raises many kinds; the user needs the sentence
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"--model {name}: cannot be read ({reason}); take another") from error
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"--model {name}: its files lack {missing[0]} ({len(missing)} weights in all), so they "
            "are not those of a whole language model; take another"
        )
    return lm


@torch.no_grad()
def check_policy(policy: Policy, name: str, attention: str) -> None:
    """ValueError unless the policy's log-probs, padded and in the mode of training, are those of
    the model's own logits, a row at a time, by eager attention. This finds a step behind the trunk
    that `output_function` does not know, attention that SDPA computes otherwise or that looks to
    the right, and noise."""
    lm, trained = policy.lm, policy.training
    used, text = lm.config._attn_implementation, lm.config.get_text_config()
    x = probe(text.vocab_size).to(lm.device)
    what = f"--model {name}: of the type {lm.config.model_type!r}"
    tied = lm.config.tie_word_embeddings and lm._tied_weights_keys
    try:
        if tied and lm.get_output_embeddings().weight is not lm.get_input_embeddings().weight:
            raise ValueError("its config.json ties two layers that differ in its weights")
        ours, _, _ = policy(x)
        lm.eval().set_attn_implementation("eager")
        gaps = []
        scale, _ = output_function(lm.config)
        for b, n in enumerate(x.mask.sum(1).int().tolist()):
            logits = lm(input_ids=x.ids[b : b + 1, : n + 1], use_cache=False).logits[0, :-1]
            exact = torch.log_softmax(logits.float() / (policy.temperature * scale), -1)
            gaps.append(exact.gather(-1, x.labels[b, :n, None])[:, 0] - ours[b, :n])
        # Where two experts tie, rounding may decide for one token: hence no mean
        gap = max(row.abs().median().item() for row in gaps)
        lm.train(trained).set_attn_implementation(used)
    except Exception as error:  # a family may fail in any way; the user needs the sentence
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ValueError(
            f"{what} ReMix cannot compute log-probs ({reason}); take another"
        ) from error
    if not gap <= 1e-4:
        raise ValueError(
            f"{what} ReMix computes log-probs that are {gap:.2g} nats off the model's own (in its "
            "output layer, attention or positions it does what ReMix does not know); take another "
            "family, docs/models.md lists those that are right"
        )
    if attention != "sdpa" and not packing_is_exact(lm, x):
        raise ValueError(
            f"{what} --attention {attention} would let responses see each other, as its layers do "
            "not stop at the end of one; use --attention sdpa"
        )


def probe(vocabulary: int) -> Batch:
    """Two rows of 32 and 12 random tokens, all but the first of each a response."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(min(1000, vocabulary), (2, 32), generator=draw)
    ids[1, 12:] = 0  # pads
    place = torch.arange(31)
    mask = (place < torch.tensor([[31], [11]])).float()
    return Batch(ids, (place * mask).long(), ids[:, 1:], mask)


@torch.no_grad()
def check_shards(policy: Policy, source: Policy | None, name: str, device: str) -> None:
    """ValueError unless the shards compute what the model did before, but for rounding: some layers
    mix dtypes in a way that ends in an error, or need a buffer that no shard has. source: on rank 0
    alone."""
    what = f"--model {name}: of the type {policy.lm.config.model_type!r} it cannot be sharded"
    x = probe(policy.lm.config.get_text_config().vocab_size)
    try:
        ours, _, _ = policy(x.to(device))
        policy.reshard()
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{what} ({reason}); take another") from error
    if source:
        theirs, _, _ = source(x.to(source.lm.device))
        gap = (ours.cpu() - theirs.cpu())[x.mask.bool()].abs().median().item()
        if not gap <= 0.5:  # nats; bfloat16's own are a tenth of it
            raise ValueError(f"{what} (log-probs are {gap:.2g} nats off); take another")


def packing_is_exact(lm: nn.Module, x: Batch) -> bool:
    """Whether rows end to end, as flash attention gets them, are the same as padded ones."""
    trunk = lm.get_decoder()
    padded, packed = trunk(input_ids=x.ids, use_cache=False)[0], packed_states(trunk, x)
    real = x.mask.bool()
    return torch.allclose(padded[:, :-1][real], packed[:, :-1][real], atol=1e-4, rtol=1e-3)


# ------------------------------------------------------------------------------------------ weights


@torch.no_grad()
def copy_weights(target: nn.Module, source: nn.Module) -> None:
    """target <- source, tensor by tensor (same architecture and sharding; the dtype may differ)."""
    with parallel.here(target, source):
        for t, s in zip(target.parameters(), source.parameters(), strict=True):
            parallel.local(t).copy_(parallel.local(s))


def whole_head(policy: Policy, dtype: str) -> tuple[Tensor, Tensor | None]:
    """A copy of the output layer, weight (V, H) and bias or None, whole on every rank; all must
    call it. The exact KL needs the anchors' (Policy.forward)."""
    head = policy.lm.get_output_embeddings()
    to = getattr(torch, dtype)
    with parallel.here(policy):
        weight, bias = (
            None if t is None else parallel.whole(t.detach().to(to, copy=True))
            for t in (head.weight, head.bias)
        )
    return weight, bias


def full_weights(policy: Policy, dtype: str | None = None) -> Iterator[tuple[str, Tensor]]:
    """(name, whole tensor) over the language model's state_dict, one at a time; every rank must
    iterate to the end. dtype: what the sampler computes in; the shards are cast before they travel.
    None: as they are stored."""
    for name, tensor in policy.weights():
        tensor = tensor.detach()
        yield name, parallel.whole(tensor if dtype is None else tensor.to(getattr(torch, dtype)))


def checkpoint_format(
    lm: nn.Module, weights: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """full_weights under the names, and cut into the pieces, of the family's checkpoints, which is
    what vLLM reads: in memory the experts of Mixtral are one tensor. lm: may be on the meta
    device."""
    rules = get_model_conversion_mapping(lm, add_legacy=False)
    if any(len(rule.target_patterns) > 1 for rule in rules):  # a piece on disk is several in memory
        weights = [dict(weights)]
    else:
        weights = ({name: tensor} for name, tensor in weights)
    for part in weights:
        yield from (revert_weight_conversion(lm, part) if rules else part).items()
