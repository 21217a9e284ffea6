import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F  # noqa: N812

from mlops.training.loss import build_loss

CPU = torch.device("cpu")
COUNTS = {"cat": 6, "dog": 3, "owl": 1}
LABELS = torch.tensor([0] * 6 + [1] * 3 + [2])


def logits() -> torch.Tensor:
    return torch.randn(10, 3, generator=torch.Generator().manual_seed(0))


def test_without_weights_it_is_plain_cross_entropy_for_each_image():
    loss = build_loss(COUNTS, class_weights=None, label_smoothing=0.1, device=CPU)(logits(), LABELS)
    torch.testing.assert_close(loss, F.cross_entropy(logits(), LABELS, label_smoothing=0.1, reduction="none"))


def test_balanced_weights_are_scikit_learns_and_their_mean_is_one():
    loss = build_loss(COUNTS, class_weights="balanced", label_smoothing=0.0, device=CPU)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS.numpy())
    np.testing.assert_allclose(loss.weight.numpy(), expected, rtol=1e-6)
    assert float(loss.weight[LABELS].mean()) == pytest.approx(1.0)
    plain = F.cross_entropy(logits(), LABELS, reduction="none")
    torch.testing.assert_close(loss(logits(), LABELS), plain * loss.weight[LABELS])


def test_shares_of_classes_are_weighed_class_by_class():
    loss = build_loss(COUNTS, class_weights="balanced", label_smoothing=0.0, device=CPU)
    half = torch.tensor([[0.5, 0.0, 0.5]])
    found = loss(logits()[:1], half)
    logs = logits()[:1].log_softmax(dim=1)
    expected = -(loss.weight * half * logs).sum(dim=1)
    torch.testing.assert_close(found, expected)
