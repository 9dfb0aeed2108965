"""What recipes say: corpus, imitation, sampling, preferences, alignment, judging, showing."""
