"""Merged networks: sizes, shared stages, where gradients go, and families from outside."""

import dataclasses
import zlib
from functools import cache, partial
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from small import pmap_first

from hiercls_jax.adaptation.float64 import enable_x64
from hiercls_jax.errors import UserError
from hiercls_jax.models import densenet, fast, registry, resnet
from hiercls_jax.models.branched import Branched
from hiercls_jax.models.costs import format_table, summarise
from hiercls_jax.models.cpu_gradients import average_pool
from hiercls_jax.models.layers import BatchNormActivation, BatchNormRelu, Conv
from hiercls_jax.training.loss import level_losses, summed_loss
from hiercls_jax.training.optimizer import make_optimizer
from hiercls_jax.training.state import State, create
from hiercls_jax.training.step import Task, make_train_step

HEADS = (("coarse", 3), ("fine", 5))
IMAGE = (8, 8, 3)
SMALL = {"resnet11": {"width": 0.5}, "densenet10": {"growth": 4}, "fast11": {"width": 0.1}}
STRIDED = ("resnet11", "densenet10")  # these have the option `stem_stride`
TOY = "toy1"
ANCESTORS = {"coarse": np.int32([0, 0, 1, 2, 2]), "fine": np.arange(5, dtype=np.int32)}


class ToyStage(nn.Module):
    """A 1x1 convolution and a ReLU; its stride is its number."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x, train):
        return nn.relu(Conv(self.features, 1, self.stride, name="conv")(x))


class ToyStem(nn.Module):
    """A 3x3 convolution."""

    features: int

    @nn.compact
    def __call__(self, x, train):
        return Conv(self.features, 3, name="conv")(x)


@dataclasses.dataclass(frozen=True)
class Toy:
    """A family of two stages instead of three."""

    depth: int
    width: int = 8

    def pieces(self, axis_name):
        """Return the stem, two stages and the final normalisation."""
        stages = [ToyStage(self.width, i + 1, name=f"stage{i + 1}") for i in range(2)]
        return (ToyStem(self.width, name="stem"), *stages, BatchNormRelu(axis_name, name="norm"))


def small(arch, merge, heads=HEADS, axis_name=None) -> Branched:
    """A network of a few thousand parameters."""
    family = Toy(1) if arch == TOY else registry.build(arch, **SMALL[arch])
    return Branched(family, heads, merge, axis_name)


def image_of(network) -> tuple[int, int, int]:
    """The shape of small images: the fast family pools at least 13 pixels."""
    return (16, 16, 3) if isinstance(getattr(network, "family", None), fast.Fast) else IMAGE


def shapes(network, image=None) -> dict:
    """Every variable's shape by path, such as `params/fine/classifier/bias`."""
    image = image or image_of(network)
    images = jnp.zeros((1, *image))
    variables = jax.eval_shape(lambda: network.init(jax.random.key(0), images, train=False))
    return {path: leaf.shape for path, leaf in flatten_dict(variables, sep="/").items()}


def random_variables(network, image=None) -> dict:
    """Values drawn by path, the same for a path in any network, without compiling initialisers."""

    def draw(path, shape):
        rng = np.random.default_rng(zlib.crc32(path.encode()))
        if path.endswith("kernel"):
            return rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape).astype(np.float32)
        if path.endswith(("scale", "var")):
            return rng.uniform(0.5, 1.5, shape).astype(np.float32)
        return rng.normal(0, 0.1, shape).astype(np.float32)

    drawn = {path: draw(path, shape) for path, shape in shapes(network, image).items()}
    return unflatten_dict(drawn, sep="/")


def random_state(network, optimizer) -> State:
    """The state at step 0 with `random_variables`."""
    variables = random_variables(network)
    params, batch_stats = variables["params"], variables["batch_stats"]
    return State(jnp.int32(0), params, batch_stats, optimizer.init(params))


