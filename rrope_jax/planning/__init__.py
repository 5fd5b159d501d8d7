"""What a training step needs on chips that are not there: memory, FLOPs, traffic, time."""
