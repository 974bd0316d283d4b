"""The sensor task's model: two convolutions over time."""

from __future__ import annotations

from torch import Tensor, nn


class SensorNet(nn.Module):
    """Two strided 1-D convolutions, the mean over time, and a linear layer."""

    def __init__(self, num_channels: int, num_classes: int, width: int = 16) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv1d(num_channels, width, 9, stride=2, padding=4),
            nn.ReLU(),
            nn.Conv1d(width, 2 * width, 5, stride=2, padding=2),
            nn.ReLU(),
        )
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits ``[B, classes]`` of windows ``[B, T, channels]``."""
        features: Tensor = self.features(inputs.transpose(1, 2))
        logits: Tensor = self.head(features.mean(dim=2))
        return logits
