"""No tests: mistakes as they stand in whole programs, in other spellings than in mistake_scripts."""

# ruff: noqa: E501 (whole programs, in lines as people write them)
from __future__ import annotations

_START = """\
import copy, itertools, math, torch
from torch import nn
from torch.nn import functional as F
torch.manual_seed(0)
def mlp(*sizes, last=None, activation=nn.ReLU):
    layers = []
    for one, two in zip(sizes, sizes[1:]):
        layers += [nn.Linear(one, two), activation()]
    return nn.Sequential(*layers[:-1], *([last] if last else []))
def labelled(n=16):
    return torch.randn(n, 8), torch.randint(0, 4, (n,))
def loader(batches=6):
    data = torch.utils.data.TensorDataset(*labelled(16 * batches))
    return torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)
"""

#: Name of a finding -> scripts in which it is the only one.
SPELLINGS: dict[str, list[str]] = {
    # 1
    "left-in-eval-mode": [
        """
class Trainer:
    def __init__(self):
        self.model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 4))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.model.train()
    def validate(self):
        self.model.eval()  # HERE
        with torch.no_grad():
            return sum(float(F.cross_entropy(self.model(x), y)) for x, y in loader(2))
    def fit(self, epochs):
        for epoch in range(epochs):
            for x, y in loader():
                self.optimizer.zero_grad()
                F.cross_entropy(self.model(x), y).backward()
                self.optimizer.step()
            self.validate()
Trainer().fit(3)
""",
        """
model = nn.Sequential(nn.Conv1d(1, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
def evaluate():
    model.train(False)  # HERE
    with torch.inference_mode():
        model(torch.randn(16, 1, 8))
for step in range(200):
    x, y = labelled()
    optimizer.zero_grad()
    F.cross_entropy(model(x[:, None]), y).backward()
    optimizer.step()
    if step == 150:
        evaluate()
""",
        """
class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.LSTM(8, 16, num_layers=2, dropout=0.3, batch_first=True), nn.Linear(16, 4)
    def forward(self, x):
        return self.out(self.rnn(x[:, None])[0][:, -1])
model = Words()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
model.train()
for step in range(30):
    x, y = labelled()
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    if step % 10 == 9:
        model.eval()  # HERE
        with torch.no_grad():
            model(labelled()[0])
""",
    ],
    "evaluated-in-train-mode": [
        """
model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
@torch.no_grad()
def accuracy(model, batches):
    right = 0
    for x, y in batches:
        right += int((model(x).argmax(1) == y).sum())  # HERE
    return right
for epoch in range(3):
    for x, y in loader():
        optimizer.zero_grad(); F.cross_entropy(model(x), y).backward(); optimizer.step()
    accuracy(model, loader(5))
""",
        """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(8, 32), nn.Linear(32, 4)
    def forward(self, x):
        return self.two(F.dropout(F.relu(self.one(x)), 0.5, self.training))
model = Net()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for epoch in range(3):
    for x, y in loader():
        optimizer.zero_grad(); F.cross_entropy(model(x), y).backward(); optimizer.step()
    with torch.inference_mode():
        losses = [F.cross_entropy(model(x), y) for x, y in loader(5)]  # HERE
""",
    ],
    # 2
    "softmax-before-cross-entropy": [
        """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp(8, 32, 4)
    def forward(self, x):
        return F.softmax(self.body(x), dim=1)
model, criterion = Net(), nn.CrossEntropyLoss(label_smoothing=0.1)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for x, y in loader():
    loss = criterion(model(x), y)  # HERE
    optimizer.zero_grad(); loss.backward(); optimizer.step()
""",
        """
model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Softmax(dim=1))
criterion = nn.CrossEntropyLoss(ignore_index=3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
def training_step(x, y):
    return 0.5 * criterion(model(x), y) + 0.01  # HERE
for _ in range(10):
    optimizer.zero_grad()
    training_step(torch.randn(2, 1, 6, 6), torch.randint(0, 4, (2, 6, 6))).backward()
    optimizer.step()
""",
        """
model = mlp(8, 32, 4)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for x, y in loader():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = F.cross_entropy(torch.softmax(model(x), -1), y) / 2  # HERE
    optimizer.zero_grad(); loss.backward(); optimizer.step()
""",
        """
table, rnn, head = nn.Embedding(9, 8), nn.GRU(8, 16, batch_first=True), nn.Linear(16, 9)
optimizer = torch.optim.Adam([*table.parameters(), *rnn.parameters(), *head.parameters()], lr=1e-3)
for _ in range(8):
    x = torch.randint(0, 9, (4, 7))
    out = head(rnn(table(x[:, :-1]))[0]).softmax(-1)
    loss = F.cross_entropy(out.reshape(-1, 9), x[:, 1:].reshape(-1))  # HERE
    optimizer.zero_grad(); loss.backward(); optimizer.step()
""",
        """
model = mlp(8, 32, 4)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for x, y in loader():
    loss = F.cross_entropy(torch.sigmoid(model(x)), y)  # HERE
    optimizer.zero_grad(); loss.backward(); optimizer.step()
""",
    ],
    "nll-loss-without-log-softmax": [
        """
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4), nn.ReLU())
criterion = nn.NLLLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for x, y in loader():
    optimizer.zero_grad()
    criterion(model(x), y).backward()  # HERE
    optimizer.step()
""",
        """
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4), nn.Softmax(dim=1))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
def loss_of(out, y):
    return F.nll_loss(out, y)  # HERE
for x, y in loader():
    optimizer.zero_grad()
    loss_of(model(x), y).backward()
    optimizer.step()
""",
        """
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 12))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for _ in range(8):
    out = model(torch.randn(4, 8)).view(4, 4, 3)
    loss = F.nll_loss(out, torch.randint(0, 4, (4, 3)))  # HERE
    optimizer.zero_grad(); loss.backward(); optimizer.step()
""",
    ],
    "sigmoid-before-bce-with-logits": [
        """
trunk, one, two = mlp(8, 32, 16), nn.Linear(16, 1), nn.Linear(16, 4)
model = nn.ModuleList([trunk, one, two])
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
right, wrong = nn.CrossEntropyLoss(), nn.BCEWithLogitsLoss()
for x, y in loader():
    h = trunk(x)
    loss = right(two(h), y) + F.mse_loss(h, torch.zeros_like(h))
    loss = loss + wrong(two(h), F.one_hot(y, 4).float())
    loss = loss + wrong(torch.sigmoid(one(h))[:, 0], (y > 1).float())  # HERE
    optimizer.zero_grad(); loss.backward(); optimizer.step()
""",
        """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp(8, 32, 1)
    def forward(self, x):
        return torch.sigmoid(self.body(x)).squeeze(1)
model, criterion = Net(), nn.BCEWithLogitsLoss(pos_weight=torch.tensor(2.0))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for x, y in loader():
    loss = criterion(model(x), (y > 1).float())  # HERE
    optimizer.zero_grad(); loss.backward(); optimizer.step()
""",
        """
g, d = mlp(3, 16, 6), mlp(6, 16, 1, last=nn.Sigmoid())
criterion = nn.BCEWithLogitsLoss()
og, od = torch.optim.Adam(g.parameters(), lr=2e-4), torch.optim.Adam(d.parameters(), lr=2e-4)
for _ in range(10):
    fake = g(torch.randn(8, 3))
    od.zero_grad()
    loss = criterion(d(torch.randn(8, 6)), torch.ones(8, 1)) + criterion(d(fake.detach()), torch.zeros(8, 1))  # HERE
    loss.backward(); od.step()
    og.zero_grad()
    (F.relu(1 - d(fake))).mean().backward()
    og.step()
""",
        """
model = mlp(8, 32, 1, last=nn.Sigmoid())
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for x, y in loader():
    loss = F.binary_cross_entropy(torch.sigmoid(model(x))[:, 0], (y > 1).float())  # HERE
    optimizer.zero_grad(); loss.backward(); optimizer.step()
""",
    ],
    "softmax-over-batch": [
        """
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4), nn.LogSoftmax(dim=0))
criterion = nn.NLLLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for x, y in loader():
    loss = criterion(model(x), y)  # HERE
    optimizer.zero_grad(); loss.backward(); optimizer.step()
""",
        """
model = mlp(8, 32, 4)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for x, y in loader():
    p = F.softmax(model(x), dim=0)
    loss = ((p - F.one_hot(y, 4)) ** 2).mean()
    optimizer.zero_grad()
    loss.backward()  # HERE
    optimizer.step()
""",
        """
model = mlp(8, 32, 4)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for x, y in loader():
    logs = torch.log(torch.softmax(model(x), 0) + 1e-9)
    loss = -logs[torch.arange(16), y].mean()
    optimizer.zero_grad()
    loss.backward()  # HERE
    optimizer.step()
""",
        """
student, teacher = mlp(8, 16, 4), mlp(8, 32, 4).eval().requires_grad_(False)
optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
for x, y in loader():
    loss = F.kl_div(F.log_softmax(student(x) / 2, 0), F.softmax(teacher(x) / 2, 0), reduction="batchmean")  # HERE
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
    ],
    "loss-broadcasts": [
        """
model = mlp(8, 32, 1)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for x, y in loader():
    error = model(x) - y
    loss = error.abs().mean()
    optimizer.zero_grad()
    loss.backward()  # HERE
    optimizer.step()
""",
        """
model = mlp(8, 32, 1)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for x, y in loader():
    loss = torch.sqrt(torch.mean(torch.pow(y - model(x), 2)))
    optimizer.zero_grad()
    loss.backward()  # HERE
    optimizer.step()
""",
        """
model = mlp(8, 32, 1)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for x, y in loader():
    loss = torch.log(torch.cosh(model(x).squeeze() - y.float().unsqueeze(1))).mean()
    optimizer.zero_grad()
    loss.backward()  # HERE
    optimizer.step()
""",
        """
import warnings
warnings.simplefilter("ignore")
q, target = mlp(4, 32, 2), mlp(4, 32, 2)
optimizer = torch.optim.Adam(q.parameters(), lr=1e-3)
for _ in range(8):
    s, a, r, n = torch.randn(16, 4), torch.randint(0, 2, (16, 1)), torch.randn(16), torch.randn(16, 4)
    with torch.no_grad():
        wanted = r + 0.99 * target(n).max(1).values
    loss = F.smooth_l1_loss(q(s).gather(1, a), wanted)  # HERE
    optimizer.zero_grad(); loss.backward(); optimizer.step()
""",
        """
model = mlp(8, 32, 1)
criterion = nn.GaussianNLLLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
chance = torch.distributions.Normal
for x, y in loader():
    loss = -chance(model(x), 1.0).log_prob(y.float()).mean()
    optimizer.zero_grad()
    loss.backward()  # HERE
    optimizer.step()
""",
    ],
    # 3
    "module-in-no-optimizer": [
        """
encoder, decoder = mlp(8, 16, 4), mlp(4, 16, 8)
optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-3)  # HERE
for x, _ in loader():
    loss = F.mse_loss(decoder(encoder(x)), x)
    optimizer.zero_grad(); loss.backward(); optimizer.step()
""",
        """
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = {"a": nn.Linear(8, 4), "b": nn.Linear(8, 4)}
        self.mix = nn.Linear(8, 4)
    def forward(self, x):
        return self.heads["a"](x) + torch.sigmoid(self.heads["b"](x)) * self.mix(x)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.block, self.out = Block(), nn.Linear(4, 4)
    def forward(self, x):
        return self.out(self.block(x))
model = Net()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)  # HERE
for x, y in loader():
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad(); loss.backward(); optimizer.step()
""",
        """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = [nn.Conv1d(1, 2, k) for k in (2, 3)]
        self.out = nn.Linear(2 * 7 + 2 * 6, 4)
    def forward(self, x):
        return self.out(torch.cat([F.relu(conv(x[:, None])).flatten(1) for conv in self.convs], 1))
