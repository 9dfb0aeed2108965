"""What faces show, said by a vision-language model that vLLM runs: prompts for AR-Flow.

As GDPO-Listener makes its prompts (arXiv 2603.25020, supplement, section 6 and Table 7; Qwen3-VL
there): eight pictures of a clip become a sentence on emotion, eyes and head, and nothing on speech.
The weights are the user's.

Captions lie in the shard of their recording. They are made anew where its clips are, or with
another model or wording.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import ray
from PIL import Image

from rapport.actors.cluster import some_cluster, vllm_environment, worker_environment
from rapport.actors.pool import Pool
from rapport.actors.timeline import Worker
from rapport.files import strict_json, visible, write_atomic
from rapport.log import logger
from rapport.pipeline.data.store import CorpusError
from rapport.pipeline.data.video.shards import (
    CAPTIONED,
    FACES,
    RECORD,
    listening_side,
)
from rapport.policies.clip import Clip

SAID = "captions.json"
WORDING = """\
Say in one short sentence what this person's face shows.
Begin with the emotion, in a precise word: skeptical, amused, bored, attentive, confused, happy, \
angry, calm, focused. Do not say neutral: where the face hardly moves, name the faintest emotion.
Then say what eyes and head do: narrowed eyes, raised eyebrows, a tilted head, looking away, a nod.
Leave out how the mouth moves to speak, and never say that the person speaks, talks or listens.
For example: Attentive and focused, looking straight ahead with a slight nod."""
_TOKENS = 48  # of a caption
_LONGEST = 200  # letters of it
_CONTEXT = 8192  # tokens that pictures and wording may take, of a model that can take so many
_CACHE_BYTES = 2**30
_BATCH = 64  # captions that are asked for together
_TIMEOUT_S = 3600.0
_LOSSES = 2  # engines that die
Captions = dict[tuple[str, float], str]  # by side and start of a clip


class Captioner(Worker):
    """A vision-language model in vLLM, in this process.

    Args:
        model: its folder.
    """

    def __init__(self, model: Path) -> None:
        self.model = model
        self.key = key_of(model)

    @cached_property
    def _answers(self) -> Callable[[Sequence[Any]], Any]:
        """What the model answers to conversations.

        Raises:
            CorpusError: vLLM cannot run it.
        """
        import torch
        from transformers import AutoConfig

        from rapport.policies.vla.vllm_plugin import in_this_process

        in_this_process()
        from vllm import LLM, SamplingParams

        model = self.model
        # Of a GPU vLLM takes what is free; of a computer's memory it would take nearly all.
        gpu = torch.cuda.is_available()
        room: dict[str, Any] = {} if gpu else {"kv_cache_memory_bytes": _CACHE_BYTES}
        try:
            text = AutoConfig.from_pretrained(model).get_text_config()
            llm = LLM(
                model=str(model),
                seed=0,
                max_model_len=min(_CONTEXT, text.max_position_embeddings),
                limit_mm_per_prompt={"image": CAPTIONED},
                enforce_eager=not gpu,
                generation_config="vllm",
                **room,
            )
        except Exception as error:  # whatever a model of somebody else's brings
            raise CorpusError(f"corpus.captioner={model}: vLLM cannot run it ({error})") from error
        sampling = SamplingParams(temperature=0.0, max_tokens=_TOKENS)
        return lambda asked: llm.chat(asked, sampling, use_tqdm=False)

    def caption(self, shard: Path) -> int:
        """Write a shard's captions; returns how many faces had one.

        Raises:
            CorpusError: vLLM cannot run the model.
        """
        said = []
        with pq.ParquetFile(shard / FACES) as file:
            for batch in file.iter_batches(_BATCH):
                rows = batch.to_pylist()
                for row, text in zip(rows, self._say(rows), strict=True):
                    if text:
                        said.append({"side": row["side"], "start": row["start"], "text": text})
        content = {"key": self.key, "of": _shard_key(shard), "said": said}
        write_atomic(shard / SAID, strict_json(content, indent=1))
        return len(said)

    def _say(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        asked = [conversation(row["pictures"]) for row in rows]
        return [one_line(answer.outputs[0].text) for answer in self._answers(asked)]


def conversation(pictures: Sequence[bytes]) -> list[Any]:
    """What the model is asked about pictures, JPEG, of one face."""
    shown = [
        {"type": "image_pil", "image_pil": Image.open(io.BytesIO(picture))} for picture in pictures
    ]
    return [
        {"role": "system", "content": WORDING},
        {"role": "user", "content": [*shown, {"type": "text", "text": "What does it show?"}]},
    ]


def one_line(text: str) -> str:
    """A model's answer as a caption: its first line, of letters that can be printed."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    kept = "".join(letter if letter.isprintable() else " " for letter in first)
    return " ".join(kept.replace("\N{REPLACEMENT CHARACTER}", " ").split())[:_LONGEST]


