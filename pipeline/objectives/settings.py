"""How each objective is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from rapport.settings import Section


class ImitationConfig(Section):
    """Imitation by likelihood, of a policy that has no objective of its own."""

    steps: int = Field(240, ge=1)
    """optimiser steps"""
    batch_size: int = Field(8, ge=1)
    """clips per step over all learners"""
    learning_rate: float = Field(3e-3, gt=0)
    """peak; linear warm-up over 5 % of steps, then cosine to 10 %"""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW weight decay"""


class PerceptionTraining(ImitationConfig):
    """Encoders of the tiny VLA, before imitation: they tell what the speaker's face does.

    It stands for what published DINOv2 and SigLIP bring with them.
    """

    steps: int = Field(400, ge=0)
    """optimiser steps; 0 = encoders stay random, and learn by imitation"""
    batch_size: int = Field(32, ge=1)
    """chunks per step over all learners"""
    learning_rate: float = Field(3e-3, gt=0)
    """peak; same schedule as SFT"""
    chunks: int = Field(4096, ge=1)
    """chunks of training conversations, at most"""

    def moot(self) -> dict[str, tuple[str, ...]]:
        """Nothing is learnt in no steps."""
        if self.steps:
            return {}
        others = tuple(name for name in type(self).model_fields if name != "steps")
        return {"pretraining.steps=0": others}


class SftConfig(ImitationConfig):
    """Imitation by the VLA (Eq. 7-9)."""

    steps: int = Field(1200, ge=1)
    """optimiser steps"""
    batch_size: int = Field(8, ge=1)
    """contexts per step over all learners, each begun with any chunk of a clip"""
    checkpoint: Path | None = None
    """skip SFT and start from this policy checkpoint"""
    window_steps: int = Field(5, ge=1)
    """action steps of a window in the first phase, at most those of a context; shorter ones are
    more to a batch"""
    window_share: float = Field(0.7, ge=0, lt=1)
    """share of the steps on windows, before those on whole contexts; 0 = whole contexts only"""
    lively: float = Field(1.0, ge=0)
    """power of how far from rest a face is in a window with which it is drawn, so that most show
    somebody who reacts; 0 = as they come"""
    forget: float = Field(0.2, ge=0, le=0.66)
    """share of the rows that see none of the own actions before the one that is learnt, which would
    explain everything away; half as many see every other of them"""
    absent: float = Field(0.4, ge=0, lt=1)
    """share of the rows in which a stream is absent: pictures, voice, words, each by itself; so
    that none starves the others"""
    perceived: int = Field(512, ge=0)
    """validation clips, each of a listener, on which is asked what the policy perceives; 0 = it is
    not asked"""
    lambda_exp: float = Field(1.0, ge=0)
    """weight of the expression tokens (Eq. 7)"""
    lambda_pose: float = Field(1.0, ge=0)
    """weight of the pose tokens (Eq. 7)"""
    lambda_reg: float = Field(20.0, ge=0)
    """weight of temporal coherence and identity (Eq. 8-9), which are squares of shares of a bin's
    range: at 20 a twelfth of the loss at first, a fortieth in the end"""

    def moot(self) -> dict[str, tuple[str, ...]]:
        """Nothing is learnt where a checkpoint is there."""
        if self.checkpoint is not None:
            others = tuple(name for name in type(self).model_fields if name != "checkpoint")
            return {"sft.checkpoint is there already": others}
        return {} if self.window_share else {"sft.window_share=0": ("window_steps", "lively")}


