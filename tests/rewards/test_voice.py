"""Voice activity: two uses of one detector, each as its own textbook version has it; noise."""

import numpy as np
import pytest

from rapport.pipeline.data.synthetic.generate import Design, generate_corpus
from rapport.policies.clip import AUDIO_RATE
from rapport.rewards.ratings.voice import (
    CLIP,
    RECORDING,
    frame_levels,
    step_levels,
    voice_activity,
)


def background_by_the_book(levels, pause, horizon):
    """The quietest mean of `pause` moments around; beyond the ends the last moment repeats."""
    power = np.pad(10.0 ** (levels.astype(np.float64) / 10), pause // 2, mode="edge")
    means = [power[i : i + pause].mean() for i in range(len(levels))]
    quietest = [min(means[max(i - horizon // 2, 0) : i + horizon // 2]) for i in range(len(means))]
    return 10 * np.log10(quietest)


def clip_by_the_book(levels):
    """Speech grows by 3 frames and shrinks by 3; beyond the ends the last frame repeats."""
    threshold = max(-50.0, float(np.quantile(levels, 0.95)) - 25.0)
    speech = levels > np.maximum(threshold, background_by_the_book(levels, 2, 150) + 6)
    speech = speech.astype(float)
    window = np.ones(7)
    grown = np.convolve(np.pad(speech, 3, mode="edge"), window, mode="valid") > 0
    return np.convolve(np.pad(~grown, 3, mode="edge"), window, mode="valid") == 0


def runs(mask):
    edges = np.flatnonzero(np.diff(mask)) + 1
    return np.split(np.arange(len(mask)), edges)


def recording_by_the_book(levels):
    """Gaps of up to 20 steps between speech are filled, then bursts of under 5 steps dropped."""
    loud = levels[levels > -60]
    if not len(loud):
        return np.zeros(len(levels), bool)
    threshold = max(np.percentile(loud, 95) - 30, -60)
    speech = levels > np.maximum(threshold, background_by_the_book(levels, 10, 600) + 6)
    for run in runs(speech):
        is_inside = run[0] > 0 and run[-1] < len(speech) - 1
        if not speech[run[0]] and is_inside and len(run) <= 20:
            speech[run] = True
    for run in runs(speech):
        if speech[run[0]] and len(run) < 5:
            speech[run] = False
    return speech


def sound(seed):
    """Seconds of noise that comes and goes, of some loudness, over some hiss."""
    rng = np.random.default_rng(seed)
    samples = int(rng.uniform(0.05, 6) * AUDIO_RATE)
    stretch = int(rng.integers(100, 6000))
    is_loud = np.repeat(rng.random(samples // stretch + 1) > rng.random(), stretch)[:samples]
    loudness = rng.choice([0.5, 0.02, 1e-3, 1e-5])
    hiss = rng.choice([0, 1e-4, 1e-6])
    audio = rng.normal(size=samples) * is_loud * loudness + rng.normal(size=samples) * hiss
    return audio.astype(np.float32)


@pytest.mark.parametrize("seed", range(60))
def test_both_uses_agree_with_their_textbook(seed):
    audio = sound(seed)
    steps = step_levels(audio)
    assert np.array_equal(voice_activity(steps, RECORDING), recording_by_the_book(steps))
    frames = frame_levels(audio, AUDIO_RATE, frames=len(audio) * 25 // AUDIO_RATE + 4, fps=25.0)
    assert np.array_equal(voice_activity(frames, CLIP), clip_by_the_book(frames))


def test_a_short_gap_at_the_end_is_speech_in_a_clip_and_silence_in_a_recording():
    levels = np.full(60, -20.0)
    levels[:3] = -90
    assert voice_activity(levels, CLIP).all()
    assert voice_activity(levels, RECORDING).tolist() == [False] * 3 + [True] * 57
    levels[:4] = -90
    assert voice_activity(levels, CLIP).tolist() == [False] * 4 + [True] * 56


def test_silence_and_nothing_have_no_speech():
    assert not voice_activity(step_levels(np.zeros(AUDIO_RATE)), RECORDING).any()
    assert voice_activity(step_levels(np.zeros(10)), RECORDING).shape == (0,)
    assert not voice_activity(np.full(100, -90.0), CLIP).any()


# A recording, in steps of 10 ms


def speaks(audio):
    return voice_activity(step_levels(audio), RECORDING)


def tone(
    seconds: float, rate: int = AUDIO_RATE, hz: float = 200.0, level: float = 0.5
) -> np.ndarray:
    return level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


def test_voice_activity_finds_the_burst():
    noise = 1e-4 * np.random.default_rng(0).normal(size=AUDIO_RATE)
    audio = np.concatenate([noise, tone(1.0), noise])
    mask = speaks(audio)
    assert len(mask) == 300 and not mask[:95].any() and mask[105:195].all() and not mask[205:].any()


def test_short_gaps_are_bridged_long_ones_not():
    def with_gap(gap):
        return speaks(np.concatenate([tone(1.0), np.zeros(round(gap * AUDIO_RATE)), tone(1.0)]))

    assert with_gap(0.1).all()
    assert not with_gap(0.5)[110:140].any()


# Noise


def pink(rng: np.random.Generator, samples: int) -> np.ndarray:
    """As much power in every octave above 20 Hz."""
    hz = np.fft.rfftfreq(samples, 1 / AUDIO_RATE)
    spectrum = np.fft.rfft(rng.normal(size=samples)) / np.sqrt(np.maximum(hz, 20))
    noise = np.fft.irfft(spectrum, samples)
    return noise / noise.std()


def noise_of(kind: str, rng: np.random.Generator, samples: int) -> np.ndarray:
    """Of rms 1."""
    return pink(rng, samples) if kind == "pink" else rng.normal(size=samples)


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    """Synthetic speakers: sound, and (samples,) bool where their words are."""
    corpus = generate_corpus(
        tmp_path_factory.mktemp("voices") / "corpus",
        8,
        4,
        4,
        design=Design(seconds=8, past=0, listeners=1, frames=0),
        workers=0,
    )
    pairs = []
    for clip in corpus.clips("train", ("speaker_audio", "words")):
        spoken = np.zeros(len(clip.speaker_audio), bool)
        for word in clip.words:
            spoken[round(word.start * AUDIO_RATE) : round(word.end * AUDIO_RATE)] = True
        pairs.append((clip.speaker_audio.astype(np.float64), spoken))
    return pairs


def errors(voices, kind, snr_db, of_clip):
    """Share of the time that is misjudged, mean over the voices, with noise that much below the
    words.
    """
    rng = np.random.default_rng(0)
    shares = []
    for audio, spoken in voices:
        heard = audio
        if kind is not None:
            loudness = np.sqrt(np.mean(audio[spoken] ** 2))
            heard = audio + loudness * 10 ** (-snr_db / 20) * noise_of(kind, rng, len(audio))
        if of_clip:
            found = voice_activity(frame_levels(heard, AUDIO_RATE, frames=200, fps=25.0), CLIP)
        else:
            found = speaks(heard)
        truth = spoken.reshape(len(found), -1).mean(1) >= 0.5
        shares.append((found != truth).mean())
    return np.mean(shares)


@pytest.mark.parametrize("of_clip", [False, True])
@pytest.mark.parametrize("kind", ["white", "pink"])
@pytest.mark.parametrize("snr_db", [20, 10])
def test_voices_are_found_in_noise_as_they_are_without(voices, kind, snr_db, of_clip):
    clean = errors(voices, None, 0, of_clip)
    assert clean < 0.1
    assert errors(voices, kind, snr_db, of_clip) < clean + 0.03


@pytest.mark.parametrize("kind", ["white", "pink"])
@pytest.mark.parametrize("level", [0.3, 0.003])
def test_noise_alone_is_no_speech(kind, level):
    noise = level * noise_of(kind, np.random.default_rng(0), 20 * AUDIO_RATE)
    assert speaks(noise).mean() < 0.02
    frames = frame_levels(noise, AUDIO_RATE, frames=500, fps=25.0)
    assert voice_activity(frames, CLIP).mean() < 0.02


def test_the_background_is_followed_when_it_rises():
    """A fan is switched on after 20 s: what is always there is no speech for long."""
    rng = np.random.default_rng(0)
    quiet, fan = (level * rng.normal(size=20 * AUDIO_RATE) for level in (1e-4, 0.02))
    word = tone(1.0, level=0.3)
    fan[12 * AUDIO_RATE : 13 * AUDIO_RATE] += word
    found = speaks(np.concatenate([quiet, fan]))
    assert found[3205:3295].all()
    assert not found[:1995].any() and not found[2310:3190].any() and not found[3310:].any()


def test_silence_has_no_speech_and_a_click_is_none():
    assert not speaks(np.zeros(AUDIO_RATE)).any()
    click = np.zeros(AUDIO_RATE)
    click[8000:8100] = 0.5
    assert not speaks(click).any()
