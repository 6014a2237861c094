"""One process of the tests: runs each case beside a single process's computation and says where they differ.

Started by ``test_sharding.py`` with torchrun's environment and the names of cases. Prints one line a failed comparison.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from deepwell.errors import TrainingError
from deepwell.lm.model.config import DynamicGating, ModelConfig
from deepwell.lm.model.loss import Whole
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.parallel.experts import ParallelExperts
from deepwell.lm.parallel.sharding import distribute, last_part, sync_gradients, whole_copy
from deepwell.lm.parallel.world import World
from deepwell.lm.training.evaluating import evaluating, validate
from deepwell.lm.training.optimizers import build, muon
from deepwell.lm.training.recipe import OptimizerSection
from deepwell.lm.weights.lora import LoraConfig, add_lora, lora_layers

CONFIG = ModelConfig.named("debug-moe").replace(
    vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, q_lora_rank=16,
    kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16, moe_intermediate_size=16,
    n_routed_experts=8, num_experts_per_tok=2, n_group=4, topk_group=2, aux_loss_alpha=0.05, initializer_range=0.2,
)  # fmt: skip
ROWS, LENGTH, STEPS = 8, 12, 2
TOLERANCE = 1e-5

failures: list[str] = []


def near(what: str, got: Tensor | float, expected: Tensor | float, tolerance: float = TOLERANCE) -> None:
    """Note a failure where the largest difference is above ``tolerance`` of the largest expected value."""
    got, expected = torch.as_tensor(got).double(), torch.as_tensor(expected).double()
    if got.shape != expected.shape:
        failures.append(f"{what}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}")
        return
    error = float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    if not error <= tolerance:
        failures.append(f"{what}: differs by {error:.1e} of the largest value")


def same(what: str, got: object, expected: object) -> None:
    if got != expected:
        failures.append(f"{what}: {got}, expected {expected}")


def full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def network(config: ModelConfig) -> Transformer:
    """Every process makes the same weights. In the first layer with experts the upper half of them gets no token."""
    torch.manual_seed(5)
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(7))
    model.gates()[0].e_score_correction_bias[config.n_routed_experts // 2 :] = -20.0
    return model.train()


def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, labels and documents of a step: labels are masked unevenly, all of those of the first rows."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, CONFIG.vocab_size, (ROWS, LENGTH), generator=generator)
    labels = tokens.clone()
    labels[torch.rand(ROWS, LENGTH, generator=generator) < torch.linspace(0, 0.8, ROWS)[:, None]] = -100
    labels[:2] = -100
    documents = (torch.arange(LENGTH) > torch.randint(2, 10, (ROWS, 1), generator=generator)).long()
    return tokens, labels, documents


def compare(
    name: str,
    world: World,
    config: ModelConfig = CONFIG,
    *,
    micro: int = 1,
    prepare: Callable[[Transformer], None] = lambda model: None,
) -> None:
    """Two steps of SGD, in one process and over ``world``: losses, gradients, loads and weights."""
    alone, model = network(config), network(config)
    prepare(alone)
    prepare(model)
    distribute(model, world)
    optimizers = [torch.optim.SGD([p for p in each.parameters() if p.requires_grad], lr=0.1) for each in (alone, model)]
    depth = config.num_nextn_predict_layers
    for step in range(STEPS):
        tokens, labels, documents = batch(step)
        whole = Whole.of(labels, documents, depth=depth)
        expected = alone.loss(tokens, labels, documents=documents)
        expected.total.backward()

        first, count = world.share(ROWS)
        each = count // micro
        sums = torch.zeros(3 + depth)
        for part in range(micro):
            rows = slice(first + part * each, first + (part + 1) * each)
            losses = model.loss(tokens[rows], labels[rows], documents=documents[rows], whole=whole)
            last_part(model, is_last=part == micro - 1)
            losses.total.backward()
            if world.data == "shard" and part < micro - 1:
                same(f"{name}, sent before the step's last micro-batch", model.norm.weight.grad, None)
            sums += torch.stack([losses.total, losses.main, losses.balance, *losses.mtp]).detach()
        sync_gradients(model, world)

        parts = torch.stack([expected.total, expected.main, expected.balance, *expected.mtp]).detach()
        near(f"{name}, step {step}, losses", world.sum(sums), parts)
        loads = world.sum(model.expert_loads())
        same(f"{name}, step {step}, loads", loads.tolist(), alone.expert_loads().tolist())
        if step == 0:
            same(
                f"{name}, tokens of the experts that are never taken",
                int(loads[0, config.n_routed_experts // 2 :].sum()),
                0,
            )
        theirs = dict(model.named_parameters())
        for key, parameter in alone.named_parameters():
            grad = theirs[key].grad
            if parameter.grad is None or grad is None:
                same(f"{name}, step {step}, {key} has a gradient", grad is not None, parameter.grad is not None)
            else:
                near(f"{name}, step {step}, gradient of {key}", full(grad), parameter.grad, 2 * TOLERANCE)
        for optimizer, each_model in zip(optimizers, (alone, model), strict=True):
            optimizer.step()
            optimizer.zero_grad()
            each_model.reset_expert_loads()
        for key, parameter in alone.named_parameters():
            near(f"{name}, step {step}, {key}", full(theirs[key]).detach(), parameter.detach())

    tokens, labels, documents = batch(0)
    first, count = world.share(ROWS)
    mine = tokens[first : first + count]
    with torch.no_grad(), evaluating(alone), evaluating(model):
        near(f"{name}, logits", model(mine), alone(mine))
        hidden, expected_hidden = model.hidden(mine), alone.hidden(mine)
        near(f"{name}, hidden", hidden, expected_hidden)
        near(f"{name}, draft", model.draft(hidden, mine)[0], alone.draft(expected_hidden, mine)[0])
    found, wanted = (validate(each, Held(), count=ROWS, micro=ROWS) for each in (model, alone))
    near(f"{name}, validation", found.loss, wanted.loss)
    near(f"{name}, validation of MTP", torch.tensor(found.mtp_losses), torch.tensor(wanted.mtp_losses))
    same(f"{name}, weights after looking", all(p is theirs[k] for k, p in model.named_parameters()), True)

    whole = whole_copy(model, world)
    same(f"{name}, who has the whole", whole is not None, world.is_main)
    if whole is not None:
        mine_too = dict(whole.named_parameters())
        for key, parameter in alone.named_parameters():
            near(f"{name}, whole {key}", mine_too[key].detach(), parameter.detach())
            same(f"{name}, whole {key} learns", mine_too[key].requires_grad, parameter.requires_grad)
        near(f"{name}, the whole's logits", whole.eval()(tokens).detach(), alone.eval()(tokens).detach())
        same(f"{name}, the whole's class", type(whole), Transformer)


class Held:
    """Rows as validation reads them."""

    def __len__(self) -> int:
        return ROWS

    def batch(self, first: int, count: int) -> SimpleNamespace:
        tokens, labels, documents = batch(0)
        rows = slice(first, first + count)
        return SimpleNamespace(tokens=tokens[rows], labels=labels[rows], documents=documents[rows], bytes=100)


@contextmanager
def grid(world: World, experts: int, data: str) -> Iterator[World]:
    """The same processes in another arrangement, without starting anew."""
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (world.size // experts, experts), mesh_dim_names=("data", "experts"))
    yield World(rank=world.rank, size=world.size, experts=experts, data=data, mesh=mesh)


def freeze(model: Transformer) -> None:
    """As expert-specialised fine-tuning and adapters leave a network: a few weights learn."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.1.mlp.experts" in name or "layers.2.self_attn.o_proj" in name)


