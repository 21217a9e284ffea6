from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from mlops.data.batches import Batch
from mlops.errors import MlopsError
from mlops.training.device import pick_autocast, pick_device
from mlops.training.loop import Metrics, fit, make_step

CPU = torch.device("cpu")


def batch(step: int = 0, count: int = 8) -> Batch:
    images = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(step))
    return Batch(images, (images.mean(dim=(1, 2, 3)) > 0).long(), step)


def network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Dropout(dropout), nn.ReLU(), nn.Linear(16, 2))


def stepper(model: nn.Module, schedule=lambda _: 1.0, precision: str = "fp32", seed: int = 0):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = nn.CrossEntropyLoss()
    return optimizer, make_step(
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        loss_function=loss,
        autocast=pick_autocast(precision, CPU)[1],
        seed=seed,
    )


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


def run(step, epochs: int = 2) -> list[Metrics]:
    history: list[Metrics] = []

    def batches(epoch: int) -> Iterator[Batch]:
        return (batch(3 * epoch + position) for position in range(3))

    fit(
        epochs=epochs,
        batches=batches,
        step=step,
        evaluate=lambda: {"val_loss": 0.5},
        after_step=lambda *_: None,
        after_epoch=history.append,
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


def test_a_loss_that_is_not_finite_stops_and_names_epoch_and_step():
    def step(batch: Batch) -> tuple[Tensor, Tensor]:
        return torch.tensor(float("nan") if batch.step == 4 else 1.0), torch.zeros(8, 2)

    with pytest.raises(
        MlopsError, match=r"epoch 2, step 2 of 3: the loss is nan; try a smaller training\.optimizer\.lr"
    ):
        run(step)


def test_a_validation_metric_that_is_not_finite_stops_before_the_epoch_is_kept():
    kept: list[Metrics] = []
    with pytest.raises(MlopsError, match="epoch 1: val_loss is nan after its last step; try a smaller"):
        fit(
            epochs=1,
            batches=lambda _: [batch()],
            step=stepper(network())[1],
            evaluate=lambda: {"val_loss": float("nan")},
            after_step=lambda *_: None,
            after_epoch=kept.append,
            num_classes=2,
        )
    assert kept == []


def test_a_device_that_is_not_there_is_one_line():
    assert pick_device("cpu") == CPU
    if not torch.cuda.is_available():
        with pytest.raises(MlopsError, match=r"training\.device=cuda: torch .* sees 0 such devices"):
            pick_device("cuda")
        assert pick_device("auto").type in ("cpu", "mps")
