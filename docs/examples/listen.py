"""Load a policy and let it react to someone who speaks.

    python docs/examples/listen.py POLICY [listener.mp4]

POLICY is a folder that a recipe wrote, e.g. runs/.../dpo/policy.
"""

import sys
import tempfile
from pathlib import Path

from rapport import load_head, load_policy
from rapport.pipeline.data.synthetic.generate import generate
from rapport.policies.clip import Clip
from rapport.policies.head.flame import FlameHead
from rapport.policies.head.raster import Rasterizer
from rapport.policies.head.video import render_motion, write_mp4


def someone_speaks(folder: Path) -> Clip:
    """A clip of the synthetic corpus; yours comes from a recording (docs/corpus.md)."""
    corpus = generate(folder, n_train=1, n_test=1, seconds=1, image_size=28, frames=1, workers=0)
    return next(corpus.clips("test"))


def main(checkpoint: Path, video: Path) -> None:
    policy = load_policy(checkpoint)
    clip = someone_speaks(Path(tempfile.mkdtemp()) / "corpus")
    [[reaction]] = policy.sample([policy.encode(clip)], samples=1, seeds=[0])
    motion = policy.to_motion(reaction)
    print(f'they said "{clip.text}"; the {policy.kind} policy moved for {motion.seconds:g} s')
    asset = load_head()
    frames = render_motion(FlameHead(asset), Rasterizer(asset, size=256), motion)
    write_mp4(video, frames, fps=motion.layout.fps, audio=clip.speaker_audio)
    print(video)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "listener.mp4"))
