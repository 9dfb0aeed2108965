"""Load a policy and let it react to someone who speaks.

    python docs/examples/listen.py POLICY CORPUS [listener.mp4]

A recipe wrote both folders, e.g. runs/.../dpo/policy and runs/.../prepare/corpus.
"""

import sys
from pathlib import Path

from rapport import Corpus, load_head, load_policy
from rapport.policies.head.flame import FlameHead
from rapport.policies.head.raster import Rasterizer
from rapport.policies.head.video import render_motion, write_mp4


def main(checkpoint: Path, corpus: Path, video: Path) -> None:
    policy = load_policy(checkpoint)
    clip = next(Corpus(corpus).clips("test"))  # someone speaks
    [[reaction]] = policy.sample([policy.encode(clip)], samples=1, seeds=[0])
    motion = policy.to_motion(reaction)
    print(f'they said "{clip.text}"; the {policy.kind} policy moved for {motion.seconds:g} s')
    asset = load_head()
    frames = render_motion(FlameHead(asset), Rasterizer(asset, size=256), motion)
    write_mp4(video, frames, fps=motion.layout.fps, audio=clip.speaker_audio)
    print(video)


if __name__ == "__main__":
    checkpoint, corpus, *video = map(Path, sys.argv[1:])
    main(checkpoint, corpus, video[0] if video else Path("listener.mp4"))