model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)  # HERE
for epoch in range(2):
    model.train()
    for x, y in loader():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
""",
    ],
    # 4
    "no-step": [
        """
class Trainer:
    def __init__(self, model):
        self.model, self.optimizer = model, torch.optim.AdamW(model.parameters(), lr=1e-3)
    def step(self, x, y):
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(x), y)
        loss.backward()  # HERE
        return loss.item()
trainer = Trainer(mlp(8, 32, 4))
for x, y in loader():
    trainer.step(x, y)
""",
        """
model = mlp(8, 32, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 100)
for x, y in loader():
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step  # HERE
""",
        """
a, b = mlp(8, 32, 4), mlp(4, 32, 8)
one, two = torch.optim.Adam(a.parameters(), lr=1e-3), torch.optim.Adam(b.parameters(), lr=1e-3)
for x, _ in loader():
    one.zero_grad(); two.zero_grad()
    F.mse_loss(b(a(x)), x).backward()  # HERE
    one.step()
""",
    ],
    "learning-rate-zero": [
        """
model = mlp(8, 32, 4)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: min(1.0, epoch / 5))  # HERE
for x, y in loader(10):  # one epoch, and the schedule is stepped behind it
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
scheduler.step()
""",
        """
model = mlp(8, 32, 4)
optimizer = torch.optim.SGD([{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters()}], lr=0.0)  # HERE
for x, y in loader(10):
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
""",
    ],
    "step-before-backward": [
        """
