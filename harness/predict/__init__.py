"""A trained run as a model that one can use: from Python, as one file, by `harness predict`."""