class VaeTraining(ImitationConfig):
    """The motion VAE in front of AR-Flow."""

    size: Literal["tiny", "paper"] = "tiny"
    """size of the motion VAE"""
    steps: int = Field(1200, ge=1)
    """optimiser steps"""
    batch_size: int = Field(16, ge=1)
    """clips per step over all learners"""
    learning_rate: float = Field(2e-3, gt=0)
    """peak; same schedule as SFT"""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW weight decay"""
    velocity_weight: float = Field(10.0, ge=0)
    """weight of frame-to-frame differences in the reconstruction"""
    kl_weight: float = Field(0.01, ge=0)
    """weight of the KL to N(0, I); more = blurred blinks, less = latents so precise that the
    noise that AR-Flow leaves in them makes faces tremble"""


class FlowTraining(ImitationConfig):
    """Imitation by AR-Flow (rectified flow)."""

    size: Literal["tiny", "paper"] = "tiny"
    """size of AR-Flow; paper = 6 layers, 16 heads, 512 wide, 19.3 M parameters"""
    steps: int = Field(3000, ge=1)
    """optimiser steps"""
    batch_size: int = Field(8, ge=1)
    """clips per step over all learners (the paper's is 32)"""
    draws: int = Field(4, ge=1)
    """noise and flow times drawn per latent; they share prefix and history"""
    learning_rate: float = Field(1e-3, gt=0)
    """peak; same schedule as SFT (the paper's is 1e-4)"""
    perceived: int = Field(512, ge=0)
    """validation clips, each of a listener, on which is asked what the policy perceives; 0 = it is
    not asked"""
    drop_each: float = Field(0.1, ge=0, lt=1)
    """probability that a clip loses a modality, one by one"""
    drop_all: float = Field(0.1, ge=0, lt=1)
    """probability that it loses all, for guidance (Eq. 6)"""
    drop_past: float = Field(0.25, ge=0, lt=1)
    """probability that a clip loses its own past: it explains nearly all of the next latent, so
    little would be learnt of the speaker"""
    expect: float = Field(1.0, ge=0)
    """weight of learning, by least squares and from what is heard and seen alone, where a face goes
    in the next second, which the velocity is then told: without it next to nothing is learnt of the
    speaker; 0 = the paper's"""
    heed: float = Field(3.0, ge=0)
    """by what factor samplers tell the velocity what is expected; 1 = as it was taught"""
    whole_share: float = Field(0.2, ge=0, le=1)
    """share of the clips trained with all of the window, the future too, as the paper's are; the
    others hear 0, 4, 8 or 12 frames of a latent before it, so that one policy serves any delay"""

    def moot(self) -> dict[str, tuple[str, ...]]:
        """Who expects nothing heeds nothing."""
        keys = super().moot()
        return keys if self.expect else keys | {"flow.expect=0": ("heed",)}


class DistilTraining(ImitationConfig):
    """Reflow: an AR-Flow learns to go straight to where its teacher goes in many evaluations."""

    steps: int = Field(1000, ge=1)
    """optimiser steps"""
    batch_size: int = Field(32, ge=1)
    """answers per step over all learners"""
    draws: int = Field(2, ge=1)
    """flow times drawn per latent"""
    learning_rate: float = Field(3e-4, gt=0)
    """peak; same schedule as SFT"""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW weight decay"""
    windows: int = Field(1536, ge=1)
    """training windows that the teacher answers, at most"""
    taught: int = Field(10, ge=2, multiple_of=2)
    """evaluations of the velocity that the teacher takes for a latent, by the midpoint rule"""
    evaluations: int = Field(2, ge=2, multiple_of=2)
    """those that the distilled one takes, unless it is asked for others"""
    drop_each: float = Field(0.3, ge=0, lt=1)
    """probability that a window loses a modality, one by one, before the teacher answers it"""


class ReactFaceTraining(ImitationConfig):
    """Imitation by ReactFace (Eq. 18), on channels of unit variance over the corpus."""

    size: Literal["tiny", "paper", "printed"] = "tiny"
    """size of ReactFace; paper = 128 wide, as its programs run, printed = 256 wide"""
    sees: Literal["motion", "frames"] = "motion"
    """what it sees of the speaker: the tracked motion of their face, or pictures of it, as in the
    paper, corpus.frames a second"""
    listening: int = Field(400, ge=0)
    """optimiser steps, before all others, in which it learns to encode the speaker and, by least
    squares, where a listener's face is on average; what is drawn departs from there. Without them
    next to nothing is learnt of the speaker; 0 = the paper's, all is learnt at once"""
    heard: int = Field(64, ge=1)
    """clips per step of those over all learners: what a speaker explains is faint, and cheap to
    learn"""
    steps: int = Field(800, ge=1)
    """optimiser steps after them, in which it learns to react"""
    batch_size: int = Field(8, ge=1)
    """clips per step of those over all learners (the paper's is 4)"""
    learning_rate: float = Field(2e-3, gt=0)
    """peak; same schedule as SFT (the paper's is a constant 2e-5)"""
    samples: int = Field(3, ge=2)
    """M, reactions to a speaker in a step"""
    delay: Literal["w", 0] = "w"
    """what online means: w = a window of 320 ms is made once the speaker is heard to its end, and
    shown that much later (the paper's Eq. 4); 0 = it is made before any of it is heard"""
    momentum: float = Field(0.6, ge=0, lt=1)
    """alpha of Eq. 10, how much of z stays from window to window: .9 lasts 3 s, and leaves half of
    people's movement (the paper prints .999, its programs run .9)"""
    mood: float = Field(0.98, ge=0, lt=1)
    """alpha of half of z, which is a mood: how somebody listens today, and how lively; .98 lasts
    16 s, and does not fade as Eq. 10 does. 0 = the paper's, all of z has momentum"""
    span: int = Field(12, ge=1)
    """windows that one looks back, in every layer, at the speaker and at oneself"""
    synchronise: Literal["both", "face", "voice", "none"] = "both"
    """what of the speaker a window is held against once it is made (SLBS): the face (VIM, Eq. 14)
    and the voice (MIM, Eq. 15); one or none of them is the paper's ablation. z* hears both"""
    assign: Literal["nearest", "recorded", "random", "cover"] = "random"
    """which of the reactions that the corpus calls appropriate a sample is trained on: random = one
    drawn for each sample, by which the energy score is best where samples are spread as people are;
    nearest = the one most like it (the paper's Eq. 20), cover = every one is met by the sample most
    like it; recorded = the clip's own listener, as everywhere in a corpus that names nobody"""
    neighbours: int = Field(20, ge=1)
    """appropriate reactions of a clip that a step looks at, at most"""
    absent: float = Field(0.2, ge=0, lt=1)
    """share of the clips in which a stream is absent, face or voice, so that neither starves the
    other; never both"""
    heed: float = Field(3.0, ge=0)
    """by what factor samplers follow what is expected of expressions; 1 = as it was taught"""
    speaker: float = Field(1.0, ge=0)
    """weight of L_s: the speaker's motion is read off the encoded speaker (Eq. 19)"""
    kl: float = Field(1e-3, ge=0)
    """lambda_kl (Eq. 22): the paper's 1e-5 in units of the corpus' variance, which is .012 there"""
    smooth: float = Field(1.0, ge=0)
    """lambda_smo (Eq. 23; the paper's 10 is in another unit)"""
    spread: Literal["energy", "paper"] = "energy"
    """what keeps samples apart: energy = the energy score, by which they are as far apart as people
    are; paper = L_div (Eq. 21)"""
    diversity: float = Field(0.3, ge=0)
    """lambda_div (Eq. 21; the paper's 100 belongs to another unit)"""
    diversity_scale: float = Field(0.5, gt=0)
    """sigma_d, mean squared difference of an element in units of the corpus' variance: listeners
    who do not know of each other are 2 apart (the paper's 100, of a sum over frames and channels,
    is .56 of the variance within its clips)"""

    def moot(self) -> dict[str, tuple[str, ...]]:
        """A clip's own listener is one."""
        keys = super().moot()
        if self.assign == "recorded":
            keys["reactface.assign=recorded has one reaction a clip"] = ("neighbours",)
        if self.spread == "energy":
            keys["reactface.spread=energy has no weight or scale"] = (
                "diversity",
                "diversity_scale",
            )
        elif not self.diversity:
            keys["reactface.diversity=0"] = ("diversity_scale",)
        if not self.listening:
            keys["reactface.listening=0 expects nothing"] = ("heard", "heed")
        return keys


class DpoConfig(Section):
    """Alignment with preferences (Eq. 11), whatever the policy."""

    beta: float = Field(0.1, gt=0)
    """strength of the tie to the reference (Eq. 11)"""
    loss: Literal["sigmoid", "ipo", "robust", "margin"] = "sigmoid"
    """sigmoid is the paper's"""
    label_smoothing: float = Field(0.1, ge=0, lt=0.5)
    """share of flipped labels assumed by `robust`"""
    chosen_nll: float = Field(0.0, ge=0)
    """weight of imitating the chosen reaction, per action, beside the loss (RPO): keeps what is
    preferred likely, where the loss alone only pushes the rejected one away"""
    contrast: float = Field(0.0, ge=0, le=1)
    """share of pairs that no rater makes: rejected is a reaction to ANOTHER speaker, as lively as
    the chosen one, so that only listening tells them apart; 1 = no rater is asked"""
    contrast_of: Literal["recorded", "sampled"] = "recorded"
    """what such pairs are made of: recorded listeners who fit their speaker, or the policy's own
    samples (of a rated group, those that are rated best)"""
    epochs: int = Field(2, ge=1)
    """passes over the pairs"""
    rounds: int = Field(1, ge=1)
    """times that the policy of the round before is rolled out, rated and aligned anew"""
    reference: Literal["sft", "previous"] = "sft"
    """what every round is tied to: the SFT policy, or the policy that the round began with"""
    batch_size: int = Field(8, ge=1)
    """pairs per step over all learners"""
    learning_rate: float = Field(1e-3, gt=0)
    """peak; same schedule as SFT"""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW weight decay"""

    def moot(self) -> dict[str, tuple[str, ...]]:
        """What belongs to one loss, or to several rounds."""
        keys: dict[str, tuple[str, ...]] = {}
        if self.loss != "robust":
            keys[f"dpo.loss={self.loss} assumes no flipped labels"] = ("label_smoothing",)
        if self.rounds == 1:
            keys["in the one round of dpo.rounds=1 both references are the same"] = ("reference",)
        if not self.contrast:
            keys["dpo.contrast=0 has no such pairs"] = ("contrast_of",)
        return keys

    @model_validator(mode="after")
    def _margins_are_of_scores(self) -> Self:
        if self.loss == "margin" and self.contrast:
            raise ValueError(
                "dpo.loss=margin needs scores of both reactions, which pairs of dpo.contrast lack: "
                "another dpo.loss, or dpo.contrast=0"
            )
        return self

    @property
    def counted_steps(self) -> int | None:
        """Leading action steps whose log-probs count, None = all."""
        return None

    @property
    def trained_part(self) -> str:
        """Which weights learn, a word that the policy knows."""
        return "all"

    @property
    def likelihood_draws(self) -> int:
        """Draws of a likelihood for each reaction, where it is of drawn noise."""
        return 1

    @property
    def forget_share(self) -> float:
        """Share of the pairs whose likelihoods are those of somebody without a past."""
        return 0.0


class VlaDpoConfig(DpoConfig):
    """DPO of the VLA."""

    contrast: float = Field(0.9375, ge=0, le=1)
    """share of pairs that no rater makes: rejected is a reaction to ANOTHER speaker, as lively as
    the chosen one, so that only listening tells them apart; 0 = the paper's, 1 = no rater is
    asked"""
    chosen_nll: float = Field(20.0, ge=0)
    """weight of imitating the chosen reaction, per action, beside the loss (RPO): keeps what is
    preferred likely, where the loss alone only pushes the rejected one away; 0 = the paper's"""
    epochs: int = Field(1, ge=1)
    """passes over the pairs"""
    train: Literal["inputs", "all"] = "all"
    """inputs = vision, projector and embeddings: LLaMA's blocks and head stay as SFT left them;
    all = everything that vla.* lets train"""
    first_steps: int | None = Field(None, ge=1)
    """leading action steps whose log-probs count; empty = all of them (Eq. 11)"""
    learning_rate: float = Field(8e-4, gt=0)
    """peak; same schedule as SFT"""

    @property
    def counted_steps(self) -> int | None:
        """Leading action steps whose log-probs count, None = all."""
        return self.first_steps

    @property
    def trained_part(self) -> str:
        """Which weights learn."""
        return self.train


class FlowDpoConfig(DpoConfig):
    """Flow-DPO (Liu et al. 2025, arXiv 2501.13918)."""

    beta: float = Field(1000.0, gt=0)
    """strength of the tie to the reference, of errors averaged over a window (for images 2000
    to 5000, Wallace et al. 2024)"""
    contrast: float = Field(0.9375, ge=0, le=1)
    """share of pairs that no rater makes: rejected is a reaction to ANOTHER speaker, as lively as
    the chosen one, so that only listening tells them apart; 1 = no rater is asked"""
    draws: int = Field(8, ge=1)
    """noise and flow times drawn per latent, the same for chosen and rejected"""
    drop_past: float = Field(0.5, ge=0, le=1)
    """share of the pairs whose errors are those of somebody without a past: with one, a reaction
    tells more of itself than of its speaker"""
    learning_rate: float = Field(1e-4, gt=0)
    """peak; same schedule as SFT. Without imitation beside, three times as much makes jaws tremble,
    whatever beta is"""

    @property
    def likelihood_draws(self) -> int:
        """See `draws`."""
        return self.draws

    @property
    def forget_share(self) -> float:
        """See `drop_past`."""
        return self.drop_past


class ReactFaceDpoConfig(DpoConfig):
    """DPO of ReactFace: an action is z* of a window."""

    contrast_of: Literal["sampled"] = "sampled"
    """what such pairs are made of: the policy's own samples (of a rated group, those that are rated
    best); a recorded listener has no z*"""


class GdpoConfig(Section):
    """Group reward-decoupled policy optimisation (Eq. 8-10), whatever the policy."""

    iterations: int = Field(24, ge=1)
    """times that the behaviour policy is renewed and answers new prompts"""
    sync_every: int = Field(2, ge=1)
    """optimiser steps on answers of one behaviour policy"""
    batch_size: int = Field(4, ge=1)
    """prompts per step over all learners"""
    group_size: int = Field(4, ge=2)
    """answers per prompt, G"""
    clip: float = Field(0.2, gt=0, lt=1)
    """clip range of the probability ratio (Eq. 10)"""
    beta: float = Field(0.01, ge=0)
    """weight of the KL to the reference (Eq. 10)"""
    asynchronous: bool = False
    """sample the next iteration while this one is learnt, with weights one iteration old; a
    resumed run then differs from one that went through"""
    learning_rate: float = Field(3e-4, gt=0)
    """peak; same schedule as SFT"""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW weight decay"""
    estimator: Literal["gdpo", "grpo"] = "gdpo"
    """rewards normalised one by one, or summed first"""
    scale: Literal["all", "group"] = "all"
    """whose rewards are normalised together: of all prompts of an iteration, or of each by itself
    as in Eq. 8, which makes listeners more alike"""

    @property
    def updates(self) -> int:
        """Optimiser steps."""
        return self.iterations * self.sync_every

    @property
    def answered(self) -> int:
        """Prompts that all iterations together answer."""
        return self.updates * self.batch_size

    @property
    def hold_weight(self) -> float | None:
        """Weight of the KL where there is no reward; None = nothing holds the policy there."""
        return None

    @property
    def unrewarded_share(self) -> float:
        """Share of prompts in which the actor never listens."""
        return 0.0

    @property
    def largest_weight(self) -> float | None:
        """Where importance weights are cut that correct for other numbers of the engines.

        None = engines are the learners' own code, so there is nothing to correct.
        """
        return None


class VlaGdpoConfig(GdpoConfig):
    """GDPO of the VLA: an action is a token."""

    truncation: float = Field(2.0, ge=1)
    """largest importance weight of a token, for what engine and learner differ in"""

    @property
    def largest_weight(self) -> float | None:
        """Where importance weights of tokens are cut."""
        return self.truncation


class FlowGdpoConfig(GdpoConfig):
    """GDPO of AR-Flow: an action is a denoise step of a latent."""

    iterations: int = Field(30, ge=1)
    """times that the behaviour policy is renewed and rolled out; the policy gradient needs many
    more"""
    sync_every: int = Field(2, ge=1)
    """optimiser steps on rollouts of one behaviour policy (the paper's 8)"""
    group_size: int = Field(8, ge=2)
    """rollouts per prompt, G (the paper's 4)"""
    estimator: Literal["gdpo", "grpo", "pathwise"] = "pathwise"  # type: ignore[assignment]
    """the paper's policy gradient, of rewards normalised one by one (gdpo) or summed first (grpo);
    pathwise = normalised one by one, and their gradient through decoder and denoising, which needs
    a fraction of the rollouts"""
    rollouts: Literal["window", "sde"] = "window"
    """window = the judged sampler with noise in some denoise steps; sde = the paper's Eq. 7"""
    sigma: float = Field(0.5, gt=0)
    """noise of a rollout: of window the share of a state's remaining noise that is drawn anew, at
    most 1; of sde the scale of Eq. 7"""
    noisy_steps: int = Field(1, ge=1)
    """denoise steps of the window, drawn anew for every prompt (window)"""
    steps: int = Field(4, ge=1)
    """denoise steps of a rollout (sde)"""
    hold: float = Field(0.02, ge=0)
    """weight of the same KL where there is no reward: while the actor speaks and in pauses"""
    anchor_share: float = Field(0.2, ge=0, lt=1)
    """share of prompts in which the actor never listens, for `hold` (fewer if the corpus has
    fewer)"""
    chunk: int = Field(100, ge=1)
    """noisy steps of a rollout replayed at once, over all latents; fewer need less memory and more
    time (the paper's 2 steps of 25 latents are 50)"""
    learning_rate: float = Field(1e-4, gt=0)
    """peak; same schedule as SFT (the paper's 5e-6)"""

    @property
    def hold_weight(self) -> float | None:
        """Weight of the KL where there is no reward."""
        return self.hold

    @property
    def unrewarded_share(self) -> float:
        """Share of prompts in which the actor never listens."""
        return self.anchor_share

    def moot(self) -> dict[str, tuple[str, ...]]:
        """What the other rollouts, or no rollouts with noise, would have taken."""
        if self.estimator == "pathwise":
            explored = ("rollouts", "sigma", "noisy_steps", "steps", "clip", "chunk")
            return {"gdpo.estimator=pathwise has no drawn steps": explored}
        if self.rollouts == "sde":
            return {"gdpo.rollouts=sde draws every step": ("noisy_steps",)}
        return {"gdpo.rollouts=window takes the judge's steps": ("steps",)}
