"""What is read of a face off small pictures while somebody talks, and what a picture costs.

    python -m tests.bench_watching

Strangers that were drawn sit before a camera: squares of `SIDE` pixels, every other frame as JPEG,
their faces a third as high. Each chunk is read when its last picture was looked at.
"""

import io
import time

import numpy as np
from PIL import Image

from rapport.pipeline.data.video.faces import Models
from rapport.pipeline.data.video.landmarks import Landmarker
from rapport.pipeline.data.video.quality import Gauge, errors
from rapport.pipeline.data.video.regressor import learnt
from rapport.pipeline.data.video.tracking import Finder
from rapport.pipeline.data.video.watching import Watcher
from rapport.policies.head.asset import load_head
from rapport.policies.motion import Motion
from tests.calls import STRANGERS

SIDE, FACE = 256, 0.75  # of which a drawn picture, whose face is .6 of it
FPS, CHUNK, CHUNKS = 25, 8, 25
PEOPLE = 12  # speakers and listeners in turn
KNOWN = 4  # chunks, until it is known what is usual for a face


def pictured(image):
    """As the page sends it."""
    inner = int(SIDE * FACE)
    whole = Image.new("RGB", (SIDE, SIDE), (90, 95, 100))
    place = (SIDE - inner) // 2
    whole.paste(
        Image.fromarray(image).resize((inner, inner), Image.Resampling.LANCZOS), (place,) * 2
    )
    file = io.BytesIO()
    whole.save(file, "JPEG", quality=70)
    return file


def watched(watcher, images, seconds):
    """The motion that is known chunk by chunk, (frames, dim); notes the seconds of each picture."""
    read = []
    for chunk in range(CHUNKS):
        for frame in range(chunk * CHUNK, (chunk + 1) * CHUNK, 2):
            file = pictured(images[frame])
            began = time.perf_counter()
            watcher.look(frame / FPS, np.asarray(Image.open(file)))
            seconds.append(time.perf_counter() - began)
        read.append(watcher.motion(chunk * CHUNK / FPS, CHUNK).values)
    return np.concatenate(read)


def main():
    asset = load_head()
    people = Models(asset, STRANGERS)
    gauge = Gauge(asset)
    seconds = []
    with Landmarker() as landmarker:
        regressor = learnt(asset, landmarker)
        for who in ("speakers", "listeners"):
            pairs = []
            for number in range(who == "listeners", PEOPLE, 2):
                moving = people.moving(number)
                drawn = people.pictured(number, moving.window(0, CHUNKS * CHUNK))
                watcher = Watcher(Finder(landmarker), regressor, regressor.layout)
                values = watched(watcher, drawn.images, seconds)[KNOWN * CHUNK :]
                truth = Motion(drawn.motion.values[KNOWN * CHUNK :], drawn.motion.layout)
                pairs.append((truth, Motion(values, truth.layout)))
            found = errors(gauge, pairs)
            parts = ("lips", "corners", "chin", "lids", "brows")
            print(who, {part: round(found[part]["r2"], 2) for part in parts}, "r2;", end=" ")
            print(round(found["rot"]["degrees"], 2), "degrees")
    median, slowest = (1000 * np.quantile(seconds, share) for share in (0.5, 0.99))
    print(f"{median:.1f} ms a picture (p99 {slowest:.1f})")


if __name__ == "__main__":
    main()
