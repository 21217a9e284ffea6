"""The baseline that most tutorials train."""

from itertools import pairwise

from torch import Tensor, nn


class TinyCNN(nn.Module):
    """Three conv blocks with batch norm, each halving the side, then a head of `hidden` units with dropout.

    For square images of `image_size` pixels, 8 or more. Most weights lie in the head: at 64 pixels, 4.2 of 4.3 million.
    """

    def __init__(
        self, num_classes: int, image_size: int, width: int = 32, hidden: int = 512, dropout: float = 0.3
    ) -> None:
        super().__init__()
        if image_size < 8:
            raise ValueError(f"image_size={image_size}: must be at least 8, for each of three blocks halves it")
        channels = (3, width, 2 * width, 4 * width)
        blocks: list[nn.Module] = []
        for before, after in pairwise(channels):
            blocks += [
                nn.Conv2d(before, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
            ]
        self.features = nn.Sequential(*blocks)
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels[-1] * (image_size // 8) ** 2, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """`[N, 3, H, W]` to logits `[N, num_classes]`."""
        logits: Tensor = self.head(self.features(images))
        return logits
