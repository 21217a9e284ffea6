import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from mlops.errors import MlopsError
from mlops.evaluation.metrics import epoch_metrics
from mlops.evaluation.scores import overall_metrics, score

CLASSES = ["cat", "dog", "owl", "rat"]


@pytest.fixture
def predicted() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of 200 images; about half are right."""
    rng = np.random.default_rng(0)
    labels = rng.choice(4, 200, p=[0.6, 0.2, 0.15, 0.05])
    logits = rng.normal(size=(200, 4))
    logits[np.arange(200), labels] += 1
    return torch.from_numpy(logits).float(), torch.from_numpy(labels)


def each(labels: torch.Tensor) -> list[str]:
    """A group for each image."""
    return [str(number) for number in range(len(labels))]


def test_the_scores_are_scikit_learns(predicted: tuple[torch.Tensor, torch.Tensor]):
    logits, labels = predicted
    scores = score(logits, labels, CLASSES, groups=each(labels), temperature=1.0)
    guess = logits.argmax(dim=1).numpy()
    precision, recall, f1, support = precision_recall_fscore_support(labels, guess)
    assert scores["n"] == 200
    assert scores["accuracy"] == pytest.approx(accuracy_score(labels, guess))
    assert scores["macro_precision"] == pytest.approx(precision.mean())
    assert scores["macro_recall"] == pytest.approx(recall.mean())
    assert scores["macro_f1"] == pytest.approx(f1.mean())
    assert scores["loss"] == pytest.approx(log_loss(labels, logits.double().softmax(dim=1)), rel=1e-5)
    assert scores["confusion_matrix"] == confusion_matrix(labels, guess).tolist()
    for i, name in enumerate(CLASSES):
        expected = {"precision": precision[i], "recall": recall[i], "f1": f1[i], "n": support[i]}
        assert scores["per_class"][name] == pytest.approx(expected)


def test_scores_by_hand():
    # True: cat cat dog; said: cat dog dog.
    logits = torch.tensor([[9.0, 0, 0], [0, 9.0, 0], [0, 9.0, 0]])
    scores = score(logits, torch.tensor([0, 0, 1]), ["cat", "dog", "owl"], groups=["a", "b", "b"], temperature=1.0)
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert scores["per_class"]["cat"] == pytest.approx({"precision": 1.0, "recall": 0.5, "f1": 2 / 3, "n": 2})
    assert scores["per_class"]["dog"] == pytest.approx({"precision": 0.5, "recall": 1.0, "f1": 2 / 3, "n": 1})
    assert scores["macro_f1"] == pytest.approx(2 / 3)  # over the classes that occur
    assert overall_metrics(scores)["test_Recall"] == pytest.approx(0.75)
    assert (scores["n"], scores["n_groups"]) == (3, 2)


def test_the_top_five_are_scikit_learns_and_left_out_where_they_would_be_all_classes():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(300, 9, generator=generator), torch.randint(9, (300,), generator=generator)
    names = [str(number) for number in range(9)]
    scores = score(logits, labels, names, groups=each(labels), temperature=1.0)
    assert 0.4 < scores["top5_accuracy"] < 0.7
    assert scores["top5_accuracy"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=range(9)))
    assert overall_metrics(scores)["test_Top5"] == scores["top5_accuracy"]
    few = score(logits[:, :5], labels % 5, names[:5], groups=each(labels), temperature=1.0)
    assert few["top5_accuracy"] is None
    assert "test_Top5" not in overall_metrics(few)


def test_the_temperature_changes_the_calibration_error_and_nothing_else(predicted: tuple[torch.Tensor, torch.Tensor]):
    logits, labels = predicted
    plain, scaled = (score(logits, labels, CLASSES, groups=each(labels), temperature=t) for t in (1.0, 2.0))
    assert plain["ece"] == plain["ece_before"] == scaled["ece_before"]
    assert scaled["ece"] != plain["ece"]
    halved = score(logits / 2, labels, CLASSES, groups=each(labels), temperature=1.0)
    assert scaled["ece"] == pytest.approx(halved["ece"])
    assert scaled["reliability"] == {
        "before": plain["reliability"]["after"],
        "after": halved["reliability"]["after"],
    }
    changed = {key for key in plain if plain[key] != scaled[key]}
    assert changed == {"temperature", "ece", "reliability"}


def test_the_interval_holds_the_accuracy_and_is_wider_where_images_belong_together(
    predicted: tuple[torch.Tensor, torch.Tensor],
):
    logits, labels = predicted
    right = (logits.argmax(dim=1) == labels).tolist()
    alone = score(logits, labels, CLASSES, groups=each(labels), temperature=1.0)
    # Groups whose images are all right or all wrong.
    seen = {True: 0, False: 0}
    together = []
    for value in right:
        seen[value] += 1
        together.append(f"{value} {seen[value] // 10}")
    grouped = score(logits, labels, CLASSES, groups=together, temperature=1.0)
    for scores in (alone, grouped):
        low, high = scores["accuracy_interval"]
        assert low < scores["accuracy"] < high
    width = {
        name: s["accuracy_interval"][1] - s["accuracy_interval"][0]
        for name, s in (("alone", alone), ("grouped", grouped))
    }
    assert width["grouped"] > 2 * width["alone"]


def test_the_metrics_of_an_epoch_have_the_promised_keys(predicted: tuple[torch.Tensor, torch.Tensor]):
    logits, labels = predicted
    metrics = epoch_metrics("val", logits.argmax(dim=1), labels, torch.tensor(0.5), 4)
    assert list(metrics) == ["val_loss", "val_Accuracy", "val_F1", "val_Precision", "val_Recall"]
    assert metrics["val_loss"] == 0.5


def test_what_is_no_number_is_not_scored():
    logits = torch.tensor([[float("nan"), 1.0], [0.0, 1.0]])
    with pytest.raises(MlopsError, match="gives NaN instead of probabilities"):
        score(logits, torch.tensor([0, 1]), ["a", "b"], groups=["x", "y"], temperature=1.0)
