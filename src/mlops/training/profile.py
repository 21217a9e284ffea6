"""Where the time of a step goes: torch's profiler around what the loop is handed."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from mlops import tables
from mlops.data.batches import Batch
from mlops.files import atomic, write_text
from mlops.training.loop import Step

log = logging.getLogger(__name__)

# The first steps allocate memory and choose kernels; they say nothing of the rest.
_WAIT, _WARMUP = 2, 3
_ROWS = 25


@dataclass(frozen=True)
class Profiler:
    """Wraps a step and the batches, so that both have a line of their own in the table."""

    step: Callable[[Step], Step]
    batches: Callable[[Iterable[Batch]], Iterator[Batch]]


@contextmanager
def profiling(steps: int, folder: Path, device: torch.device) -> Iterator[Profiler]:
    """Profile `steps` steps after the first five; writes `table.txt` and `trace.json` (for ui.perfetto.dev)."""
    if steps == 0:
        yield Profiler(lambda step: step, iter)
        return
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    plan = schedule(wait=_WAIT, warmup=_WARMUP, active=steps, repeat=1)
    taken = 0
    with profile(activities=activities, schedule=plan, record_shapes=True) as profiler:

        def wrap_step(step: Step) -> Step:
            def profiled(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
                nonlocal taken
                with record_function("step"):
                    result = step(batch)
                taken += 1
                profiler.step()
                return result

            return profiled

        yield Profiler(wrap_step, _recorded)
    if taken < _WAIT + _WARMUP + steps:
        log.warning(
            f"training.profile={steps}: takes {_WAIT + _WARMUP + steps} steps and the run had {taken}; lower it, "
            "training.batch_size, or raise training.limit_batches"
        )
        return
    events = profiler.key_averages()
    order = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    table = events.table(sort_by=order, row_limit=_ROWS, max_name_column_width=48)
    write_text(folder / "table.txt", table)
    with atomic(folder / "trace.json") as temporary:
        profiler.export_chrome_trace(str(temporary))
    tables.out.print(table, soft_wrap=True)
    log.info(f"profile of {steps} steps: {folder / 'table.txt'}; open {folder / 'trace.json'} in ui.perfetto.dev")


def _recorded(batches: Iterable[Batch]) -> Iterator[Batch]:
    iterator = iter(batches)
    while True:
        with record_function("batch: cut, augment, normalise"):
            batch = next(iterator, None)
        if batch is None:
            return
        yield batch
