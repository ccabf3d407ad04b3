"""The embedded data set: 30,000 drawn images of CIFAR-100's shape, made in seconds, no download.

Each 32x32 image shows one object, tilted, on a cluttered background and often partly hidden. Its
coarse class is a family of shapes and a fill (`striped_star`), its fine class the shape itself
(`striped_star_5`, of five points): 5 families x 4 fills = 20 coarse classes, with 5 fine classes
each. Fills are quickly learned, shapes slowly, and a fine class looks like those of the same shape
and another fill, so that both levels are mistaken, and not always together. Every class is its own
mirror image, so that flips may augment it.

The images are the same bits on every machine and NumPy version: raw output of a bit generator
(NumPy keeps the streams of its `Generator` methods only within a version) and integers throughout.
"""

import hashlib

import numpy as np

from hiercls_jax.data.dataset import DataError, Request, Split, cached
from hiercls_jax.data.stream import Once
from hiercls_jax.hierarchy import Hierarchy

SIZE = 32  # pixels
COUNTS = {"train": 20_000, "test": 10_000}  # images; 200 and 100 of each fine class
SEED = 2017
CHECKSUM = "d1c987289ee0b1d94d8d6302781c2c8d0bba737f58ac80d244be0f6fb9886c3a"  # SHA-256

FILLS = ("plain", "striped", "checked", "dotted")
SHAPES = {
    "oval": ("100", "80", "64", "51", "41"),  # width over length in percent
    "polygon": ("3", "4", "5", "6", "8"),  # corners
    "star": ("3", "4", "5", "6", "8"),  # points
    "flower": ("3", "4", "5", "6", "8"),  # petals
    "letter": ("e", "f", "h", "l", "t"),
}
FAMILIES = tuple(SHAPES)
VARIANTS = 5  # shapes of a family, fine classes of a coarse class

TEMPLATE = 128  # samples along a side of a shape's drawing
RADIUS = 60  # of the circle around the shape, in samples
TILE = 32  # samples along a side of a fill's period
# Images drawn at a time: what fits in a CPU's cache. Part of what the images are: a chunk's random
# numbers are drawn one property after another.
CHUNK = 100
_ONE = 1 << 16  # fixed point
# (cos, sin) of 180°/n in fixed point, for the corners, points and petals.
_HALF_TURNS = {
    3: (32768, 56756),
    4: (46341, 46341),
    5: (53020, 38521),
    6: (56756, 32768),
    8: (60547, 25080),
}


