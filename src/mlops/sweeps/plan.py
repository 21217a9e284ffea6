"""What a sweep will try, as far as it is known before the first result."""

from typing import Any

import optuna

from mlops.sweeps import suggest
from mlops.sweeps.space import Space


def plan(space: Space, seed: int, most: int) -> list[dict[str, Any]]:
    """The values of the first trials: of all for a grid or at random, of those before the first results for bayes."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=suggest.sampler(space, seed))
    drawn_from = suggest.distributions(space)
    known = min(most, suggest.RANDOM_FIRST) if space.method == "bayes" else most
    found = []
    for _ in range(known):
        trial = study.ask(drawn_from)
        found.append(suggest.values_of(space, trial.params, trial.number))
    return found
