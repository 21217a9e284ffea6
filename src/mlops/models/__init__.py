"""The project's own networks, and timm's.

Each takes normalised float images `[N, 3, H, W]` and gives logits `[N, num_classes]`.
"""

from mlops.models.signnet import SignNet
from mlops.models.timm import timm_model
from mlops.models.tinycnn import TinyCNN

__all__ = ["SignNet", "TinyCNN", "timm_model"]
