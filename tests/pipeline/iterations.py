"""An iteration of GDPO outside the recipe: what its lines make of reactions."""

from rapport.actors.learner import Experience
from rapport.pipeline.steps.rewarding import advantages_of, rewards_of, rollouts_of


def experience_of(task, groups, index) -> Experience:
    """What the recipe gives learners of an iteration."""
    batch = task.scenes.of_iteration(index)
    measured = task.scenes.measured(batch, groups)
    rewards = rewards_of(measured, task.recipe.reward)
    advantages = advantages_of(rewards, task.recipe.groups, task.scenes.names, task.config)
    metrics = task.scenes.metrics(batch, measured, rewards)
    return Experience(rollouts_of(batch, groups, advantages), metrics)
