"""Steps of an objective in this process."""

import torch


def descend(task, module, numbers, rate):
    """Adam over batches by their numbers: the loss of each, and what was logged of the last."""
    optimiser = torch.optim.Adam(module.parameters(), rate)
    losses = []
    for number in numbers:
        loss, metrics = task.loss(module, task.batch(number, 0, 1))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses, metrics
