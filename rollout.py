"""Sampling: vLLM inside the training process, or transformers alone where vLLM cannot be installed.

Two engines, one interface (`make_engine`), both with the log-prob of every sampled token under the
    sampled policy: generate(prompts, n, seeds=..., ...) -> for each prompt n Samples; sync(weights)
    puts the trainer's weights in; close()

- Training needs temperature-scaled, unfiltered log-probs (top_p = 1): exact importance ratios. vLLM
  gives them with logprobs_mode="processed_logprobs"; the trainer divides its logits by the same
  temperature.
- Seeds are per response (seed + j for the j-th of a prompt), so a response does not depend on which
  others were sampled beside it, nor on the number of ranks.
- A weight sync that goes wrong is silent and fatal. So every run starts with one of changed weights
  (`prove_sync`), and in every step and evaluation engine and trainer are compared (`check_engine`).
- vLLM under torchrun: one engine a rank (`external_launcher`); the process group must exist before
  `make_engine`.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from tokenizers.decoders import DecodeStream
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

import parallel
from buffer import Response
from config import Config
from data import TRUST, Problem, stop_tokens
from machine import lap
from model import checkpoint_format, full_weights, model_options, read_model

PROBES = 16  # responses that are compared at a time, of all engines together, and their tokens


class Sample(NamedTuple):
    tokens: list[int]  # response token ids; when finished the last one is eos, or completes a stop
    logp: list[float]  # log-prob of each token under the sampled policy, nats
    finished: bool  # False: cut at max_tokens


def make_engine(
    kind: str,
    model: str,
    *,
    max_prompt_tokens: int,
    max_tokens: int,
    dtype: str = "float32",
    gpu_memory: float = 0.5,
    tensor_parallel: int = 1,
):
    """The sampler of `model` (folder or hub name). kind: "vllm", "hf", or "auto" = vllm where it
    can be imported. max_prompt_tokens, max_tokens: longest prompt and response it must hold.
    gpu_memory: share of the GPU for vLLM."""
    if kind == "auto":
        try:
            import vllm  # noqa: F401

            kind = "vllm"
        except ImportError:
            print("vLLM is not installed: sampling with transformers (--engine hf)")
            kind = "hf"
    if kind == "vllm":
        return VLLMEngine(model, max_prompt_tokens + max_tokens, dtype, gpu_memory, tensor_parallel)
    return HFEngine(model, dtype)


def quiet_vllm() -> None:
    """Environment that vLLM reads at import: in-process engine, no logs, no compilation on CPU (its
    9 s buy nothing for a model of this size). Variables that the user has set are kept."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    for name, value in dict(VLLM_LOGGING_LEVEL="ERROR", VLLM_NO_USAGE_STATS="1").items():
        os.environ.setdefault(name, value)
    if not torch.cuda.is_available():
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    logging.getLogger("vllm").addHandler(logging.NullHandler())
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")


