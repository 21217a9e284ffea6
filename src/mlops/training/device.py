"""Where a run computes, and in which precision."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

from mlops.errors import MlopsError

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
    return device


def pick_autocast(precision: Literal["auto", "fp32", "bf16"], device: torch.device) -> tuple[str, Autocast]:
    """The precision that `auto` means on this device, and the context in which the network runs."""
    if precision == "auto":
        precision = "bf16" if _has_bf16(device) else "fp32"
    if precision == "fp32":
        return "fp32", nullcontext
    return "bf16", lambda: torch.autocast(device.type, torch.bfloat16)


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    # Emulated bf16 is slower than fp32, so only what the processor has in hardware counts.
    has = torch.cpu.get_capabilities()
    return any(has.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