def require_captioner(model: Path) -> None:
    """Raise `CorpusError` unless a folder looks like a model."""
    if not (model / "config.json").is_file():
        raise CorpusError(
            f"corpus.captioner={model}: no config.json there; name the folder of a vision-language "
            "model as Hugging Face saves it, such as Qwen3-VL"
        )


def key_of(model: Path) -> str:
    """What captions depend on beside the pictures: the model's files, and what it is asked."""
    stats = [(file.name, file.stat()) for file in visible(model) if file.is_file()]
    files = {name: (there.st_size, there.st_mtime_ns) for name, there in stats}
    return strict_json({"files": files, "wording": WORDING})


def write_captions(shards: Sequence[Path], model: Path, workers: int | None) -> None:
    """Caption the shards that have no captions yet.

    Args:
        shards: folders, whose `Plan` was `captioned`.
        model: folder of the weights.
        workers: 0 = in this process, else in Ray, one for each GPU.

    Raises:
        CorpusError: vLLM cannot run the model.
    """
    key = key_of(model)
    missing = [shard for shard in shards if not _is_captioned(shard, key)]
    for number, (shard, count) in enumerate(_captioned(missing, model, workers), 1):
        logger.info(f"  [{number}/{len(missing)}] {shard.name}: {count} captions")


def read_captions(shard: Path) -> Captions:
    """What was said of the faces of a shard."""
    said = json.loads((shard / SAID).read_text())["said"]
    return {(row["side"], row["start"]): row["text"] for row in said}


def captions_of(clip: Clip, captions: Captions) -> dict[str, str]:
    """Those of a clip of the shard, of "listener" and "speaker"."""
    listens = listening_side(clip)
    sides = {"listener": listens, "speaker": "b" if listens == "a" else "a"}
    return {
        role: captions[side, clip.start]
        for role, side in sides.items()
        if (side, clip.start) in captions
    }


def _captioned(
    missing: Sequence[Path], model: Path, workers: int | None
) -> Iterator[tuple[Path, int]]:
    if not missing:
        return
    if workers == 0:
        captioner = Captioner(model)
        for shard in missing:
            yield shard, captioner.caption(shard)
        return
    with some_cluster():
        gpus = int(ray.cluster_resources().get("GPU", 0))
        share = 1 if gpus else 0
        environment = worker_environment(1, share) | vllm_environment(share)
        actor = ray.remote(Captioner).options(
            num_cpus=1, num_gpus=share, runtime_env={"env_vars": environment}
        )
        pool = Pool(
            "captioners",
            "caption",
            lambda _: actor.remote(model),
            workers=min(max(gpus, 1), len(missing)),
            in_flight=1,
            timeout_s=_TIMEOUT_S,
            losses=_LOSSES,
        )
        with pool:
            yield from pool.stream("caption", missing)


def _is_captioned(shard: Path, key: str) -> bool:
    try:
        content = json.loads((shard / SAID).read_text())
        return bool(content["key"] == key and content["of"] == _shard_key(shard))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _shard_key(shard: Path) -> str:
    return str(json.loads((shard / RECORD).read_text())["key"])
