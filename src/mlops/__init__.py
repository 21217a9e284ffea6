"""From labelled images to a served, reproducible classifier. See docs/architecture.md for the way data flows."""

__version__ = "0.1.0"