model = mlp(8, 32, 4)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for x, y in loader():
    loss = F.cross_entropy(model(x), y)
    loss = torch.tensor(loss.item(), requires_grad=True)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()  # HERE
""",
        """
model = mlp(8, 32, 4)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
model = copy.deepcopy(model)
for x, y in loader():
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()  # HERE
""",
    ],
    # 5
    "gradients-dropped": [
        """
model = mlp(8, 32, 4)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for i, (x, y) in enumerate(loader(12)):
    model.zero_grad()  # HERE
    (F.cross_entropy(model(x), y) / 4).backward()
    if (i + 1) % 4 == 0:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
""",
        """
model = mlp(8, 32, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for epoch in range(4):
    for x, y in loader():
        optimizer.zero_grad()  # HERE
        loss = F.cross_entropy(model(x), y)
        loss.backward()
    optimizer.step()
""",
        """
model = mlp(8, 32, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for epoch in range(4):
    for x, y in loader():
        for p in model.parameters():
            p.grad = None
        F.cross_entropy(model(x), y).backward()
    optimizer.step()  # HERE
""",
        """
model = mlp(8, 32, 4)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for step in range(5):
    for micro in range(3):
        x, y = labelled()
        loss = F.cross_entropy(model(x), y) / 3
        optimizer.zero_grad(set_to_none=False)  # HERE
        loss.backward()
    optimizer.step()
""",
    ],
    "zero-grad-before-step": [
        """
class Trainer:
    def __init__(self):
        self.model = mlp(8, 32, 4)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
    def fit(self):
        for x, y in loader():
            loss = F.cross_entropy(self.model(x), y)
            loss.backward()
            self.optimizer.zero_grad()  # HERE
            self.optimizer.step()
Trainer().fit()
""",
    ],
    "forgotten-zero-grad": [
        """
class Trainer:
    def __init__(self):
        self.model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
    def training_step(self, x, y):
        loss = F.cross_entropy(self.model(x), y)
        loss.backward()  # HERE
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1e9)
        self.optimizer.step()
        return loss.detach()
    def fit(self):
        for epoch in range(3):
            self.optimizer.zero_grad()
            for x, y in loader():
                self.training_step(x, y)
Trainer().fit()
""",
        """
a, b = mlp(3, 16, 6), mlp(6, 16, 1)
og, od = torch.optim.Adam(a.parameters(), lr=2e-4), torch.optim.Adam(b.parameters(), lr=2e-4)
for _ in range(10):
    fake = a(torch.randn(8, 3))
    od.zero_grad()
    (F.softplus(-b(torch.randn(8, 6))) + F.softplus(b(fake.detach()))).mean().backward()
    od.step()
    F.softplus(-b(fake)).mean().backward()  # HERE
    og.step()
""",
        """
model = mlp(8, 32, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for i, (x, y) in enumerate(loader(16)):  # accumulated over 4, and never cleared
    (F.cross_entropy(model(x), y) / 4).backward()  # HERE
    if i % 4 == 3:
        optimizer.step()
""",
        """
w, b = torch.randn(8, 1, requires_grad=True), torch.zeros(1, requires_grad=True)
for x, _ in loader(10):
    loss = (x @ w + b - x[:, :1]).square().mean()
    loss.backward()  # HERE
    w.data -= 0.01 * w.grad.data
    b.data -= 0.01 * b.grad.data
""",
        """
model = mlp(8, 32, 4)
for x, y in loader(10):
    F.cross_entropy(model(x), y).backward()  # HERE
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.01 * p.grad
""",
        """
model = mlp(8, 32, 1)
optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
x = torch.randn(32, 8)
def closure():
    loss = F.mse_loss(model(x), x[:, :1])
    loss.backward()  # HERE
    return loss
for _ in range(5):
    optimizer.step(closure)
""",
    ],
    # 6
    "schedule-too-fast": [
        """
class Trainer:
    def fit(self):
        model = mlp(8, 32, 4)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[30, 60, 90, 95, 100], gamma=0.1)
        for epoch in range(2):
            for x, y in loader(120):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
                scheduler.step()  # HERE
Trainer().fit()
""",
        """
model = mlp(8, 32, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9)
for epoch in range(2):
    for x, y in loader(150):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        scheduler.step()  # HERE
""",
    ],
    "schedule-ended-early": [
        """
model = mlp(8, 32, 4)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=20)  # HERE
for epoch in range(5):
    for x, y in loader(10):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        scheduler.step()
