"""A small z-buffered rasteriser in numba: one thread, pip only, no GL, no display.

Perspective camera in front of the face, Blinn-Phong shading with three lights, vertex colours, an
optional texture of darkness (brows). Back faces are dark red: FLAME has no mouth cavity, what shows
there is the inside. Compiled with fastmath: compare images with a tolerance, never by hash across
machines.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba import njit

from rapport.policies.head.asset import HeadAsset

# Compiled code is kept where numba can write: beside this file or in NUMBA_CACHE_DIR. On a
# read-only install without that variable every process compiles anew (some seconds), rather than
# fail at import.
CACHE = bool(numba.config.CACHE_DIR) or os.access(Path(__file__).parent, os.W_OK)

CAMERA_DISTANCE = 0.9  # metres from the middle of the head: a portrait lens, little distortion
FRAME_MARGIN = 1.3  # frame height over head height: room to nod and tilt
BACKGROUND = (28, 28, 28)
INSIDE = (62, 26, 24)  # back faces
AMBIENT = 0.10
SPECULAR = 0.06
# Key, fill and a faint light from below: direction (x right, y up, z to the viewer), intensity.
LIGHTS = np.array(
    [[-0.45, 0.55, 0.75, 0.62], [0.75, 0.15, 0.5, 0.22], [0.0, -0.8, 0.4, 0.05]], np.float32
)
LIGHTS[:, :3] /= np.linalg.norm(LIGHTS[:, :3], axis=1, keepdims=True)
# Blinn's half vectors for a viewer far away on +z.
HALFWAY: np.ndarray = LIGHTS[:, :3] + np.array([0, 0, 1], np.float32)
HALFWAY /= np.linalg.norm(HALFWAY, axis=1, keepdims=True)
# Linear light to 8 bit through a gamma of 2, tabulated.
GAMMA = np.round(np.sqrt(np.arange(4096) / 4095) * 255).astype(np.uint8)

# A barycentric weight this far outside still hits: float32 would leave cracks on shared edges.
TOLERANCE = -1e-4

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile a function by numba when it is first called; it keeps its declared type."""
    return cast(Function, njit(cache=CACHE, nogil=True, fastmath=True, boundscheck=False)(function))


@compiled
def _vertex_normals(v: np.ndarray, faces: np.ndarray, normals: np.ndarray) -> None:
    """Area-weighted unit normals (V, 3) of vertices (V, 3), written to `normals`."""
    normals[:] = 0
    for f in range(len(faces)):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        ux, uy, uz = v[b, 0] - v[a, 0], v[b, 1] - v[a, 1], v[b, 2] - v[a, 2]
        wx, wy, wz = v[c, 0] - v[a, 0], v[c, 1] - v[a, 1], v[c, 2] - v[a, 2]
        nx, ny, nz = uy * wz - uz * wy, uz * wx - ux * wz, ux * wy - uy * wx
        for k in (a, b, c):
            normals[k, 0] += nx
            normals[k, 1] += ny
            normals[k, 2] += nz
    for i in range(len(normals)):
        squares = normals[i, 0] ** 2 + normals[i, 1] ** 2 + normals[i, 2] ** 2
        normals[i] /= np.sqrt(squares) + np.float32(1e-12)


@compiled
def _light(normals: np.ndarray, colors: np.ndarray, lit: np.ndarray) -> None:
    """Blinn-Phong light of every vertex, linear, (V, 3) written to `lit`.

    Vertices are enough: the mesh is denser than the shading.
    """
    zero = np.float32(0)
    one = np.float32(1)
    for i in range(len(normals)):
        # Turned to the viewer, because silhouettes have grazing normals.
        side = one if normals[i, 2] >= 0 else -one
        nx, ny, nz = side * normals[i, 0], side * normals[i, 1], side * normals[i, 2]
        diffuse = np.float32(AMBIENT)
        specular = zero
        for k in range(len(LIGHTS)):
            facing = max(nx * LIGHTS[k, 0] + ny * LIGHTS[k, 1] + nz * LIGHTS[k, 2], zero)
            diffuse += facing * LIGHTS[k, 3]
            gloss = max(nx * HALFWAY[k, 0] + ny * HALFWAY[k, 1] + nz * HALFWAY[k, 2], zero)
            gloss *= gloss * gloss
            gloss *= gloss
            gloss *= gloss
            specular += gloss * gloss * LIGHTS[k, 3]  # the 24th power
        for channel in range(3):
            lit[i, channel] = colors[i, channel] * diffuse + np.float32(SPECULAR) * specular


