"""Published corpora and motion files, read as they are."""
