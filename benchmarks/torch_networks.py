"""The networks of `hiercls_jax.models` in PyTorch: the same modules, with the same names."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hiercls_jax.models.branched import Branched, shared_pieces
from hiercls_jax.models.densenet import BOTTLENECK, DenseNet
from hiercls_jax.models.fast import LOGIT_SCALE, WHITENED, Fast, copy_patches
from hiercls_jax.models.resnet import EXPANSION, STAGES, ResNet


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution padded by half a kernel, without bias."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class BatchNormRelu(nn.BatchNorm2d):
    """Batch normalisation followed by ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x), inplace=True)


class Chain(nn.Module):
    """Named modules applied one after another."""

    def __init__(self, parts: dict[str, nn.Module]):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.children():
            x = part(x)
        return x


class Block(nn.Module):
    """A pre-activation bottleneck block."""

    def __init__(self, inputs: int, features: int, stride: int):
        super().__init__()
        width = features * EXPANSION
        self.norm1 = BatchNormRelu(inputs)
        self.shortcut = conv(inputs, width, 1, stride) if inputs != width else None
        self.conv1 = conv(inputs, features, 1, stride)
        self.norm2 = BatchNormRelu(features)
        self.conv2 = conv(features, features, 3)
        self.norm3 = BatchNormRelu(features)
        self.conv3 = conv(features, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x if self.shortcut is None else self.shortcut(y)
        return x + self.conv3(self.norm3(self.conv2(self.norm2(self.conv1(y)))))


class Layer(nn.Module):
    """A layer of a dense block."""

    def __init__(self, inputs: int, growth: int):
        super().__init__()
        self.norm1 = BatchNormRelu(inputs)
        self.conv1 = conv(inputs, BOTTLENECK * growth, 1)
        self.norm2 = BatchNormRelu(BOTTLENECK * growth)
        self.conv2 = conv(BOTTLENECK * growth, growth, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv2(self.norm2(self.conv1(self.norm1(x))))], 1)


class Transition(nn.Module):
    """Halve the resolution between dense blocks."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.transition_norm, self.transition_conv = BatchNormRelu(inputs), conv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.transition_conv(self.transition_norm(x)), 2)


class BatchNormSilu(nn.BatchNorm2d):
    """Batch normalisation followed by SiLU."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x), inplace=True)


class WhiteningStem(nn.Module):
    """A fixed convolution of patches, a bias and SiLU."""

    def __init__(self) -> None:
        super().__init__()
        kernel = np.array(copy_patches()).transpose(3, 2, 0, 1)
        self.register_buffer("kernel", torch.from_numpy(np.ascontiguousarray(kernel)))
        self.bias = nn.Parameter(torch.zeros(WHITENED))

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(F.conv2d(x, self.kernel, self.bias), inplace=True)