class VLLMEngine:
    def __init__(
        self, model: str, max_model_len: int, dtype: str, gpu_memory: float, tensor_parallel: int
    ):
        parallel.become_a_rank()
        ours = "TORCHDYNAMO_DISABLE" not in os.environ
        quiet_vllm()
        from vllm import LLM, SamplingParams

        self.SamplingParams = SamplingParams
        with torch.device("meta"):  # its layers without weights, for their names
            config = AutoConfig.from_pretrained(model, **TRUST)
            self.lm = AutoModelForCausalLM.from_config(config, **TRUST)
        self.gpu = torch.cuda.is_available()
        # Its attention in bfloat16 takes AMX where the processor has it. The system must be asked
        # for that first; oneDNN would, but tiny.py keeps it from AMX.
        amx = not self.gpu and dtype == "bfloat16" and torch.cpu._is_amx_tile_supported()
        if amx and not torch.cpu._init_amx():
            raise ValueError(
                "--dtype bfloat16: this machine announces AMX and refuses it, and vLLM would die "
                "of that; add --dtype float32 or --engine hf"
            )
        if self.gpu:
            args = dict(gpu_memory_utilization=gpu_memory, enable_sleep_mode=True)
        else:
            # Chunked prefill crashes seeded requests on a CPU; blocks of 32 double the speed of
            # shared prefixes
            args = dict(
                kv_cache_memory_bytes=1 << 30, enforce_eager=True, block_size=32,
                enable_chunked_prefill=False, max_num_batched_tokens=max(max_model_len, 8192),
            )  # fmt: skip
        args |= dict(
            dtype=dtype, max_model_len=max_model_len, seed=0, tensor_parallel_size=tensor_parallel,
            distributed_executor_backend="external_launcher", logprobs_mode="processed_logprobs",
            generation_config="vllm", enable_prefix_caching=True, use_tqdm_on_load=False,
            disable_log_stats=True, **TRUST,
        )  # fmt: skip
        with undisturbed(type(self.lm.get_decoder())) as give_back:
            try:
                self.llm = LLM(model, **args)
            except Exception as error:  # it knows less families than transformers, and says it long
                reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
                raise ValueError(
                    f"--engine vllm: does not run {model}, of the type "
                    f"{self.lm.config.model_type!r} ({reason}); use --engine hf"
                ) from error
        if ours:  # or --compile would do nothing for the models that are loaded after it
            os.environ.pop("TORCHDYNAMO_DISABLE", None)
        engine_model = self.llm.apply_model(lambda m: m)[0]
        give_back(engine_model)
        # Without a head of its own (Gemma 2) it wants none; with one it wants it, tied or not
        heads = self.lm.all_tied_weights_keys
        self.unknown = {name for name in heads if not hasattr(engine_model, name.split(".")[0])}
        # On a CPU it packs experts when it starts and never again (0.32): a sync would garble them
        self.packed = not self.gpu and any(hasattr(m, "w13_weight") for m in engine_model.modules())
        self.asleep: set[str] = set()  # what of the engine's GPU memory is given away
        self.sleep()

    def sleep(self) -> None:
        """Give the GPU memory to the trainer (level 1: weights to the host; level 2 has woken up as
        garbage)."""
        # A sync without a rollout has woken the weights alone
        if self.gpu and "weights" not in self.asleep:
            self.llm.sleep(level=1)
            self.asleep = {"weights", "kv_cache"}

    def wake(self, *tags: str) -> None:
        for tag in tags:
            if tag in self.asleep:
                torch.cuda.empty_cache()
                self.llm.wake_up(tags=[tag])
                self.asleep.remove(tag)

    def sync(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Replace the engine's weights. weights: (name, full tensor) over state_dict(), tied heads
        included (named_parameters() leaves a tied model's old head in place). The prefix cache
        holds the old policy's keys."""
        if self.packed:
            raise WrongWeights(
                f"--engine vllm: on a CPU it cannot take new weights for the experts of a "
                f"{self.lm.config.model_type!r} model; use --engine hf"
            )
        self.wake("weights")
        known = ((name, tensor) for name, tensor in weights if name not in self.unknown)
        known = checkpoint_format(self.lm, known)
        try:
            with nothing_is_lost():
                self.llm.collective_rpc("reload_weights", kwargs=dict(weights_iterator=known))
        except (ValueError, KeyError) as error:  # a name of the checkpoint that vLLM does not take
            raise WrongWeights(
                f"--engine vllm: does not take the weights of a {self.lm.config.model_type!r} "
                f"model ({' '.join(str(error).split())[:100]}); use --engine hf"
            ) from error
        self.llm.reset_prefix_cache()

    def excerpt(self) -> dict[str, torch.Tensor]:
        """A part of every tensor that it computes with (`excerpt`)."""
        return self.llm.apply_model(excerpt)[0]

    def generate(
        self,
        prompts: list[list[int]],
        n: int = 1,
        *,
        seeds: list[int],
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_tokens: int,
        stop: Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
    ) -> list[list[Sample]]:
        """n samples of each prompt (token ids). seeds: one a prompt, at least n apart: sample j
        uses seed + j. stop, stop_token_ids: texts and tokens that end a response, beside the
        model's own ends; the token that completes a text is kept whole."""
        if not prompts:
            return []
        self.wake("weights", "kv_cache")
        params = [
            self.SamplingParams(
                n=n, seed=seed, temperature=temperature, top_p=top_p, top_k=0,
                max_tokens=max_tokens, logprobs=0, flat_logprobs=True, detokenize=bool(stop),
                stop=list(stop), stop_token_ids=list(stop_token_ids),
                include_stop_str_in_output=True, skip_special_tokens=False,
            )
            for seed in seeds
        ]  # fmt: skip
        outputs = self.llm.generate(
            [dict(prompt_token_ids=p) for p in prompts], params, use_tqdm=False
        )
        return [
            [
                Sample(list(o.token_ids), list(o.logprobs.logprobs), o.finish_reason == "stop")
                for o in request.outputs
            ]
            for request in outputs
        ]

    def close(self) -> None:
        """Free the engine. vLLM destroys the default process group with it: call this last."""
        # Or its allocator unmaps twice what sleeps (vLLM's cumem.py, from source)
        self.wake("weights", "kv_cache")
        self.llm.llm_engine.engine_core.shutdown()


@contextmanager
def nothing_is_lost() -> Iterator[None]:
    """Around vLLM's loading, which only warns of parameters that nothing was sent for: WrongWeights
    that names them."""
    said: list[str] = []
    listener = logging.Handler(logging.WARNING)
    listener.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("vllm.model_executor.model_loader")
    level = logger.level
    logger.addHandler(listener)
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(listener)
    for text in said:
        if "weights were not loaded" in text:
            raise WrongWeights(f"--engine vllm: a weight sync is not whole: {text[:300]}")


@contextmanager
def undisturbed(trunk: type) -> Iterator[Callable]:
    """Around LLM(), which reseeds the global generator, changes the thread count and variables that
    were there (LOCAL_WORLD_SIZE; its own stay), and, where it runs a family through transformers
    (SmolLM3, OLMo 2, StarCoder2), the class of the trunk, which the trainer uses too: a model
    loaded after that would die. -> what undoes that, given the engine's model, whose instances keep
    the changed class."""
    env, threads, rng = dict(os.environ), torch.get_num_threads(), torch.get_rng_state()
    bases, before = trunk.__bases__, dict(vars(trunk))

    def give_back(engine_model: torch.nn.Module) -> None:
        added = tuple(base for base in trunk.__bases__ if base not in bases)
        if not added:
            return
        patched = {
            name: value for name, value in vars(trunk).items() if before.get(name) is not value
        }
        own = type(trunk.__name__, (trunk, *added), patched)
        for module in engine_model.modules():
            if type(module) is trunk:
                module.__class__ = own
        for name in patched:
            if name in before:
                setattr(trunk, name, before[name])
            else:
                delattr(trunk, name)
        trunk.__bases__ = bases

    try:
        yield give_back
    finally:
        os.environ.update(env)
        if "LOCAL_WORLD_SIZE" not in env:
            os.environ.pop("LOCAL_WORLD_SIZE", None)
        torch.set_num_threads(threads)
        torch.set_rng_state(rng)


def token_attention(module, query, key, value, attention_mask, scaling=None, **options):
    """transformers' SDPA, but for a single new token on a CPU. There it repeats the keys and values
    for every query head as soon as a row is padded, and torch's bfloat16 kernel is slow."""
    plain = attention_mask is None or attention_mask.dtype == torch.bool
    if query.shape[2] > 1 or not plain or options.get("position_bias") is not None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
    q, k, v = query.float(), key.float(), value.float()
    out = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=attention_mask, scale=scaling, enable_gqa=True
    )
    return out.to(query.dtype).transpose(1, 2).contiguous(), None


class HFEngine:
    """Sampling with transformers alone. Each row draws from a generator of its own, so seeds mean
    the same as in vLLM."""

    def __init__(self, model: str, dtype: str, tokens: int = 2**18):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        options = dict(dtype=getattr(torch, dtype)) | model_options(model)
        self.lm = read_model(model, **options).eval().to(device)
        if device == "cpu" and self.lm.config._attn_implementation == "sdpa":
            AttentionInterface.register("sdpa_token", token_attention)
            AttentionMaskInterface.register("sdpa_token", sdpa_mask)
            self.lm.set_attn_implementation("sdpa_token")
        # Bound on the cache of the rows decoded together: 7 GiB in bfloat16 for a Qwen2 of 1.5B
        self.tokens = tokens
        self.tokenizer = AutoTokenizer.from_pretrained(model, **TRUST)
        self.eos = stop_tokens(self.tokenizer)
        self.pad = self.eos[0] if self.eos else 0
        self.check(model, dtype)

    @torch.no_grad()
    def check(self, name: str, dtype: str) -> None:
        """ValueError unless padding and cache leave a row's log-probs as they are without both.
        Families that count positions themselves or keep a recurrent state may fail that."""
        what = f"--engine hf: transformers cannot sample {name}, of the type "
        what += f"{self.lm.config.model_type!r}, in batches"
        draw = torch.Generator().manual_seed(0)
        size = min(1000, self.lm.config.get_text_config().vocab_size)
        long, short = (torch.randint(size, (n,), generator=draw).tolist() for n in (24, 5))
        try:
            _, (tokens, logp, _) = self.decode([long, short], [0, 1], 1.0, 1.0, 8)
            ids = torch.tensor([short + tokens], device=self.lm.device)
            alone = self.lm(input_ids=ids, use_cache=False).logits[0, len(short) - 1 : -1].float()
        except Exception as error:  # a family may fail in any way; the user needs the sentence
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ValueError(f"{what} ({reason}); use --engine vllm, or take another") from error
        alone = torch.log_softmax(alone, -1).cpu()[range(len(tokens)), tokens]
        gap = (alone - torch.tensor(logp)).abs().median().item()
        if not gap <= 5 * gap_limit(dtype):
            raise ValueError(
                f"{what} (log-probs are {gap:.2g} nats off); use --engine vllm, or take another"
            )

    def sync(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        own = self.lm.state_dict()
        with torch.no_grad():
            for name, weight in weights:
                own[name].copy_(weight)

    def excerpt(self) -> dict[str, torch.Tensor]:
        """A part of every tensor that it computes with (`excerpt`)."""
        return excerpt(self.lm)

    def sleep(self) -> None:
        """Nothing to free; vLLM's engine has it."""

    @torch.no_grad()
    def generate(
        self,
        prompts: list[list[int]],
        n: int = 1,
        *,
        seeds: list[int],
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_tokens: int,
        stop: Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
    ) -> list[list[Sample]]:
        rows = [(i, seed + j) for i, seed in enumerate(seeds) for j in range(n)]
        samples: list[list[Sample]] = [[] for _ in prompts]
        most = max(1, self.tokens // (max(map(len, prompts), default=0) + max_tokens))
        for chunk in even(rows, most):
            drawn = self.decode(
                [prompts[i] for i, _ in chunk],
                [seed for _, seed in chunk],
                temperature,
                top_p,
                max_tokens,
                stop,
                stop_token_ids,
            )
            for (i, _), sample in zip(chunk, drawn, strict=True):
                samples[i].append(sample)
        return samples

    def decode(
        self,
        prompts: list[list[int]],
        seeds: list[int],
        temperature: float,
        top_p: float,
        max_tokens: int,
        stop: Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
    ) -> list[Sample]:
        """One sample a prompt. Rows that are done leave the batch when a quarter of it is:
        transformers' own generate keeps them to the end, which costs half as much again on uneven
        lengths."""
        device, width = self.lm.device, max(map(len, prompts))
        # A group's prompt is read once
        each = {p: i for i, p in enumerate(dict.fromkeys(map(tuple, prompts)))}
        rows = torch.tensor([each[tuple(p)] for p in prompts], device=device)
        # flush right
        ids = torch.tensor([[self.pad] * (width - len(p)) + [*p] for p in each], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in each], device=device)
        position = (mask.cumsum(1) - 1).clamp(min=0)
        draws = [
            torch.rand(max_tokens, generator=torch.Generator().manual_seed(s), dtype=torch.float64)
            for s in seeds
        ]
        uniform = torch.stack(draws).to(device)
        eos = torch.tensor([*self.eos, *stop_token_ids], device=device)
        completes = [completer(self.tokenizer, prompt, stop) for prompt in prompts if stop]
        tokens = torch.full((len(prompts), max_tokens), self.pad, device=device)
        logps = torch.zeros(len(prompts), max_tokens, device=device)
        length = torch.full((len(prompts),), max_tokens, device=device)
        finished = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        alive, cache = (
            torch.arange(len(prompts), device=device),
            DynamicCache(config=self.lm.config),
        )
        for t in range(max_tokens):
            out = self.lm(
                input_ids=ids, attention_mask=mask, position_ids=position, past_key_values=cache,
                use_cache=True, logits_to_keep=1,
            )  # fmt: skip
            logits = out.logits[:, -1]
            if t == 0 and len(each) < len(rows):
                cache.reorder_cache(rows)
                logits, mask, position = logits[rows], mask[rows], position[rows]
            logp = nucleus(
                torch.log_softmax(logits.float() / max(temperature, 1e-6), dim=-1), top_p
            )
            # The token at which the summed probabilities pass a uniform number
            summed = logp.double().exp().cumsum(-1)
            token = torch.searchsorted(summed, uniform[alive, t, None] * summed[:, -1:], right=True)
            token = token.clamp(max=logp.shape[1] - 1)  # rounding could pass the end
            tokens[alive, t], logps[alive, t] = token[:, 0], logp.gather(-1, token)[:, 0]
            ends = torch.isin(token[:, 0], eos)
            if stop:
                new = zip(alive.tolist(), token[:, 0].tolist(), strict=True)
                ends |= torch.tensor([completes[i](one) for i, one in new], device=device)
            ends &= ~finished[alive]
            length[alive[ends]] = t + 1
            finished[alive[ends]] = True
            going = ~finished[alive]
            if not going.any():
                break
            if going.float().mean() < 0.75:
                kept = going.nonzero()[:, 0]
                cache.reorder_cache(kept)
                alive, token, mask, position = alive[kept], token[kept], mask[kept], position[kept]
            ids, mask = token, torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            position = position[:, -1:] + 1
        ended = zip(
            tokens.tolist(), logps.tolist(), length.tolist(), finished.tolist(), strict=True
        )
        return [Sample(row[:n], logp[:n], done) for row, logp, n, done in ended]

    def close(self) -> None:
        del self.lm


def completer(tokenizer, prompt: list[int], stop: Sequence[str]) -> Callable[[int], bool]:
    """-> of each next token of a response, whether it completes one of the texts. Decoded as vLLM
    does it: behind the prompt, and half a character waits for the other half."""
    stream, text = DecodeStream(ids=prompt, skip_special_tokens=False), ""

    def completes(token: int) -> bool:
        nonlocal stream, text
        try:
            new = stream.step(tokenizer.backend_tokenizer, token)
        except Exception:  # bytes that are no text confuse it: anew from here, as vLLM does
            stream = DecodeStream(skip_special_tokens=False)
            new = stream.step(tokenizer.backend_tokenizer, token)
        text += new or ""
        return any(end in text for end in stop)

    return completes


def even(items: list, most: int) -> list[list]:
    """The items in order, in as few parts of at most `most` as it takes, all of a size to one: a
    small last part would cost as many decoding steps as a full one."""
    n = -(-len(items) // most)
    return [items[len(items) * i // n : len(items) * (i + 1) // n] for i in range(n)]


def nucleus(logp: torch.Tensor, top_p: float) -> torch.Tensor:
    """logp (rows, V) restricted to the smallest set of tokens whose probability reaches top_p, and
    normalised again."""
    if top_p >= 1:
        return logp
    ordered, order = logp.sort(descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    outside = (before >= top_p).scatter(-1, order, before >= top_p)
    return torch.log_softmax(logp.masked_fill(outside, -torch.inf), dim=-1)


def gap_limit(dtype: str) -> float:
    """Mean |engine - trainer| in nats that is still rounding. vLLM's attention kernels on a GPU
    round float32 to the 10 bits of TF32, three more than bfloat16 has."""
    if dtype == "float32":
        return 0.05 / 8 if torch.cuda.is_available() else 1e-4
    return 0.05


class WrongWeights(RuntimeError):
    """Sampler and trainer are not the same policy."""


def check_engine(
    mine: list[Response], policy: torch.nn.Module, cfg: Config, tolerance: float = 1.0
) -> float:
    """Mean |engine - trainer| log-prob in nats, of a few responses of each engine. mine: some that
    this rank's engine sampled from the policy, with its log-probs in logp_b. WrongWeights, on every
    rank, where one engine's are not the policy's: then weights did not arrive, or temperature or
    prompts differ, and every importance ratio would be wrong."""
    device = next(policy.parameters()).device.type
    engines = parallel.gather([mine[:PROBES]], cfg.tensor_parallel)
    each = max(2, PROBES // len(engines))
    engines = [responses[:each] for responses in engines if responses]
    some = [r for responses in engines for r in responses]
    theirs = iter(parallel.frozen_pass(policy, some, cfg.tokens_per_micro_batch, device))
    gaps = [
        check_gap(
            [r.logp_b for r in responses], [next(theirs) for _ in responses], cfg.dtype, tolerance
        )
        for responses in engines
    ]
    return sum(gaps) / len(gaps)


def check_gap(
    engine_logp: list[torch.Tensor], trainer_logp: list[torch.Tensor], dtype: str,
    tolerance: float = 1.0,
) -> float:  # fmt: skip
    """Mean |engine - trainer| log-prob over some samples, nats. WrongWeights when it is more than
    rounding."""
    gap = (torch.cat(engine_logp) - torch.cat(trainer_logp)).abs().mean().item()
    limit = tolerance * gap_limit(dtype)
    if not gap <= limit:
        raise WrongWeights(
            f"the sampler and the trainer disagree on log-probs by {gap:.2g} nats on average "
            f"(limit {limit} in {dtype}): the weight sync failed or they do not compute the same "
            "distribution; try the other --engine"
        )
    return gap


def probe(
    engine, policy: torch.nn.Module, problems: list[Problem], cfg: Config, tolerance: float = 1.0
) -> None:
    """`check_engine` on samples that are drawn for it: short ones, at the training temperature."""
    prompts = [p.prompt_ids for p in (problems * PROBES)[:PROBES]]  # few tokens are a noisy mean
    # Long enough to fill blocks of the prefix cache
    prompts = [(ids * 64)[: min(max(len(ids), 64), cfg.max_prompt_tokens)] for ids in prompts]
    options = dict(temperature=cfg.temperature, max_tokens=min(PROBES, cfg.max_tokens))
    groups = engine.generate(prompts, seeds=list(range(len(prompts))), **options)
    responses = [
        Response(prompt, s.tokens, torch.tensor(s.logp), s.finished, 0.0, 0)
        for prompt, (s,) in zip(prompts, groups, strict=True)
    ]
    check_engine(responses, policy, cfg, tolerance)


def prove_sync(engine, policy: torch.nn.Module, problems: list[Problem], cfg: Config) -> None:
    """At the start of a run: whatever is lost on the way to the engine, it is noticed here. Policy
    and engine hold the same files then, so a sync that does nothing would look right: every weight
    is changed and sent, and all that the engine holds must have changed. The policy is put back;
    the engine's next sync sends it.

    WrongWeights, on every rank, if a tensor does not arrive, or the prefix cache keeps what the old
    one left.
    """
    engine.sync(full_weights(policy, cfg.dtype))
    probe(engine, policy, problems, cfg)  # they compute the same; the caches are full
    before = engine.excerpt()
    with perturbed(policy):
        engine.sync(full_weights(policy, cfg.dtype))
        now = engine.excerpt()
        # Log-probs alone would not do: in bfloat16 a key's bias is lost in their rounding
        old = [name for name in now if is_old(before[name], now[name])]
        if old := parallel.gather(old):
            raise WrongWeights(
                f"a weight sync does not reach the sampler's {old[0]} ({len(old)} of {len(now)} "
                "tensors stay as they were); try the other --engine"
            )
        # What is changed so rounds worse: SmolLM2 in bfloat16 by 0.06 nats; stale ones are 2.4 off
        probe(engine, policy, problems, cfg, tolerance=4)
    lap("proof of the weight sync")


def excerpt(lm: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Some 4,000 elements of every parameter, evenly spaced, in host memory."""
    return {
        name: p.detach().flatten()[:: max(1, p.numel() // 4096)].cpu().clone()
        for name, p in lm.named_parameters()
    }


def is_old(before: torch.Tensor, now: torch.Tensor) -> bool:
    """Whether a part of a tensor, that of one head of 64 say, has kept its values. Zeros may be
    padding."""
    same = ((before == now) & (now != 0)).sum().item()
    return same > 1 and same > 0.01 * len(now)


@contextmanager
def perturbed(policy: torch.nn.Module) -> Iterator[None]:
    """Inside, every weight is an eighth larger or smaller: a common factor would be undone by the
    norms of many families, and more makes a language model one that rounds by whole nats. What is 0
    in a bias, or all of a tensor, becomes 0.1."""
    kept = {name: parallel.local(p).detach().cpu() for name, p in policy.lm.named_parameters()}
    kept = {name: p.clone() for name, p in kept.items()}  # in host memory, as it may be scarce
    with torch.no_grad():
        for p in policy.lm.parameters():
            p = parallel.local(p)
            wave = torch.arange(p.numel(), dtype=p.dtype, device=p.device).mul_(2.4).cos_().sign_()
            p.mul_(1 + wave.view_as(p) / 8)
            if p.ndim == 1 or not p.any():  # an adapter's B
                p[p == 0] = 0.1
    try:
        yield
    finally:
        with torch.no_grad():
            for name, p in policy.lm.named_parameters():
                parallel.local(p).copy_(kept[name])
