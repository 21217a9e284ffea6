"""Optuna's own plots of a sweep, drawn with matplotlib as the figures of our pages are."""

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from mlops import page
from mlops.errors import one_line
from mlops.sweeps.live import number, short_names
from mlops.sweeps.parameters import Choice, Integers, Parameter, Range
from mlops.sweeps.space import Space
from mlops.sweeps.trials import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

# Optuna's words for what has a name here.
_OURS = {"Step": "epoch", "Intermediate Value": "best so far", "Trial": "trial"}
STATES = {
    "complete": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "diverged": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


def figures(space: Space, rows: Sequence[Row]) -> str:
    """The plots as a part of a page: side by side, the wide ones below. What too few trials do not give is left out."""
    from optuna.visualization import matplotlib as plots

    study, metric, wide = shown_study(space, rows), space.metric, max(6.0, 2.3 * len(space.searched))
    history = _figure(
        partial(plots.plot_optimization_history, study, target_name=metric), "Complete trials, and the best so far"
    )
    importance = _figure(
        partial(plots.plot_param_importances, study, target_name=metric), "How much each parameter matters (PED-ANOVA)"
    )
    epochs = _figure(
        partial(plots.plot_intermediate_values, study), f"{metric}, the best so far of each trial, by epoch"
    )
    lines = _figure(
        partial(plots.plot_parallel_coordinate, study, target_name=metric),
        "Each line is a complete trial; the darker, the better",
        (wide, 4.0),
    )
    slices = _figure(
        partial(plots.plot_slice, study, target_name=metric),
        "One parameter at a time, complete trials; the darker, the later",
        (wide, 3.2),
    )
    return page.beside(filter(None, (history, importance, epochs))) + lines + slices


def shown_study(space: Space, rows: Sequence[Row]) -> optuna.Study:
    """The trials as the plots should show them: values as they were tried, names that fit below an axis."""
    study = optuna.create_study(direction="maximize" if space.maximize else "minimize")
    names = dict(zip(space.searched, short_names(list(space.searched)), strict=True))
    kinds = {names[name]: _distribution(kind, rows, name) for name, kind in space.searched.items()}
    for row in rows:
        state = STATES.get(row.state)
        if (
            state is None
            or not row.values
            or (state != TrialState.FAIL and (row.value is None or not math.isfinite(row.value)))
        ):
            continue
        values = {names[name]: _value(kind, row.values[name]) for name, kind in space.searched.items()}
        value = row.value if state == TrialState.COMPLETE else None
        study.add_trial(
            create_trial(
                state=state, value=value, params=values, distributions=kinds, intermediate_values=dict(row.steps)
            )
        )
    return study


def _distribution(kind: Parameter, rows: Sequence[Row], name: str) -> BaseDistribution:
    match kind:
        case Range(low, high, log):
            return FloatDistribution(low, high, log=log)
        case Integers(low, high):
            return IntDistribution(low, high)
        case Choice(values):
            return CategoricalDistribution([_value(kind, value) for value in values])
        case _:
            tried = [row.values[name] for row in rows if row.values]
            return FloatDistribution(min(tried, default=0.0), max(tried, default=0.0))


def _value(kind: Parameter, value: Any) -> Any:
    if isinstance(kind, Choice) and not all(type(each) in (int, float) for each in kind.values):
        # Between two of them, matplotlib would read a formula.
        return number(value).replace("$", r"\$")
    return value


def _figure(draw: Callable[[], Any], caption: str, size: tuple[float, float] = (5.6, 3.8)) -> str:
    """One plot; nothing where there are too few trials for it."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    # It says of every axis of choices that numbers could be numbers.
    logging.getLogger("matplotlib.category").setLevel(logging.WARNING)
    with page.drawing_style(), warnings.catch_warnings(), mpl.rc_context({"savefig.bbox": "tight"}):
        # Theirs: that these plots are experimental.
        warnings.simplefilter("ignore")
        try:
            drawn = draw()
            first: Axes = drawn.flat[0] if hasattr(drawn, "flat") else drawn
            figure = cast("Figure", first.get_figure())
            if not any(axes.has_data() for axes in figure.axes):
                return ""
            figure.set_size_inches(*size)
            _restyle(figure)
            return page.figure(figure, caption)
        except Exception as error:  # theirs, of a sweep that took a night: the page is worth more than a plot
            log.warning(f"no plot of: {caption}: {type(error).__name__}: {one_line(error)}")
            return ""
        finally:
            pyplot.close("all")


def _restyle(figure: "Figure") -> None:
    """Optuna draws ggplot's grey boxes; here the page is the paper, and its ink the ink."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    figure.suptitle("")
    for axes in figure.axes:
        axes.set_facecolor("none")
        for where in ("left", "center", "right"):
            axes.set_title("", loc=where)
        axes.tick_params(colors=page.INK)
        for axis in (axes.xaxis, axes.yaxis):
            axis.label.set_color(page.INK)
            axis.set_label_text(_OURS.get(axis.get_label_text(), axis.get_label_text()))
            if axis.get_scale() == "log":
                low, high = axis.get_view_interval()
                # Few enough that they fit below a narrow plot.
                subs = (1,) if high >= 50 * low else (1, 3)
                axis.set_major_locator(LogLocator(subs=subs) if high >= 10 * low else MaxNLocator(3))
                axis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:g}"))
                axis.set_minor_locator(NullLocator())
        for spine in axes.spines.values():
            spine.set_edgecolor(page.INK)
        if legend := axes.get_legend():
            # Of one metric, or of a hundred trials: the caption says it.
            legend.remove()