def batch(image=IMAGE) -> dict:
    """Eight images of noise with their labels."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, *image), np.uint8)
    labels = rng.integers(0, 5, 8, np.int32)
    return {"images": images, "labels": labels, "positions": np.arange(8, dtype=np.int32)}


def make_task(network, learning_rate=0.1) -> Task:
    """The task of a training step on `batch`."""
    config = SimpleNamespace(
        schedule="step",
        learning_rate=learning_rate,
        decay_at=(),
        decay_factor=1.0,
        warmup_steps=0,
        momentum=0.9,
        nesterov=False,
        weight_decay=1e-4,
    )
    levels = [level for level, _ in network.heads]
    return Task(
        network,
        make_optimizer(config, steps=10),
        {level: ANCESTORS[level] for level in levels},
        dict.fromkeys(levels, 1.0),
        mean=np.full(3, 127.5, np.float32),
        std=np.full(3, 70, np.float32),
        key=jax.random.key(1),
        augment=False,
    )


# Sizes, with heads of 20 and 100 classes and images of 32x32.

COLUMNS = {
    "coarse": ((("coarse", 20),), 0),
    "fine": ((("fine", 100),), 0),
    **{f"merge-{m}": ((("coarse", 20), ("fine", 100)), m) for m in range(4)},
}
PARAMETERS = {
    "resnet164": [1_705_828, 1_726_388, 3_432_216, 3_349_832, 3_023_560, 1_731_528],
    "densenet100": [772_592, 800_032, 1_572_624, 1_372_536, 1_084_056, 806_892],
}
# Against one network, for merge-0 to merge-3.
MULTIPLY_ADDS = {"resnet164": [2, 1.67, 1.33, 1], "densenet100": [2, 1.31, 1.06, 1]}


@cache
def published(arch, column) -> dict:
    """The summary of one cell of the table."""
    heads, merge = COLUMNS[column]
    return summarise(Branched(registry.build(arch), heads, merge), (32, 32, 3))


@pytest.mark.parametrize("arch", PARAMETERS)
def test_parameter_counts(arch):
    """Both published networks, alone and merged, have exactly these parameters."""
    counts = [published(arch, column)["parameters"] for column in COLUMNS]
    assert counts == PARAMETERS[arch]


@pytest.mark.parametrize("arch", MULTIPLY_ADDS)
def test_multiply_add_ratios(arch):
    """Merging lowers the multiply-adds from twice those of one network to once, by these ratios."""
    one = published(arch, "fine")["multiply_adds"]
    ratios = [published(arch, f"merge-{m}")["multiply_adds"] / one for m in range(4)]
    np.testing.assert_allclose(ratios, MULTIPLY_ADDS[arch], atol=0.005)  # given to two digits


def test_summary_adds_up():
    """Stage by stage, a small network's counts are those worked out by hand, and are printed."""
    summary = summarise(Branched(Toy(1, width=4), HEADS, 1), IMAGE)
    hand = {
        "shared/stem": {"parameters": 9 * 3 * 4, "multiply_adds": 64 * 9 * 3 * 4},
        "shared/stage1": {"parameters": 4 * 4, "multiply_adds": 64 * 4 * 4},
        "coarse/stage2": {"parameters": 4 * 4, "multiply_adds": 16 * 4 * 4},
        "coarse/norm": {"parameters": 8, "multiply_adds": 0},
        "coarse/classifier": {"parameters": 4 * 3 + 3, "multiply_adds": 4 * 3},
        "fine/stage2": {"parameters": 4 * 4, "multiply_adds": 16 * 4 * 4},
        "fine/norm": {"parameters": 8, "multiply_adds": 0},
        "fine/classifier": {"parameters": 4 * 5 + 5, "multiply_adds": 4 * 5},
    }
    assert summary["stages"] == hand
    for total in ("parameters", "multiply_adds"):
        assert summary[total] == sum(counts[total] for counts in hand.values())
    table = [line.split() for line in format_table(summary).splitlines()]
    assert ["shared/stem", "108", "6,912"] in table
    assert table[-1] == ["total", "212", "8,480"]