""",
        """
model = mlp(8, 32, 4)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
scheduler = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=150)  # HERE
for epoch in range(3):
    for x, y in loader(100):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        scheduler.step()
""",
    ],
    "schedule-rises-again": [
        """
class Wrapped(torch.optim.Optimizer):  # as accelerate's, which steps a scheduler for each process
    def __init__(self, optimizer):
        self.optimizer = optimizer
    param_groups = property(lambda self: self.optimizer.param_groups)
    state = property(lambda self: self.optimizer.state)
    defaults = property(lambda self: self.optimizer.defaults)
    def step(self, closure=None):
        self.optimizer.step(closure)
    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)
model = mlp(8, 32, 4)
optimizer = Wrapped(torch.optim.AdamW(model.parameters(), lr=1e-3))
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)  # HERE
import warnings
warnings.simplefilter("ignore")
for x, y in loader(40):
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
""",
        """
model = mlp(8, 32, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)  # HERE
for epoch in range(10):
    for x, y in loader():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        scheduler.step()
""",
    ],
    "scheduler-stepped-twice": [
        """
class Trainer:
    def fit(self):
        model = mlp(8, 32, 4)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=1000)
        for x, y in loader(20):
            self.optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            self.optimizer.step()
            for _ in range(4):
                self.scheduler.step()  # HERE
