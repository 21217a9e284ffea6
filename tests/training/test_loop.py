import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mlops.data.batches import Batch
from mlops.errors import MlopsError
from mlops.training.device import compile_model, pick_autocast, pick_device
from mlops.training.loop import Metrics, Position, Step, fit, make_step

CPU = torch.device("cpu")


def batch(step: int = 0, count: int = 8) -> Batch:
    images = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(step))
    labels = (images.mean(dim=(1, 2, 3)) > 0).long()
    return Batch(images, labels, labels, step)


def network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Dropout(dropout), nn.ReLU(), nn.Linear(16, 2))


def stepper(model: nn.Module, precision: str = "fp32", **changes: Any):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _, autocast, scaler = pick_autocast(precision, CPU)
    settings: dict[str, Any] = {
        "forward": model,
        "optimizer": optimizer,
        "schedule": lambda _: 1.0,
        "loss_function": nn.CrossEntropyLoss(reduction="none"),
        "autocast": autocast,
        "scaler": scaler,
        "set_mode": lambda _: model.train(),
        "after_update": lambda _: None,
        "accumulate": 1,
        "clip_norm": None,
        "seed": 0,
    }
    return optimizer, make_step(**settings | changes)


def test_a_step_is_one_step_of_plain_torch():
    model, reference = network(), network()
    _, step = stepper(model)
    loss, logits = step(batch())
    expected = nn.functional.cross_entropy(reference(batch().images), batch().labels)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    assert logits.shape == (8, 2)
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs - 0.1 * theirs.grad)


def test_the_schedule_scales_the_learning_rate_of_each_step():
    model = network()
    optimizer, step = stepper(model, schedule=lambda number: 1 / (1 + number))
    found = []
    for number in range(3):
        step(batch(number))
        found.append(optimizer.param_groups[0]["lr"])
    assert found == pytest.approx([0.1, 0.05, 0.1 / 3])


def test_dropout_is_a_function_of_seed_and_step():
    results = []
    for seed, noise in ((0, 1), (0, 2), (3, 1)):
        torch.manual_seed(noise)
        model = network(dropout=0.5)
        torch.manual_seed(noise)
        results.append(stepper(model, seed=seed)[1](batch())[0])
    assert results[0] == results[1] != results[2]


