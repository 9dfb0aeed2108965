"""Load a policy and let it react to someone who speaks.

    python docs/examples/listen.py POLICY SPEAKER [listener.mp4]

POLICY is a folder that a recipe wrote, e.g. runs/.../dpo/policy. SPEAKER is the video of somebody,
or a corpus, e.g. runs/.../prepare/corpus.
"""

import sys
from pathlib import Path

import av
import numpy as np

from rapport import Corpus, Motion, load_head, load_policy
from rapport.policies.clip import AUDIO_RATE, Clip
from rapport.policies.head.flame import FlameHead
from rapport.policies.head.raster import Rasterizer
from rapport.policies.head.video import render_motion, write_mp4
from rapport.policies.motion import Layout

SECONDS = {"vla": 4, "flow": 8}  # of a clip, where training was told nothing else
PIXELS = 224  # a policy makes frames as small as it needs them


def filmed_speaker(file: Path, seconds: float, layout: Layout) -> Clip:
    """The beginning of a video of someone who speaks. There is no transcript: `words` is absent."""
    frames = []
    with av.open(str(file)) as video:
        for frame in video.decode(video=0):
            if frame.time >= seconds:
                break
            frames.append(frame.to_ndarray(format="rgb24", width=PIXELS, height=PIXELS))
    # A clip has a listener, as policies learn from them; this one is still to be made.
    listener = Motion(np.zeros((round(seconds * layout.fps), layout.dim)), layout)
    return Clip(
        clip_id=file.stem,
        dyad_id=file.stem,
        split="test",
        listener=listener,
        speaker_frames=np.stack(frames),
        speaker_audio=sound_of(file, seconds),
    )


def sound_of(file: Path, seconds: float) -> np.ndarray | None:
    """Its sound at 16 kHz, filled up with silence; None where it has none."""
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=AUDIO_RATE)
    parts = []
    with av.open(str(file)) as video:
        if not video.streams.audio:
            return None
        for frame in video.decode(audio=0):
            if frame.time >= seconds:
                break
            for part in resampler.resample(frame):
                parts.append(part.to_ndarray()[0])
    samples = np.concatenate(parts)[: round(seconds * AUDIO_RATE)]
    return np.pad(samples, (0, round(seconds * AUDIO_RATE) - len(samples)))


def main(checkpoint: Path, speaker: Path, video: Path) -> None:
    policy = load_policy(checkpoint)
    if speaker.is_dir():
        clip = next(Corpus(speaker).clips("test"))
    else:
        clip = filmed_speaker(speaker, SECONDS.get(policy.kind, 4), policy.layout)
    [[reaction]] = policy.sample([policy.encode(clip)], samples=1, seeds=[0])
    motion = policy.to_motion(reaction)
    said = "nothing that was written down" if clip.text is None else f'"{clip.text}"'
    print(f"they said {said}; the {policy.kind} policy moved for {motion.seconds:g} s")
    asset = load_head()
    frames = render_motion(FlameHead(asset), Rasterizer(asset, size=256), motion)
    write_mp4(video, frames, fps=motion.layout.fps, audio=clip.speaker_audio)
    print(video)


if __name__ == "__main__":
    checkpoint, speaker, *video = map(Path, sys.argv[1:])
    main(checkpoint, speaker, video[0] if video else Path("listener.mp4"))
