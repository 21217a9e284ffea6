"""Weights that other programs trained become checkpoints of ours."""
