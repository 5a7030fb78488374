"""The ranks that test_sharding.py starts: a small net trained in several ways, noted step by step.

    python sharding_rank.py <ranks> <expert axis> <sharding axis> <output> <way> ...

A way is <layout>:<stage>:<compare>:<case>[:<optimizer>], layout being "world" or "groups". In case "unused" the first
half of a batch goes through one more layer, so that some ranks have no gradient of it; in case "crossed" the second
half goes through the layers the other way round, so that gradients come in another order. One layer is used twice, and
one in even steps only.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback

import numpy as np
import paddle

from ppvilg.config import DistributedConfig, StageConfig
from ppvilg.engine import distributed
from ppvilg.engine.parallel.sharding import FusedShardingOptimizer
from ppvilg.engine.training.optimizers import build_optimizer

BUCKET = 3000  # bytes; a layer has 1088
STEPS, BATCH, PASSES, WIDTH, DEPTH = 3, 16, 2, 16, 12


class Net(paddle.nn.Layer):
    def __init__(self):
        super().__init__()
        self.layers = paddle.nn.LayerList([paddle.nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH)])
        self.rare, self.alternate = (paddle.nn.Linear(WIDTH, WIDTH) for _ in range(2))

    def forward(self, x: paddle.Tensor, number: int, step: int, case: str) -> paddle.Tensor:
        layers = list(self.layers)
        if case == "crossed" and number >= BATCH // 2:
            layers = layers[::-1]
        for layer in [*layers, layers[0]]:
            x = x + 0.1 * paddle.tanh(layer(x))
        if case == "unused" and number < BATCH // 2:
            x = x + self.rare(x)
        return x if step % 2 else x + self.alternate(x)


def held(net: Net, optimizer) -> int:
    """Bytes of all gradients on this rank."""
    sums = getattr(optimizer, "_sums", {}).values()
    return sum(4 * g.size for g in [*sums, *(p.grad for p in net.parameters() if p.grad is not None)])


def build(name: str, parameters: list) -> paddle.optimizer.Optimizer:
    """Steps that differ little where gradients do: Lion's are of one size whatever the gradient is."""
    config = StageConfig(optimizer=name, learning_rate=1e-2 if name == "adamw" else 3e-2,
                         epsilon=1e-3 if name == "adamw" else None, weight_decay=0.01)
    return build_optimizer(config, parameters, lambda _: True)


def train(stage: int, compare: bool, case: str, optimizer_name: str = "adamw") -> dict[str, np.ndarray]:
    """Losses, bytes of gradients that were held, bytes that were sent, and the final weights."""
    paddle.seed(5)
    distributed.traffic.reset()
    net, optimizer = Net(), None
    parameters, noted = dict(net.named_parameters()), {"loss": [], "held": [], "after": [], "owned": []}
    for parameter in parameters.values():  # before the optimizer's own hooks: what is there when it begins to send
        parameter._register_backward_hook(lambda *_: noted["held"].append(held(net, optimizer)))
    distributed.share_initial_weights([net])
    inner = build(optimizer_name, net.parameters())
    settings = DistributedConfig(sharding_stage=stage, find_unused_parameters=compare, bucket_megabytes=BUCKET / 2**20)
    optimizer = distributed.sharded_optimizer(inner, settings)
    share = BATCH // distributed.shares()
    mine = np.arange(BATCH)[distributed.rank_slice(BATCH)]
    for step in range(STEPS):
        values = np.random.default_rng(step).standard_normal((BATCH, WIDTH)).astype(np.float32)
        total = 0.0
        for number in range(PASSES):
            part = mine[number * share // PASSES : (number + 1) * share // PASSES]
            loss = sum((net(paddle.to_tensor(values[[n]]), int(n), step, case) - 1.0).square().mean()
                       for n in part) / share
            loss.backward()
            distributed.finish_pass(optimizer, last=number == PASSES - 1)
            total += float(loss)
        noted["loss"].append(distributed.mean_over_ranks(np.array([total]))[0])
        used = distributed.agree(np.array([p.grad is not None for p in parameters.values()]))
        if compare:
            distributed.fill_gradients([p for p, wanted in zip(parameters.values(), used) if wanted], optimizer)
        distributed.average_gradients(list(parameters.values()), optimizer)
        noted["after"].append(held(net, optimizer))
        noted["owned"].append(sum(4 * p.size for p in inner._parameter_list))
        with distributed.traffic.of("weights"):
            optimizer.step()
        optimizer.clear_grad(set_to_zero=False)
        assert held(net, optimizer) == 0
    assert isinstance(optimizer, FusedShardingOptimizer) == (len(distributed.layout().sharding_ranks) > 1)
    sent = {name: distributed.traffic.total(name, "sharding").bytes for name in ("gradients", "weights")}
    return {**{name: np.asarray(value) for name, value in {**noted, **sent}.items()},
            **{f"weight/{name}": p.numpy() for name, p in parameters.items()}}


def run_rank(rank: int, endpoints: list[str], expert: int, sharding: int, output: str, ways: list[str]) -> None:
    os.environ.update(PADDLE_TRAINER_ID=str(rank), PADDLE_TRAINERS_NUM=str(len(endpoints)),
                      PADDLE_CURRENT_ENDPOINT=endpoints[rank], PADDLE_TRAINER_ENDPOINTS=",".join(endpoints),
                      PADDLE_MASTER=endpoints[0], PADDLE_DISTRI_BACKEND="gloo")
    distributed.start(DistributedConfig(sharding=sharding, expert=expert))
    for number, way in enumerate(ways):
        layout, stage, compare, case, *name = way.split(":")
        distributed.arrange(expert_groups=layout == "groups")
        np.savez(f"{output}/{number}-{rank}.npz", **train(int(stage), bool(int(compare)), case, *name))
    distributed.barrier()


def fork_rank(*arguments) -> int:
    """Process id of a rank, forked now that the libraries are imported and nothing was computed yet."""
    process = os.fork()
    if process:
        return process
    try:
        run_rank(*arguments)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main() -> None:
    ranks, expert, sharding = map(int, sys.argv[1:4])
    sockets = [socket.socket() for _ in range(ranks)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    endpoints = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    left = {fork_rank(rank, endpoints, expert, sharding, sys.argv[4], sys.argv[5:]) for rank in range(ranks)}
    while left:
        process, status = os.wait()
        left.discard(process)
        if status:  # the others would wait for it
            for other in left:
                os.kill(other, signal.SIGKILL)
            sys.exit(1)


if __name__ == "__main__":
    main()
