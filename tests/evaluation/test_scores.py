import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, precision_recall_fscore_support

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


def test_the_scores_are_scikit_learns(predicted: tuple[torch.Tensor, torch.Tensor]):
    logits, labels = predicted
    scores = score(logits, labels, CLASSES)
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
    scores = score(logits, torch.tensor([0, 0, 1]), ["cat", "dog", "owl"])
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert scores["per_class"]["cat"] == pytest.approx({"precision": 1.0, "recall": 0.5, "f1": 2 / 3, "n": 2})
    assert scores["per_class"]["dog"] == pytest.approx({"precision": 0.5, "recall": 1.0, "f1": 2 / 3, "n": 1})
    assert scores["macro_f1"] == pytest.approx(2 / 3)  # over the classes that occur
    assert overall_metrics(scores)["test_Recall"] == pytest.approx(0.75)


def test_the_metrics_of_an_epoch_have_the_promised_keys(predicted: tuple[torch.Tensor, torch.Tensor]):
    logits, labels = predicted
    metrics = epoch_metrics("val", logits.argmax(dim=1), labels, torch.tensor(0.5), 4)
    assert list(metrics) == ["val_loss", "val_Accuracy", "val_F1", "val_Precision", "val_Recall"]
    assert metrics["val_loss"] == 0.5
