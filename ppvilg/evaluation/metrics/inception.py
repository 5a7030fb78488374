"""The Inception network of FID: the one of 2015 from TensorFlow's model zoo, with pytorch-fid's names of weights.

It differs from the published Inception v3 in three places: average pooling does not count padding, the last block pools
by maximum, and the classifier (unused here) has 1,008 classes. Weights come as a file from the user:
pt_inception-2015-12-05-6726825d.pth of pytorch-fid, converted to safetensors.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import paddle
import paddle.nn as nn
import paddle.nn.functional as F

from .weights import read_safetensors

INPUT_SIZE = 299  # pixels
UNUSED = ("fc.", "AuxLogits.")
STATISTICS = {"bn.running_mean": "bn._mean", "bn.running_var": "bn._variance"}  # PyTorch's names -> Paddle's


class Convolution(nn.Layer):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel, stride: int = 1, padding=0) -> None:
        super().__init__()
        self.conv = nn.Conv2D(inputs, outputs, kernel, stride=stride, padding=padding, bias_attr=False)
        self.bn = nn.BatchNorm2D(outputs, epsilon=0.001)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return F.relu(self.bn(self.conv(x)))  # (N, C, h, w)


def average_pool(x: paddle.Tensor) -> paddle.Tensor:
    """3 x 3 means at stride 1 over what lies inside the picture."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, exclusive=True)


def shrink(x: paddle.Tensor) -> paddle.Tensor:
    """3 x 3 maxima at stride 2."""
    return F.max_pool2d(x, 3, stride=2)


