"""The synthetic dyadic corpus, the built-in default: `generate.generate`. What it is:
docs/corpus.md.
"""
