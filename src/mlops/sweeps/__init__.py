"""Sweeps: a search space in W&B's format, and the engine that runs it on this machine."""