@compiled
def _visible_faces(
    p: np.ndarray, faces: np.ndarray, depth: np.ndarray, face_id: np.ndarray
) -> None:
    """Nearest face of every pixel, written to `face_id`; -1 is background.

    `p` (V, 3) holds pixel x, pixel y and depth (greater is nearer).
    """
    height, width = depth.shape
    tolerance = np.float32(TOLERANCE)
    zero = np.float32(0)
    half = np.float32(0.5)
    one = np.float32(1)
    depth[:] = np.float32(-1e30)
    face_id[:] = -1
    for f in range(len(faces)):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        x0, y0, x1, y1, x2, y2 = p[a, 0], p[a, 1], p[b, 0], p[b, 1], p[c, 0], p[c, 1]
        left = int(max(zero, np.ceil(min(x0, x1, x2) - half)))
        right = int(min(np.float32(width - 1), np.floor(max(x0, x1, x2) - half)))
        top = int(max(zero, np.ceil(min(y0, y1, y2) - half)))
        bottom = int(min(np.float32(height - 1), np.floor(max(y0, y1, y2) - half)))
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        if left > right or top > bottom or area == 0:
            continue
        # Barycentric weights and depth are linear in the pixel: w1 = px * w1_x + py * w1_y, ...
        inverse = one / area
        w1_x, w1_y = (y2 - y0) * inverse, (x0 - x2) * inverse
        w2_x, w2_y = (y0 - y1) * inverse, (x1 - x0) * inverse
        z1, z2 = p[b, 2] - p[a, 2], p[c, 2] - p[a, 2]
        z_x = w1_x * z1 + w2_x * z2
        for y in range(top, bottom + 1):
            py = np.float32(y) + half - y0
            w1_row, w2_row = py * w1_y, py * w2_y
            z_row = p[a, 2] + w1_row * z1 + w2_row * z2
            for x in range(left, right + 1):
                px = np.float32(x) + half - x0
                w1, w2, z = px * w1_x + w1_row, px * w2_x + w2_row, px * z_x + z_row
                if min(w1, w2, one - w1 - w2) >= tolerance and z > depth[y, x]:
                    depth[y, x] = z
                    face_id[y, x] = f


@compiled
def _darkness(texture: np.ndarray, u: np.float32, v: np.float32) -> np.float32:
    """Bilinear sample of the texture at (u, v); 0 outside."""
    rows, columns = texture.shape
    x, y = u * np.float32(columns) - np.float32(0.5), v * np.float32(rows) - np.float32(0.5)
    if not (x >= 0 and y >= 0 and x < columns - 1 and y < rows - 1):
        return np.float32(0)
    i, j = int(x), int(y)
    fx, fy = x - np.float32(i), y - np.float32(j)
    low = texture[j, i] + (texture[j, i + 1] - texture[j, i]) * fx
    high = texture[j + 1, i] + (texture[j + 1, i + 1] - texture[j + 1, i]) * fx
    darkness: np.float32 = low + (high - low) * fy
    return darkness


@compiled
def _paint(
    p: np.ndarray,
    faces: np.ndarray,
    lit: np.ndarray,
    uv: np.ndarray,
    texture: np.ndarray,
    face_id: np.ndarray,
    image: np.ndarray,
) -> None:
    """Colours of the visible faces, (height, width, 3) uint8 written to `image`."""
    height, width = face_id.shape
    zero = np.float32(0)
    half = np.float32(0.5)
    one = np.float32(1)
    levels = np.float32(len(GAMMA) - 1)
    for y in range(height):
        for x in range(width):
            f = face_id[y, x]
            if f < 0:
                image[y, x, 0], image[y, x, 1], image[y, x, 2] = BACKGROUND
                continue
            a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
            x0, y0 = p[a, 0], p[a, 1]
            ux, uy, vx, vy = p[b, 0] - x0, p[b, 1] - y0, p[c, 0] - x0, p[c, 1] - y0
            area = ux * vy - vx * uy
            if area > 0:  # seen from behind, as pixel y points down
                image[y, x, 0], image[y, x, 1], image[y, x, 2] = INSIDE
                continue
            px, py = np.float32(x) + half - x0, np.float32(y) + half - y0
            w1, w2 = (px * vy - vx * py) / area, (ux * py - px * uy) / area
            w0 = one - w1 - w2
            u = w0 * uv[a, 0] + w1 * uv[b, 0] + w2 * uv[c, 0]
            v = w0 * uv[a, 1] + w1 * uv[b, 1] + w2 * uv[c, 1]
            scale = levels * (one - _darkness(texture, u, v))
            for channel in range(3):
                light = w0 * lit[a, channel] + w1 * lit[b, channel] + w2 * lit[c, channel]
                image[y, x, channel] = GAMMA[int(min(max(light * scale, zero), levels))]


