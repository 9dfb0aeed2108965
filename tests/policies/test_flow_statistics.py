"""Mean and spread of channels, against numpy."""

import numpy as np
import torch

from rapport.policies.flow.statistics import mean_and_std


def test_batches_of_any_shape_are_one_corpus():
    values = np.random.default_rng(0).normal(size=(60, 3)) * [1e-3, 1, 10] + [1e3, 0, -5]
    rows = torch.from_numpy(values)
    mean, std = mean_and_std([rows[:7], rows[7:7], rows[7:31].reshape(2, 3, 4, 3), rows[31:]])
    np.testing.assert_allclose(mean, values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(
        std, values.std(0), rtol=1e-6
    )  # a spread of a millionth of the mean, too


def test_what_stands_still_is_left_at_scale_1():
    mean, std = mean_and_std([torch.tensor([[2.0, 0.0], [2.0, 4.0]])])
    assert mean.tolist() == [2, 2] and std.tolist() == [1, 2]
    assert mean_and_std([]) is None and mean_and_std([torch.zeros(0, 3)]) is None
