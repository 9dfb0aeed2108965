"""Frames a second on one core: our rasteriser against VTK's software OpenGL, on one moving head.

Both turn vertices into RGB arrays: normals, lights, vertex colours, z-buffer, read-back. Ours also
draws the brows' texture. Beside it: whole videos, with skinning and encoding, as the render pool
makes them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rapport.actors.renderer import Panel, RenderWorker, VideoJob
from rapport.actors.settings import RenderConfig
from rapport.log import logger
from rapport.pipeline.bench.workload import FPS, median_and_range, process, seconds
from rapport.pipeline.bench_settings import RenderBench
from rapport.pipeline.rundir import RunError
from rapport.policies.head.asset import HeadAsset, load_head
from rapport.policies.head.flame import FlameHead
from rapport.policies.head.raster import Rasterizer
from rapport.policies.head.settings import HeadConfig
from rapport.policies.motion import Layout, Motion


class OurRasterizer:
    """That of the render pool."""

    def __init__(self, config: RenderConfig, head: HeadConfig, motion: Motion) -> None:
        asset = load_head(head.path, head.topology)
        self.vertices = FlameHead(asset).vertices_of(motion)
        self.rasterizer = Rasterizer(asset, config.size, config.supersample)

    def draw(self) -> float:
        """Seconds for all frames."""
        return seconds(lambda: self.rasterizer.render(self.vertices))


class VtkRasterizer:
    """VTK's, drawn off screen."""

    def __init__(self, config: RenderConfig, head: HeadConfig, motion: Motion) -> None:
        import vtkmodules.vtkRenderingOpenGL2  # noqa: F401  registers the renderer
        from vtkmodules.util.numpy_support import (
            numpy_to_vtk,
            numpy_to_vtkIdTypeArray,
            vtk_to_numpy,
        )
        from vtkmodules.vtkCommonCore import vtkObject, vtkPoints
        from vtkmodules.vtkCommonDataModel import vtkCellArray, vtkPolyData
        from vtkmodules.vtkFiltersCore import vtkPolyDataNormals
        from vtkmodules.vtkRenderingCore import (
            vtkActor,
            vtkPolyDataMapper,
            vtkRenderer,
            vtkRenderWindow,
            vtkWindowToImageFilter,
        )

        vtkObject.GlobalWarningDisplayOff()
        asset = load_head(head.path, head.topology)
        self.vertices = FlameHead(asset).vertices_of(motion)
        self.current = np.ascontiguousarray(self.vertices[0])
        self.array = numpy_to_vtk(self.current)
        self.points = vtkPoints()
        self.mesh = vtkPolyData()
        self.points.SetData(self.array)
        self.mesh.SetPoints(self.points)
        cells = vtkCellArray()
        faces = np.ascontiguousarray(asset.faces, np.int64).ravel()
        cells.SetData(3, numpy_to_vtkIdTypeArray(faces, deep=True))
        self.mesh.SetPolys(cells)
        self.mesh.GetPointData().SetScalars(numpy_to_vtk(_bytes(asset), deep=True))
        normals = vtkPolyDataNormals()
        normals.SplittingOff()
        normals.ConsistencyOff()
        normals.SetInputData(self.mesh)
        mapper = vtkPolyDataMapper()
        actor = vtkActor()
        renderer = vtkRenderer()
        mapper.SetInputConnection(normals.GetOutputPort())
        actor.SetMapper(mapper)
        renderer.AddActor(actor)
        self.window = vtkRenderWindow()
        self.grab = vtkWindowToImageFilter()
        self.window.SetOffScreenRendering(1)
        self.window.SetMultiSamples(0)
        self.window.SetSize(config.size, config.size)
        self.window.AddRenderer(renderer)
        self.grab.SetInput(self.window)
        self.grab.ReadFrontBufferOff()
        self.grab.ShouldRerenderOff()
        self.to_numpy = vtk_to_numpy

    def draw(self) -> float:
        """Seconds for all frames."""
        return seconds(lambda: [self._frame(vertices) for vertices in self.vertices])

    def describe(self) -> str:
        """Who draws: a software renderer says so in its name."""
        self.window.Render()
        lines = self.window.ReportCapabilities().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "renderer string" in line)

    def _frame(self, vertices: np.ndarray) -> np.ndarray:
        self.current[:] = vertices
        self.array.Modified()
        self.points.Modified()
        self.mesh.Modified()
        self.window.Render()
        self.grab.Modified()
        self.grab.Update()
        return self.to_numpy(self.grab.GetOutput().GetPointData().GetScalars()).copy()


