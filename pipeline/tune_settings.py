"""What `tune dpo` and `tune gdpo` take: every key of the recipe that is swept, and the sweep."""
