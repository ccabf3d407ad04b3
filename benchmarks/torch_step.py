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
from ml_collections import ConfigDict
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
    optimizers = _optimizers(network, config.optimizer)
    padding = "reflect" if task.reflect else "constant"
    network.train()

    def loss_of(part: slice, augmented: bool, smoothing: float = 0.0) -> torch.Tensor:
        x = (images[part].permute(0, 3, 1, 2).float() - mean) / std
        x = x.contiguous(memory_format=layout)
        logits = network(_augment(x, layout, padding) if augmented else x)
        return sum(
            F.cross_entropy(logits[level], y[part], label_smoothing=smoothing)
            for level, y in labels.items()
        )

    def step() -> None:
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        for i in range(task.parts):
            loss = loss_of(slice(i, None, task.parts), task.augment, task.smoothing) / task.parts
            loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    def first_loss() -> float:
        with torch.no_grad():
            return loss_of(slice(None), augmented=False).item()

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


def _optimizers(network: torch.nn.Module, config: ConfigDict) -> list[torch.optim.Optimizer]:
    """Return the fused SGD of the config, and Muon if it has that."""
    rest, decay = list(network.parameters()), config.weight_decay
    optimizers: list[torch.optim.Optimizer] = []
    if config.muon_learning_rate is not None:
        optimizers.append(Muon([p for p in rest if p.ndim == 4], config))
        rest = [  # weight decay is of the classifiers alone
            {"params": [p for p in rest if p.ndim == 2]},
            {"params": [p for p in rest if p.ndim == 1], "weight_decay": 0.0},
        ]
    sgd = torch.optim.SGD(
        rest,
        config.learning_rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=decay,
        fused=True,
    )
    return [*optimizers, sgd]


class Muon(torch.optim.Optimizer):
    """Muon on convolution kernels, as `hiercls_jax.training.optimizer` has it."""

    def __init__(self, kernels: list[torch.Tensor], config: ConfigDict):
        super().__init__(kernels, {"lr": config.muon_learning_rate})
        self._momentum, self._steps = config.muon_momentum, config.muon_steps

    @torch.no_grad()
    def step(self) -> None:
        for kernel in self.param_groups[0]["params"]:
            state = self.state[kernel]
            if not state:
                state["momentum"] = torch.zeros_like(kernel.grad)
            momentum = state["momentum"].mul_(self._momentum).add_(kernel.grad)
            update = kernel.grad.add(momentum, alpha=self._momentum)
            kernel.mul_(len(kernel) ** 0.5 / kernel.norm())
            matrix = _orthogonalised(update.reshape(len(kernel), -1), self._steps)
            kernel.sub_(matrix.view(kernel.shape), alpha=self.param_groups[0]["lr"])


def _orthogonalised(x: torch.Tensor, steps: int) -> torch.Tensor:
    """Return the Newton-Schulz iteration's matrix, of singular values near 1."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = x.shape[0] > x.shape[1]
    x = (x.T if tall else x) / (x.norm() + 1e-7)
    for _ in range(steps):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if tall else x


def _augment(x: torch.Tensor, layout: torch.memory_format, padding: str) -> torch.Tensor:
    """Flip with probability ½, pad by 4 and crop back at random, all images at once."""
    n, _, height, width = x.shape
    flip = torch.rand(n) < 0.5
    x = torch.where(flip.view(-1, 1, 1, 1), x.flip(3), x)
    x = F.pad(x, (PAD,) * 4, padding)
    top, left = torch.randint(2 * PAD + 1, (2, n, 1))
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    x = x.permute(0, 2, 3, 1)[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None]]
    return x.permute(0, 3, 1, 2).contiguous(memory_format=layout)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
