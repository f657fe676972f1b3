"""The LeNet: its size, the names that others rely on, what goes in and out."""

import torch

from gradstep.lab.lenet import LeNet


def test_it_has_61_706_weights_in_modules_of_known_names() -> None:
    model = LeNet()
    assert sum(weight.numel() for weight in model.parameters()) == 61_706
    assert {name: tuple(weight.shape) for name, weight in model.named_parameters()} == {
        "conv1.weight": (6, 1, 5, 5),
        "conv1.bias": (6,),
        "conv2.weight": (16, 6, 5, 5),
        "conv2.bias": (16,),
        "fc1.weight": (120, 400),
        "fc1.bias": (120,),
        "fc2.weight": (84, 120),
        "fc2.bias": (84,),
        "fc3.weight": (10, 84),
        "fc3.bias": (10,),
    }


def test_it_gives_ten_scores_for_each_image_and_every_weight_a_gradient() -> None:
    torch.manual_seed(0)
    model = LeNet()
    scores = model(torch.randn(3, 1, 32, 32))
    assert scores.shape == (3, 10)
    assert scores.dtype == torch.float32
    scores.square().sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, name