class MixedA(nn.Layer):
    """35 x 35 grid: 1x1, 5x5, two 3x3 and pooling side by side."""

    def __init__(self, inputs: int, pool_features: int) -> None:
        super().__init__()
        self.branch1x1 = Convolution(inputs, 64, 1)
        self.branch5x5_1 = Convolution(inputs, 48, 1)
        self.branch5x5_2 = Convolution(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = Convolution(inputs, 64, 1)
        self.branch3x3dbl_2 = Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Convolution(96, 96, 3, padding=1)
        self.branch_pool = Convolution(inputs, pool_features, 1)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        pool = self.branch_pool(average_pool(x))
        return paddle.concat([self.branch1x1(x), five, double, pool], axis=1)  # (N, 224 + pool, 35, 35)


class MixedB(nn.Layer):
    """From the 35 x 35 to the 17 x 17 grid."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = Convolution(inputs, 384, 3, stride=2)
        self.branch3x3dbl_1 = Convolution(inputs, 64, 1)
        self.branch3x3dbl_2 = Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Convolution(96, 96, 3, stride=2)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return paddle.concat([self.branch3x3(x), double, shrink(x)], axis=1)  # (N, 480 + inputs, 17, 17)


class MixedC(nn.Layer):
    """17 x 17 grid: 7 x 7 kernels as rows and columns."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        row = {"kernel": (1, 7), "padding": (0, 3)}
        column = {"kernel": (7, 1), "padding": (3, 0)}
        self.branch1x1 = Convolution(inputs, 192, 1)
        self.branch7x7_1 = Convolution(inputs, channels, 1)
        self.branch7x7_2 = Convolution(channels, channels, **row)
        self.branch7x7_3 = Convolution(channels, 192, **column)
        self.branch7x7dbl_1 = Convolution(inputs, channels, 1)
        self.branch7x7dbl_2 = Convolution(channels, channels, **column)
        self.branch7x7dbl_3 = Convolution(channels, channels, **row)
        self.branch7x7dbl_4 = Convolution(channels, channels, **column)
        self.branch7x7dbl_5 = Convolution(channels, 192, **row)
        self.branch_pool = Convolution(inputs, 192, 1)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        pool = self.branch_pool(average_pool(x))
        return paddle.concat([self.branch1x1(x), seven, double, pool], axis=1)  # (N, 768, 17, 17)


class MixedD(nn.Layer):
    """From the 17 x 17 to the 8 x 8 grid."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3_1 = Convolution(inputs, 192, 1)
        self.branch3x3_2 = Convolution(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Convolution(inputs, 192, 1)
        self.branch7x7x3_2 = Convolution(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = Convolution(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = Convolution(192, 192, 3, stride=2)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return paddle.concat([three, seven, shrink(x)], axis=1)  # (N, 512 + inputs, 8, 8)


class MixedE(nn.Layer):
    """8 x 8 grid: rows and columns side by side; the last block of the network pools by maximum."""

    def __init__(self, inputs: int, last: bool) -> None:
        super().__init__()
        self.last = last
        row = {"kernel": (1, 3), "padding": (0, 1)}
        column = {"kernel": (3, 1), "padding": (1, 0)}
        self.branch1x1 = Convolution(inputs, 320, 1)
        self.branch3x3_1 = Convolution(inputs, 384, 1)
        self.branch3x3_2a = Convolution(384, 384, **row)
        self.branch3x3_2b = Convolution(384, 384, **column)
        self.branch3x3dbl_1 = Convolution(inputs, 448, 1)
        self.branch3x3dbl_2 = Convolution(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = Convolution(384, 384, **row)
        self.branch3x3dbl_3b = Convolution(384, 384, **column)
        self.branch_pool = Convolution(inputs, 192, 1)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pool = F.max_pool2d(x, 3, stride=1, padding=1) if self.last else average_pool(x)
        parts = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pool)]
        return paddle.concat(parts, axis=1)  # (N, 2048, 8, 8)


class InceptionNetwork(nn.Layer):
    """Pictures -> 2,048 features, TensorFlow's pool_3."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = MixedA(192, 32), MixedA(256, 64), MixedA(288, 64)
        self.Mixed_6a = MixedB(288)
        self.Mixed_6b, self.Mixed_6c = MixedC(768, 128), MixedC(768, 160)
        self.Mixed_6d, self.Mixed_6e = MixedC(768, 160), MixedC(768, 192)
        self.Mixed_7a = MixedD(768)
        self.Mixed_7b, self.Mixed_7c = MixedE(1280, last=False), MixedE(2048, last=True)

    def forward(self, pixels: paddle.Tensor) -> paddle.Tensor:
        """pixels (N, 3, H, W) in [0, 1] -> features (N, 2048)."""
        x = F.interpolate(pixels, size=[INPUT_SIZE, INPUT_SIZE], mode="bilinear", align_corners=False, align_mode=0)
        x = self.Conv2d_1a_3x3(2 * x - 1)  # (N, 32, 149, 149)
        x = shrink(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(x)))  # (N, 64, 73, 73)
        x = shrink(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))  # (N, 192, 35, 35)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))  # (N, 288, 35, 35)
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))  # (N, 768, 17, 17)
        x = self.Mixed_6e(self.Mixed_6d(x))  # (N, 768, 17, 17)
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # (N, 2048, 8, 8)
        return x.mean(axis=[2, 3])  # (N, 2048)


def load_inception(path: str | os.PathLike) -> InceptionNetwork:
    """The network with the weights of a .safetensors file; ValueError when they are not this network's."""
    network = InceptionNetwork()
    own = network.state_dict()
    state, _ = read_safetensors(Path(path))
    given = {paddle_name(name): value for name, value in state.items() if not name.startswith(UNUSED)}
    given = {name: value for name, value in given.items() if not name.endswith("num_batches_tracked")}
    missing = [name for name in own if name not in given]
    unknown = [name for name in given if name not in own]
    shapes = [name for name in own if name in given and list(own[name].shape) != list(given[name].shape)]
    for fault, names in (("lacks", missing), ("does not know", unknown), ("differs in the shape of", shapes)):
        if names:
            raise ValueError(f"{path} is not the Inception of FID: it {fault} {names[0]} ({len(names)} such weights)")
    network.set_state_dict({name: np.asarray(value, dtype=np.float32) for name, value in given.items()})
    network.eval()
    return network


def paddle_name(name: str) -> str:
    """Name of a weight in PyTorch -> in Paddle."""
    for ending, ours in STATISTICS.items():
        if name.endswith(ending):
            return name.removesuffix(ending) + ours
    return name