@compiled
def _halve(image: np.ndarray, out: np.ndarray) -> None:
    """Mean of 2x2 pixels: (2 height, 2 width, 3) -> (height, width, 3)."""
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            for c in range(3):
                total = np.uint32(image[2 * y, 2 * x, c]) + image[2 * y, 2 * x + 1, c]
                total += np.uint32(image[2 * y + 1, 2 * x, c]) + image[2 * y + 1, 2 * x + 1, c]
                out[y, x, c] = (total + 2) >> 2


class Rasterizer:
    """Draws one head as square frames.

    The camera frames the resting head of the asset and stays there.

    Args:
        asset: the head whose faces and colours are drawn.
        size: height and width of a frame in pixels.
        supersample: 1, or 2 for smooth edges (2x2 samples a pixel, about three times the work).
    """

    def __init__(self, asset: HeadAsset, size: int = 256, supersample: int = 1) -> None:
        if supersample not in (1, 2):
            raise ValueError(f"supersample must be 1 or 2, not {supersample}")
        self.size = size
        self.supersample = supersample
        self._faces = np.ascontiguousarray(asset.faces, np.int32)
        self._colors = np.ascontiguousarray(asset.colors, np.float32)
        # A head without texture has one of no darkness, with all of the face outside.
        self._uv = np.full((len(asset.colors), 2), -1, np.float32)
        self._texture = np.zeros((2, 2), np.float32)
        if asset.texture is not None and asset.uv is not None:
            self._uv = asset.uv
            self._texture = asset.texture
        head = asset.v_template[asset.weights[:, 1:].sum(1) > 0.5]
        low = head.min(0)
        high = head.max(0)
        self.center = (low + high) / 2
        # Metres, at the depth of `center`.
        self.half_height = float(high[1] - low[1]) / 2 * FRAME_MARGIN

    def project(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 3) in metres as the camera sees them, (..., 3).

        Pixel x, pixel y (down) of the frame, and depth in metres (greater is nearer).
        """
        x, y, depth = np.moveaxis(np.asarray(points, np.float32) - self.center, -1, 0)
        middle = self.size / 2
        zoom = middle / self.half_height * CAMERA_DISTANCE / (CAMERA_DISTANCE - depth)
        pixels = np.stack([middle + x * zoom, middle - y * zoom, depth], axis=-1)
        return pixels.astype(np.float32)

    def render(self, vertices: np.ndarray) -> np.ndarray:
        """Frames of a moving head.

        Args:
            vertices: (time, V, 3) metres.

        Returns:
            (time, size, size, 3) uint8 RGB.
        """
        vertices = np.ascontiguousarray(vertices, np.float32)
        if vertices.ndim != 3 or vertices.shape[1:] != (len(self._colors), 3):
            raise ValueError(
                f"vertices of shape {vertices.shape}, this head needs (time, "
                f"{len(self._colors)}, 3)"
            )
        samples = self.size * self.supersample
        pixels = self.project(vertices)
        pixels[..., :2] *= self.supersample
        # Buffers of all frames.
        normals = np.empty_like(self._colors)
        lit = np.empty_like(self._colors)
        depth = np.empty((samples, samples), np.float32)
        face_id = np.empty((samples, samples), np.int32)
        large = np.empty((samples, samples, 3), np.uint8)
        frames = np.empty((len(vertices), self.size, self.size, 3), np.uint8)
        for v, p, frame in zip(vertices, pixels, frames, strict=True):
            image = frame if self.supersample == 1 else large
            _vertex_normals(v, self._faces, normals)
            _visible_faces(p, self._faces, depth, face_id)
            _light(normals, self._colors, lit)
            _paint(p, self._faces, lit, self._uv, self._texture, face_id, image)
            if self.supersample == 2:
                _halve(large, frame)
        return frames
