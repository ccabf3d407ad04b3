"""The embedded data set: 30,000 drawn images of CIFAR-100's shape, made in seconds, no download.

Each 32x32 image shows one object, tilted, on a cluttered background and often partly hidden. The
coarse class is a fill and a family of shapes (`striped_star`); the fine class is the shape
(`striped_star_5` has five points). 5 families x 4 fills are 20 coarse classes, with 5 fine classes
each. Networks learn fills quickly and shapes slowly, and confuse a fine class with the same shape
in another fill, so they make errors at both levels, and not always together. Every class is its own
mirror image, so training may flip the images.

The images have the same bits on every machine and with every NumPy version. To achieve that, all
computation is in integers, and random numbers are the raw output of a bit generator, because NumPy
may change the streams of its `Generator` methods between versions.
"""

import hashlib

import numpy as np

from hiercls_jax.data.cache import cached
from hiercls_jax.data.dataset import DataError, Request, Split
from hiercls_jax.data.stream import OnPrimary
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
# Images drawn at a time: as many as fit in a CPU's cache. Another value gives other images, because
# the random numbers of a chunk are drawn one property after another.
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
    coarse = tuple(f"{fill}_{family}" for family in FAMILIES for fill in FILLS)
    fine = tuple(f"{name}_{shape}" for name in coarse for shape in SHAPES[name.split("_")[1]])
    return Hierarchy(("coarse", "fine"), (coarse, fine), (np.arange(len(fine)) // VARIANTS,))


def super_hierarchy() -> Hierarchy:
    """Return three levels: the 5 families of shapes above the two levels of `hierarchy()`."""
    two = hierarchy()
    families = np.arange(two.sizes[0]) // len(FILLS)
    return Hierarchy(("super", *two.levels), (FAMILIES, *two.names), (families, *two.parents))


def load_splits(request: Request, hierarchy: Hierarchy, on_primary: OnPrimary) -> dict[str, Split]:
    """Return `load()`, whatever the request; see `sources.SourceModule`."""
    return load()


def load() -> dict[str, Split]:
    """Return the splits 'train' and 'test': drawn by the first call, read from the cache later.

    Raises:
      DataError: if this machine draws images that do not match `CHECKSUM`.
    """
    return cached("embedded", {"checksum": CHECKSUM}, Split, _generate_verified)


def _generate_verified() -> dict[str, Split]:
    # Only images with the right checksum enter the cache, and the cache verifies what it reads.
    splits = generate()
    actual = checksum(splits)
    if actual != CHECKSUM:
        raise DataError(
            f"the embedded images drawn here have the SHA-256 {actual} instead of {CHECKSUM}, so "
            "results on them could not be compared with anyone else's; NumPy "
            f"{np.__version__} computes integers differently here: try another build of it"
        )
    return splits


def checksum(splits: dict[str, Split]) -> str:
    """Return the SHA-256 of all images and labels, to be compared with `CHECKSUM`."""
    digest = hashlib.sha256()
    for name in COUNTS:
        digest.update(splits[name].images.tobytes())
        digest.update(splits[name].labels.astype("<i4").tobytes())
    return digest.hexdigest()


def generate() -> dict[str, Split]:
    """Draw the splits 'train' and 'test': balanced, with labels 0, 1, …, 99, 0, 1, …"""
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
    """Random integers from the raw 64-bit output of a bit generator."""

    def __init__(self, seed: int):
        self.generator = np.random.PCG64(seed)

    def integers(self, low: int, high: int, *shape: int) -> np.ndarray:
        """Return int32 values in [low, high), as uniform as 32 random bits allow."""
        raw = self.generator.random_raw(int(np.prod(shape))).reshape(shape)
        scaled = ((raw >> np.uint64(32)) * np.uint64(high - low)) >> np.uint64(32)
        return scaled.astype(np.int32) + np.int32(low)

    def bytes(self, *shape: int) -> np.ndarray:
        """Return uint8 values, the same for both byte orders."""
        count = int(np.prod(shape))
        raw = self.generator.random_raw(-(-count // 8)).astype("<u8")
        return raw.view(np.uint8)[:count].reshape(shape)


# Shapes and fills. Each is drawn once, and every image looks them up at its tilted coordinates.


def _shape_templates() -> np.ndarray:
    """Return uint8 `[5 * 5, TEMPLATE, TEMPLATE]`, 1 inside; one family after another."""
    draw = {
        "oval": lambda percent: _oval(int(percent)),
        "polygon": lambda n: _corners(int(n), 100),
        "star": lambda n: _corners(int(n), {3: 34, 4: 42, 5: 48, 6: 53, 8: 60}[int(n)]),
        "flower": lambda n: _flower(int(n)),
        "letter": _letter,
    }
    return np.stack([draw[family](s) for family in FAMILIES for s in SHAPES[family]]).astype("u1")


def _grid() -> tuple[np.ndarray, np.ndarray]:
    """Return x `[1, TEMPLATE]` and y `[TEMPLATE, 1]` from the centre, in half samples."""
    axis = 2 * np.arange(TEMPLATE) - (TEMPLATE - 1)
    return axis[None, :], axis[:, None]


def _oval(percent: int) -> np.ndarray:
    """Draw an oval whose width is `percent` of its length."""
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
    """Draw a star of n points with inner corners at `percent` of the radius; at 100, an n-gon."""
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
    """Draw a disc with n round petals."""
    x, y = _grid()
    petal = {3: 45, 4: 38, 5: 33, 6: 29, 8: 23}[n]  # radius, in percent of the flower's
    away = (100 - petal) * 2 * RADIUS // 100
    reach = petal * 2 * RADIUS // 100
    inside = x**2 + y**2 <= (away - reach // 4) ** 2
    for cos, sin in _turns(n)[::2]:
        inside |= (x - away * cos // _ONE) ** 2 + (y - away * sin // _ONE) ** 2 <= reach**2
    return inside


def _letter(name: str) -> np.ndarray:
    """Draw a letter of straight strokes."""
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
    """Return uint8 `[4, TILE, TILE]`, one period of each fill; 1 is ink."""
    axis = 2 * np.arange(TILE) - (TILE - 1)
    x, y = axis[None, :], axis[:, None]
    striped = np.broadcast_to(y < 0, (TILE, TILE))
    dotted = x**2 + y**2 <= (TILE * 30 // 50) ** 2
    return np.stack([np.zeros((TILE, TILE), bool), striped, (x < 0) ^ (y < 0), dotted]).astype("u1")


# Images, a chunk at a time. Channels come before pixels until the end, because NumPy is slow at
# inner loops of length 3. Lengths are in quarters of a pixel; positions are relative to the centre.


def _draw(labels: np.ndarray, bits: _Bits, shapes: np.ndarray, fills: np.ndarray) -> np.ndarray:
    """Draw uint8 images `[N, SIZE, SIZE, 3]` of the given fine classes."""
    n = len(labels)
    coarse = labels // VARIANTS
    family, fill = coarse // len(FILLS), coarse % len(FILLS)
    colours = _colours(family, bits)

    image = _background(n, bits, colours, fills)
    for k in range(2):
        _paint(image, _mark(n, bits), colours["marks"][:, k])
    # How many of each pixel's four samples lie in the shape, and in its ink.
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
    """Draw int16 RGB colours `[N, ..., 3]` with some contrast between object and background."""
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


def _colour(hue: np.ndarray, saturation: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Return int16 RGB `[..., 3]` of hue (period 1536), saturation and lightness (0 to 255)."""
    corner = np.array([0, 512, 1024], np.int32)  # of red, green and blue on the circle of hues
    away = np.abs((hue[..., None] - corner + 768) % 1536 - 768)
    pure = np.clip(512 - away, 0, 256)
    mixed = pure * saturation[..., None] // 256 + 256 - saturation[..., None]
    luma = (mixed * np.array([77, 150, 29], np.int32)).sum(axis=-1, keepdims=True, dtype=np.int32)
    return np.clip(mixed * light[..., None] * 256 // np.maximum(luma, 1), 0, 255).astype(np.int16)


def _pixels(scale: int) -> np.ndarray:
    """Return the int32 positions of `SIZE * scale` samples along a side, in quarter pixels."""
    return (2 * np.arange(SIZE * scale, dtype=np.int32) - (SIZE * scale - 1)) * 2 // scale


def _plane(
    x_factor: np.ndarray, y_factor: np.ndarray, offset: np.ndarray, scale: int = 1
) -> np.ndarray:
    """Return int32 `[N, SIZE * scale, SIZE * scale]`: x_factor * x + y_factor * y + offset."""
    axis = _pixels(scale)
    rows = x_factor[:, None] * axis + offset[:, None]
    return rows[:, None, :] + (y_factor[:, None] * axis)[:, :, None]


def _tilt(n: int, bits: _Bits, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Return 4096 * (cos, sin) `[N]` of random angles, with |tan(angle / 2)| up to limit / 256."""
    p = bits.integers(-limit, limit + 1, n)
    norm = 65536 + p * p
    return (65536 - p * p) * 4096 // norm, 512 * p * 4096 // norm


def _background(
    n: int, bits: _Bits, colours: dict[str, np.ndarray], fills: np.ndarray
) -> np.ndarray:
    """Return int16 `[N, 3, SIZE, SIZE]`: a colour gradient with a faint random fill."""
    cos, sin = _tilt(n, bits, 256)
    ramp = np.clip((_plane(cos, sin, cos * 0) >> 11) + 128, 0, 256)[:, None]
    first, second = colours["ground"][..., None, None], colours["ground2"][..., None, None]
    image = (first.astype(np.int32) * (256 - ramp) + second * ramp >> 8).astype(np.int16)
    faint = bits.integers(0, 8, n).astype(np.int16)
    pattern = _pattern(n, bits, bits.integers(0, 4, n), fills, 1, bits.integers(16, 48, n))
    image += (pattern * faint[:, None, None])[:, None]
    return image


def _pattern(
    n: int, bits: _Bits, fill: np.ndarray, fills: np.ndarray, scale: int, period: np.ndarray
) -> np.ndarray:
    """Return uint8 `[N, SIZE * scale, SIZE * scale]`: each image's fill, at a random tilt.

    Args:
      n: the number of images.
      bits: random numbers.
      fill: `[N]`, indices into `fills`.
      fills: one period of each fill.
      scale: samples per pixel along a side.
      period: `[N]`, the length of a period in quarter pixels.
    """
    cos, sin = _tilt(n, bits, 256)
    cos, sin = cos * TILE // period, sin * TILE // period
    shift = bits.integers(0, TILE << 12, 2, n)
    u = _plane(cos, sin, shift[0], scale) >> 12 & TILE - 1
    v = _plane(-sin, cos, shift[1], scale) >> 12 & TILE - 1
    v += u * TILE
    v += (fill * TILE * TILE)[:, None, None]
    return fills.ravel()[v]


def _object(
    n: int,
    bits: _Bits,
    shape: np.ndarray,
    fill: np.ndarray,
    shapes: np.ndarray,
    fills: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return int16 `[N, SIZE, SIZE]`: how many of 4 samples lie in the shape, and in its ink.

    Args:
      n: the number of images.
      bits: random numbers.
      shape, fill: `[N]`, indices into `shapes` and `fills`.
      shapes, fills: the templates of all shapes and fills.
    """
    radius = bits.integers(42, 56, n)
    stretch = bits.integers(240, 273, n)  # of one side, in 1/256
    cos, sin = _tilt(n, bits, 45)
    x, y = bits.integers(-8, 9, 2, n)
    tall = (bits.integers(0, 2, n) == 1) & (shape < VARIANTS)  # ovals may stand upright
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
    """Return bool `[N, SIZE, SIZE]`: a small box, octagon or diamond anywhere."""
    x, y = bits.integers(-60, 61, 2, n, 1)
    reach = bits.integers(4, 13, n)[:, None, None]
    kind = bits.integers(0, 3, n)[:, None, None]
    dx, dy = np.abs(_pixels(1) - x)[:, None, :], np.abs(_pixels(1) - y)[:, :, None]
    far, near = np.maximum(dx, dy), np.minimum(dx, dy)
    return far + near * kind // 2 <= reach


def _strip(n: int, bits: _Bits) -> np.ndarray:
    """Return bool `[N, SIZE, SIZE]`: in a third of the images, a strip in front of the object."""
    cos, sin = _tilt(n, bits, 256)
    width = bits.integers(4, 9, n) * (bits.integers(0, 3, n) == 0)
    away = np.abs(_plane(cos, sin, bits.integers(-32, 33, n) << 12))
    return away < (width << 12)[:, None, None]


def _paint(image: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> None:
    """Paint each image's colour `[N, 3]` where its mask `[N, SIZE, SIZE]` is true."""
    which, row, column = np.nonzero(mask)
    image[which, :, row, column] = colour[which]
