"""From a config node to a network, checked on the meta device before any data is decoded."""

from collections.abc import Collection

import torch
from torch import nn

from mlops import targets
from mlops.data.keyed import key
from mlops.errors import MlopsError, one_line
from mlops.targets import Target


def build_model(
    node: Target, allowed: Collection[str], *, num_classes: int, image_size: int, channels_last: bool, seed: int = 0
) -> nn.Module:
    """The network that `node` names, with weights drawn from `seed`. `node["weights"]` is not looked at here.

    Raises:
        MlopsError: the name is not allowed, or the network cannot be built.
    """
    torch.manual_seed(key(seed, "weights"))
    # Start weights are the training's; rebuilding a network must never ask for them.
    own = {name: value for name, value in node.items() if name != "weights"}
    model = targets.build(own, "model", allowed, num_classes=num_classes, image_size=image_size)
    if not isinstance(model, nn.Module):
        raise MlopsError(f"model._target_={node['_target_']}: built a {type(model).__name__}, not a torch.nn.Module")
    return model.to(memory_format=torch.channels_last) if channels_last else model


def find_head(model: nn.Module, num_classes: int) -> str:
    """The name of the layer that gives the logits: the last linear one or convolution, `num_classes` wide.

    Raises:
        MlopsError: the last such layer has another width, so which one is the head is unknown.
    """
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))]
    name, last = layers[-1] if layers else ("", None)
    width = getattr(last, "out_features", getattr(last, "out_channels", None))
    if width != num_classes:
        raise MlopsError(
            f"model: the last layer of {type(model).__name__} is {name or 'none'} of width {width}, not the "
            f"{num_classes} of the classes, so its head cannot be told from its backbone; set model.weights=null and "
            "training.freeze_epochs=0"
        )
    return name


def check_model(node: Target, allowed: Collection[str], *, num_classes: int, image_size: int) -> list[str]:
    """Whether the network can be built and gives one logit for each class. Takes no memory and little time."""
    try:
        model = on_meta(node, allowed, num_classes, image_size)
        logits = model.eval()(torch.empty(2, 3, image_size, image_size, device="meta"))
    except MlopsError as error:
        return error.problems
    except Exception as error:  # a forward pass of a user's network may raise anything
        size = f"{image_size} x {image_size}"
        return [f"model: {node['_target_']} cannot take images of {size} pixels (data.image_size): {one_line(error)}"]
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != (2, num_classes):
        return [
            f"model: {node['_target_']} gives {shape} for 2 images, but there are {num_classes} classes, which needs "
            f"(2, {num_classes}); leave out model.num_classes or set it to {num_classes}"
        ]
    return []


def on_meta(node: Target, allowed: Collection[str], num_classes: int, image_size: int) -> nn.Module:
    """The network without its weights: its shapes, for no memory.

    Raises:
        MlopsError: the name is not allowed, or the network cannot be built.
    """

    def build() -> nn.Module:
        return build_model(node, allowed, num_classes=num_classes, image_size=image_size, channels_last=False)

    try:
        with torch.device("meta"):
            return build()
    except MlopsError as error:
        # Some networks (torchvision's regnets) compute their widths with tensors, which meta ones cannot tell.
        if isinstance(error.__cause__, NotImplementedError):
            return build().to("meta")
        raise
