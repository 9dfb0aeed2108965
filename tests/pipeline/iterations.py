"""An iteration of GDPO outside the recipe: what its lines make of reactions."""

from rapport.actors.learner import Experience
from rapport.pipeline.steps.rewarding import rollouts_of


def experience_of(task, groups, index) -> Experience:
    """What the recipe gives learners of an iteration."""
    batch = task.scenes.of_iteration(index)
    rewards = task.scenes.rewards(batch, groups, task.recipe.reward)
    metrics = task.scenes.metrics(batch, rewards, task.recipe.reward)
    return Experience(rollouts_of(batch, groups, rewards, task.recipe, task.scenes.names), metrics)


class LocalFleet:
    """Without Ray: its policy lives in this process."""

    def __init__(self, policy, sampler):
        self.policy = policy
        self.policy.sampler = sampler

    def update(self, weights, policy):
        self.policy.load_weights(weights)

    def groups(self, prompts, samples, seeds):
        return self.policy.sample(prompts, samples, seeds)