def hierarchy() -> Hierarchy:
    """Return the two levels, 20 coarse and 100 fine classes.

    >>> names = hierarchy().names
    >>> names[0][9], names[1][47]
    ('striped_star', 'striped_star_5')
    """
    coarse = [f"{fill}_{family}" for family in FAMILIES for fill in FILLS]
    fine = [f"{name}_{shape}" for name in coarse for shape in SHAPES[name.split("_")[1]]]
    return Hierarchy(("coarse", "fine"), (coarse, fine), (np.arange(len(fine)) // VARIANTS,))


def super_hierarchy() -> Hierarchy:
    """Return three levels: the 5 families of shapes above the two levels of `hierarchy()`."""
    two = hierarchy()
    families = np.arange(two.sizes[0]) // len(FILLS)
    return Hierarchy(("super", *two.levels), (FAMILIES, *two.names), (families, *two.parents))


def load_splits(request: Request, hierarchy: Hierarchy, once: Once) -> dict[str, Split]:
    """Return `load()`, whatever the request; see `sources.SourceModule`."""
    return load()


def load() -> dict[str, Split]:
    """Return the splits 'train' and 'test', drawn at the first call and read from the cache then.

    Raises:
      DataError: where this machine draws other images than those that `CHECKSUM` stands for.
    """
    return cached("embedded", {"checksum": CHECKSUM}, _drawn)


def _drawn() -> dict[str, Split]:
    # Only images with the right sum enter the cache, and the cache verifies what it reads.
    splits = generate()
    found = checksum(splits)
    if found != CHECKSUM:
        raise DataError(
            f"the embedded images drawn here have the SHA-256 {found} instead of {CHECKSUM}: "
            f"results on them could not be compared with anyone else's; NumPy {np.__version__} "
            "computes integers otherwise here, so try another build of it"
        )
    return splits


def checksum(splits: dict[str, Split]) -> str:
    """Return the SHA-256 sum of all images and labels, to be compared with `CHECKSUM`."""
    digest = hashlib.sha256()
    for name in COUNTS:
        digest.update(splits[name].images.tobytes())
        digest.update(splits[name].labels.astype("<i4").tobytes())
    return digest.hexdigest()


def generate() -> dict[str, Split]:
    """Draw the splits 'train' and 'test': balanced, classes in turn."""
    splits = {}
    shapes, fills = _shape_templates(), _fill_tiles()
    for stream, (name, count) in enumerate(COUNTS.items()):
        labels = (np.arange(count) % (len(FAMILIES) * len(FILLS) * VARIANTS)).astype(np.int32)
        bits = _Bits(SEED + stream)
        chunks = np.split(labels, range(CHUNK, count, CHUNK))
        images = np.concatenate([_draw(chunk, bits, shapes, fills) for chunk in chunks])
        splits[name] = Split(images, labels)
    return splits


class _Bits:
    """Random integers from a bit generator's raw 64-bit output."""

    def __init__(self, seed: int):
        self.generator = np.random.PCG64(seed)

    def integers(self, low: int, high: int, *shape: int) -> np.ndarray:
        """Return int32 values in [low, high), as even as 32 bits make them."""
        raw = self.generator.random_raw(int(np.prod(shape))).reshape(shape)
        scaled = ((raw >> np.uint64(32)) * np.uint64(high - low)) >> np.uint64(32)
        return scaled.astype(np.int32) + np.int32(low)

    def bytes(self, *shape: int) -> np.ndarray:
        """Return uint8 values, the same for either byte order of the machine."""
        count = int(np.prod(shape))
        raw = self.generator.random_raw(-(-count // 8)).astype("<u8")
        return raw.view(np.uint8)[:count].reshape(shape)


# Shapes and fills, each drawn once, and looked up at the tilted coordinates of every image.


def _shape_templates() -> np.ndarray:
    """Return uint8 `[5 * 5, TEMPLATE, TEMPLATE]`, 1 inside; families in turn."""
    draw = {
        "oval": lambda percent: _oval(int(percent)),
        "polygon": lambda n: _corners(int(n), 100),
        "star": lambda n: _corners(int(n), {3: 34, 4: 42, 5: 48, 6: 53, 8: 60}[int(n)]),
        "flower": lambda n: _flower(int(n)),
        "letter": _letter,
    }
    return np.stack([draw[family](s) for family in FAMILIES for s in SHAPES[family]]).astype("u1")


def _grid() -> tuple[np.ndarray, np.ndarray]:
    """Return x `[1, TEMPLATE]` and y `[TEMPLATE, 1]`, from the middle, in half samples."""
    axis = 2 * np.arange(TEMPLATE) - (TEMPLATE - 1)
    return axis[None, :], axis[:, None]


def _oval(percent: int) -> np.ndarray:
    x, y = _grid()
    return (x * percent) ** 2 + (y * 100) ** 2 <= (2 * RADIUS * percent) ** 2


def _turns(n: int) -> list[tuple[int, int]]:
    """Return the directions (cos, sin) of 2n points around a circle, in fixed point."""
    cos, sin = _HALF_TURNS[n]
    x, y = 0, -_ONE
    points = []
    for _ in range(2 * n):
        points.append((x, y))
        x, y = (x * cos - y * sin) // _ONE, (x * sin + y * cos) // _ONE
    return points


def _corners(n: int, percent: int) -> np.ndarray:
    """Draw n corners, and n between them at `percent` of the radius; at 100, an n-gon."""
    step = 2 if percent == 100 else 1
    points = [
        (x * 2 * RADIUS // _ONE, y * 2 * RADIUS // _ONE)
        if i % 2 == 0
        else (x * 2 * RADIUS * percent // (100 * _ONE), y * 2 * RADIUS * percent // (100 * _ONE))
        for i, (x, y) in enumerate(_turns(n))
    ][::step]
    x, y = _grid()
    inside = np.zeros((TEMPLATE, TEMPLATE), bool)
    for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True):
        sector = (ax * y - ay * x >= 0) & (x * by - y * bx >= 0)
        inside |= sector & ((bx - ax) * (y - ay) - (by - ay) * (x - ax) >= 0)
    return inside


def _flower(n: int) -> np.ndarray:
    x, y = _grid()
    petal = {3: 45, 4: 38, 5: 33, 6: 29, 8: 23}[n]  # diameters over the radius, in percent
    away = (100 - petal) * 2 * RADIUS // 100
    reach = petal * 2 * RADIUS // 100
    inside = x**2 + y**2 <= (away - reach // 4) ** 2
    for cos, sin in _turns(n)[::2]:
        inside |= (x - away * cos // _ONE) ** 2 + (y - away * sin // _ONE) ** 2 <= reach**2
    return inside


def _letter(name: str) -> np.ndarray:
    x, y = _grid()
    reach, half = 88, 17  # of the letter and of a stroke, in half samples
    left, right = x + reach - half, x - reach + half
    top, bottom = y + reach - half, y - reach + half
    within = (np.abs(x) <= reach) & (np.abs(y) <= reach)
    strokes = {
        "e": (left, top, y, bottom),
        "f": (left, top, y),
        "h": (left, right, y),
        "l": (left, bottom),
        "t": (top, x),
    }[name]
    return within & np.any([np.broadcast_to(abs(s) <= half, within.shape) for s in strokes], axis=0)


def _fill_tiles() -> np.ndarray:
    """Return uint8 `[4, TILE, TILE]`, one period of each fill, 1 where it is inked."""
    axis = 2 * np.arange(TILE) - (TILE - 1)
    x, y = axis[None, :], axis[:, None]
    striped = np.broadcast_to(y < 0, (TILE, TILE))
    dotted = x**2 + y**2 <= (TILE * 30 // 50) ** 2
    return np.stack([np.zeros((TILE, TILE), bool), striped, (x < 0) ^ (y < 0), dotted]).astype("u1")


# Images, a chunk at a time, channels before pixels until they are done: NumPy is slow at inner
# loops of length 3. Lengths are in quarters of a pixel, positions from the middle.


def _draw(labels: np.ndarray, bits: _Bits, shapes: np.ndarray, fills: np.ndarray) -> np.ndarray:
    """Draw uint8 images `[N, SIZE, SIZE, 3]` of the given fine classes."""
    n = len(labels)
    coarse = labels // VARIANTS
    family, fill = coarse // len(FILLS), coarse % len(FILLS)
    colours = _colours(family, bits)

    image = _background(n, bits, colours, fills)
    for k in range(2):
        _paint(image, _mark(n, bits), colours["marks"][:, k])
    # Where four samples of each pixel see the shape (units) and its ink (eights).
    covered, ink = _object(n, bits, family * VARIANTS + labels % VARIANTS, fill, shapes, fills)
    image *= (4 - covered)[:, None]
    image += (covered - ink)[:, None] * colours["base"][..., None, None]
    image += ink[:, None] * colours["ink"][..., None, None]
    image >>= 2
    _paint(image, _strip(n, bits), colours["strip"])

    shade = bits.integers(4, 14, n, 1, 1, 1).astype(np.int16)
    noise = bits.bytes(2, *image.shape).astype(np.int16)
    image += (noise[0] - noise[1]) * shade >> 7
    np.clip(image, 0, 255, out=image)
    return np.ascontiguousarray(image.astype(np.uint8).transpose(0, 2, 3, 1))


def _colours(family: np.ndarray, bits: _Bits) -> dict[str, np.ndarray]:
    """Choose int16 RGB colours `[N, ..., 3]` with some contrast between object and background."""
    n = len(family)
    ground = bits.integers(40, 100, n)
    contrast = bits.integers(60, 110, n)
    base = ground + contrast
    inked = bits.integers(50, 100, n)
    up = base + np.where(bits.integers(0, 2, n) == 1, inked, -inked)
    up = np.where((up < 20) | (up > 235), 2 * base - up, up)
    other = family * 307 + bits.integers(-300, 301, 2, n).sum(axis=0, dtype=np.int32)
    hue = other + bits.integers(300, 1236, n)
    turn = bits.integers(-250, 250, n)
    return {
        "ground": _colour(hue, bits.integers(20, 160, n), ground),
        "ground2": _colour(hue + turn, bits.integers(20, 160, n), ground + turn // 8),
        "base": _colour(other, bits.integers(120, 256, n), base),
        "ink": _colour(other + turn, bits.integers(60, 256, n), up),
        "marks": _colour(
            bits.integers(0, 1536, n, 2), bits.integers(40, 256, n, 2), bits.integers(40, 230, n, 2)
        ),
        "strip": _colour(
            bits.integers(0, 1536, n), bits.integers(20, 160, n), bits.integers(40, 230, n)
        ),
    }


def _colour(hue, saturation, light) -> np.ndarray:
    """Return int16 RGB `[..., 3]`: a hue in [0, 1536), greyed, at a lightness in 0 to 255."""
    corner = np.array([0, 512, 1024], np.int32)  # of red, green and blue on the circle of hues
    away = np.abs((hue[..., None] - corner + 768) % 1536 - 768)
    pure = np.clip(512 - away, 0, 256)
    mixed = pure * saturation[..., None] // 256 + 256 - saturation[..., None]
    luma = (mixed * np.array([77, 150, 29], np.int32)).sum(axis=-1, keepdims=True, dtype=np.int32)
    return np.clip(mixed * light[..., None] * 256 // np.maximum(luma, 1), 0, 255).astype(np.int16)


def _pixels(scale: int) -> np.ndarray:
    """Return int32 centres of `SIZE * scale` samples along a side, in quarter pixels."""
    return (2 * np.arange(SIZE * scale, dtype=np.int32) - (SIZE * scale - 1)) * 2 // scale


def _plane(x_factor, y_factor, offset, scale: int = 1) -> np.ndarray:
    """Return int32 `[N, SIZE * scale, SIZE * scale]`: x_factor x + y_factor y + offset."""
    axis = _pixels(scale)
    rows = x_factor[:, None] * axis + offset[:, None]
    return rows[:, None, :] + (y_factor[:, None] * axis)[:, :, None]


def _tilt(n: int, bits: _Bits, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (cos, sin) `[N]` times 4096 of angles whose half has a tangent up to limit / 256."""
    p = bits.integers(-limit, limit + 1, n)
    norm = 65536 + p * p
    return (65536 - p * p) * 4096 // norm, 512 * p * 4096 // norm


def _background(n: int, bits: _Bits, colours: dict, fills: np.ndarray) -> np.ndarray:
    """Return int16 `[N, 3, SIZE, SIZE]`: a gradient with a faint fill of its own."""
    cos, sin = _tilt(n, bits, 256)
    ramp = np.clip((_plane(cos, sin, cos * 0) >> 11) + 128, 0, 256)[:, None]
    first, second = colours["ground"][..., None, None], colours["ground2"][..., None, None]
    image = (first.astype(np.int32) * (256 - ramp) + second * ramp >> 8).astype(np.int16)
    faint = bits.integers(0, 8, n).astype(np.int16)
    pattern = _pattern(n, bits, bits.integers(0, 4, n), fills, 1, bits.integers(16, 48, n))
    image += (pattern * faint[:, None, None])[:, None]
    return image


def _pattern(n, bits, fill, fills, scale, period) -> np.ndarray:
    """Return uint8 `[N, SIZE * scale, SIZE * scale]` of fills, tilted at random, `period` long."""
    cos, sin = _tilt(n, bits, 256)
    cos, sin = cos * TILE // period, sin * TILE // period
    shift = bits.integers(0, TILE << 12, 2, n)
    u = _plane(cos, sin, shift[0], scale) >> 12 & TILE - 1
    v = _plane(-sin, cos, shift[1], scale) >> 12 & TILE - 1
    v += u * TILE
    v += (fill * TILE * TILE)[:, None, None]
    return fills.ravel()[v]


def _object(n, bits, shape, fill, shapes, fills) -> tuple[np.ndarray, np.ndarray]:
    """Return int16 `[N, SIZE, SIZE]`: how many samples of 4 are in the shape, and in its ink."""
    radius = bits.integers(42, 56, n)
    stretch = bits.integers(240, 273, n)  # of one side, in 1/256
    cos, sin = _tilt(n, bits, 45)
    x, y = bits.integers(-8, 9, 2, n)
    tall = (bits.integers(0, 2, n) == 1) & (shape < VARIANTS)  # ovals also stand
    a, b = cos * RADIUS // radius, sin * RADIUS // radius
    a, b = np.where(tall, -b, a), np.where(tall, a, b)
    c, d = -b * stretch >> 8, a * stretch >> 8
    middle = TEMPLATE << 11
    u = _plane(a, b, middle - a * x - b * y, 2) >> 12
    v = _plane(c, d, middle - c * x - d * y, 2) >> 12
    np.clip(u, 0, TEMPLATE - 1, out=u)
    np.clip(v, 0, TEMPLATE - 1, out=v)
    v *= TEMPLATE
    v += u
    v += (shape * TEMPLATE * TEMPLATE)[:, None, None]
    inside = shapes.ravel()[v]
    ink = _pattern(n, bits, fill, fills, 2, bits.integers(20, 31, n))
    return _pool(inside), _pool(inside & ink)


def _pool(samples: np.ndarray) -> np.ndarray:
    """Return the int16 sum of each 2x2 samples."""
    rows = samples[:, ::2] + samples[:, 1::2]
    return (rows[..., ::2] + rows[..., 1::2]).astype(np.int16)


def _mark(n: int, bits: _Bits) -> np.ndarray:
    """Return bool `[N, SIZE, SIZE]`: a small disc, box or diamond anywhere."""
    x, y = bits.integers(-60, 61, 2, n, 1)
    reach = bits.integers(4, 13, n)[:, None, None]
    kind = bits.integers(0, 3, n)[:, None, None]
    dx, dy = np.abs(_pixels(1) - x)[:, None, :], np.abs(_pixels(1) - y)[:, :, None]
    far, near = np.maximum(dx, dy), np.minimum(dx, dy)
    return far + near * kind // 2 <= reach


def _strip(n: int, bits: _Bits) -> np.ndarray:
    """Return bool `[N, SIZE, SIZE]`: half the images have a strip across, before the object."""
    cos, sin = _tilt(n, bits, 256)
    width = bits.integers(4, 9, n) * (bits.integers(0, 3, n) == 0)
    away = np.abs(_plane(cos, sin, bits.integers(-32, 33, n) << 12))
    return away < (width << 12)[:, None, None]


def _paint(image: np.ndarray, where: np.ndarray, colour: np.ndarray) -> None:
    """Paint each image's colour `[N, 3]` where the mask `[N, SIZE, SIZE]` is true."""
    which, row, column = np.nonzero(where)
    image[which, :, row, column] = colour[which]
