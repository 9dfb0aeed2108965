"""Rate reactions, make pairs of them and align a policy with DPO, in plain Python on one CPU.

    python docs/examples/rate_and_align.py POLICY [ALIGNED]

POLICY is a folder that a recipe wrote, e.g. runs/.../sft/policy. The raters are SIMULATED; put
people's ratings in their place with `rapport.rewards.ratings.ratings.read_ratings("sheets/")`.
`rapport dpo` does the same on a cluster, and judges what came of it.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from rapport import Corpus, load_head, load_policy
from rapport.pipeline.data.store import load_points
from rapport.pipeline.data.synthetic.generate import Design, generate_corpus
from rapport.pipeline.data.synthetic.words import LEXICON
from rapport.policies.clip import Clip
from rapport.policies.head.flame import FlameHead
from rapport.policies.head.landmarks import face_landmarks
from rapport.policies.policy import Policy, Reaction
from rapport.rewards.dpo_loss import PairLogProbs, dpo_loss
from rapport.rewards.ratings.pairs import make_pairs
from rapport.rewards.ratings.points import Point
from rapport.rewards.ratings.ratings import Rating
from rapport.rewards.ratings.scores import score_candidates
from rapport.rewards.ratings.simulated import SimulatedPanel
from rapport.rewards.ratings.speaker_cues import SpeakerCues
from rapport.rewards.ratings.visible import watch

SAMPLES = 4
STEPS = 5
BETA = 0.1

Candidates = dict[str, Reaction]  # by id
Points = dict[str, tuple[Point, ...]]  # what speakers mean, by clip id


def sample(policy: Policy, clip: Clip, seed: int) -> Candidates:
    """Some reactions to a clip, under ids that say nothing about them."""
    [reactions] = policy.sample([policy.encode(clip)], SAMPLES, [seed])
    return {policy.candidate_id(reaction): reaction for reaction in reactions}


def rate(
    policy: Policy, clips: list[Clip], candidates: list[Candidates], points: Points
) -> Iterator[Rating]:
    """Five SIMULATED raters see the moving face and the speaker's, and know what is meant."""
    asset = load_head()
    head = FlameHead(asset)
    landmarks = face_landmarks(asset)
    panel = SimulatedPanel(raters=5, seed=0, lexicon=LEXICON)
    for clip, reactions in zip(clips, candidates, strict=True):
        seen = {
            name: watch(head, landmarks, policy.to_motion(reaction))
            for name, reaction in reactions.items()
        }
        words = [(word.text, word.start, word.end) for word in clip.words or ()]
        speaker = watch(head, landmarks, clip.speaker, clip.speaker_shape)
        cues = SpeakerCues(
            speaker,
            words,
            audio=clip.speaker_audio,
            points=points[clip.clip_id],
            name=clip.clip_id,
        )
        yield from panel.rate(clip.clip_id, cues, seen)


def batch_of(policy: Policy, clip: Clip, reactions: list[Reaction]) -> dict[str, torch.Tensor]:
    """One prompt with some reactions to it, as tensors."""
    row = policy.prompt_row(policy.encode(clip))
    return policy.collate([row]) | policy.collate_group(reactions)


def align(policy: Policy, reference: Policy, batches: list[dict[str, torch.Tensor]]) -> None:
    """DPO (Rafailov et al. 2023): prefer the chosen reaction more than the reference does."""
    optimizer = torch.optim.AdamW(policy.module().parameters(), lr=1e-3)
    with torch.no_grad():
        before = [reference.log_likelihood(reference.module(), batch)[0] for batch in batches]
    for step in range(STEPS):
        now = [policy.log_likelihood(policy.module(), batch)[0] for batch in batches]
        pairs = PairLogProbs(
            policy_chosen=torch.stack([chosen for chosen, _ in now]),
            policy_rejected=torch.stack([rejected for _, rejected in now]),
            reference_chosen=torch.stack([chosen for chosen, _ in before]),
            reference_rejected=torch.stack([rejected for _, rejected in before]),
            num_tokens=batches[0]["actions"].shape[-1],
        )
        loss = dpo_loss(pairs, BETA).losses.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step + 1}: loss {loss.item():.4f}")


def main(path: Path, aligned: Path, corpus: Corpus) -> None:
    policy = load_policy(path)
    clips = list(corpus.clips("train"))[:8]
    candidates = [sample(policy, clip, seed) for seed, clip in enumerate(clips)]
    ratings = list(rate(policy, clips, candidates, load_points(corpus.path)))
    scores, _ = score_candidates(ratings)
    pairs, counts = make_pairs(scores)
    margin = np.mean([pair.margin for pair in pairs])
    print(f"{len(ratings)} ratings, {counts.pairs} pairs, mean margin {margin:.3f}")

    clip_of = {clip.clip_id: clip for clip in clips}
    reactions_of = {
        clip.clip_id: reactions for clip, reactions in zip(clips, candidates, strict=True)
    }
    batches = []
    for pair in pairs:
        reactions = reactions_of[pair.prompt_id]
        members = [reactions[pair.chosen_id], reactions[pair.rejected_id]]
        batches.append(batch_of(policy, clip_of[pair.prompt_id], members))
    align(policy, load_policy(path), batches)
    policy.save(aligned)
    print(f"aligned policy: {aligned}")


if __name__ == "__main__":
    scratch = Path(tempfile.mkdtemp())
    output = Path(sys.argv[2]) if len(sys.argv) > 2 else scratch / "aligned"
    corpus = generate_corpus(scratch / "corpus", 8, 1, 1, design=Design(seconds=1), workers=0)
    main(Path(sys.argv[1]), output, corpus)
