"""From what people say of a reaction to scores and pairs; and SIMULATED raters."""
