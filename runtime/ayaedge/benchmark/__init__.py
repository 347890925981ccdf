"""The seed's benchmarks: a local copy of a data set, a model's answers to it, and what they are worth."""