# What is shared.


@pytest.mark.parametrize("arch", SMALL)
@pytest.mark.parametrize("merge", range(4))
def test_stages_are_shared_up_to_the_merge(arch, merge):
    """The stem goes with stage 1, the final normalisation with the last stage (Figure 2d-2g)."""
    pieces = ["stem", "stage1", "stage2", "stage3", "norm"]
    if arch == "fast11":
        pieces.pop()  # it pools there, without parameters
    cut = [0, 2, 3, 5][merge]
    wanted = {("shared", piece) for piece in pieces[:cut]}
    wanted |= {(level, p) for level, _ in HEADS for p in [*pieces[cut:], "classifier"]}
    paths = [path.split("/") for path in shapes(small(arch, merge)) if path.startswith("params")]
    assert {(part, piece) for _, part, piece, *_ in paths} == wanted


@pytest.mark.parametrize("arch", SMALL)
def test_merge_3_is_one_network_below_two_classifiers(arch):
    """Below its heads, merge-3 has the paths and shapes of one network, statistics included."""
    merged, single = shapes(small(arch, 3)), shapes(small(arch, 0, HEADS[1:]))
    below = {
        path.replace("/fine/", "/shared/"): shape
        for path, shape in single.items()
        if "classifier" not in path
    }
    assert {path: s for path, s in merged.items() if "classifier" not in path} == below
    assert {path: s for path, s in merged.items() if "fine/classifier" in path} == {
        path: s for path, s in single.items() if "classifier" in path
    }


def test_the_blocks_of_a_loop_count_once_each():
    """Two more blocks in each stage add 4 f² + 9 f² + 4 f² multiply-adds at each position."""
    counts = [
        summarise(Branched(registry.build(arch), HEADS[:1], 0), (32, 32, 3))["multiply_adds"]
        for arch in ("resnet11", "resnet29")
    ]
    assert counts[1] - counts[0] == 2 * sum(
        17 * (16 * 2**i) ** 2 * (32 // 2**i) ** 2 for i in range(3)
    )


class OneByOne(nn.Module):
    """A stage of a ResNet, written without a loop."""

    stage: resnet.Stage

    @nn.compact
    def __call__(self, x, train):
        of = self.stage
        for i in range(of.blocks):
            stride = of.stride if i == 0 else 1
            x = resnet.Block(of.features, stride, None, name=f"block{i}")(x, train)
        return x


def test_a_loop_over_blocks_is_one_after_another():
    """Values, gradients and running statistics of a stage, in training and not, in float64."""
    with enable_x64(True):
        stage = resnet.Stage(3, 2, 2, None)
        plain = OneByOne(stage)
        rng = np.random.default_rng(0)
        x, weights = rng.normal(size=(8, 4, 4, 4)), rng.normal(size=(8, 2, 2, 8))
        looped = jax.jit(partial(stage.init, train=True))(jax.random.key(0), x)
        looped = jax.tree.map(np.float64, looped)

        def apart(tree):
            """The tree with an entry for each block."""
            return {
                kind: {"block0": of["block0"]}
                | {
                    f"block{i + 1}": jax.tree.map(lambda a, i=i: a[i], of["blocks"])
                    for i in range(2)
                }
                for kind, of in tree.items()
            }

        def gradients(module, variables):
            def loss(params, x):
                own = {**variables, "params": params}
                y, new = module.apply(own, x, True, mutable=["batch_stats"])
                return jnp.sum(weights * y), (y, new)

            gradient = jax.value_and_grad(loss, (0, 1), has_aux=True)
            (_, (y, new)), (d_params, dx) = jax.jit(gradient)(variables["params"], x)
            return y, dx, {"params": d_params, **new}

        *values, trees = gradients(stage, looped)
        *wanted, wanted_trees = gradients(plain, apart(looped))
        check = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9)
        jax.tree.map(check, (*values, apart(trees)), (*wanted, wanted_trees))
        predict = [jax.jit(partial(m.apply, train=False)) for m in (stage, plain)]
        check(predict[0](looped, x), predict[1](apart(looped), x))


