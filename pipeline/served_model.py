"""A policy as an MLflow model: a clip of a corpus in, the listener's motion out.

MLflow copies this file into the model and runs it where the model is loaded, which is why it ends
with `set_model`. The policy itself is the model's only artefact; the code that loads it comes from
the package that the model requires.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import ModelSignature, set_model
from mlflow.pyfunc import PythonModel, save_model
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array

POLICY = "policy"  # the artefact
SIMULATED = "simulated"  # of the metadata: whether it was trained on people who were made up
INPUTS = Schema(
    [
        ColSpec(DataType.string, "corpus"),
        ColSpec(DataType.string, "clip_id"),
        ColSpec(DataType.long, "seed"),
    ]
)
OUTPUTS = Schema(
    [
        ColSpec(Array(Array(DataType.double)), "values"),
        ColSpec(DataType.string, "layout"),
    ]
)


class ServedPolicy(PythonModel):
    """Answers each row of a table with one sampled reaction."""

    def load_context(self, context: Any) -> None:
        """Load the policy, once for all calls."""
        from rapport.policies.policy import load_policy

        self.policy = load_policy(Path(context.artifacts[POLICY]))

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One reaction a row; the same row gives the same reaction, whatever stands beside it.

        Args:
            context: of MLflow.
            model_input: `corpus` (path of a corpus folder that this process can read), `clip_id`
                (of a clip in it) and `seed`.
            params: none are used.

        Returns:
            `values` (a list of frames, each a list of coefficients) and `layout` (what the
            coefficients mean, as JSON that `Layout.from_json` reads).
        """
        from rapport.pipeline.data.store import Corpus

        corpora = {path: Corpus(path) for path in model_input["corpus"].unique()}
        motions = []
        for row in model_input.itertuples():
            prompt = self.policy.encode(corpora[row.corpus].clip(row.clip_id))
            # One call a row: rows that are sampled together could change each other's last bits.
            [[reaction]] = self.policy.sample([prompt], 1, [int(row.seed)])
            motions.append(self.policy.to_motion(reaction))
        return pd.DataFrame(
            {
                "values": [motion.values.tolist() for motion in motions],
                "layout": [motion.layout.to_json() for motion in motions],
            }
        )


def save(checkpoint: Path, folder: Path) -> None:
    """Write a policy folder as an MLflow model to `folder`, which must not exist."""
    from rapport.pipeline.steps.listening import on_synthetic_people

    with warnings.catch_warnings():
        # An input example would have to name a corpus that is there wherever the model is served.
        warnings.filterwarnings("ignore", message=".*input example")
        save_model(
            folder,
            python_model=__file__,
            artifacts={POLICY: str(checkpoint)},
            signature=ModelSignature(inputs=INPUTS, outputs=OUTPUTS),
            pip_requirements=["rapport-rlhf"],
            metadata={SIMULATED: on_synthetic_people(checkpoint)},
        )


set_model(ServedPolicy())
