"""What test_four_nodes.py starts on a cluster of four nodes: each phase of a run on marked nodes,
each losing one.

Arguments: checkpoint, corpus, folder. It says `LOSE NAME` for a node that it wants killed and waits
for a line; the last line is what it found, as JSON."""

import json
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import ray
from ray.util import placement_group_table

from rapport.actors.cluster import ClusterError, reserve
from rapport.actors.engines import TokenEngine, engine_environment
from rapport.actors.fleet import Canary, Fleet
from rapport.actors.learner import fit
from rapport.actors.pool import Pool
from rapport.actors.rater import RatedPrompt, RewardPool
from rapport.actors.renderer import Panel, RenderPool, VideoJob
from rapport.actors.settings import EngineConfig, LearnerConfig, RatersConfig, RenderConfig
from rapport.pipeline.data.store import Corpus
from rapport.pipeline.data.vla import examples
from rapport.pipeline.objectives.settings import SftConfig
from rapport.pipeline.objectives.sft import Sft
from rapport.policies.head.settings import HeadConfig
from rapport.policies.motion import Layout, Motion
from rapport.policies.tables import write_table
from rapport.policies.vla.policy import VlaPolicy
from rapport.policies.vla.settings import VlaConfig
from rapport.policies.vla.training import SFT_SCHEMA

LAYOUT = Layout((("expr", 4), ("rot", 3), ("jaw", 3)), 25, "builtin")
ITEMS = 24


def names() -> dict[str, str]:
    """Node id -> its own resource."""
    return {
        node["NodeID"]: next((r for r in node["Resources"] if r.startswith("n-")), "head")
        for node in ray.nodes()
    }


def home(actor) -> str:
    node = ray.get(
        actor.__ray_call__.remote(
            lambda self: __import__("ray").get_runtime_context().get_node_id()
        )
    )
    return names()[node]


def lose(name: str) -> None:
    print(f"LOSE {name}", flush=True)
    sys.stdin.readline()


def worked_through(pool: Pool, stream) -> dict:
    """Where the pool's workers stood, and what came out of `stream` although a node was lost in the
    middle.
    """
    homes, seen = [home(actor) for actor in pool._actors], []
    for item in stream:
        if not seen:
            lose(homes[0])
        seen.append(item)
    return {"homes": homes, "seen": sorted(seen), "lost": pool.lost}


def main(checkpoint: str, corpus: str, folder: Path) -> dict:
    ray.init(address="auto", log_to_driver=False)
    found, policy, clips = (
        {},
        VlaPolicy.load(Path(checkpoint)),
        list(Corpus(corpus).clips("train")),
    )
    try:
        reserve([{"CPU": 0.1, "gpu-node": 0.001}], "rollout fleet", 2)
    except ClusterError as error:
        found["refused"] = str(error)

    config = EngineConfig(
        engine="hf",
        workers=2,
        cpus=0.1,
        batch_prompts=1,
        in_flight=1,
        start_timeout_s=120,
        timeout_s=120,
        nodes="rollout",
    )
    prompts = [policy.encode(clips[i % len(clips)]) for i in range(ITEMS)]
    with Fleet(
        partial(TokenEngine, checkpoint, config),
        config,
        losses=4,
        environment=engine_environment(config),
        policy=policy,
        canary=Canary(prompts[0], 1e-3, actions=45),
    ) as fleet:
        fleet.ready()
        nodes = names()
        groups = [
            nodes[node]
            for group in fleet._groups
            for node in placement_group_table(group)["bundles_to_node_id"].values()
        ]
        sampled = (
            [group[0].prompt_id for group in groups]
            for groups in fleet.sample(iter(prompts), 1, iter(range(ITEMS)))
        )
        found["rollout"] = worked_through(fleet, (batch[0] for batch in sampled)) | {
            "groups": groups
        }
    found["prompts"] = sorted(p.prompt_id for p in prompts)

    motion = Motion(0.1 * np.random.default_rng(0).normal(size=(50, LAYOUT.dim)), LAYOUT)
    render = RenderConfig(workers=2, cpus=0.1, timeout_s=120, nodes="render", size=64)
    with RenderPool(render, HeadConfig(), losses=4) as pool:
        jobs = (VideoJob(folder / f"{i}.mp4", (Panel("SFT", motion),), None) for i in range(ITEMS))
        found["render"] = worked_through(pool, (int(path.stem) for path, _ in pool.render(jobs)))
    raters = RatersConfig(count=2, workers=2, cpus=0.1, timeout_s=120, nodes="render")
    with RewardPool(raters, HeadConfig(), {}, losses=4) as pool:
        groups = (RatedPrompt(str(i), {"a": motion}, None, None, None, None) for i in range(ITEMS))
        found["reward"] = worked_through(
            pool, (int(group.prompt_id) for group, _ in pool.rate(groups, 0))
        )

    write_table(folder / "examples.arrow", examples(clips, policy), SFT_SCHEMA)
    home_file = folder / "learner"

    class Watched(Sft):
        """Says where its learner of rank 0 runs, and is not too fast to be caught."""

        def batch(self, step, rank, world_size):
            if rank == 0:
                home_file.write_text(ray.get_runtime_context().get_node_id())
            time.sleep(0.3)
            return super().batch(step, rank, world_size)

    task = Watched(
        checkpoint, folder / "examples.arrow", SftConfig(steps=8, batch_size=4), 0, VlaConfig()
    )
    steps, lost = folder / "learning" / "steps.jsonl", []

    def lose_a_learner() -> None:
        while not (steps.is_file() and len(steps.read_text().splitlines()) >= 3):
            time.sleep(0.02)
        lost.append(names()[home_file.read_text()])
        lose(lost[0])

    thread = threading.Thread(target=lose_a_learner)
    thread.start()
    learner = LearnerConfig(
        world_size=2, cpus=0.3, checkpoint_every=2, timeout_s=300, nodes="learner"
    )
    result = fit(task, learner, folder / "learning", lambda values, step: None, lambda text: None)
    thread.join()
    found["learner"] = {
        "lost": lost,
        "steps": result["steps"],
        "home": names()[home_file.read_text()],
        "logged": [json.loads(line)["step"] for line in steps.read_text().splitlines()],
        "policy": (folder / "learning" / "policy" / "model.safetensors").is_file(),
    }
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))), flush=True)