def test_blocks_of_a_loop_start_apart():
    """Each block has random numbers of its own, with He et al.'s deviation."""
    init = jax.jit(partial(resnet.Stage(5, 16, 1, None).init, train=True))
    variables = init(jax.random.key(0), jnp.zeros((1, 4, 4, 64)))
    kernels = variables["params"]["blocks"]["conv2"]["kernel"].reshape(4, -1)
    np.testing.assert_allclose(np.corrcoef(kernels) - np.eye(4), 0, atol=0.1)
    np.testing.assert_allclose(kernels.std(axis=1), np.sqrt(2 / (9 * 16)), rtol=0.05)


class PlainLayers(nn.Module):
    """A stage of a DenseNet in which every layer computes the moments of all its channels."""

    stage: densenet.Stage
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train):
        of = self.stage
        for i in range(of.layers):
            y = PlainLayer(of.growth, name=f"layer{i}")(x, train)
            x = jnp.concatenate([x, y], axis=-1)
        y = BatchNormRelu(name="transition_norm")(x, train)
        y = Conv(int(x.shape[-1] * of.compression), 1, name="transition_conv")(y)
        return average_pool(y)


class PlainLayer(nn.Module):
    """A layer that returns its new channels only."""

    growth: int

    @nn.compact
    def __call__(self, x, train):
        y = Conv(4 * self.growth, 1, name="conv1")(BatchNormRelu(name="norm1")(x, train))
        return Conv(self.growth, 3, name="conv2")(BatchNormRelu(name="norm2")(y, train))


def test_moments_that_layers_share_are_those_of_each():
    """Values, gradients and running statistics of a dense block, in float64, on 1 and 2 devices."""
    with enable_x64(True):
        plain = PlainLayers(densenet.Stage(2, 2, 0.5, None))
        rng = np.random.default_rng(0)
        x, weights = rng.normal(size=(8, 4, 4, 4)), rng.normal(size=(8, 2, 2, 4))
        variables = jax.tree.map(np.float64, random_variables(plain, x.shape[1:]))

        def gradients(module, x, weights):
            def loss(params, x):
                own = {**variables, "params": params}
                y, new = module.apply(own, x, True, mutable=["batch_stats"])
                return jnp.mean(weights * y), (y, new)

            gradient = jax.grad(loss, (0, 1), has_aux=True)
            (d_params, dx), (y, new) = gradient(variables["params"], x)
            if module.axis_name is not None:
                d_params = jax.lax.pmean(d_params, module.axis_name)
            return (dx, y), (d_params, new)

        (wanted_dx, wanted_y), wanted = jax.jit(partial(gradients, plain))(x, weights)
        check = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9)
        for devices in (1, 2):
            stage = densenet.Stage(2, 2, 0.5, "i" if devices > 1 else None)
            spread = (a.reshape(devices, -1, *a.shape[1:]) for a in (x, weights))
            (dx, y), trees = pmap_first(partial(gradients, stage), "i", devices)(*spread)
            check(dx.reshape(x.shape) / devices, wanted_dx)
            check(y.reshape(weights.shape), wanted_y)
            for i in range(devices):
                jax.tree.map(lambda a, w: check(a[i], w), trees, wanted)  # noqa: B023
        predict = [jax.jit(partial(m.apply, train=False)) for m in (stage, plain)]
        check(*(f(variables, x) for f in predict))