def test_bf16_computes_in_bf16_and_hands_on_fp32():
    model = network()
    exact = stepper(network())[1](batch())[1]
    logits = stepper(model, precision="bf16")[1](batch())[1]
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, exact)
    torch.testing.assert_close(logits, exact, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_a_batch_in_parts_is_the_same_step(parts: int):
    whole, divided = network(), network()
    expected = stepper(whole)[1](batch())
    found = stepper(divided, accumulate=parts)[1](batch())
    torch.testing.assert_close(found, expected)
    for one, other in zip(whole.parameters(), divided.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_are_clipped_to_the_norm_asked_for():
    model, before = network(), network()
    stepper(model, clip_norm=0.01)[1](batch())
    moved = torch.cat([(a - b).flatten() for a, b in zip(model.parameters(), before.parameters(), strict=True)])
    assert float(moved.detach().norm()) == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_fp16_is_scaled_so_that_small_gradients_survive_and_unscaled_before_the_step():
    exact, half = network(), network()
    # The smallest gradients of such a loss are far below what fp16 can hold.
    small = lambda logits, targets: 1e-6 * nn.functional.cross_entropy(logits, targets, reduction="none")  # noqa: E731
    # The norm of the unscaled gradients is above the limit, so both are clipped to it.
    stepper(exact, loss_function=small, clip_norm=1e-8)[1](batch())
    stepper(half, precision="fp16", loss_function=small, clip_norm=1e-8)[1](batch())
    for one, other, start in zip(exact.parameters(), half.parameters(), network().parameters(), strict=True):
        torch.testing.assert_close(one - start, other - start, rtol=0.05, atol=1e-11)


def test_the_loss_compares_with_the_targets_and_not_the_labels():
    images, labels = batch().images, batch().labels
    shares = torch.full((8, 2), 0.5)
    loss, _ = stepper(network())[1](Batch(images, labels, shares, 0))
    torch.testing.assert_close(loss, nn.functional.cross_entropy(network()(images), shares).detach())


def test_the_stop_test_ends_the_run_after_an_epoch():
    assert len(run(stepper(network())[1], epochs=30, stop_after=4)) == 4


def run(step: Step, epochs: int = 2, stop_after: int | None = None, position: Position | None = None) -> list[Metrics]:
    history: list[Metrics] = []

    def batches(epoch: int, first: int) -> Iterator[Batch]:
        return (batch(3 * epoch + place) for place in range(first, 3))

    fit(
        position or Position(),
        epochs=epochs,
        batches=batches,
        step=step,
        learning_rate=lambda epoch, step: 0.1 / (1 + 3 * epoch + step),
        evaluate=lambda: {"val_loss": 0.5},
        after_step=lambda *_: None,
        after_epoch=history.append,
        stop=lambda: stop_after is not None and len(history) == stop_after,
        num_classes=2,
    )
    return history


def test_each_epoch_hands_on_its_metrics_under_the_promised_keys():
    history = run(stepper(network())[1], epochs=30)
    assert [metrics["epoch"] for metrics in history] == list(range(1, 31))
    assert set(history[0]) == {
        "epoch",
        "train_loss",
        "train_Accuracy",
        "train_Precision",
        "train_Recall",
        "train_F1",
        "val_loss",
    }
    assert history[-1]["train_loss"] < history[0]["train_loss"]


def test_from_a_position_the_rest_is_trained_and_counted_into_its_epoch():
    seen: list[int] = []

    def step(batch: Batch) -> tuple[Tensor, Tensor]:
        seen.append(batch.step)
        return torch.tensor(float(batch.step)), torch.zeros(8, 2)

    position = Position(1, [torch.tensor(9.0)], [torch.ones(8, dtype=torch.long)], [torch.ones(8, dtype=torch.long)])
    (epoch,) = run(step, position=position)
    assert seen == [4, 5]
    assert epoch["epoch"] == 2
    assert epoch["train_loss"] == pytest.approx((9 + 4 + 5) / 3)
    assert (position.epoch, position.step) == (2, 0)


def test_at_its_end_nothing_is_trained_any_more():
    assert run(stepper(network())[1], position=Position(2)) == []
    assert run(stepper(network())[1], stop_after=0) == []


def test_a_loss_that_is_not_finite_stops_and_names_epoch_step_and_learning_rate():
    def step(batch: Batch) -> tuple[Tensor, Tensor]:
        return torch.tensor(float("nan") if batch.step == 4 else 1.0), torch.zeros(8, 2)

    with pytest.raises(
        MlopsError,
        match=r"epoch 2, step 2: the loss is nan at a learning rate of 0\.02; try a smaller training\.optimizer",
    ):
        run(step)


def test_a_validation_metric_that_is_not_finite_stops_before_the_epoch_is_kept():
    kept: list[Metrics] = []
    with pytest.raises(MlopsError, match="epoch 1: val_loss is nan after its last step; try a smaller"):
        fit(
            Position(),
            epochs=1,
            batches=lambda *_: [batch()],
            step=stepper(network())[1],
            learning_rate=lambda *_: 0.1,
            evaluate=lambda: {"val_loss": float("nan")},
            after_step=lambda *_: None,
            after_epoch=kept.append,
            stop=lambda: False,
            num_classes=2,
        )
    assert kept == []


def test_a_device_that_is_not_there_is_one_line():
    assert pick_device("cpu") == CPU
    if not torch.cuda.is_available():
        with pytest.raises(MlopsError, match=r"training\.device=cuda: torch .* sees 0 such devices"):
            pick_device("cuda")
        assert pick_device("auto").type in ("cpu", "mps")


def test_auto_is_bf16_only_where_the_hardware_has_it_else_fp16_with_a_scaler_on_cuda_and_fp32_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
):
    found = {}
    for has_bf16 in (True, False):
        monkeypatch.setattr("mlops.training.device._has_bf16", lambda _, has=has_bf16: has)
        for name in ("cpu", "cuda", "mps"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of a scaler for a GPU that is not there
                precision, _, scaler = pick_autocast("auto", torch.device(name))
            found[name, has_bf16] = precision
            assert scaler.is_enabled() == (precision == "fp16" and torch.cuda.is_available())
    assert found == {
        ("cpu", True): "bf16",
        ("cpu", False): "fp32",
        ("cuda", True): "bf16",
        ("cuda", False): "fp16",
        ("mps", True): "bf16",
        ("mps", False): "fp32",
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch's compiler, about itself
def test_a_compiled_network_takes_the_same_step():
    plain, fast = network(), network()
    expected = stepper(plain)[1](batch())
    found = stepper(fast, forward=compile_model(fast, nullcontext))[1](batch())
    torch.testing.assert_close(found, expected)
    for one, other in zip(plain.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_was_compiled_for_one_precision_is_not_taken_for_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    found = []
    for dtype in (torch.bfloat16, torch.float16):
        torch._dynamo.reset()  # as in another process
        found.append(compile_model(network(), lambda dtype=dtype: torch.autocast("cpu", dtype))(batch().images).dtype)
    assert found == [torch.bfloat16, torch.float16]


@pytest.mark.filterwarnings("ignore")
def test_a_network_that_cannot_be_compiled_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from torch._inductor import config as inductor

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    # Their own way to set it: monkeypatch would leave them without this setting.
    without = inductor.patch({"cpp.cxx": ("no-such-compiler",)})
    said = r"training\.compile=true: Sequential cannot be compiled on this machine"
    with without, pytest.raises(MlopsError, match=said):
        compile_model(network(), nullcontext)(batch().images)
