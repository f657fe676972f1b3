"""No tests: a script for each mistake, with ``# HERE`` on the line that is to be named."""

from __future__ import annotations

_START = """\
import torch
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
def batch():
    return torch.randn(8, 6), torch.randint(0, 4, (8,))
def loss_of(model):
    x, y = batch()
    return nn.functional.cross_entropy(model(x), y)
"""
_SGD = _START + "optimizer = torch.optim.SGD(model.parameters(), lr=0.05)\n"

#: Name of the finding -> scripts in which it is the only one.
SCRIPTS: dict[str, list[str]] = {
    "forgotten-zero-grad": [
        _SGD
        + """
for _ in range(4):
    loss_of(model).backward()  # HERE
    optimizer.step()
""",
        # Only some of the weights are cleared.
        _SGD
        + """
for _ in range(4):
    model[0].zero_grad()
    loss_of(model).backward()  # HERE
    optimizer.step()
""",
        # Cleared at the wrong moment: before the step of another batch, after its backward.
        _SGD
        + """
def train(model):
    for step in range(6):
        loss = loss_of(model)
        loss.backward()  # HERE
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
train(model)
""",
        # After twenty right ones.
        _SGD
        + """
def right():
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()
def wrong():
    loss_of(model).backward()  # HERE
    optimizer.step()
for _ in range(20):
    right()
for _ in range(4):
    wrong()
""",
        # A closure.
        _START
        + """
optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=2)
def closure():
    loss = loss_of(model)
    loss.backward()  # HERE
    return loss
for _ in range(3):
    optimizer.step(closure)
""",
        # By hand, without an optimizer.
        _START
        + """
for _ in range(6):
    loss_of(model).backward()  # HERE
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.01 * p.grad
""",
        _START
        + """
for _ in range(6):
    loss = loss_of(model)
    loss.backward()  # HERE
    for p in model.parameters():
        p.data.sub_(0.01 * p.grad.data)
""",
        # One of two in a GAN; the other loss adds to its gradients, too.
        _START
        + """
critic = nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(), nn.Linear(8, 1))
one = torch.optim.Adam(model.parameters(), lr=1e-3)
two = torch.optim.Adam(critic.parameters(), lr=1e-3)
for _ in range(6):
    fake = model(batch()[0])
    loss = critic(fake.detach()).mean() - critic(torch.randn(8, 4)).mean()
    loss.backward()
    two.step()
    one.zero_grad()
    (-critic(fake).mean()).backward()  # HERE
    one.step()
""",
        # gradstep's own optimizers, sparse gradients.
        """\
import gradstep, torch
from torch import nn
torch.manual_seed(0)
table = nn.Embedding(10, 4, sparse=True)
optimizer = gradstep.SparseAdam(table.parameters(), lr=0.01)
for _ in range(4):
    table(torch.randint(0, 10, (5,))).square().mean().backward()  # HERE
    optimizer.step()
""",
        """\
import gradstep, torch
from torch import nn
torch.manual_seed(0)
model = nn.Linear(3, 2).to(torch.bfloat16)
optimizer = gradstep.AdamW(model.parameters(), lr=0.01)
for _ in range(4):
    loss = model(torch.randn(5, 3, dtype=torch.bfloat16)).square().mean()
    loss.backward()  # HERE
    optimizer.step()
""",
    ],
    "step-before-backward": [
        _SGD
        + """
for _ in range(4):
    optimizer.step()  # HERE
    optimizer.zero_grad()
    loss_of(model).backward()
""",
        # Backward has run, on a deep copy's loss, or on one that was made anew.
        _SGD
        + """
import copy
twin = copy.deepcopy(model)
for _ in range(4):
    optimizer.zero_grad()
    loss_of(twin).backward()
    optimizer.step()  # HERE
""",
        _SGD
        + """
for _ in range(4):
    optimizer.zero_grad()
    loss = torch.tensor(loss_of(model).item(), requires_grad=True)
    loss.backward()
    optimizer.step()  # HERE
""",
    ],
    "step-twice": [
        _SGD
        + """
for _ in range(4):
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()
    optimizer.step()  # HERE
""",
    ],
    "zero-grad-before-step": [
        _SGD
        + """
for _ in range(4):
    loss_of(model).backward()
    optimizer.zero_grad()  # HERE
    optimizer.step()
""",
        _SGD
        + """
for _ in range(4):
    loss_of(model).backward()
    optimizer.zero_grad(set_to_none=False)  # HERE
    optimizer.step()
""",
        _SGD
        + """
for _ in range(4):
    loss_of(model).backward()
    model.zero_grad()  # HERE
    optimizer.step()
""",
    ],
    "parameter-in-no-group": [
        _START
        + """
optimizer = torch.optim.SGD(model[2].parameters(), lr=0.05)  # HERE
for _ in range(4):
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()
""",
        _START
        + """
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)  # HERE
model.append(nn.Linear(4, 4))
for _ in range(4):
    model.zero_grad()
    loss_of(model).backward()
    optimizer.step()
""",
    ],
    "parameter-not-reached": [
        _SGD
        + """
for _ in range(4):
    optimizer.zero_grad()
    x, y = batch()
    hidden = model[1](model[0](x)).detach()
    nn.functional.cross_entropy(model[2](hidden), y).backward()
    optimizer.step()  # HERE
""",
    ],
    "parameter-replaced": [
        _SGD
        + """
model[2].weight = nn.Parameter(torch.randn(4, 16) / 4)  # HERE
for _ in range(4):
    model.zero_grad()
    loss_of(model).backward()
    optimizer.step()
""",
        _SGD
        + """
def step():
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()
step()
state = {name: p.clone() for name, p in model.state_dict().items()}
model.load_state_dict(state, assign=True)  # HERE
for _ in range(4):
    step()
""",
        _SGD
        + """
torch.__future__.set_overwrite_module_params_on_conversion(True)
def step(dtype):
    model.zero_grad()
    x, y = batch()
    nn.functional.cross_entropy(model(x.to(dtype)), y).backward()
    optimizer.step()  # HERE
step(torch.float32)
model.double()
for _ in range(3):
    step(torch.float64)
torch.__future__.set_overwrite_module_params_on_conversion(False)
""",
    ],
    "weights-changed-outside": [
        _SGD
        + """
for i in range(12):
    if i == 6:
        nn.init.normal_(model[0].weight, std=0.2)
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()  # HERE
""",
    ],
    "updated-by-hand-too": [
        _SGD
        + """
for _ in range(5):
    optimizer.zero_grad()
    loss_of(model).backward()
    for p in model.parameters():
        p.data.sub_(p.grad.data * 0.05)
    optimizer.step()  # HERE
""",
        _SGD
        + """
for _ in range(5):
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()  # HERE
    with torch.no_grad():
        for p in model.parameters():
            p -= p.grad * 0.05
""",
    ],
    "parameter-in-two-optimizers": [
        _START
        + """
first = torch.optim.SGD(model.parameters(), lr=0.05)
second = torch.optim.SGD(model[2].parameters(), lr=0.05)  # HERE
for _ in range(4):
    model.zero_grad()
    loss_of(model).backward()
    first.step()
    second.step()
""",
        _START
        + """
first = torch.optim.SGD(model.parameters(), lr=0.05)
second = torch.optim.Adam(model.parameters(), lr=0.001)  # HERE
for i in range(8):
    optimizer = second if i % 2 else first
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()
""",
    ],
    "scheduler-before-optimizer": [
        _SGD
        + """
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
for _ in range(4):
    optimizer.zero_grad()
    loss_of(model).backward()
    scheduler.step()  # HERE
    optimizer.step()
""",
        _SGD
        + """
scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
for _ in range(4):
    optimizer.zero_grad()
    loss = loss_of(model)
    loss.backward()
    scheduler.step(loss.item())  # HERE
    optimizer.step()
""",
    ],
    "scheduler-never-stepped": [
        _SGD
        + """
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)  # HERE
for _ in range(4):
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()
""",
    ],
    "gradients-still-scaled": [
        _SGD
        + """
scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
for _ in range(4):
    optimizer.zero_grad()
    scaler.scale(loss_of(model)).backward()
    optimizer.step()  # HERE
""",
    ],
    "clipped-before-unscale": [
        _SGD
        + """
scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
for _ in range(4):
    optimizer.zero_grad()
    scaler.scale(loss_of(model)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # HERE
    scaler.step(optimizer)
    scaler.update()
""",
        _SGD
        + """
from torch.nn.utils import clip_grad_value_
scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
for _ in range(4):
    optimizer.zero_grad()
    scaler.scale(loss_of(model)).backward()
    clip_grad_value_(model.parameters(), 1.0)  # HERE
    scaler.step(optimizer)
    scaler.update()
""",
    ],
    "non-finite-gradient": [
        _SGD
        + """
for _ in range(3):
    optimizer.zero_grad()
    x, y = batch()
    hidden = torch.sqrt(model[0](x) - model[0](x))
    nn.functional.cross_entropy(model[2](hidden), y).backward()
    optimizer.step()  # HERE
""",
        _SGD
        + """
for _ in range(3):
    optimizer.zero_grad()
    x, y = batch()
    torch.log(torch.relu(model(x)) * 0).mean().backward()
    optimizer.step()  # HERE
""",
        # In the forward pass, in a module of the model.
        _START
        + """
class Log(nn.Module):
    def forward(self, x):
        return torch.log(torch.relu(x) * 0)
model.append(Log())
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for _ in range(3):
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()  # HERE
""",
    ],
    "vanishing-gradient": [
        _START
        + """
layers = [part for _ in range(14) for part in (nn.Linear(16, 16), nn.Sigmoid())]
model = nn.Sequential(nn.Linear(6, 16), *layers, nn.Linear(16, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for _ in range(25):
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()  # HERE
""",
    ],
    "exploding-gradient": [
        _START
        + """
model = nn.Sequential(nn.Linear(6, 16), *(nn.Linear(16, 16) for _ in range(6)), nn.Linear(16, 1))
for p in model.parameters():
    p.data.mul_(4)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
for _ in range(6):
    optimizer.zero_grad()
    model(torch.randn(8, 6)).square().sum().backward()
    optimizer.step()  # HERE
""",
    ],
    "dead-units": [
        _START
        + """
nn.init.constant_(model[0].bias, -50.0)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for _ in range(20):
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()  # HERE
""",
    ],
    "learning-rate-too-high": [
        _START
        + """
optimizer = torch.optim.Adam(model.parameters(), lr=0.5)
for _ in range(25):
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()  # HERE
""",
        # A thousand times: its units die of that.
        _START
        + """
optimizer = torch.optim.Adam(model.parameters(), lr=10.0)
for _ in range(40):
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()  # HERE
""",
    ],
    "learning-rate-too-low": [
        _START
        + """
optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
for _ in range(25):
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()  # HERE
""",
    ],
    "updates-round-away": [
        _START
        + """
model.to(torch.bfloat16)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
for _ in range(20):
    optimizer.zero_grad()
    x, y = batch()
    nn.functional.cross_entropy(model(x.bfloat16()), y).backward()
    optimizer.step()  # HERE
""",
    ],
    "decay-on-biases": [
        _START
        + """
optimizer = torch.optim.AdamW(model.parameters(), lr=0.001, weight_decay=0.1)  # HERE
for _ in range(4):
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()
""",
    ],
    "eps-too-large": [
        _START
        + """
optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
for _ in range(20):
    optimizer.zero_grad()
    (loss_of(model) * 1e-9).backward()
    optimizer.step()  # HERE
""",
    ],
    "beta2-too-near-1": [
        _START
        + """
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.9999))  # HERE
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, 20, cycle_momentum=False)
for _ in range(20):
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()
    scheduler.step()
""",
    ],
    "softmax-before-cross-entropy": [
        _SGD
        + """
criterion = nn.CrossEntropyLoss()
for _ in range(4):
    optimizer.zero_grad()
    x, y = batch()
    loss = criterion(torch.softmax(model(x), dim=1), y)  # HERE
    loss.backward()
    optimizer.step()
""",
        # As the last layer of the network, the function taken by its name, and a part of the loss.
        _START
        + """
from torch.nn.functional import cross_entropy
model.append(nn.Softmax(dim=-1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for _ in range(4):
    optimizer.zero_grad()
    x, y = batch()
    loss = cross_entropy(model(x), y, label_smoothing=0.1)  # HERE
    (loss + 0.01 * sum(p.square().sum() for p in model.parameters())).backward()
    optimizer.step()
""",
    ],
    "nll-loss-without-log-softmax": [
        _SGD
        + """
for _ in range(4):
    optimizer.zero_grad()
    x, y = batch()
    loss = nn.NLLLoss()(model(x), y)  # HERE
    loss.backward()
    optimizer.step()
""",
        _SGD
        + """
for _ in range(4):
    optimizer.zero_grad()
    x, y = batch()
    loss = nn.functional.nll_loss(model(x).softmax(1), y)  # HERE
    loss.backward()
    optimizer.step()
""",
    ],
    "sigmoid-before-bce-with-logits": [
        _SGD
        + """
criterion = nn.BCEWithLogitsLoss()
for _ in range(4):
    optimizer.zero_grad()
    x, y = batch()
    scores = torch.sigmoid(model(x)[:, :1]).squeeze(1)
    loss = criterion(scores, (y % 2).float())  # HERE
    loss.backward()
    optimizer.step()
""",
    ],
    "softmax-over-batch": [
        _SGD
        + """
for _ in range(4):
    optimizer.zero_grad()
    x, y = batch()
    loss = nn.functional.nll_loss(nn.functional.log_softmax(model(x), dim=0), y)  # HERE
    loss.backward()
    optimizer.step()
""",
        _SGD
        + """
for _ in range(4):
    optimizer.zero_grad()
    x, y = batch()
    loss = nn.functional.mse_loss(model(x).softmax(0), nn.functional.one_hot(y, 4).float())  # HERE
    loss.backward()
    optimizer.step()
""",
    ],
    "loss-broadcasts": [
        _START
        + """
import warnings
warnings.simplefilter("ignore")  # torch's own
model.append(nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for _ in range(4):
    optimizer.zero_grad()
    x, y = batch()
    loss = nn.MSELoss()(model(x), y.float())  # HERE
    loss.backward()
    optimizer.step()
""",
        _START
        + """
model.append(nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for _ in range(4):
    optimizer.zero_grad()
    x, y = batch()
    loss = ((model(x) - y) ** 2).mean()
    loss.backward()  # HERE
    optimizer.step()
""",
    ],
    "left-in-eval-mode": [
        _START
        + """
model.insert(1, nn.Dropout(0.2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
def evaluate(model):
    model.eval()  # HERE
    with torch.no_grad():
        for _ in range(4):
            model(batch()[0])
for epoch in range(3):
    for _ in range(4):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    evaluate(model)
""",
    ],
    "evaluated-in-train-mode": [
        _START
        + """
model.insert(1, nn.Dropout(0.2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
@torch.no_grad()
def evaluate(model):
    for _ in range(4):
        model(batch()[0])  # HERE
for epoch in range(3):
    for _ in range(4):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    evaluate(model)
""",
        _START
        + """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.norm, self.two = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)
    def forward(self, x):
        return self.two(torch.relu(self.norm(self.one(x))))
model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for epoch in range(3):
    for _ in range(4):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    with torch.no_grad():
        print(sum(loss_of(model) for _ in range(5)))  # HERE
""".replace("loss_of(model) for _ in range(5)", "model(batch()[0]).sum() for _ in range(5)"),
    ],
    "module-in-no-optimizer": [
        _START
        + """
head = nn.Linear(4, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)  # HERE
for _ in range(6):
    optimizer.zero_grad()
    x, y = batch()
    nn.functional.cross_entropy(head(model(x)), y).backward()
    optimizer.step()
""",
        _START
        + """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 4)
        self.layers = [nn.Linear(4, 4) for _ in range(3)]
    def forward(self, x):
        x = self.first(x)
        for layer in self.layers:
            x = layer(torch.tanh(x))
        return x
model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)  # HERE
for _ in range(6):
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()
""",
    ],
    "no-step": [
        _SGD
        + """
for _ in range(6):
    optimizer.zero_grad()
    loss = loss_of(model)
    loss.backward()  # HERE
""",
        _SGD
        + """
for _ in range(6):
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step  # HERE
""",
    ],
    "learning-rate-zero": [
        _START
        + """
optimizer = torch.optim.AdamW(model.parameters(), lr=0)  # HERE
for _ in range(6):
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()
""",
        _SGD
        + """
warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, step // 10))  # HERE
for epoch in range(2):
    for _ in range(6):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    warmup.step()
""",
    ],
    "gradients-dropped": [
        _SGD
        + """
for i in range(12):
    optimizer.zero_grad()  # HERE
    (loss_of(model) / 3).backward()
    if i % 3 == 2:
        optimizer.step()
""",
        _SGD
        + """
for epoch in range(2):
    for _ in range(5):
        optimizer.zero_grad()  # HERE
        loss_of(model).backward()
    optimizer.step()
""",
        _SGD
        + """
for _ in range(5):
    optimizer.zero_grad()  # HERE
    loss_of(model).backward()
optimizer.step()
""",
    ],
    "schedule-too-fast": [
        _SGD
        + """
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=10, gamma=0.1)
data = torch.utils.data.TensorDataset(torch.randn(480, 6), torch.randint(0, 4, (480,)))
for x, y in torch.utils.data.DataLoader(data, batch_size=8):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    scheduler.step()  # HERE
""",
        _SGD
        + """
scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
for _ in range(90):
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()
    scheduler.step()  # HERE
""",
    ],
    "schedule-ended-early": [
        _SGD
        + """
rate = lambda step: max(0, 1 - step / 10)
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)  # HERE
for _ in range(30):
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()
    scheduler.step()
""",
    ],
    "schedule-rises-again": [
        _SGD
        + """
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)  # HERE
for _ in range(40):
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()
    scheduler.step()
""",
    ],
    "scheduler-stepped-twice": [
        _SGD
        + """
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
for _ in range(30):
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()
    for _ in range(2):
        scheduler.step()  # HERE
""",
    ],
    "clipping-without-effect": [
        _SGD
        + """
for _ in range(6):
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # HERE
""",
        _SGD
        + """
for _ in range(6):
    optimizer.zero_grad()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # HERE
    loss_of(model).backward()
    optimizer.step()
""",
        _START
        + """
from torch.nn.utils import clip_grad_norm_
import warnings
warnings.simplefilter("ignore")  # torch's own
parameters = (p for p in model.parameters())
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
clip_grad_norm_(parameters, 1.0)
for _ in range(6):
    optimizer.zero_grad()
    loss_of(model).backward()
    clip_grad_norm_(parameters, 1.0)  # HERE
    optimizer.step()
""",
    ],
    "optimizer-made-anew": [
        _START
        + """
for _ in range(8):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)  # HERE
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()
""",
    ],
    "optimizer-without-gradients": [
        _START
        + """
other = nn.Linear(4, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
second = torch.optim.SGD(other.parameters(), lr=0.05)  # HERE
for _ in range(8):
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()
    second.step()
""",
    ],
    "averages-left-out": [
        _START
        + """
import gradstep
optimizer = gradstep.AdamWScheduleFree(model.parameters(), lr=1e-3)
for epoch in range(3):
    model.train()
    optimizer.train()
    for _ in range(4):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    model.eval()  # HERE
    with torch.no_grad():
        loss_of(model)
""",
        _START
        + """
import gradstep, io
optimizer = gradstep.EMA(gradstep.AdamW(model.parameters(), lr=1e-3), decay=0.9)
for _ in range(4):
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()
torch.save(model.state_dict(), io.BytesIO())  # HERE
""",
    ],
}