def test_gradients_of_shared_channels_are_summed_once(monkeypatch):
    """The compiler does not sum the gradients of later layers anew for each of their readers."""
    stage = densenet.Stage(4, 4, None, None)
    x = jnp.ones((2, 4, 4, 8))
    variables = random_variables(stage, x.shape[1:])

    def operations():
        def loss(params, x):
            own = {**variables, "params": params}
            return jnp.sum(stage.apply(own, x, True, mutable=["batch_stats"])[0] ** 2)

        lowered = jax.jit(jax.grad(loss, (0, 1))).lower(variables["params"], x)
        return lowered.compile().cost_analysis()["flops"]

    once = operations()
    monkeypatch.setattr(densenet, "sum_gradient_once", lambda y: y)
    assert once < operations()


def test_parameter_paths():
    """Paths are API: checkpoints and users name parameters by them."""
    paths = {path for path in shapes(small("resnet11", 1)) if path.startswith("params/fine")}
    layers = ["conv1/kernel", "conv2/kernel", "conv3/kernel", "shortcut/kernel"]
    layers += [f"norm{i}/{name}" for i in (1, 2, 3) for name in ("scale", "bias")]
    wanted = {f"params/fine/stage{i}/block0/{layer}" for i in (2, 3) for layer in layers}
    wanted |= {f"params/fine/{name}" for name in ("norm/scale", "norm/bias")}
    wanted |= {f"params/fine/{name}" for name in ("classifier/kernel", "classifier/bias")}
    assert paths == wanted
    loop = shapes(Branched(registry.build("resnet29", width=0.5), HEADS, 1))
    assert loop["params/shared/stage1/blocks/conv2/kernel"] == (2, 3, 3, 8, 8)
    dense = shapes(small("densenet10", 2))
    assert "params/shared/stage1/layer0/conv2/kernel" in dense
    assert "params/shared/stage2/transition_conv/kernel" in dense
    assert "batch_stats/coarse/stage3/layer0/norm1/mean" in dense


@pytest.mark.parametrize("arch", [*SMALL, TOY])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_of_every_head_are_float32(arch, dtype):
    """`[N, classes]` for each head, whatever the type and size of the images."""
    network = small(arch, 1)
    init = partial(network.init_with_output, jax.random.key(0), train=False)
    logits, _ = jax.eval_shape(init, jax.ShapeDtypeStruct((7, 16, 13, 3), dtype))
    assert {level: (z.shape, z.dtype) for level, z in logits.items()} == {
        level: ((7, classes), np.float32) for level, classes in HEADS
    }


@pytest.mark.parametrize("arch", SMALL)
def test_every_normalisation_knows_the_mapped_axis(arch):
    """The axis name reaches every normalisation, shared or not: none is left unsynchronised."""
    seen = []

    def record(next_call, args, kwargs, context):
        if isinstance(context.module, BatchNormActivation):
            seen.append(context.module.axis_name)
        return next_call(*args, **kwargs)

    with nn.intercept_methods(record):
        count = len([p for p in shapes(small(arch, 1, axis_name="i")) if p.endswith("/scale")])
    assert seen == ["i"] * count


# Gradients.


@pytest.fixture(
    scope="module",
    params=[(TOY, 0), (TOY, 1), (TOY, 2), ("resnet11", 1), ("densenet10", 2), ("fast11", 1)],
    ids=lambda param: "-merge".join(map(str, param)),
)
def gradients(request):
    """Gradients by path of the coarse loss, of the fine loss and of their sum."""
    arch, merge = request.param
    network = small(arch, merge)
    data = batch(image_of(network))
    images = data["images"].astype(np.float32) / 70 - 1.8
    labels = {level: ids[data["labels"]] for level, ids in ANCESTORS.items()}
    variables = random_variables(network)

    @jax.jit
    def gradient(params, weights):
        def loss(params):
            variables_ = {**variables, "params": params}
            logits, _ = network.apply(variables_, images, train=True, mutable=["batch_stats"])
            return summed_loss(level_losses(logits, labels), weights)

        return jax.grad(loss)(params)

    def of(coarse, fine):
        weights = {"coarse": jnp.float32(coarse), "fine": jnp.float32(fine)}
        return flatten_dict(jax.device_get(gradient(variables["params"], weights)), sep="/")

    return merge, of(1, 0), of(0, 1), of(1, 1)