def adapt(model: Transformer) -> None:
    torch.manual_seed(11)
    add_lora(model, LoraConfig(rank=4, alpha=8.0, targets=("all-linear",)))
    for _, layer in lora_layers(model):
        nn.init.normal_(layer.lora_b, std=0.2)


def recompute(kind: str) -> Callable[[Transformer], None]:
    def set_it(model: Transformer) -> None:
        model.recompute = kind

    return set_it


def steps(world: World, experts: int, data: str) -> None:
    with grid(world, experts, data) as there:
        compare(f"{data}, experts over {experts}", there, micro=2 if ROWS // world.size > 1 else 1)


def talking(world: World) -> None:
    rank, size = world.rank, world.size
    near("sum", world.sum(torch.tensor([1.0 + rank, 2.0])), torch.tensor([size * (size + 1) / 2, 2.0 * size]))
    same(
        "sum of whole numbers",
        world.sum(torch.tensor([2**40 + rank])).tolist(),
        [size * 2**40 + size * (size - 1) // 2],
    )
    same("first's word", world.broadcast_object({"from": rank}), {"from": 0})
    same("share", world.share(6 * size), (6 * rank, 6))
    same("is_main", world.is_main, rank == 0)
    world.barrier()


def special(world: World) -> None:
    """What else meets sharded weights: tied embeddings, layers computed twice, frozen weights, dynamic gating."""
    gating = DynamicGating(share=0.5, minimum=1, maximum=3)
    for experts, data in ((1, "shard"), (world.size, "shard"), (world.size, "copy")):
        with grid(world, experts, data) as there:
            where = f"{data}, experts over {experts}"
            compare(f"tied, {where}", there, CONFIG.replace(tie_word_embeddings=True))
            compare(f"blocks again, {where}", there, prepare=recompute("blocks"), micro=2)
            compare(f"attention again, {where}", there, prepare=recompute("attention"))
            compare(f"adapter, {where}", there, prepare=adapt, micro=2)
            compare(f"frozen, {where}", there, prepare=freeze, micro=2)
            compare(f"dynamic gating, {where}", there, CONFIG.replace(dynamic_gating=gating))


def optimizers(world: World) -> None:
    """Deepwell's own optimizers move spread weights as they move whole ones, and measure the same norm."""
    muon.cpu_multiplies = lambda dtype: False  # in bf16 it would round the last bits of a gradient up to percents
    for name in ("adamw", "muon"):
        section = OptimizerSection(name=name, lr=1e-2, muon_lr=1e-2, moments="f32", clip=0.5, eps=1e-3)
        for experts, data in ((1, "shard"), (min(world.size, 2), "shard"), (world.size, "copy")):
            with grid(world, experts, data) as there:
                where = f"{name}, {data}, experts over {experts}"
                alone, model = network(CONFIG), network(CONFIG)
                begun = {key: parameter.detach().clone() for key, parameter in alone.named_parameters()}
                distribute(model, there)
                ours, theirs = build(alone, section), build(model, section)
                for step in range(STEPS):
                    tokens, labels, documents = batch(step)
                    whole = Whole.of(labels, documents, depth=1)
                    first, count = there.share(ROWS)
                    mine = slice(first, first + count)
                    alone.loss(tokens, labels, documents=documents).total.backward()
                    model.loss(tokens[mine], labels[mine], documents=documents[mine], whole=whole).total.backward()
                    sync_gradients(model, there)
                    near(f"{where}, step {step}, norm", theirs.clip(0.5), ours.clip(0.5))
                    for optimizer in (ours, theirs):
                        optimizer.step(1.0)
                        optimizer.zero_grad()
                spread = dict(model.named_parameters())
                for key, parameter in alone.named_parameters():
                    moved = parameter.detach() - begun[key]
                    near(f"{where}, change of {key}", full(spread[key]).detach() - begun[key], moved, 1e-3)


def hooks(world: World) -> None:
    """The functions that training in FP8 puts in place of products stay in place when experts are spread."""
    model = network(CONFIG)
    calls: list[int] = []
    for module in model.modules():
        if type(module).__name__ == "Experts":
            inner = module.product
            module.product = lambda x, w, o, inner=inner: (calls.append(w.shape[0]), inner(x, w, o))[1]
    with grid(world, world.size, "copy") as there:
        distribute(model, there)
        tokens = batch(0)[0]
        model(tokens[: ROWS // world.size])
    spread = [module for module in model.modules() if isinstance(module, ParallelExperts)]
    same("layers with spread experts", len(spread), 3)
    same("products of own experts", calls, [CONFIG.n_routed_experts // world.size] * 4)


def unmade(world: World) -> None:
    """A network on "meta" is spread before it has weights, then filled from whole tensors, as a large one must be."""
    alone = network(CONFIG)
    whole = alone.state_dict()
    for experts, data in ((1, "shard"), (world.size, "shard"), (world.size, "copy")):
        with grid(world, experts, data) as there, torch.no_grad():
            model = Transformer(CONFIG, device="meta")
            distribute(model, there)
            model.to_empty(device="cpu")
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                if isinstance(tensor, DTensor):
                    tensor.copy_(distribute_tensor(whole[name], tensor.device_mesh, tensor.placements))
                elif name in whole:
                    tensor.copy_(whole[name])
            tokens = batch(0)[0][: ROWS // world.size]
            near(f"filled later, {data}, experts over {experts}", model(tokens), alone(tokens))


def losing(world: World) -> None:
    """The last process goes away; the others must be told, and not wait."""
    if world.rank == world.size - 1:
        world.close()
        return
    try:
        world.sum(torch.ones(3))
    except TrainingError as error:
        same("what a lost process is called", "lost another one" in str(error), True)
    else:
        failures.append("losing a process: nothing was said")


CASES: dict[str, Callable[[World], None]] = {
    "talking": talking,
    "copy": lambda world: steps(world, 1, "copy"),
    "shard": lambda world: steps(world, 1, "shard"),
    "experts": lambda world: steps(world, world.size, "shard"),
    "copied-experts": lambda world: steps(world, world.size, "copy"),
    "grid": lambda world: steps(world, 2, "shard"),
    "copied-grid": lambda world: steps(world, 2, "copy"),
    "hooks": hooks,
    "optimizers": optimizers,
    "special": special,
    "unmade": unmade,
    "losing": losing,
}


def main() -> None:
    torch.set_num_threads(1)
    with World.start() as world:
        for case in sys.argv[1:]:
            CASES[case](world)
    print("\n".join(f"process {world.rank}: {failure}" for failure in failures))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
