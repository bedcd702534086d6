"""Textures: five materials without damage, and the random fields that they are drawn with.

Lengths are in pixels of a 256-pixel image whatever the size rendered, angles in radians, colours 0 to 255.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy  # its ndimage takes a third of a second to import: it comes with the first use
from numpy.random import Generator

REFERENCE = 256.0
"""The image size in which all lengths here are given."""


@dataclass(frozen=True)
class Surface:
    """A surface without damage: `rgb` (n, n, 3) float32, and the (n, n) coordinates that its damage follows.

    `u` runs across the grain and `v` along it, both bent and turned with the material. `pitch` is the width of a
    thread and `under` (n, n, 3) is what shows where the threads along `v` are missing; only cloth has these two.
    """

    rgb: np.ndarray
    u: np.ndarray
    v: np.ndarray
    pitch: float = 1.0
    under: np.ndarray | None = None


@lru_cache(maxsize=128)
def spline(cell: float, size: int) -> np.ndarray:
    """(size, knots) weights of the cubic B-spline through random knots `cell` apart."""
    at = (np.arange(size) + 0.5) * (REFERENCE / size) / cell + 1
    gap = np.abs(at[:, None] - np.arange(int(REFERENCE / cell) + 4))
    return np.where(gap < 1, 2 / 3 - gap**2 + gap**3 / 2, np.clip(2 - gap, 0, None) ** 3 / 6).astype(np.float32)


def noise(rng: Generator, size: int, cell: float, octaves: int = 1) -> np.ndarray:
    """(size, size) smooth noise of about unit variance whose widest features are `cell` across."""
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        weights = spline(cell / 2**octave, size)
        knots = rng.standard_normal((weights.shape[1],) * 2, np.float32)
        total += 0.5**octave * (weights @ knots @ weights.T)
    return total * np.float32(2.1 / math.sqrt(sum(0.25**octave for octave in range(octaves))))


def streaks(rng: Generator, u: np.ndarray, v: np.ndarray, across: float, along: float) -> np.ndarray:
    """Unit-variance noise drawn out along `v`: features `across` wide and `along` long."""
    table = scipy.ndimage.gaussian_filter1d(rng.standard_normal((96, 320), np.float32), 1.5, axis=0, mode="wrap")
    places = [v * (3 / along), u / across]
    return scipy.ndimage.map_coordinates(table / table.std(), places, order=1, mode="grid-wrap")


def axes(rng: Generator, size: int, tilt: float, bend: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates across and along the grain, turned by about `tilt` and bent by about `bend` pixels."""
    ticks = ((np.arange(size) + 0.5) * (REFERENCE / size)).astype(np.float32)
    angle = rng.normal(0, tilt)
    u = math.cos(angle) * ticks[None, :] + math.sin(angle) * ticks[:, None]
    v = math.cos(angle) * ticks[:, None] - math.sin(angle) * ticks[None, :]
    if bend:
        u = u + bend * noise(rng, size, 110, 2)
        v = v + bend * noise(rng, size, 110, 2)
    return u, v


def cells(rng: Generator, size: int, spacing: float) -> np.ndarray:
    """(size, size) numbers of irregular cells about `spacing` wide."""
    side = int(REFERENCE / spacing) + 2
    seeds = (np.indices((side, side)).reshape(2, -1).T + rng.uniform(-0.5, 0.5, (side * side, 2))) * spacing
    rows, columns = np.clip(seeds * (size / REFERENCE), 0, size - 1).astype(int).T
    numbers = np.zeros((size, size), np.int32)
    numbers[rows, columns] = np.arange(side * side)
    free = np.ones((size, size), bool)
    free[rows, columns] = False
    nearest = scipy.ndimage.distance_transform_edt(free, return_distances=False, return_indices=True)
    return numbers[tuple(nearest)]


