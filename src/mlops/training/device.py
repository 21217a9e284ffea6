"""Where a run computes, and in which precision."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mlops.errors import MlopsError, one_line

Autocast = Callable[[], AbstractContextManager[Any]]


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA, else Apple's MPS, else the CPU.

    Raises:
        MlopsError: a device is asked for by name and is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[device.type]
    if (device.index or 0) >= count:
        raise MlopsError(
            f"training.device={name}: torch {torch.__version__} sees {count} such devices here; use auto or cpu"
        )
    if device.type == "cuda":
        # fp32 is to mean fp32: cuDNN would take TF32, and what is evaluated here is compared with a CPU's results.
        torch.backends.cudnn.allow_tf32 = False
        # Resume and `reproduce` promise the same bits; cuDNN would choose kernels by a race, and faster ones that add
        # in the order in which threads happen to finish.
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    return device


def pick_autocast(
    precision: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device
) -> tuple[str, Autocast, torch.amp.GradScaler]:
    """The precision that `auto` means on this device, the context in which the network runs, and the loss's scaler.

    `auto` is bf16 where the hardware has it, else fp16 on CUDA and fp32 elsewhere. Only fp16, whose range gradients
    leave, needs a scaler; the others get a disabled one.
    """
    if precision == "auto":
        precision = "bf16" if _has_bf16(device) else "fp16" if device.type == "cuda" else "fp32"
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    if precision == "fp32":
        return "fp32", nullcontext, scaler
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return precision, lambda: torch.autocast(device.type, dtype), scaler


def compile_model(model: nn.Module, autocast: Autocast) -> Callable[[Tensor], Tensor]:
    """`model` through torch.compile. It compiles at the first batch, and again when the layers that learn change.

    The precision is entered inside of what is compiled: torch before 2.15 kept on disk whether there was one, but not
    which, and gave an fp16 run what it had compiled for bf16.

    The returned callable raises:
        MlopsError: this machine cannot compile it.
    """
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError, InvalidCxxCompiler

    def compute(images: Tensor) -> Tensor:
        with autocast():
            output: Tensor = model(images)
        return output

    fast = torch.compile(compute)

    def forward(images: Tensor) -> Tensor:
        try:
            output: Tensor = fast(images)
        except (TorchDynamoException, InductorError, InvalidCxxCompiler) as error:
            raise MlopsError(
                f"training.compile=true: {type(model).__name__} cannot be compiled on this machine: "
                f"{one_line(error)[:200]}; it takes a C++ compiler (and triton on CUDA), or training.compile=false"
            ) from error
        return output

    return forward


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    # Emulated bf16 is slower than fp32, so only what the processor has in hardware counts.
    has = torch.cpu.get_capabilities()
    return any(has.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
