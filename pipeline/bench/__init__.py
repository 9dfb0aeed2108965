"""Speed: what the pipeline spends its time on, each against a baseline timed in the same run.

A module a subject, each with `measure(config, say) -> dict`, JSON-ready.
`rapport.pipeline.recipes.bench` runs them.
"""
