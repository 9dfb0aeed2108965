"""The independent judge: it learns who listened to whom, and nothing else."""

import numpy as np
import pytest

from rapport.rewards.judge import (
    BUCKETS,
    MISTAKEN,
    VOICE,
    JudgeError,
    ListeningJudge,
    Pair,
    Speaker,
    listener_features,
    speaker_features,
    steps_of,
    voice_features,
)
from rapport.rewards.ratings.visible import Expression, VisibleMotion

FPS = 25.0
SECONDS = 4.0
FRAMES = 100


def face(lift, frames=FRAMES):
    """A face whose mouth's corners are lifted by `lift` (time,) mm."""
    pair = np.stack([np.broadcast_to(lift, frames)] * 2, axis=1).astype(float)
    rest = np.zeros((frames, 2))
    return VisibleMotion(
        FPS, np.zeros((frames, 3)), Expression(pair, rest, rest[:, 0], rest, rest, rest + 1)
    )


def conversations(count, seed):
    """Speakers who say a glad or a bad word, and listeners who smile or frown right after it."""
    rng = np.random.default_rng(seed)
    speakers, pairs = [], []
    for conversation in range(count):
        for _ in range(4):
            sign, end = rng.choice([-1, 1]), rng.uniform(0.5, 2.5)
            words = (("well", 0.2), ("won" if sign > 0 else "died", end))
            speakers.append(speaker_features(Speaker(SECONDS, None, words, None)))
            phase = np.clip((np.arange(FRAMES) / FPS - end - 0.4) / 1.5, 0, 1)
            lift = 4 * sign * np.sin(np.pi * phase) ** 2 + 0.3 * rng.normal(size=FRAMES)
            listener = listener_features(face(lift))
            pairs.append(Pair(f"c{conversation}", len(speakers) - 1, listener, fits=True))
    return speakers, pairs


@pytest.fixture(scope="module")
def judge():
    speakers, pairs = conversations(32, seed=0)
    return ListeningJudge.fit(speakers, pairs, seed=0)


def evidence(judge, speakers, listener):
    return judge(judge.heard(speakers, len(listener)), listener)


def test_it_tells_the_own_speaker_from_strangers_it_has_never_met(judge):
    speakers, pairs = conversations(24, seed=1)
    rng = np.random.default_rng(0)
    won, evidences = [], []
    for pair in pairs:
        stranger = rng.choice([p.speaker for p in pairs if p.conversation != pair.conversation])
        own, other = evidence(judge, [speakers[pair.speaker], speakers[stranger]], pair.listener)
        won.append(own > other)
        evidences.append(own)
    assert np.mean(won) > 0.8  # half of the strangers mean the same, though at another time
    assert np.mean(evidences) > 0.3


def test_evidence_is_nothing_on_average_over_anybody_and_never_overwhelming(judge):
    _, pairs = conversations(2, seed=2)
    held = [listener_features(face(np.full(FRAMES, mm))) for mm in (0.0, 3.0, -3.0, 9.0)]
    for listener in (*held, *(pair.listener for pair in pairs)):
        scores = evidence(judge, judge.references, listener)
        assert np.exp(scores).mean() == pytest.approx(1, rel=1e-3)
        assert scores.min() >= np.log(MISTAKEN) - 1e-5
        assert scores.max() <= np.log(len(judge.references))


def test_a_shorter_reaction_is_judged_by_its_beginning(judge):
    speakers, pairs = conversations(2, seed=3)
    heard = judge.heard(speakers, 20)
    short = judge(heard, pairs[0].listener[:15])
    assert short.shape == (8,)
    heard[:, 15:] = 0.5  # what the speaker does after it
    assert np.array_equal(short, judge(heard, pairs[0].listener[:15]))


def test_the_same_seed_gives_the_same_judge_and_leaves_torch_as_it_was():
    import torch

    speakers, pairs = conversations(6, seed=4)
    torch.manual_seed(7)
    before = torch.rand(3)
    torch.manual_seed(7)
    first, second = (ListeningJudge.fit(speakers, pairs, seed=1) for _ in range(2))
    assert torch.equal(torch.rand(3), before)
    scores = [evidence(j, speakers, pairs[0].listener) for j in (first, second)]
    assert np.array_equal(*scores)
    other = ListeningJudge.fit(speakers, pairs, seed=2)
    assert not np.array_equal(scores[0], evidence(other, speakers, pairs[0].listener))


def test_listeners_who_do_not_fit_teach_nothing():
    speakers, pairs = conversations(6, seed=5)
    wrong = [Pair(p.conversation, p.speaker, -3 * p.listener, fits=False) for p in pairs]
    with_them = ListeningJudge.fit(speakers, [*pairs, *wrong], seed=0)
    without = ListeningJudge.fit(speakers, pairs, seed=0)
    listener = pairs[3].listener
    assert np.array_equal(*(evidence(j, speakers, listener) for j in (with_them, without)))


def test_too_few_conversations_are_refused():
    speakers, pairs = conversations(3, seed=6)
    with pytest.raises(JudgeError, match="3 training conversations"):
        ListeningJudge.fit(speakers, pairs)


def test_what_is_not_there_is_told_from_silence():
    nothing = speaker_features(Speaker(SECONDS, None, None, None))
    silent = speaker_features(Speaker(SECONDS, face(0.0), (), np.zeros(64_000, np.float32)))
    assert nothing.shape == silent.shape == (steps_of(SECONDS), nothing.shape[1])
    present = slice(-2 * BUCKETS - 3, -2 * BUCKETS)
    assert (nothing[:, present] == 0).all() and (silent[:, present] == 1).all()


def test_words_stand_where_they_end_and_are_remembered():
    features = speaker_features(Speaker(SECONDS, None, (("Won!", 1.1), ("won", -4.0)), None))
    said, remembered = features[:, -2 * BUCKETS : -BUCKETS], features[:, -BUCKETS:]
    [column] = np.flatnonzero(said.sum(axis=0))
    assert np.flatnonzero(said[:, column]).tolist() == [0, 5]
    assert 0 < said[0, column] < said[5, column] == 1
    assert remembered[5, column] > 1 > remembered[4, column] > 0
    assert remembered[19, column] < remembered[5, column]


def test_a_voice_by_what_is_known_of_it():
    time = np.arange(16_000) / 16_000
    low, high = (np.sin(2 * np.pi * hz * time) for hz in (110, 220))
    of_low, of_high = (voice_features(x, 5)[1:4] for x in (low, high))
    assert np.exp(of_low[:, 3]) == pytest.approx(110, rel=0.03)
    assert np.exp(of_high[:, 3]) == pytest.approx(220, rel=0.03)
    assert (of_high[:, 2] > of_low[:, 2]).all()  # brighter
    assert of_low[:, 0] == pytest.approx(np.log(0.5), abs=0.05)
    laugh = voice_features(low * (np.sin(2 * np.pi * 5 * time) > 0), 5)
    assert (laugh[:, 1] > of_low[:, 1].max() + 1).all()  # it comes in bursts
    silent = voice_features(np.zeros(10), 5)
    assert silent.shape == (5, VOICE) and np.isfinite(silent).all()


def test_a_listener_is_read_in_steps_of_a_fifth_of_a_second():
    lift = np.repeat([0.0, 5.0], 50)
    features = listener_features(face(lift))
    assert len(features) == 20
    assert features[:10, 0].max() == 0 and features[10:, 0].min() == 5
    # The mouth is fast where it jumps, and only there.
    speeds = features[:, features.shape[1] // 2]
    assert speeds[9] > 0 and speeds[10] > 0 and speeds[:9].max() == speeds[11:].max() == 0
