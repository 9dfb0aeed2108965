"""Ratings, rewards, losses and metrics: what says how good a reaction is."""