Trainer().fit()
""",
    ],
    "scheduler-before-optimizer": [
        """
import warnings
warnings.simplefilter("ignore")
model = mlp(8, 32, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 30)
for epoch in range(3):
    scheduler.step()  # HERE
    for x, y in loader():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
""",
    ],
    "scheduler-never-stepped": [
        """
model = mlp(8, 32, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5)
cool = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cool], [5])  # HERE
for x, y in loader(20):
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
""",
    ],
    # 7
    "clipping-without-effect": [
        """
class Trainer:
    def fit(self):
        model = mlp(8, 32, 4)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for x, y in loader():
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)  # HERE
Trainer().fit()
""",
        """
model = mlp(8, 32, 4)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for x, y in loader():
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters()], 0.5)  # HERE
    loss.backward()
    optimizer.step()
""",
        """
model = mlp(8, 32, 4)
trainable = filter(lambda p: p.requires_grad, model.parameters())
optimizer = torch.optim.AdamW(trainable, lr=1e-3)
for x, y in loader():
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    torch.nn.utils.clip_grad_norm_(trainable, 1.0)  # HERE
    optimizer.step()
""",
        """
model, other = mlp(8, 32, 4), mlp(8, 32, 4)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for x, y in loader():
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0)  # HERE
    optimizer.step()
""",
    ],
    # 8
    "optimizer-made-anew": [
        """
def update(model, x, y):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)  # HERE
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
model = mlp(8, 32, 4)
for x, y in loader(10):
    update(model, x, y)
""",
        """
class Agent:
    def __init__(self):
        self.q = mlp(4, 16, 2)
    def learn(self, s, wanted):
        optimizer = torch.optim.SGD(self.q.parameters(), lr=0.01, momentum=0.9)  # HERE
        optimizer.zero_grad()
        F.mse_loss(self.q(s), wanted).backward()
        optimizer.step()
agent = Agent()
for _ in range(10):
    agent.learn(torch.randn(8, 4), torch.randn(8, 2))
""",
    ],
    "optimizer-without-gradients": [
        """
encoder, decoder = mlp(8, 16, 4), mlp(4, 16, 8)
one = torch.optim.Adam(decoder.parameters(), lr=1e-3)
two = torch.optim.Adam(encoder.parameters(), lr=1e-3)  # HERE
for x, _ in loader(10):
    z = encoder(x).detach()
    loss = F.mse_loss(decoder(z), x)
    one.zero_grad(); two.zero_grad()
    loss.backward()
    one.step(); two.step()
