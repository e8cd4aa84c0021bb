"""--lora_rank: LoRA (Hu et al. 2021, arXiv 2106.09685) the way ReMix wants it: one frozen language
model, and on it a small adapter for each of pi_theta, pi_base, pi_{k-1} and the critic.

    loader       a load_model whose networks are adapters on one backbone; nothing else knows
    Adapted      one of them; its parameters are the adapter's (and the critic's float32 head)
    adapter      the folder that peft's PeftModel.from_pretrained reads

The backbone is stored in the compute dtype, the adapters in float32. So an anchor costs megabytes,
and copy_weights copies an adapter. An adapter begins with B = 0, which is the base model itself.
All linear layers of the trunk have one (peft's "all-linear"). Embeddings, norms and the output
layer have none, so the heads of the exact KL are all the base model's. The sampler gets W + s B A,
in its dtype, as an ordinary model's weights.

peft is imported here alone, and only when asked for.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import parallel
from model import Critic, Policy, value_head
from parallel import Batch

# s = ALPHA / rank: then the best learning rate hardly depends on the rank, and is 10 times that of
# full finetuning ("LoRA Without Regret", Schulman et al. 2025, thinkingmachines.ai/blog/lora)
ALPHA = 32


def loader(
    load: Callable, rank: int, critic: bool = False, frozen: int = 0, seed: int = 0
) -> Callable:
    """load(kind, frozen=False), as `load` (a load_model that lacks these alone), but each network
    is an adapter. critic, frozen: whether, and how many, will be asked for at most. seed: of A.
    ValueError where the model cannot be adapted."""
    anchors = [f"frozen{i}" for i in range(frozen)]
    names = ["policy", *["critic"] * critic, *anchors]
    root, anchors = load(Policy, adapt=partial(adapt, names, rank, seed)), iter(anchors)

    def view(kind: type, frozen: bool = False) -> Adapted:
        if kind is Critic:
            return Adapted(root, "critic", root.head)
        return Adapted(root, next(anchors) if frozen else "policy")

    return view


def adapt(names: list[str], rank: int, seed: int, policy: Policy) -> None:
    """Put the adapters into the policy's trunk, and a value head beside it."""
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import cast_adapter_dtype

    trunk = policy.lm.get_decoder()
    what = f"--lora_rank {rank}: for a {policy.lm.config.model_type!r} model"
    if any(p.ndim > 2 for p in trunk.parameters()):  # peft could: not sharded, and not merged here
        raise ValueError(f"{what} experts or convolutions would have no adapters; use 0")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "multiple adapters": yes
        torch.manual_seed(seed)
        for name in names:
            settings = LoraConfig(r=rank, lora_alpha=ALPHA, target_modules="all-linear")
            try:
                inject_adapter_in_model(settings, trunk, name)
                cast_adapter_dtype(trunk, name)  # to float32, from that of their layers
            except ValueError as error:
                reason = " ".join(str(error).split())[:200]
                raise ValueError(f"{what} peft finds no linear layers ({reason}); use 0") from error
    layers = [layer for _, layer in adapted_layers(trunk)]
    most = max(min(layer.in_features, layer.out_features) for layer in layers)
    if rank > most:
        raise ValueError(f"{what} no layer has a higher rank than {most}; use that at most")
    policy.active = [names[0]]
    policy.requires_grad_(False)
    for layer in layers:
        layer._active_adapter = policy.active  # one list for all; set_adapter would freeze others
        layer.set_requires_grad(names, False)
        layer.set_requires_grad(["policy", "critic"])
    if "critic" in names:
        policy.head = value_head(policy.lm)
    if policy.lm.is_gradient_checkpointing:
        again = dict(use_reentrant=False, context_fn=partial(recomputed, policy.active))
        policy.lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs=again)


def adapted_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    from peft.tuners.lora import LoraLayer

    return ((name, m) for name, m in module.named_modules() if isinstance(m, LoraLayer))


def recomputed(active: list[str]) -> tuple:
    """For torch's checkpoint: what is computed again is by the adapter that computed it before."""

    @contextmanager
    def by(name: str) -> Iterator[None]:
        before, active[0] = active[0], name
        try:
            yield
        finally:
            active[0] = before

    return nullcontext(), by(active[0])


class Adapted(nn.Module):
    """A Policy, or with a head a Critic, that is one adapter of `root`."""

    def __init__(self, root: Policy, name: str, head: nn.Linear | None = None):
        super().__init__()
        self.name, self.head = name, head
        vars(self).update(root=root, lm=root.lm)  # not its own modules: not its parameters either
        for path, layer in adapted_layers(root.lm):
            pair = dict(lora_A=layer.lora_A[name], lora_B=layer.lora_B[name])
            self.add_module(path.replace(".", "/"), nn.ModuleDict(pair))
        if parallel.is_sharded(root):
            # Not set_requires_all_reduce: FSDP2 would add up the policy's with the critic's
            # gradients, as they have their layers in common. So nodes talk in every micro-batch
            self.reshard = root.reshard

    def forward(self, x: Batch, heads: dict | None = None, states: bool = False) -> tuple | Tensor:
        """As Policy.forward, or as Critic.forward where there is a head."""
        self.root.active[0] = self.name
        if self.head is None:
            return self.root(x, heads, states)
        states = self.root(x, states=True)  # (B, T, H)
        return self.head(states.float().flatten(0, 1)).view_as(x.mask) * x.mask

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """As Policy.weights, merged: W + s B A, in float32."""
        layers = {f"{path}.base_layer.weight": layer for path, layer in adapted_layers(self.lm)}
        for name, tensor in self.lm.state_dict().items():
            tensor = tensor.float() if tensor.is_floating_point() else tensor
            if name in layers:
                tensor = tensor + layers[name].get_delta_weight(self.name)
            if ".lora_" not in name:
                yield name.replace(".base_layer.", "."), tensor


def adapter(policy: Adapted, model: str) -> Callable[[Path], None]:
    """Gathers the adapter, on every rank -> what writes a folder. model: the base model's name."""
    trunk = policy.lm.get_decoder()
    tensors = {
        f"base_model.model.{name.replace('/', '.')}": parallel.whole(tensor).cpu().contiguous()
        for name, tensor in policy.state_dict().items()
    }

    def write(folder: Path) -> None:
        folder.mkdir(parents=True)
        settings = trunk.peft_config[policy.name]
        settings.base_model_name_or_path, settings.task_type = model, "CAUSAL_LM"
        settings.save_pretrained(folder)
        save_file(tensors, folder / "adapter_model.safetensors")

    return write
