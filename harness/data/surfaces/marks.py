"""Marks: a shape and what happens to a surface inside it, at a random place, size and contrast."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import numpy as np
import scipy  # its ndimage takes a third of a second to import: it comes with the first use
from numpy.random import Generator

from harness.data.surfaces.textures import REFERENCE, Surface, noise, ramp, slopes

Colour = tuple[float, float, float]
Span = tuple[float, float]

Shape = Callable[[Generator, Surface], np.ndarray]
"""Draws the (n, n) depth of a place inside a mark: 1 on its axis, 0 on its outline, negative outside."""


def _frame(rng: Generator, surface: Surface, spread: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates across and along a mark at a random place, turned at most `spread` off the grain."""
    row, column = (rng.uniform(0.1, 0.9, 2) * len(surface.u)).astype(int)
    du, dv = surface.u - surface.u[row, column], surface.v - surface.v[row, column]
    angle = rng.uniform(-spread, spread)
    return math.cos(angle) * du - math.sin(angle) * dv, math.cos(angle) * dv + math.sin(angle) * du


@dataclass(frozen=True)
class Stroke:
    """A tapered line, bowed by about `bend` of its length and straying by about `jag` a step."""

    length: Span
    width: Span
    spread: float = math.pi
    bend: float = 0.06
    jag: float = 0.0

    def __call__(self, rng: Generator, surface: Surface) -> np.ndarray:
        across, along = _frame(rng, surface, self.spread)
        half, thick = rng.uniform(*self.length) / 2, rng.uniform(*self.width) / 2
        s = np.linspace(-1, 1, 2049)
        knots = np.linspace(-1, 1, max(4, int(half / 4)))
        course = half * rng.normal(0, self.bend) * 2 * s**2
        course += np.interp(s, knots, self.jag * np.cumsum(rng.normal(0, 2.2, len(knots))))
        course -= course[1024]
        steep = np.sqrt(1 + (np.gradient(course, s) / half) ** 2)
        girth = thick * (1 - np.abs(s) ** 3) * np.interp(s, np.linspace(-1, 1, 9), rng.uniform(0.6, 1.2, 9))
        girth += 0.25 * REFERENCE / len(across)
        # Looked up rather than interpolated: the table is much finer than the pixels, and this is the slow step.
        at = np.clip((along / half + 1) * 1024, 0, 2048).astype(np.int32)
        course, reach = (table.astype(np.float32)[at] for table in (course, girth * steep))
        return np.where((at > 0) & (at < 2048), 1 - np.abs(across - course) / reach, np.float32(-1))


@dataclass(frozen=True)
class Blob:
    """A patch of mean radius `radius`, at most `stretch` times as long as wide, its outline `rough` or broken up."""

    radius: Span
    stretch: float = 1.8
    spread: float = math.pi
    rough: float = 0.25

    def __call__(self, rng: Generator, surface: Surface) -> np.ndarray:
        across, along = _frame(rng, surface, self.spread)
        radius, longer = rng.uniform(*self.radius), math.sqrt(rng.uniform(1, self.stretch))
        ripple = noise(rng, len(along), max(4, round(0.7 * radius)), 3)
        return 1 - np.hypot(along / (radius * longer), across * longer / radius) - self.rough * ripple


@dataclass(frozen=True)
class Thread:
    """A stretch of one thread of a cloth."""

    length: Span

    def __call__(self, rng: Generator, surface: Surface) -> np.ndarray:
        across, along = _frame(rng, surface)
        first = surface.u.flat[0] - across.flat[0]
        off_axis = across - ((math.floor(first / surface.pitch) + 0.5) * surface.pitch - first)
        ends = rng.uniform(*self.length) / 2 - np.abs(along)
        return np.minimum(1 - np.abs(off_axis) / (0.62 * surface.pitch), ends / surface.pitch)


@dataclass(frozen=True)
class Mark:
    """A kind of damage as it is at contrast 1; every effect is scaled by a contrast drawn from `contrast`."""

    shape: Shape
    tint: Colour = (1.0, 1.0, 1.0)  # factor on the colour, over 1 where the mark is lighter
    opacity: float = 0.0  # how far the mean colour replaces the texture before it is tinted
    relief: float = 0.0  # largest relative shading, light on one side and dark on the other
    pull: float = 0.0  # pixels by which the texture is drawn towards the axis or away from it
    rings: float = 0.0  # rings between the outline and the axis
    bare: bool = False  # shows what is under the threads
    soft: float = 0.5  # share of the way from the outline to the axis over which the mark fades in
    count: tuple[int, int] = (1, 1)
    contrast: Span = (0.3, 1.0)

    def depth(self, rng: Generator, surface: Surface) -> np.ndarray:
        """(n, n) depth of the places inside the mark, or inside any of its parts."""
        parts = (self.shape(rng, surface) for _ in range(rng.integers(self.count[0], self.count[1] + 1)))
        return reduce(np.maximum, parts, np.full(surface.u.shape, -1, np.float32))

    def cover(self, depth: np.ndarray) -> np.ndarray:
        """(n, n) how far the mark covers the surface, from 0 to 1."""
        return ramp(depth, 0, self.soft)

    def paint(self, rng: Generator, surface: Surface, rgb: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """`rgb` (n, n, 3) with the mark on it."""
        if depth.max() <= 0:
            return rgb
        contrast = self.contrast[0] * (self.contrast[1] / self.contrast[0]) ** rng.random()
        alpha = contrast * self.cover(depth)[..., None]
        if self.rings:
            alpha = alpha * (0.6 + 0.4 * np.cos(2 * math.pi * self.rings * depth))[..., None]
        if self.relief or self.pull:
            down, right = slopes(ramp(depth, 0, 1))
        if self.pull:
            reach = self.pull * contrast * float(rng.choice([-1, 1])) * len(rgb) / REFERENCE
            rows, columns = np.indices(depth.shape, np.float32)
            places = [rows + reach * down, columns + reach * right]
            planes = (scipy.ndimage.map_coordinates(rgb[..., c], places, order=1, mode="mirror") for c in range(3))
            rgb = np.stack(tuple(planes), axis=-1)
        if self.bare:
            rgb = rgb + alpha * (surface.under - rgb)
        if self.opacity:
            rgb = rgb + self.opacity * alpha * (rgb.mean((0, 1)) - rgb)
        rgb = rgb * (1 + alpha * (np.array(self.tint, np.float32) - 1))
        if self.relief:
            light = rng.uniform(0, 2 * math.pi)
            rgb = rgb * (1 + self.relief * contrast * (math.sin(light) * down + math.cos(light) * right))[..., None]
        return rgb