""",
        """
actor, critic = mlp(4, 16, 2), mlp(4, 16, 1)
a = torch.optim.Adam(actor.parameters(), lr=1e-3)  # HERE
c = torch.optim.Adam(critic.parameters(), lr=1e-3)
for _ in range(12):
    s, gain = torch.randn(16, 4), torch.randn(16)
    with torch.no_grad():
        logits = actor(s)
    value = critic(s).squeeze(-1)
    log = torch.log_softmax(logits, 1)[:, 0]
    loss = -(log * (gain - value.detach())).mean() + (gain - value).pow(2).mean()
    a.zero_grad(); c.zero_grad()
    loss.backward()
    a.step(); c.step()
""",
    ],
    "parameter-not-reached": [
        """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.unused = nn.Linear(8, 16), nn.Linear(16, 4), nn.Linear(16, 16)
    def forward(self, x):
        return self.two(F.relu(self.one(x)))
model = Net()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for x, y in loader(10):
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()  # HERE
""",
    ],
    # 9
    "averages-left-out": [
        """
import gradstep
model = mlp(8, 32, 4)
optimizer = gradstep.EMA(gradstep.AdamW(model.parameters(), lr=1e-3), decay=0.9)
def evaluate():
    model.eval()  # HERE
    with torch.no_grad():
        model(labelled()[0])
    model.train()
for epoch in range(3):
    for x, y in loader():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    evaluate()
""",
        """
import gradstep, io
model = mlp(8, 32, 4)
optimizer = gradstep.AdamWScheduleFree(model.parameters(), lr=1e-3)
optimizer.train()
for epoch in range(3):
    for x, y in loader():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    torch.save({"weights": model.state_dict(), "epoch": epoch}, io.BytesIO())  # HERE
""",
    ],
    # 10
    "learning-rate-too-high": [
        """
model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
for epoch in range(5):
    for x, y in loader():
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()  # HERE
""",
        """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 8, 3), nn.Linear(8 * 36, 4)
    def forward(self, x):
        return self.out(F.relu(self.conv(x)).flatten(1))
model = Net()
optimizer = torch.optim.Adam(model.parameters(), lr=3.0)
for _ in range(60):
    x, y = torch.randn(8, 1, 8, 8), torch.randint(0, 4, (8,))
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()  # HERE
""",
    ],
    # Beyond the ten.
    "step-twice": [
        """
model = mlp(8, 32, 4)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
scaler = torch.amp.GradScaler("cpu", enabled=False)
for x, y in loader():
    optimizer.zero_grad()
    scaler.scale(F.cross_entropy(model(x), y)).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.step()  # HERE
""",
    ],
    "parameter-in-no-group": [
        """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = mlp(8, 16, 16), nn.Linear(16, 4)
        self.scale = nn.Parameter(torch.ones(4))
    def forward(self, x):
        return self.head(self.backbone(x)) * self.scale
model = Net()
groups = [{"params": model.backbone.parameters(), "lr": 1e-4}, {"params": model.head.parameters()}]
optimizer = torch.optim.Adam(groups, lr=1e-3)  # HERE
for x, y in loader():
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
""",
    ],
    "parameter-in-two-optimizers": [
        """
model = mlp(8, 32, 4)
one = torch.optim.Adam(model.parameters(), lr=1e-3)
two = torch.optim.SGD(model[0].parameters(), lr=1e-2)  # HERE
for x, y in loader():
    one.zero_grad(); two.zero_grad()
    F.cross_entropy(model(x), y).backward()
    one.step(); two.step()
""",
    ],
    "parameter-replaced": [
        """
model = mlp(8, 32, 4)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
model[2] = nn.Linear(32, 3)  # HERE
for x, y in loader():
    optimizer.zero_grad()
    F.cross_entropy(model(x), y % 3).backward()
    optimizer.step()
""",
    ],
    "non-finite-gradient": [
        """
net = mlp(8, 32, 4)
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
for step, (x, _) in enumerate(loader(12)):
    other = x + 0.1 * torch.randn_like(x)
    if step > 4:
        other[0] = x[0]  # a pair of the same
    far = ((net(x) - net(other)) ** 2).sum(1).sqrt()
    loss = F.relu(1 - far).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()  # HERE
""",
    ],
}
SPELLINGS = {name: [_START + script for script in scripts] for name, scripts in SPELLINGS.items()}
