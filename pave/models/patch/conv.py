"""The convolutional input map: a 1x1x1 stem and stages of bottleneck blocks; time is never strided."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of float[B,C,K,H,W], at each position by itself."""

    def forward(self, x: Tensor) -> Tensor:
        """float[B,C,K,H,W] -> same shape"""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Stem(nn.Module):
    """1x1x1 convolution, norm, ReLU."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(dim_in, dim_out, 1, bias=False)
        self.norm = ChannelNorm(dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """float[B,C,K,H,W] -> float[B,C',K,H,W]"""
        return F.relu(self.norm(self.conv(x)))


class Bottleneck(nn.Module):
    """3x1x1 over time, 1x3x3 over space, 1x1x1 out, and a shortcut."""

    def __init__(self, dim_in: int, inner: int, dim_out: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.time = nn.Conv3d(dim_in, inner, (3, 1, 1), padding=(1, 0, 0), bias=False)
        self.time_norm = ChannelNorm(inner)
        self.space = nn.Conv3d(
            inner, inner, (1, 3, 3), (1, stride, stride), (0, dilation, dilation), (1, dilation, dilation), bias=False
        )
        self.space_norm = ChannelNorm(inner)
        self.out = nn.Conv3d(inner, dim_out, 1, bias=False)
        self.out_norm = ChannelNorm(dim_out)
        changes_shape = dim_in != dim_out or stride != 1
        self.skip = nn.Conv3d(dim_in, dim_out, 1, (1, stride, stride), bias=False) if changes_shape else None
        self.skip_norm = ChannelNorm(dim_out) if changes_shape else None

    def forward(self, x: Tensor) -> Tensor:
        """float[B,C,K,H,W] -> float[B,C',K,H',W']"""
        y = F.relu(self.time_norm(self.time(x)))
        y = F.relu(self.space_norm(self.space(y)))
        y = self.out_norm(self.out(y))
        if self.skip is not None and self.skip_norm is not None:
            x = self.skip_norm(self.skip(x))
        return F.relu(x + y)


class ConvMap(nn.ModuleList):
    """The stages; entry 0 of the three lists belongs to the stem and is not used."""

    def __init__(
        self, dim_in: int, width: int, blocks: Sequence[int], strides: Sequence[int], scales: Sequence[int]
    ) -> None:
        widths = [width]
        for scale in scales[1:]:
            widths.append(widths[-1] * scale)

        stages: list[nn.Module] = [Stem(dim_in, width)]
        for i, (before, after) in enumerate(pairwise(widths), start=1):
            dilation = 2 if i == len(widths) - 1 else 1
            stage = [Bottleneck(before, before, after, strides[i], dilation)]
            stage += [Bottleneck(after, before, after, 1, dilation) for _ in range(blocks[i] - 1)]
            stages.append(nn.ModuleList(stage))
        super().__init__(stages)
        self.out_dim = widths[-1]

    def forward(self, x: Tensor, is_valid: Tensor) -> Tensor:
        """Map float[B,K,H,W,C] -> float[B,K,H',W',out_dim]; steps that are not valid (bool[B,K]) count as absent."""
        is_padding = ~is_valid[:, None, :, None, None].to(x.device)
        stem, *stages = self
        x = stem(x.movedim(-1, 1).masked_fill(is_padding, 0.0))
        for stage in stages:
            for block in stage.children():
                x = block(x.masked_fill(is_padding, 0.0))
        return x.movedim(1, -1)
