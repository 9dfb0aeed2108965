"""Frames a second on one core: our rasteriser against VTK's software OpenGL, on the same moving
head.

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
import ray

from rapport.actors.renderer import Panel, RenderWorker, VideoJob
from rapport.actors.settings import RenderConfig
from rapport.pipeline.bench.workload import process, seconds, spread
from rapport.pipeline.rundir import RunError
from rapport.pipeline.settings import BenchConfig
from rapport.policies.head.asset import HeadAsset, load_head
from rapport.policies.head.flame import FlameHead
from rapport.policies.head.raster import Rasterizer
from rapport.policies.head.settings import HeadConfig
from rapport.policies.motion import Layout, Motion

FPS = 25.0


@ray.remote
class OurRasterizer:
    def __init__(self, options: RenderConfig, head: HeadConfig, motion: Motion) -> None:
        asset = load_head(head.path, head.topology)
        self.vertices = FlameHead(asset).vertices_of(motion)
        self.rasterizer = Rasterizer(asset, options.size, options.supersample)

    def draw(self) -> float:
        """Seconds for all frames."""
        return seconds(lambda: self.rasterizer.render(self.vertices))


@ray.remote
class VtkRasterizer:
    def __init__(self, options: RenderConfig, head: HeadConfig, motion: Motion) -> None:
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
        self.array, self.points, self.mesh = numpy_to_vtk(self.current), vtkPoints(), vtkPolyData()
        self.points.SetData(self.array)
        self.mesh.SetPoints(self.points)
        cells = vtkCellArray()
        cells.SetData(
            3,
            numpy_to_vtkIdTypeArray(np.ascontiguousarray(asset.faces, np.int64).ravel(), deep=True),
        )
        self.mesh.SetPolys(cells)
        self.mesh.GetPointData().SetScalars(numpy_to_vtk(_bytes(asset), deep=True))
        normals = vtkPolyDataNormals()
        normals.SplittingOff()
        normals.ConsistencyOff()
        normals.SetInputData(self.mesh)
        mapper, actor, renderer = vtkPolyDataMapper(), vtkActor(), vtkRenderer()
        mapper.SetInputConnection(normals.GetOutputPort())
        actor.SetMapper(mapper)
        renderer.AddActor(actor)
        self.window, self.grab = vtkRenderWindow(), vtkWindowToImageFilter()
        self.window.SetOffScreenRendering(1)
        self.window.SetMultiSamples(0)
        self.window.SetSize(options.size, options.size)
        self.window.AddRenderer(renderer)
        self.grab.SetInput(self.window)
        self.grab.ReadFrontBufferOff()
        self.grab.ShouldRerenderOff()
        self.to_numpy = vtk_to_numpy

    def draw(self) -> float:
        return seconds(lambda: [self._frame(v) for v in self.vertices])

    def describe(self) -> str:
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


def measure(config: BenchConfig, say: Callable[[str], None]) -> dict[str, Any]:
    try:
        import vtkmodules
    except ImportError:
        raise RunError(
            "bench render compares with VTK, which only it needs: pip install --no-deps -r "
            "infra/requirements/bench.lock"
        ) from None
    options = config.render
    head = config.head
    motion = nodding(load_head(head.path, head.topology), config.corpus.seconds, config.seed)
    with process(OurRasterizer, 1, options, head, motion) as call:
        ours = _frames_per_s(call, len(motion), config.bench.repeats)
    say(f"ours {ours['median']:.0f} frames/s at {options.size} pixels")
    with process(VtkRasterizer, 1, options, head, motion, LP_NUM_THREADS="1") as call:
        renderer = call("describe")
        theirs = _frames_per_s(call, len(motion), config.bench.repeats)
    say(
        f"VTK {vtkmodules.__version__} ({renderer}) {theirs['median']:.0f} frames/s; "
        f"{ours['median'] / theirs['median']:.2f} times"
    )
    with tempfile.TemporaryDirectory() as scratch, process(RenderWorker, 1, options, head) as call:
        job = VideoJob(Path(scratch) / "clip.mp4", (Panel("listener", motion),), None)
        call("render", job)
        videos = spread(
            [
                len(motion) / seconds(lambda: call("render", job))
                for _ in range(config.bench.repeats)
            ]
        )
    say(f"whole videos {videos['median']:.0f} frames/s")
    return {
        "workload": {
            "frames": len(motion),
            "size": options.size,
            "supersample": options.supersample,
        },
        "ours": {"frames_per_s": ours},
        "ratio": ours["median"] / theirs["median"],
        "vtk": {"version": vtkmodules.__version__, "renderer": renderer, "frames_per_s": theirs},
        "videos": {"frames_per_s": videos, "codec": options.codec},
    }


def nodding(asset: HeadAsset, length_s: float, seed: int) -> Motion:
    """A face in motion: a nod at 2 Hz, an open mouth, slow random expression."""
    time = np.arange(round(length_s * FPS)) / FPS
    rng = np.random.default_rng(seed)
    layout = Layout((("expr", 10), ("rot", 3), ("jaw", 3)), FPS, asset.topology)
    phases, rates = rng.uniform(0, 2 * np.pi, 10), rng.uniform(0.2, 1, 10)
    expr = np.sin(2 * np.pi * rates * time[:, None] + phases)
    pose = np.zeros((len(time), 6))
    pose[:, 0] = 0.15 * np.sin(4 * np.pi * time)
    pose[:, 3] = 0.1 + 0.1 * np.sin(3 * np.pi * time)
    return Motion(np.concatenate([expr, pose], axis=1).astype(np.float32), layout)


def _frames_per_s(call: Callable[..., Any], frames: int, repeats: int) -> dict[str, float]:
    call("draw")  # warm
    return spread([frames / call("draw") for _ in range(repeats)])


def _bytes(asset: HeadAsset) -> np.ndarray:
    return np.round(255 * np.sqrt(np.clip(asset.colors, 0, 1))).astype(np.uint8)
