"""One question after the other: queue, prefix cache, generation, streams."""