def ramp(field: np.ndarray, low: float, high: float) -> np.ndarray:
    """Smooth step from 0 where `field` is `low` to 1 where it is `high`."""
    t = np.clip((field - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def paint(tone: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """(n, n, 3) float32 of one colour, as bright as `tone` (n, n)."""
    return tone[..., None] * colour.astype(np.float32)


def slopes(height: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Down and right slopes of `height`, scaled to a largest slope of 1."""
    down, right = np.gradient(scipy.ndimage.gaussian_filter(height, height.shape[0] / REFERENCE, truncate=2.5))
    steepest = max(float(np.sqrt(down**2 + right**2).max()), 1e-6)
    return down / steepest, right / steepest


def woven_cloth(rng: Generator, size: int) -> Surface:
    u, v = axes(rng, size, 0.025, 1.6)
    pitch = rng.uniform(9.0, 9.8)
    # Either family of threads may be the one that runs along v, so either may have a thread missing.
    u, v = (u, v) if rng.random() < 0.5 else (v, u)
    u, v = u + rng.uniform(0, 40), v + rng.uniform(0, 40)
    column, row = np.floor(u / pitch), np.floor(v / pitch)
    a, b = u / pitch - column - 0.5, v / pitch - row - 0.5
    bow = np.where((column + row) % 2 == 0, 1.0, -1.0).astype(np.float32)
    heights, threads = [], []
    for index, along, across, offset, rise in ((column, v, a, b, bow), (row, u, b, a, -bow)):
        # The yarn differs from thread to thread (dye lots) and along each thread (slubs).
        lot = rng.normal(1, 0.03, 128)[index.astype(int) % 128]
        slub = streaks(rng, index, along, 1.0, 45)
        round_ = np.sqrt(np.clip(1 - (across / (0.47 + 0.02 * slub)) ** 2, 0, 1))
        height = round_ * (0.62 + 0.38 * rise * np.cos(math.pi * offset))
        twist = np.cos(2 * math.pi * (along / 2.9 + 0.9 * across))
        heights.append(height)
        threads.append(np.float32(lot) * (1 + 0.03 * slub + 0.06 * twist) * (0.3 + 0.7 * height))
    front = ramp(heights[0] - heights[1], -0.12, 0.12)
    base = np.array([150, 152, 148], np.float32) + rng.normal(0, 1.5, 3)
    first, second = paint(threads[0], base * [1.12, 1.1, 1.02]), paint(threads[1], base * [0.86, 0.98, 1.12])
    dye = 1 + 0.02 * noise(rng, size, 90, 3)[..., None]
    woven = second + front[..., None] * (first - second)
    return Surface(woven * dye, u, v, pitch, second * 0.8 * dye)


def brushed_metal(rng: Generator, size: int) -> Surface:
    v, u = axes(rng, size, 0.03)
    u, v = u + rng.uniform(0, 500), v + rng.uniform(0, 500)
    fine, broad = streaks(rng, u, v, 1.1, rng.uniform(90, 160)), streaks(rng, u, v, 4.5, 400)
    sheen = np.cos((u - u.mean()) / rng.uniform(70, 140) + rng.uniform(-1.5, 1.5))
    deep = ramp(np.abs(streaks(rng, u, v, 1.4, 200)), 2.2, 3.4)
    tone = 158 + 13 * sheen + rng.uniform(6, 10) * fine + rng.uniform(3, 6) * broad - 13 * deep
    return Surface(paint(tone, np.array([0.99, 1.0, 1.02]) * rng.normal(1, 0.003, 3)), u, v)


def wood_grain(rng: Generator, size: int) -> Surface:
    u, v = axes(rng, size, 0.04, 3.0)
    u = u + 6 * noise(rng, size, 150)
    # Boards are cut off the heart of the trunk: rings are long arches about a centre that lies outside.
    heart, crown = rng.uniform(-190, -60), rng.uniform(-900, 1150)
    radius = np.hypot(u - heart, (v - crown) * rng.uniform(0.06, 0.13)) + 2.0 * noise(rng, size, 60, 3)
    years = radius / rng.uniform(12, 15) + 0.45 * np.sin(radius / 31) + rng.uniform()
    ring = years - np.floor(years)
    late = ring**2.2 * (1 - ramp(ring, 0.93, 1.0))
    lot = rng.uniform(0.7, 1.25, 128)[np.floor(years).astype(int) % 128].astype(np.float32)
    fibre, pores = streaks(rng, u, v, 1.2, 60), ramp(streaks(rng, u, v, 1.3, 26), 1.3, 2.6)
    tone = np.clip(0.75 * late * lot + 0.08 * fibre + 0.28 * pores * (1 - 0.5 * late), -0.3, 1.3)[..., None]
    light = np.array([205, 160, 108], np.float32) * (1 + rng.normal(0, [0.012, 0.012, 0.016]))
    dark = np.array([134, 84, 45], np.float32)
    return Surface((light + tone * (dark - light)) * (1 + 0.03 * noise(rng, size, 70)[..., None]), u, v)


def granite(rng: Generator, size: int) -> Surface:
    u, v = axes(rng, size, 1.0)
    minerals = np.array([[176, 168, 162], [198, 170, 156], [142, 140, 140], [88, 86, 88]]) * rng.normal(1, 0.008, 3)
    rgb = np.zeros((size, size, 3), np.float32)
    # Small crystals, most of the dark ones among them, fill in between and overgrow large ones.
    for spacing, shares, shown in ((7, (0.4, 0.33, 0.22, 0.05), 1.0), (3.6, (0.3, 0.2, 0.3, 0.2), 0.35)):
        numbers = cells(rng, size, spacing * rng.uniform(0.9, 1.1))
        kinds = rng.choice(4, numbers.max() + 1, p=shares)
        colours = (minerals[kinds] * rng.normal(1, 0.09, (len(kinds), 1))).astype(np.float32)
        on_top = (kinds == 3) | (rng.random(len(kinds)) < shown)
        rgb = np.where(on_top[numbers][..., None], colours[numbers], rgb)
    blur = 0.7 * size / REFERENCE
    tone = 1 + 0.05 * noise(rng, size, 3) + 0.03 * noise(rng, size, 80)
    return Surface(scipy.ndimage.gaussian_filter(rgb, (blur, blur, 0), truncate=2.5) * tone[..., None], u, v)


def leather(rng: Generator, size: int) -> Surface:
    u, v = axes(rng, size, 0.6, 4.0)
    spacing = rng.uniform(7.5, 9.5)
    numbers = cells(rng, size, spacing)
    edges = scipy.ndimage.morphological_gradient(numbers, 3) > 0
    inner = scipy.ndimage.distance_transform_edt(~edges).astype(np.float32) * (REFERENCE / size)
    height = ramp(inner, 0, 0.42 * spacing) + 0.12 * noise(rng, size, 4)
    height = scipy.ndimage.gaussian_filter(height, 0.8 * size / REFERENCE, truncate=2.5)
    down, right = np.gradient(height)
    light = rng.uniform(0, 2 * math.pi)
    tone = 0.72 + 0.28 * height - 0.6 * (math.sin(light) * down + math.cos(light) * right) * (size / REFERENCE)
    tone = tone + 0.025 * noise(rng, size, 70, 3) + 0.02 * noise(rng, size, 2)
    return Surface(paint(tone, np.array([139, 88, 58]) * (1 + rng.normal(0, 0.01, 3))), u, v)
