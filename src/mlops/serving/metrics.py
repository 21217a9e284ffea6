"""What a worker counts, for Prometheus. With PROMETHEUS_MULTIPROC_DIR set, into files that the supervisor adds up."""

from collections import Counter as Tally
from collections.abc import Iterable

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The counters of one process. `model` is the name of a model or an ensemble, or empty."""

    def __init__(self, registry: CollectorRegistry = prometheus_client.REGISTRY) -> None:
        self._requests = Counter(
            "mlops_requests", "Requests that were answered.", ("route", "model", "status"), registry=registry
        )
        self._seconds = Histogram(
            "mlops_request_seconds",
            "From the head of a request to the end of its answer.",
            ("route", "model"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._flying = Gauge(
            "mlops_requests_in_progress", "Requests being answered.", registry=registry, multiprocess_mode="livesum"
        )
        self._classes = Counter(
            "mlops_predictions", "Images by their likeliest class.", ("model", "class"), registry=registry
        )
        self._batch = Histogram(
            "mlops_batch_images", "Images computed at once.", ("model",), buckets=_IMAGES, registry=registry
        )
        self._batch_seconds = Histogram(
            "mlops_batch_seconds",
            "To decode and compute a batch.",
            ("model",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._queue = Gauge(
            "mlops_queue_images",
            "Images that wait for a batch.",
            ("model",),
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._loads = Counter(
            "mlops_model_loads", "Model files that were loaded or refused.", ("model", "result"), registry=registry
        )
        self._info = Gauge(
            "mlops_model_info",
            "1 for the version of a model that answers, 0 for those before.",
            ("model", "version"),
            registry=registry,
            multiprocess_mode="livemax",
        )
        # Label values to their counter: looking that up in the library costs as much as counting.
        self._known: dict[tuple[str, str, str], tuple[Counter, Histogram]] = {}
        self._known_classes: dict[tuple[str, str], Counter] = {}

    def began(self) -> None:
        """A request has come."""
        self._flying.inc()

    def ended(self, route: str, model: str, status: int, seconds: float) -> None:
        """It was answered."""
        self._flying.dec()
        key = (route, model, str(status))
        if (known := self._known.get(key)) is None:
            known = self._requests.labels(*key), self._seconds.labels(route, model)
            self._known[key] = known
        known[0].inc()
        known[1].observe(seconds)

    def predicted(self, model: str, labels: Iterable[str]) -> None:
        """Images were given these classes."""
        for label, count in Tally(labels).items():
            if (known := self._known_classes.get((model, label))) is None:
                known = self._known_classes[model, label] = self._classes.labels(model, label)
            known.inc(count)

    def computed(self, model: str, images: int, seconds: float, waiting: int) -> None:
        """A batch was computed; so many images wait since."""
        if images:  # else all were refused
            self._batch.labels(model).observe(images)
            self._batch_seconds.labels(model).observe(seconds)
        self._queue.labels(model).set(waiting)

    def loaded(self, model: str, version: str, before: str | None) -> None:
        """A model file was loaded, in place of a version `before`."""
        self._loads.labels(model, "loaded").inc()
        if before is not None:
            self._info.labels(model, before).set(0)
        self._info.labels(model, version).set(1)

    def refused(self, model: str) -> None:
        """A model file was refused."""
        self._loads.labels(model, "refused").inc()
