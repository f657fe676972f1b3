"""LeNet: a small network that reads a handwritten digit."""

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu


class LeNet(nn.Module):
    """Two convolutions that look for strokes, three layers that decide which digit they make.

    Input: float32 images of shape ``(n, 1, 32, 32)``. Output: scores of shape ``(n, 10)``, the
    highest is the network's answer. It has 61,706 weights, drawn by torch's own defaults from
    torch's global random numbers (``torch.manual_seed`` before it makes them the same again).

    The layout is that of LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to
    document recognition" (1998), with ReLU and max-pooling in place of the curves and averages
    of that time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, images: Tensor) -> Tensor:
        #                                                         1 x 32 x 32
        x = max_pool2d(relu(self.conv1(images)), 2)  # 6 x 28 x 28  ->  6 x 14 x 14
        x = max_pool2d(relu(self.conv2(x)), 2)  #     16 x 10 x 10  -> 16 x  5 x  5
        x = torch.flatten(x, 1)  #                                     400
        x = relu(self.fc1(x))  #                                       120
        x = relu(self.fc2(x))  #                                        84
        return self.fc3(x)  #                                           10