def test_a_loss_moves_its_own_branch_and_what_is_shared(gradients):
    """One level's loss has exactly zero gradient on the other's branch, and nowhere else."""
    merge, coarse, fine, _ = gradients
    assert any(path.startswith("shared/") for path in coarse) == (merge > 0)
    for path in coarse:
        part = path.split("/")[0]
        assert np.any(coarse[path]) == (part in ("shared", "coarse")), path
        assert np.any(fine[path]) == (part in ("shared", "fine")), path


def test_shared_gradient_is_the_sum_of_both_levels(gradients):
    """The gradient of the summed loss is the sum of the levels' gradients, path by path."""
    _, coarse, fine, both = gradients
    for path, total in both.items():
        # float32 rounding of sums over the batch, relative to the largest entry of the array.
        tolerance = 1e-4 * np.abs(total).max()
        np.testing.assert_allclose(coarse[path] + fine[path], total, atol=tolerance, err_msg=path)


# Separate training and merge-0.


def test_merge_0_starts_where_separate_networks_start():
    """Initial values depend on the key and on the path alone, bit for bit."""
    network, optimizer = small(TOY, 0), make_task(small(TOY, 0)).optimizer
    merged = create(network, optimizer, jax.random.key(3), IMAGE)
    single = create(small(TOY, 0, HEADS[1:]), optimizer, jax.random.key(3), IMAGE)
    jax.tree.map(np.testing.assert_array_equal, merged.params["fine"], single.params["fine"])
    assert np.any(merged.params["fine"]["stem"]["conv"]["kernel"])
    same = (
        merged.params["fine"]["stem"]["conv"]["kernel"]
        == (merged.params["coarse"]["stem"]["conv"]["kernel"])
    )
    assert not np.any(same)


@pytest.mark.parametrize("arch", ["resnet11", "fast11"])
def test_a_merge_0_step_is_two_separate_steps(arch):
    """From the same values and on the same batch, merge-0 takes the separate networks' steps.

    Parameters, BatchNorm statistics and momentum after a step are the same up to the compiler's
    order of operations; so are each level's loss and errors.
    """

    def step(network):
        task = make_task(network)
        before = random_state(network, task.optimizer)
        after, metrics = jax.jit(make_train_step(task))(before, batch(image_of(network)))
        return before, after, metrics

    def values(state, level):
        trees = {"params": state.params, "stats": state.batch_stats}
        trees["trace"] = state.opt_state[1].trace
        return jax.device_get({name: tree[level] for name, tree in trees.items()})

    _, merged, merged_metrics = step(small(arch, 0))
    assert merged.step == 1
    for level, classes in HEADS:
        before, after, metrics = step(small(arch, 0, ((level, classes),)))
        # Gradients of up to 10 are rounded to 1e-6, and a step is a tenth of one.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            values(merged, level),
            values(after, level),
        )
        moved = jax.tree.map(
            lambda a, b: np.any(a != b), values(before, level), values(after, level)
        )
        moved["stats"].get("stem", {}).pop("kernel", None)  # whitens, and is not trained
        assert all(jax.tree.leaves(moved))
        assert merged_metrics[f"errors_{level}"] == metrics[f"errors_{level}"]
        np.testing.assert_allclose(merged_metrics[f"loss_{level}"], metrics["loss"], rtol=1e-5)


# Families, from outside and by name.


