"""The tutorial's training loop: LeNet, a loss, and one update of the weights for each batch.

Only torch. Try what gradstep says to it, as it is and with the line zero_grad() deleted:

    gradstep doctor examples/update_weights.py
"""

import torch
import torch.nn.functional as F
from torch import nn, optim


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = torch.flatten(x, 1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


torch.manual_seed(0)
net = Net()
criterion = nn.MSELoss()
optimizer = optim.SGD(net.parameters(), lr=0.01)

images = torch.randn(64, 1, 32, 32)  # as many images at random, and what to answer to each
targets = torch.randn(64, 10)

for epoch in range(5):
    for i in range(0, len(images), 16):
        optimizer.zero_grad()  # otherwise the gradients of all batches pile up
        output = net(images[i : i + 16])
        loss = criterion(output, targets[i : i + 16])
        loss.backward()
        optimizer.step()  # weight = weight - learning_rate * gradient
    print(f"epoch {epoch + 1}: loss {loss.item():.4f}")
