"""Single measures: distances, correlations, distributions."""
