"""Prompts in tables, and the module that is trained."""

import numpy as np
import pyarrow as pa

from rapport.policies.vla.training import (
    PROMPT_COLUMNS,
    ActionLogits,
    policy_state,
    prompt_of_row,
    row_of,
)
from tests.talking import small_policy, talking

POLICY = small_policy()


def test_a_prompt_survives_a_table():
    for clip in (talking(), talking(past=0)):
        prompt = POLICY.encode(clip)
        table = pa.Table.from_pylist([row_of(prompt)], pa.schema(PROMPT_COLUMNS))
        back = prompt_of_row(table.to_pylist()[0], POLICY.model.config)
        for name in ("frames", "voice", "present", "heard", "said", "own"):
            np.testing.assert_array_equal(getattr(back, name), getattr(prompt, name))
        assert back.prompt_id == prompt.prompt_id


def test_the_trained_module_wraps_the_policy_by_name_only():
    state = policy_state(ActionLogits(POLICY.model).state_dict())
    assert state.keys() == POLICY.model.state_dict().keys()
