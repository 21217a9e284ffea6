"""Which part of the network learns at which step."""

from collections.abc import Callable

from torch import nn

from mlops.models.build import find_head


def build_mode(model: nn.Module, num_classes: int, frozen_steps: int) -> Callable[[int], None]:
    """What puts `model` into training mode for step 0, 1, ...: for the first `frozen_steps` only its head learns.

    The frozen backbone runs in evaluation mode, so that the statistics of its batch norms stay those it came with. A
    pure function of the step: there is no state to save.
    """
    if frozen_steps == 0:
        return lambda _: _train(model)
    head = find_head(model, num_classes)
    learning = [module for name, module in model.named_modules() if f"{name}.".startswith(f"{head}.")]
    backbone = [p for name, p in model.named_parameters() if not name.startswith(f"{head}.")]

    def mode(step: int) -> None:
        frozen = step < frozen_steps
        model.train(not frozen)
        for module in learning:
            module.train()
        if backbone and backbone[0].requires_grad == frozen:
            for parameter in backbone:
                parameter.requires_grad_(not frozen)

    return mode


def _train(model: nn.Module) -> None:
    model.train()
