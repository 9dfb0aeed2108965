"""The synthetic dyadic corpus, the built-in default: `generate.generate`.

docs/corpus.md says what it is.
"""
