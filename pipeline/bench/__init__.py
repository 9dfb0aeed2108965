"""Speed: what the pipeline spends its time on, each against a baseline timed in the same run.

A module a subject, each with `measure(config) -> dict`, JSON-ready; `config` is that of
`rapport.pipeline.bench_settings`. `rapport.pipeline.recipes.bench` runs them. The folder is not in
the wheel.
"""
