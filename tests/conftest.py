"""What several tests share: a tiny corpus, a tiny policy on it, one local Ray."""

import os

import numpy as np
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: learners, engines and tests share few cores


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory):
    """8 training and 4 held-out synthetic clips of 1 s with one 28-pixel frame each."""
    from pipeline.data.synthetic.generate import generate

    return generate(tmp_path_factory.mktemp("corpus") / "tiny", 8, 4, seconds=1, image_size=28, frames=1, workers=0)


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_corpus, tmp_path_factory):
    """Folder of an untrained policy for `tiny_corpus`: 32 wide, one block, 5 steps of 9 action dimensions."""
    return save_tiny_policy(tmp_path_factory.mktemp("policy") / "tiny", tiny_corpus, seed=0)


def save_tiny_policy(path, corpus, seed):
    from policies.vla.actions import ActionSpace, ActionTokenizer, fit_bounds
    from policies.vla.loading import build_tiny, save_checkpoint, tiny_config
    from policies.vla.text import build_text_tokenizer

    clips = list(corpus.clips("train"))
    space = ActionSpace(corpus.layout.subset({"expr": 3, "rot": 3, "jaw": 3}), rate=5, seconds=1)
    low, high = fit_bounds(space.to_knots(clip.listener.subset(space.layout)) for clip in clips)
    tokenizer = build_text_tokenizer([clip.text for clip in clips], text_vocabulary=344)
    config = tiny_config(tokenizer, space, frames=1, image_size=28, text_tokens=4, hidden=32, layers=1, heads=1,
                         kv_heads=1, tower_hidden=16, tower_layers=2)
    actions = ActionTokenizer(space, np.asarray(low), np.asarray(high), config.action_token_start)
    save_checkpoint(build_tiny(config, seed), tokenizer, actions, path)
    return path


@pytest.fixture
def other_checkpoint(tiny_corpus, tmp_path):
    """Like `tiny_checkpoint`, with other weights."""
    return save_tiny_policy(tmp_path / "other", tiny_corpus, seed=1)


@pytest.fixture(scope="session")
def local_ray(tmp_path_factory):
    """A Ray of four logical CPUs that ends with the session."""
    from actors.cluster import cluster

    with cluster(address=None, cpus=4) as name:
        yield name