def measure(config: RenderBench) -> dict[str, Any]:
    """Both rasterisers, then whole videos.

    Raises:
        RunError: VTK is not installed.
    """
    try:
        import vtkmodules
    except ImportError:
        raise RunError(
            "bench render compares with VTK, which only it needs: pip install --no-deps -r "
            "infra/requirements/bench.lock"
        ) from None
    repeats = config.bench.repeats
    render = RenderConfig(**config.render.model_dump())
    head = config.head
    motion = nodding(load_head(head.path, head.topology), config.corpus.seconds, config.seed)
    with process(OurRasterizer, render, head, motion) as call:
        ours = _frames_per_s(call, len(motion), repeats)
    logger.info(f"[render] ours {ours['median']:.0f} frames/s at {render.size} pixels")
    software = {"LP_NUM_THREADS": "1"}
    with process(VtkRasterizer, render, head, motion, environment=software) as call:
        renderer = call("describe")
        theirs = _frames_per_s(call, len(motion), repeats)
    ratio = ours["median"] / theirs["median"]
    logger.info(
        f"[render] VTK {vtkmodules.__version__} ({renderer}) {theirs['median']:.0f} frames/s; "
        f"{ratio:.2f} times"
    )
    videos = _video_frames_per_s(render, head, motion, repeats=repeats)
    logger.info(f"[render] whole videos {videos['median']:.0f} frames/s")
    return {
        "workload": {
            "frames": len(motion),
            "size": render.size,
            "supersample": render.supersample,
        },
        "ours": {"frames_per_s": ours},
        "ratio": ratio,
        "vtk": {"version": vtkmodules.__version__, "renderer": renderer, "frames_per_s": theirs},
        "videos": {"frames_per_s": videos, "codec": render.codec},
    }


def _video_frames_per_s(
    render: RenderConfig, head: HeadConfig, motion: Motion, repeats: int
) -> dict[str, float]:
    """Frames a second of finished videos."""
    with tempfile.TemporaryDirectory() as scratch, process(RenderWorker, render, head) as call:
        job = VideoJob(Path(scratch) / "clip.mp4", (Panel("listener", motion),), None)
        call("render", job)  # warm
        durations = [seconds(lambda: call("render", job)) for _ in range(repeats)]
    return median_and_range([len(motion) / duration for duration in durations])


def nodding(asset: HeadAsset, length_s: float, seed: int) -> Motion:
    """A face in motion: a nod at 2 Hz, an open mouth, slow random expression."""
    time = np.arange(round(length_s * FPS)) / FPS
    rng = np.random.default_rng(seed)
    layout = Layout((("expr", 10), ("rot", 3), ("jaw", 3)), FPS, asset.topology)
    phases = rng.uniform(0, 2 * np.pi, 10)
    rates = rng.uniform(0.2, 1, 10)
    expr = np.sin(2 * np.pi * rates * time[:, None] + phases)
    pose = np.zeros((len(time), 6))
    pose[:, 0] = 0.15 * np.sin(4 * np.pi * time)
    pose[:, 3] = 0.1 + 0.1 * np.sin(3 * np.pi * time)
    return Motion(np.concatenate([expr, pose], axis=1).astype(np.float32), layout)


def _frames_per_s(call: Callable[..., Any], frames: int, repeats: int) -> dict[str, float]:
    call("draw")  # warm
    return median_and_range([frames / call("draw") for _ in range(repeats)])


def _bytes(asset: HeadAsset) -> np.ndarray:
    return np.round(255 * np.sqrt(np.clip(asset.colors, 0, 1))).astype(np.uint8)
