"""Networks of timm, where that optional group is installed: `uv sync --group timm` or `pip install timm`."""

import re
from typing import Any

from torch import nn


def timm_model(
    model_name: str,
    num_classes: int,
    drop_rate: float | None = None,
    drop_path_rate: float | None = None,
    img_size: int | None = None,
) -> nn.Module:
    """The network that timm calls `model_name`, such as `resnet26` or `vit_tiny_patch16_224`, with random weights.

    Not `timm.create_model` itself, because a config may come with somebody else's checkpoint: that function also
    fetches `hf-hub:` names and opens files by path.

    Raises:
        ValueError: timm is not installed, or has no such network.
    """
    try:
        import timm
    except ImportError as error:
        raise ValueError("timm is not installed; uv sync --group timm, or pip install timm") from error
    if not re.fullmatch(r"[a-z0-9_]+", model_name) or not timm.is_model(model_name):
        raise ValueError(f"model_name={model_name}: timm has no such network; timm.list_models() lists them")
    options: dict[str, Any] = {"drop_rate": drop_rate, "drop_path_rate": drop_path_rate, "img_size": img_size}
    given = {name: value for name, value in options.items() if value is not None}
    model: nn.Module = timm.create_model(model_name, pretrained=False, num_classes=num_classes, **given)
    return model