class Pair(nn.Module):
    """Two convolutions with BatchNormSilu, added to their input."""

    def __init__(self, channels: int, inner: int, kernels: tuple[int, int]):
        super().__init__()
        self.conv1, self.norm1 = conv(channels, inner, kernels[0]), BatchNormSilu(inner)
        self.conv2, self.norm2 = conv(inner, channels, kernels[1]), BatchNormSilu(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm2(self.conv2(self.norm1(self.conv1(x))))


class GlobalPool(nn.Module):
    """The maximum plus the mean over positions."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax((2, 3)) + x.mean((2, 3))


class ScaledClassifier(nn.Module):
    """A linear layer without bias, its logits scaled."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.linear = nn.Linear(channels, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * LOGIT_SCALE


class Classifier(nn.Module):
    """Global average pooling and one linear layer."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mean((2, 3)))


def resnet(family: ResNet) -> list[tuple[str, nn.Module, int]]:
    """Return (name, module, output channels) of each piece of a ResNet."""
    base, blocks = max(1, round(16 * family.width)), (family.depth - 2) // 9
    pieces = [("stem", Chain({"conv": conv(3, base, 3, family.stem_stride)}), base)]
    channels = base
    for i in range(STAGES):
        features, parts = base * 2**i, {}
        for j in range(blocks):
            parts[f"block{j}"] = Block(channels, features, 2 if i and not j else 1)
            channels = features * EXPANSION
        pieces.append((f"stage{i + 1}", Chain(parts), channels))
    return [*pieces, ("norm", BatchNormRelu(channels), channels)]


def densenet(family: DenseNet) -> list[tuple[str, nn.Module, int]]:
    """Return (name, module, output channels) of each piece of a DenseNet."""
    growth, layers = max(1, round(family.growth * family.width)), (family.depth - 4) // 6
    channels = 2 * growth
    pieces = [("stem", Chain({"conv": conv(3, channels, 3, family.stem_stride)}), channels)]
    for i in range(STAGES):
        parts = {}
        for j in range(layers):
            parts[f"layer{j}"] = Layer(channels, growth)
            channels += growth
        if i < STAGES - 1:
            smaller = int(channels * family.compression)
            parts["transition"] = Transition(channels, smaller)
            channels = smaller
        pieces.append((f"stage{i + 1}", Chain(parts), channels))
    return [*pieces, ("norm", BatchNormRelu(channels), channels)]


def fast(family: Fast) -> list[tuple[str, nn.Module, int]]:
    """Return (name, module, output channels) of each piece of a fast network."""
    pieces: list[tuple[str, nn.Module, int]] = [("stem", WhiteningStem(), WHITENED)]
    channels = WHITENED
    for i, (features, inner, kernel, pair_kernels) in enumerate(family.shapes(), 1):
        first = nn.Conv2d(channels, features, kernel, padding=(kernel - 1) // 2, bias=False)
        parts = {"conv": first, "pool": nn.MaxPool2d(2), "norm": BatchNormSilu(features)}
        for j in range(family.pairs):
            parts[f"pair{j}"] = Pair(features, inner, pair_kernels)
        pieces.append((f"stage{i}", Chain(parts), features))
        channels = features
    return [*pieces, ("pool", GlobalPool(), channels)]


class Merged(nn.Module):
    """`hiercls_jax.models.branched.Branched` in PyTorch."""

    def __init__(self, network: Branched):
        super().__init__()
        count = len(network.family.pieces(None))
        shared = shared_pieces(count, network.merge)
        make = {ResNet: resnet, DenseNet: densenet, Fast: fast}[type(network.family)]
        classifier = ScaledClassifier if isinstance(network.family, Fast) else Classifier
        self.shared = Chain({name: piece for name, piece, _ in make(network.family)[:shared]})
        self.heads = nn.ModuleDict()
        for level, classes in network.heads:
            pieces = make(network.family)
            parts = {name: piece for name, piece, _ in pieces[shared:]}
            parts["classifier"] = classifier(pieces[-1][2], classes)
            self.heads[level] = Chain(parts)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.shared(x)
        return {level: head(x) for level, head in self.heads.items()}


def load(module: Merged, weights: dict[str, np.ndarray]) -> None:
    """Copy parameters into the network.

    Args:
      module: the network.
      weights: every parameter by its Flax path, such as `shared/stage1/block0/conv1/kernel`.
    """
    own = dict(module.named_parameters())
    for path, value in _unrolled(weights):
        name = path.replace("/", ".").replace(".classifier.", ".classifier.linear.")
        name = name.replace("transition_", "transition.transition_")
        if not name.startswith("shared."):
            name = f"heads.{name}"
        name = name.removesuffix(".kernel").removesuffix(".scale")
        name = name if name.endswith(".bias") else f"{name}.weight"
        axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[value.ndim]
        with torch.no_grad():
            own.pop(name).copy_(torch.from_numpy(np.ascontiguousarray(value.transpose(axes))))
    assert not own, f"parameters without a value: {', '.join(own)}"


def _unrolled(weights: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield paths and values of each block, which Flax has in one module for all equal blocks."""
    for path, value in weights.items():
        if "/blocks/" in path:
            for i, block_value in enumerate(value, 1):
                yield path.replace("/blocks/", f"/block{i}/"), block_value
        else:
            yield path, value
