"""The training step in PyTorch: a worker process of `benchmarks.training`.

Its settings are those that were fastest on a CPU: channels last, not compiled, and the fused
optimizer. (For the small ResNet, `torch.compile` took 1.3 times as long, and the default layout 1.5
times.)
"""

import json
import sys
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks import torch_networks
from benchmarks.problem import Problem
from benchmarks.turns import forget_peak, peak_memory, serve
from hiercls_jax.data.augment import PAD


def main(argument: dict[str, Any]) -> None:
    """Answer `turn` (`steps` training steps), `loss`, `parameters`, `forget` and `peak`."""
    problem = Problem(**argument["problem"])
    config, data = problem.config(), problem.data()
    task = problem.networks(data)[0].task
    network = torch_networks.Merged(task.network)
    torch_networks.load(network, dict(np.load(argument["weights"], allow_pickle=False)))
    layout = torch.channels_last
    network = network.to(memory_format=layout)
    batch = data.train.take(np.arange(config.train.batch))
    images = torch.from_numpy(batch.images)
    labels = {k: torch.from_numpy(v[batch.labels]).long() for k, v in task.ancestors.items()}
    mean, std = (torch.from_numpy(x).view(1, 3, 1, 1) for x in (task.mean, task.std))
    optimizer = torch.optim.SGD(
        network.parameters(),
        config.optimizer.learning_rate,
        momentum=config.optimizer.momentum,
        nesterov=config.optimizer.nesterov,
        weight_decay=config.optimizer.weight_decay,
        fused=True,
    )
    network.train()

    def loss_of(augmented: bool) -> torch.Tensor:
        x = ((images.permute(0, 3, 1, 2).float() - mean) / std).contiguous(memory_format=layout)
        logits = network(_augment(x, layout) if augmented else x)
        return sum(F.cross_entropy(logits[level], y) for level, y in labels.items())

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(task.augment)
        loss.backward()
        optimizer.step()

    def first_loss() -> float:
        with torch.no_grad():
            return loss_of(augmented=False).item()

    def turn() -> None:
        for _ in range(argument["steps"]):
            step()

    serve(
        {
            "loss": first_loss,
            "turn": turn,
            "parameters": lambda: sum(p.numel() for p in network.parameters()),
            "forget": forget_peak,
            "peak": peak_memory,
        }
    )


def _augment(x: torch.Tensor, layout: torch.memory_format) -> torch.Tensor:
    """Flip with probability ½, pad by 4 and crop back at random, all images at once."""
    n, _, height, width = x.shape
    flip = torch.rand(n) < 0.5
    x = torch.where(flip.view(-1, 1, 1, 1), x.flip(3), x)
    x = F.pad(x, (PAD,) * 4)
    top, left = torch.randint(2 * PAD + 1, (2, n, 1))
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    x = x.permute(0, 2, 3, 1)[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None]]
    return x.permute(0, 3, 1, 2).contiguous(memory_format=layout)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