def test_a_family_from_outside_trains_merged(monkeypatch):
    """A registered family of two stages trains merged on three levels: a step lowers the loss."""
    monkeypatch.setattr(registry, "_FAMILIES", dict(registry._FAMILIES))
    registry.register("toy", Toy)
    assert registry.options("toy1") == {"width": 8}
    monkeypatch.setitem(ANCESTORS, "all", np.int32([0, 0, 0, 1, 1]))
    network = Branched(registry.build("toy1", width=4), (("all", 2), *HEADS), 1)
    assert {"params/shared/stage1/conv/kernel", "params/all/stage2/conv/kernel"} < set(
        shapes(network)
    )
    task = make_task(network)
    step = jax.jit(make_train_step(task))
    state, first = step(random_state(network, task.optimizer), batch())
    _, second = step(state, batch())
    assert second["loss"] < first["loss"] - 0.1
    np.testing.assert_allclose(
        first["loss"], first["loss_all"] + first["loss_coarse"] + first["loss_fine"], rtol=1e-6
    )


def test_a_recipe_belongs_to_its_family(monkeypatch):
    """The families of the project and those from outside bring a recipe, or train with ResNet's."""
    for name, family in (("toy", Toy), ("own", type("Own", (Toy,), {"RECIPE": {"epochs": 3}}))):
        monkeypatch.setitem(registry._FAMILIES, name, family)
    assert registry.recipe("resnet29") is resnet.ResNet.RECIPE
    assert registry.recipe("densenet10") is densenet.DenseNet.RECIPE
    assert registry.recipe("own1") == {"epochs": 3}
    assert registry.recipe("toy1") is resnet.ResNet.RECIPE


@pytest.mark.parametrize("arch", STRIDED)
def test_a_stem_stride_makes_all_behind_it_cheaper(arch):
    """`stem_stride=2` keeps every parameter and quarters the multiply-adds of every convolution."""
    plain, strided = (
        summarise(
            Branched(registry.build(arch, stem_stride=stride, **SMALL[arch]), HEADS, 1), (16, 16, 3)
        )["stages"]
        for stride in (1, 2)
    )
    for stage, counts in plain.items():
        ratio = 1 if "classifier" in stage else 4
        assert counts["parameters"] == strided[stage]["parameters"]
        assert counts["multiply_adds"] == ratio * strided[stage]["multiply_adds"]


@pytest.mark.parametrize("level", ["stem", "norm", "stage2", "merge", "family"])
def test_a_level_may_have_the_name_of_a_piece(level):
    """The name of a stage, say: botanists have a level `stem`."""
    paths = shapes(small("resnet11", 1, ((level, 2), ("leaf", 5))))
    assert f"params/{level}/classifier/bias" in paths


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: registry.build("vgg16"), "unknown arch 'vgg16'.*families: resnet, densenet, fast"),
        (lambda: registry.build("resnet"), "unknown arch 'resnet'"),
        (lambda: registry.build("resnet99999"), "unknown arch 'resnet99999'"),
        (lambda: registry.build("resnet18"), r"resnet18: .*depth 9n \+ 2 \(11, 20, …\), not 18"),
        (lambda: registry.build("resnet2"), "not 2"),
        (lambda: registry.build("densenet12"), r"densenet12: .*6n \+ 4 \(10, 16, …\), not 12"),
        (lambda: registry.build("fast12"), r"fast12: .*6n \+ 5 \(11, 17, …\), not 12"),
        (lambda: registry.build("densenet10", compression=0), r"lies in \(0, 1\], not 0"),
        (lambda: registry.build("resnet11", growth=4), "no option 'growth'; it has width, stem_st"),
        (lambda: registry.register("Toy2", Toy), "lower-case letters, not 'Toy2'"),
        (lambda: shapes(small("resnet11", 4)), "merge is the number of shared stages, 0 to 3, not"),
        (lambda: shapes(small("resnet11", -1)), "0 to 3, not -1"),
        (lambda: shapes(small("resnet11", 0, (("shared", 2),))), "cannot be called 'shared'"),
    ],
)
def test_wrong_architectures_are_refused(build, message):
    """Each wrong name, depth, option or merge is a user's error that says what is allowed."""
    with pytest.raises(UserError, match=message):
        build()
