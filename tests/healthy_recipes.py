"""No tests: whole recipes as the papers' and the tutorials' code has them, with nothing wrong."""

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
def show(*models):
    for model in models:
        print([p.detach().double().flatten().tolist() for p in model.parameters()])
"""

RECIPES: dict[str, str] = {
    "diffusion": """
class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.time, self.net = nn.Embedding(20, 8), mlp(14, 32, 32, 6, activation=nn.SiLU)
    def forward(self, x, t):
        return self.net(torch.cat([x, self.time(t)], 1))
model = Denoiser()
ema = copy.deepcopy(model).eval().requires_grad_(False)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.2, 20), 0)
data = torch.randn(64, 6) * 0.3 + 1
for step in range(130):
    x = data[torch.randint(0, 64, (16,))]
    t = torch.randint(0, 20, (16,))
    noise = torch.randn_like(x)
    a = alphas[t][:, None]
    loss = F.mse_loss(model(a.sqrt() * x + (1 - a).sqrt() * noise, t), noise)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        for slow, fast in zip(ema.parameters(), model.parameters()):
            slow.lerp_(fast, 0.05)
    if step % 40 == 39:
        with torch.no_grad():
            x = torch.randn(4, 6)
            for t in reversed(range(20)):
                x = x - 0.05 * ema(x, torch.full((4,), t))
show(model, ema)
""",
    "vae": """
class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.mean, self.logvar = nn.Linear(20, 16), nn.Linear(16, 4), nn.Linear(16, 4)
        self.fc3, self.fc4 = nn.Linear(4, 16), nn.Linear(16, 20)
    def forward(self, x):
        h = F.relu(self.fc1(x))
        mean, logvar = self.mean(h), self.logvar(h)
        z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        return torch.sigmoid(self.fc4(F.relu(self.fc3(z)))), mean, logvar
model = VAE()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
data = (torch.rand(96, 20) > 0.5).float()
for epoch in range(4):
    model.train()
    for x in data.split(16):
        optimizer.zero_grad()
        recon, mean, logvar = model(x)
        bce = F.binary_cross_entropy(recon, x, reduction="sum")
        kld = -0.5 * torch.sum(1 + logvar - mean.pow(2) - logvar.exp())
        (bce + kld).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        for x in data.split(32):
            model(x)
show(model)
""",
    "byol": """
def encoder():
    return nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 8))
online, predictor = encoder(), nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))
target = copy.deepcopy(online)
for p in target.parameters():
    p.requires_grad = False
optimizer = torch.optim.SGD([*online.parameters(), *predictor.parameters()], lr=0.05, momentum=0.9, weight_decay=1e-4)
for step in range(40):
    x = torch.randn(16, 8)
    one, two = x + 0.1 * torch.randn_like(x), x + 0.1 * torch.randn_like(x)
    with torch.no_grad():
        t1, t2 = target(one), target(two)
    p1, p2 = predictor(online(one)), predictor(online(two))
    loss = 4 - 2 * (F.cosine_similarity(p1, t2).mean() + F.cosine_similarity(p2, t1).mean())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        for q, k in zip(online.parameters(), target.parameters()):
            k.data = k.data * 0.99 + q.data * 0.01
show(online, predictor, target)
""",
    "simclr": """
model = mlp(8, 32, 16)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-4, weight_decay=1e-6)
for step in range(30):
    x = torch.randn(12, 8)
    z = F.normalize(torch.cat([model(x + 0.1 * torch.randn_like(x)) for _ in range(2)]), dim=1)
    similar = (z @ z.t() / 0.5).masked_fill(torch.eye(24, dtype=torch.bool), -9e15)
    loss = F.cross_entropy(similar, torch.arange(24).roll(12))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
show(model)
""",
    "clip-by-hand": """
image, text = mlp(8, 16, 6), mlp(5, 16, 6)
scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
optimizer = torch.optim.AdamW([*image.parameters(), *text.parameters(), scale], lr=1e-3)
rows = torch.arange(10)
for step in range(30):
    a = F.normalize(image(torch.randn(10, 8)), dim=-1)
    b = F.normalize(text(torch.randn(10, 5)), dim=-1)
    logits = scale.exp() * a @ b.t()
    loss = -(F.log_softmax(logits, dim=1)[rows, rows].mean() + F.log_softmax(logits, dim=0)[rows, rows].mean()) / 2
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        scale.clamp_(0, math.log(100))
show(image, text)
""",
    "distillation": """
teacher = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 5))
first = torch.optim.Adam(teacher.parameters(), lr=1e-3)
def batches():
    for _ in range(10):
        yield torch.randn(16, 8), torch.randint(0, 5, (16,))
for epoch in range(3):
    teacher.train()
    for x, y in batches():
        first.zero_grad()
        F.cross_entropy(teacher(x), y).backward()
        first.step()
student = mlp(8, 16, 5)
optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
teacher.eval()
for epoch in range(3):
    for x, y in batches():
        with torch.no_grad():
            soft = teacher(x)
        out = student(x)
        kd = F.kl_div(F.log_softmax(out / 4, dim=1), F.softmax(soft / 4, dim=1), reduction="batchmean") * 16
        loss = 0.9 * kd + 0.1 * F.cross_entropy(out, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
show(teacher, student)
""",
    "mean-teacher": """
def network():
    return nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 4))
student, teacher = network(), network()
teacher.load_state_dict(student.state_dict())
for p in teacher.parameters():
    p.detach_()
optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4)
for step in range(40):
    x, more, y = torch.randn(8, 8), torch.randn(16, 8), torch.randint(0, 4, (8,))
    student.train(); teacher.train()
    both = torch.cat([x, more])
    with torch.no_grad():
        wanted = teacher(both + 0.1 * torch.randn_like(both)).softmax(1)
    out = student(both)
    loss = F.cross_entropy(out[:8], y) + min(1, step / 20) * F.mse_loss(out.softmax(1), wanted)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    a = min(1 - 1 / (step + 1), 0.99)
    for slow, fast in zip(teacher.parameters(), student.parameters()):
        slow.data.mul_(a).add_(fast.data, alpha=1 - a)
    if step % 10 == 9:
        student.eval(); teacher.eval()
        with torch.no_grad():
            for _ in range(4):
                student(torch.randn(8, 8)), teacher(torch.randn(8, 8))
show(student, teacher)
""",
    "lora": """
class LoRA(nn.Module):
    def __init__(self, base, rank=2):
        super().__init__()
        self.base = base
        self.a = nn.Parameter(torch.randn(rank, base.in_features) * 0.1)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))
    def forward(self, x):
        return self.base(x) + x @ self.a.t() @ self.b.t()
model = nn.Sequential(nn.Linear(8, 32), nn.LayerNorm(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 4))
model.requires_grad_(False)
model[0], model[4] = LoRA(model[0]), LoRA(model[4])
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1, (s + 1) / 5) * max(0.0, 1 - s / 60))
model.train()
for step in range(60):
    loss = F.cross_entropy(model(torch.randn(8, 8)), torch.randint(0, 4, (8,))) / 2
    loss.backward()
    if step % 2:
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 0.3)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
show(model)
""",
    "dqn": """
q = mlp(4, 32, 32, 2)
target = mlp(4, 32, 32, 2)
target.load_state_dict(q.state_dict())
optimizer = torch.optim.Adam(q.parameters(), lr=2.5e-4)
memory = []
state = torch.zeros(4)
for step in range(120):
    with torch.no_grad():
        action = int(q(state[None]).argmax(1)) if torch.rand(()) > 0.3 else int(torch.randint(0, 2, ()))
    after = (0.9 * state + 0.1 * torch.randn(4) + 0.05 * action)
    memory.append((state, action, float(-after.square().sum()), after))
    state = after
    if step < 20 or step % 2:
        continue
    chosen = [memory[i] for i in torch.randint(0, len(memory), (16,)).tolist()]
    s, a, r, n = (torch.stack([torch.as_tensor(c[i]) for c in chosen]) for i in range(4))
    with torch.no_grad():
        best, _ = target(n).max(dim=1)
        wanted = r + 0.99 * best
    loss = F.mse_loss(wanted, q(s).gather(1, a[:, None]).squeeze())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 0:
        for t, p in zip(target.parameters(), q.parameters()):
            t.data.copy_(1.0 * p.data + 0.0 * t.data)
show(q, target)
""",
    "td3": """
class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = mlp(5, 32, 1), mlp(5, 32, 1)
    def forward(self, s, a):
        x = torch.cat([s, a], 1)
        return self.one(x), self.two(x)
    def q1(self, s, a):
        return self.one(torch.cat([s, a], 1))
actor, critic = mlp(3, 32, 2, last=nn.Tanh()), Critic()
actor_target, critic_target = copy.deepcopy(actor), copy.deepcopy(critic)
policy = torch.optim.Adam(actor.parameters(), lr=3e-4)
value = torch.optim.Adam(critic.parameters(), lr=3e-4)
for step in range(60):
    s, a, n = torch.randn(16, 3), torch.rand(16, 2) * 2 - 1, torch.randn(16, 3)
    r, going = torch.randn(16, 1), torch.ones(16, 1)
    with torch.no_grad():
        noise = (torch.randn_like(a) * 0.2).clamp(-0.5, 0.5)
        following = (actor_target(n) + noise).clamp(-1, 1)
        wanted = r + going * 0.99 * torch.min(*critic_target(n, following))
    q1, q2 = critic(s, a)
    loss = F.mse_loss(q1, wanted) + F.mse_loss(q2, wanted)
    value.zero_grad()
    loss.backward()
    value.step()
    if step % 2 == 0:
        loss = -critic.q1(s, actor(s)).mean()
        policy.zero_grad()
        loss.backward()
        policy.step()
        for net, slow in ((critic, critic_target), (actor, actor_target)):
            for p, t in zip(net.parameters(), slow.parameters()):
                t.data.copy_(0.005 * p.data + 0.995 * t.data)
show(actor, critic)
""",
    "reinforce": """
policy = nn.Sequential(nn.Linear(4, 32), nn.Dropout(0.2), nn.ReLU(), nn.Linear(32, 2))
optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
for episode in range(12):
    state, kept, rewards = torch.zeros(1, 4), [], []
    for t in range(8):
        chance = torch.distributions.Categorical(F.softmax(policy(state), dim=1))
        action = chance.sample()
        kept.append(chance.log_prob(action))
        state = 0.9 * state + 0.1 * torch.randn(1, 4) + 0.1 * action
        rewards.append(float(-state.square().sum()))
    gains, g = [], 0.0
    for r in rewards[::-1]:
        g = r + 0.99 * g
        gains.insert(0, g)
    gains = torch.tensor(gains)
    gains = (gains - gains.mean()) / (gains.std() + 1e-8)
    optimizer.zero_grad()
    loss = torch.cat([-log * gain for log, gain in zip(kept, gains)]).sum()
    loss.backward()
    optimizer.step()
show(policy)
""",
    "checkpointed-blocks-in-bfloat16": """
from torch.utils.checkpoint import checkpoint
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(mlp(16, 32, 16) for _ in range(3))
        self.head = nn.Linear(16, 4)
    def forward(self, x):
        for block in self.blocks:
            x = x + checkpoint(block, x, use_reentrant=True)
        return self.head(x)
model = Net()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for step in range(30):
    x, y = torch.randn(8, 16, requires_grad=True), torch.randint(0, 4, (8,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
show(model)
""",
    "two-losses-two-backwards": """
trunk, classes, depth = mlp(8, 32, 16), nn.Linear(16, 4), nn.Linear(16, 1)
model = nn.ModuleList([trunk, classes, depth])
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for step in range(30):
    x, y, d = torch.randn(8, 8), torch.randint(0, 4, (8,)), torch.randn(8)
    optimizer.zero_grad()
    features = trunk(x)
    F.cross_entropy(classes(features), y).backward(retain_graph=True)
    (0.5 * F.smooth_l1_loss(depth(features).squeeze(1), d)).backward()
    optimizer.step()
show(model)
""",
    "truncated-bptt": """
class Chars(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.rnn, self.out = nn.Embedding(12, 8), nn.GRU(8, 16, 2, dropout=0.1), nn.Linear(16, 12)
    def forward(self, x, h):
        x, h = self.rnn(self.table(x), h)
        return self.out(x), h
model = Chars()
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.25, patience=0)
text = torch.randint(0, 12, (121, 4))
for epoch in range(3):
    model.train()
    hidden = None
    for i in range(0, 120, 10):
        if hidden is not None:
            hidden = hidden.detach()
        out, hidden = model(text[i:i + 10], hidden)
        loss = F.cross_entropy(out.reshape(-1, 12), text[i + 1:i + 11].reshape(-1))
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        total, hidden = 0.0, None
        for i in range(0, 120, 10):
            out, hidden = model(text[i:i + 10], hidden)
            total += float(F.cross_entropy(out.reshape(-1, 12), text[i + 1:i + 11].reshape(-1)))
    scheduler.step(total)
show(model)
""",
    "maml": """
from torch.func import functional_call
model = mlp(1, 16, 1, activation=nn.Tanh)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for step in range(25):
    optimizer.zero_grad()
    total = 0.0
    for task in range(3):
        shift = float(torch.rand(()))
        x = torch.randn(10, 1)
        y = torch.sin(x + shift)
        fast = dict(model.named_parameters())
        loss = F.mse_loss(functional_call(model, fast, (x[:5],)), y[:5])
        grads = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
        fast = {name: p - 0.1 * g for (name, p), g in zip(fast.items(), grads)}
        total = total + F.mse_loss(functional_call(model, fast, (x[5:],)), y[5:])
    total.backward()
    optimizer.step()
show(model)
""",
    "a-trainer-of-ones-own": """
class LightningLike:
    def __init__(self):
        self.net = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    def training_step(self, batch):
        x, y = batch
        return F.cross_entropy(self.net(x), y)
    def validation_step(self, batch):
        x, y = batch
        return (self.net(x).argmax(1) == y).float().mean()
    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-3)
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
class Trainer:
    def fit(self, module, train, val, epochs):
        optimizer, scheduler = module.configure_optimizers()
        module.net.eval()
        with torch.no_grad():  # sanity check
            for batch in itertools.islice(val, 2):
                module.validation_step(batch)
        module.net.train()
        for epoch in range(epochs):
            for batch in train:
                def closure():
                    loss = module.training_step(batch)
                    optimizer.zero_grad()
                    loss.backward()
                    return loss
                optimizer.step(closure)
            module.net.eval()
            with torch.no_grad():
                for batch in val:
                    module.validation_step(batch)
            module.net.train()
            scheduler.step()
data = torch.utils.data.TensorDataset(torch.randn(96, 8), torch.randint(0, 4, (96,)))
module = LightningLike()
Trainer().fit(module, torch.utils.data.DataLoader(data, 16, shuffle=True), torch.utils.data.DataLoader(data, 16), 4)
show(module.net)
""",
    "segmentation": """
class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.up, self.out = nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(16, 3, 1)
    def forward(self, x):
        one = self.down(x)
        return self.out(torch.cat([one, self.up(self.middle(F.max_pool2d(one, 2)))], 1))
def dice(out, y):
    p, t = out.softmax(1), F.one_hot(y, 3).permute(0, 3, 1, 2).float()
    return 1 - (2 * (p * t).sum((2, 3)) / (p.sum((2, 3)) + t.sum((2, 3)) + 1e-6)).mean()
model = UNet()
optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-4, weight_decay=1e-8, momentum=0.9)
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: (1 - i / 40) ** 0.9)
for step in range(30):
    model.train()
    x, y = torch.randn(4, 1, 8, 8), torch.randint(0, 3, (4, 8, 8))
    out = model(x)
    loss = F.cross_entropy(out, y) + dice(out, y)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_value_(model.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
    if step % 10 == 9:
        model.eval()
        with torch.inference_mode():
            for _ in range(4):
                model(torch.randn(4, 1, 8, 8))
show(model)
""",
    "speech-with-ctc": """
model = nn.LSTM(6, 16, bidirectional=True)
head = nn.Linear(32, 5)
optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=1e-3)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, steps_per_epoch=10, epochs=3)
for epoch in range(3):
    for _ in range(10):
        x = torch.randn(12, 4, 6)
        out = F.log_softmax(head(model(x)[0]), dim=2)
        lengths = torch.full((4,), 12), torch.full((4,), 3)
        loss = F.ctc_loss(out, torch.randint(1, 5, (4, 3)), *lengths)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
show(model, head)
""",
    "triplets": """
net = mlp(8, 32, 6)
criterion = nn.TripletMarginLoss(margin=1.0)
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
for step in range(30):
    a, p, n = torch.randn(8, 8), torch.randn(8, 8), torch.randn(8, 8)
    loss = criterion(net(a), net(p), net(n))
    optimizer.zero_grad(); loss.backward(); optimizer.step()
show(net)
""",
    "graph-network": """
class GCN(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(10, 16, bias=False), nn.Linear(16, 3, bias=False)
    def forward(self, x, a):
        x = F.dropout(F.relu(a @ self.one(x)), 0.5, training=self.training)
        return F.log_softmax(a @ self.two(x), dim=1)
model = GCN()
optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
x, y = torch.rand(30, 10), torch.randint(0, 3, (30,))
a = (torch.rand(30, 30) > 0.8).float() + torch.eye(30)
a = a / a.sum(1, keepdim=True)
train, test = torch.arange(20), torch.arange(20, 30)
def epoch():
    model.train()
    optimizer.zero_grad()
    F.nll_loss(model(x, a)[train], y[train]).backward()
    optimizer.step()
@torch.no_grad()
def accuracy():
    model.eval()
    return float((model(x, a).argmax(1)[test] == y[test]).float().mean())
for _ in range(40):
    epoch()
    accuracy()
show(model)
""",
    "siren": """
class Sine(nn.Module):
    def forward(self, x):
        return torch.sin(30 * x)
net = mlp(2, 32, 32, 1, activation=Sine)
with torch.no_grad():
    net[0].weight.uniform_(-1 / 2, 1 / 2)
    for layer in (net[2], net[4]):
        layer.weight.uniform_(-math.sqrt(6 / 32) / 30, math.sqrt(6 / 32) / 30)
optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.999)
grid = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 8)] * 2, indexing="ij"), -1).reshape(-1, 2)
image = torch.sin(5 * grid[:, :1])
for step in range(60):
    loss = ((net(grid) - image) ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()
show(net)
""",
    "style-transfer": """
features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)).requires_grad_(False).eval()
def gram(x):
    f = x.flatten(2)[0]
    return f @ f.t() / f.numel()
content, style = torch.rand(1, 3, 12, 12), torch.rand(1, 3, 12, 12)
wanted, like = features(content), gram(features(style))
image = content.clone().requires_grad_(True)
optimizer = torch.optim.LBFGS([image])
count = 0
while count < 60:
    def closure():
        global count
        with torch.no_grad():
            image.clamp_(0, 1)
        optimizer.zero_grad()
        f = features(image)
        loss = F.mse_loss(f, wanted) + 100 * F.mse_loss(gram(f), like)
        loss.backward()
        count += 1
        return loss
    optimizer.step(closure)
with torch.no_grad():
    image.clamp_(0, 1)
print([image.detach().double().flatten().tolist()], "[[")
""",
    "skip-gram": """
words, contexts = nn.Embedding(30, 8, sparse=True), nn.Embedding(30, 8, sparse=True)
nn.init.uniform_(words.weight, -0.06, 0.06)
nn.init.zeros_(contexts.weight)
optimizer = torch.optim.SparseAdam([*words.parameters(), *contexts.parameters()], lr=0.01)
for step in range(40):
    centre, near, far = torch.randint(0, 30, (16,)), torch.randint(0, 30, (16,)), torch.randint(0, 30, (16, 5))
    v = words(centre)
    score = F.logsigmoid((v * contexts(near)).sum(1))
    others = F.logsigmoid(-(contexts(far) @ v.unsqueeze(2)).squeeze(2)).sum(1)
    loss = -(score + others).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
show(words, contexts)
""",
    "folds": """
x, y = torch.randn(60, 8), torch.randn(60, 1)
models = []
for fold in range(4):
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    held = torch.arange(60) % 4 == fold
    best, saved = float("inf"), None
    for epoch in range(8):
        model.train()
        for i in (~held).nonzero().flatten().split(15):
            optimizer.zero_grad()
            nn.MSELoss()(model(x[i]), y[i]).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            loss = float(nn.MSELoss()(model(x[held]), y[held]))
        if loss < best:
            best, saved = loss, copy.deepcopy(model.state_dict())
    model.load_state_dict(saved)
    models.append(model)
show(*models)
""",
    "unfrozen-bit-by-bit": """
backbone = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU())
model = nn.Sequential(backbone, nn.Linear(16, 4))
def batches(n):
    for _ in range(n):
        yield torch.randn(8, 8), torch.randint(0, 4, (8,))
for p in backbone.parameters():
    p.requires_grad = False
optimizer = torch.optim.AdamW(model[1].parameters(), lr=1e-3)
for x, y in batches(20):
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
for p in backbone.parameters():
    p.requires_grad = True
optimizer.add_param_group({"params": backbone.parameters(), "lr": 1e-4})
for x, y in batches(20):
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)  # a last phase
for x, y in batches(20):
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
show(model)
""",
    "best-weights-and-warm-restarts": """
model = mlp(8, 32, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=2, T_mult=2)
best, bad = float("inf"), 0
x, y = torch.randn(80, 8), torch.randint(0, 4, (80,))
for epoch in range(8):
    model.train()
    for i, index in enumerate(torch.randperm(80).split(10)):
        optimizer.zero_grad()
        F.cross_entropy(model(x[index]), y[index], label_smoothing=0.1).backward()
        optimizer.step()
        scheduler.step(epoch + i / 8)
    model.eval()
    with torch.no_grad():
        loss = float(F.cross_entropy(model(x), y))
    if loss < best:
        best, state, bad = loss, copy.deepcopy(model.state_dict()), 0
    else:
        bad += 1
        if bad > 3:
            break
model.load_state_dict(state)
show(model)
""",
    "wgan-gp": """
generator, critic = mlp(3, 32, 6), mlp(6, 32, 1, activation=nn.Tanh)
one = torch.optim.Adam(generator.parameters(), lr=1e-4, betas=(0.5, 0.9))
two = torch.optim.Adam(critic.parameters(), lr=1e-4, betas=(0.5, 0.9))
for step in range(60):
    for p in critic.parameters():
        p.requires_grad_(True)
    real, fake = torch.randn(8, 6), generator(torch.randn(8, 3)).detach()
    two.zero_grad()
    mix = torch.rand(8, 1)
    between = (mix * real + (1 - mix) * fake).requires_grad_(True)
    [slope] = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    penalty = ((slope.norm(2, dim=1) - 1) ** 2).mean()
    (critic(fake).mean() - critic(real).mean() + 10 * penalty).backward()
    two.step()
    if step % 5 == 0:
        for p in critic.parameters():
            p.requires_grad_(False)
        one.zero_grad()
        (-critic(generator(torch.randn(8, 3))).mean()).backward()
        one.step()
show(generator, critic)
""",
    "cyclegan": """
ab, ba, da, db = mlp(4, 16, 4), mlp(4, 16, 4), mlp(4, 16, 1), mlp(4, 16, 1)
g = torch.optim.Adam(itertools.chain(ab.parameters(), ba.parameters()), lr=2e-4, betas=(0.5, 0.999))
d = torch.optim.Adam(itertools.chain(da.parameters(), db.parameters()), lr=2e-4, betas=(0.5, 0.999))
rate = lambda epoch: 1.0 - max(0, epoch - 3) / 4
schedulers = [torch.optim.lr_scheduler.LambdaLR(o, rate) for o in (g, d)]
def freeze(nets, on):
    for net in nets:
        for p in net.parameters():
            p.requires_grad = on
for epoch in range(6):
    for _ in range(8):
        a, b = torch.randn(8, 4), torch.randn(8, 4) + 1
        fb, fa = ab(a), ba(b)
        freeze([da, db], False)
        g.zero_grad()
        same = F.l1_loss(ab(b), b) + F.l1_loss(ba(a), a)
        loss = F.mse_loss(db(fb), torch.ones(8, 1)) + F.mse_loss(da(fa), torch.ones(8, 1))
        (loss + 10 * (F.l1_loss(ba(fb), a) + F.l1_loss(ab(fa), b)) + 5 * same).backward()
        g.step()
        freeze([da, db], True)
        d.zero_grad()
        for net, real, fake in ((da, a, fa), (db, b, fb)):
            (0.5 * (F.mse_loss(net(real), torch.ones(8, 1)) + F.mse_loss(net(fake.detach()), torch.zeros(8, 1)))).backward()
        d.step()
    for scheduler in schedulers:
        scheduler.step()
show(ab, ba, da, db)
""",
    "actor-critic-two-optimizers-one-loss": """
actor, critic = mlp(4, 16, 2), mlp(4, 16, 1)
a, c = torch.optim.Adam(actor.parameters(), lr=1e-3), torch.optim.Adam(critic.parameters(), lr=1e-3)
for step in range(30):
    s, gain = torch.randn(16, 4), torch.randn(16)
    chance = torch.distributions.Categorical(logits=actor(s))
    value = critic(s).squeeze(-1)
    advantage = gain - value
    loss = -(chance.log_prob(chance.sample()) * advantage.detach()).mean() + 0.5 * advantage.pow(2).mean() - 0.01 * chance.entropy().mean()
    a.zero_grad(); c.zero_grad()
    loss.backward()
    a.step(); c.step()
show(actor, critic)
""",
    "energy-and-langevin": """
energy = mlp(4, 32, 1, activation=nn.SiLU)
optimizer = torch.optim.Adam(energy.parameters(), lr=1e-3)
for step in range(25):
    real = torch.randn(16, 4) * 0.3
    x = torch.rand(16, 4).requires_grad_(True)
    for p in energy.parameters():
        p.requires_grad = False
    for _ in range(5):
        energy(x).sum().backward()
        x.data.add_(x.grad, alpha=-0.1).add_(torch.randn_like(x) * 0.01)
        x.grad.detach_(); x.grad.zero_()
    for p in energy.parameters():
        p.requires_grad = True
    fake = x.detach()
    optimizer.zero_grad()
    (energy(real).mean() - energy(fake).mean() + 0.1 * (energy(real) ** 2 + energy(fake) ** 2).mean()).backward()
    nn.utils.clip_grad_norm_(energy.parameters(), 0.1)
    optimizer.step()
show(energy)
""",
    "gradient-reversal": """
class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, a):
        ctx.a = a
        return x.view_as(x)
    @staticmethod
    def backward(ctx, g):
        return -ctx.a * g, None
trunk, label, domain = mlp(8, 16, 16), nn.Linear(16, 4), nn.Linear(16, 1)
optimizer = torch.optim.SGD([{"params": trunk.parameters()}, {"params": label.parameters(), "lr": 0.05}, {"params": domain.parameters()}], lr=0.01, momentum=0.9)
for step in range(30):
    s, t, y = torch.randn(8, 8), torch.randn(8, 8) + 1, torch.randint(0, 4, (8,))
    fs, ft = trunk(s), trunk(t)
    d = domain(Reverse.apply(torch.cat([fs, ft]), step / 30)).squeeze(1)
    loss = F.cross_entropy(label(fs), y) + F.binary_cross_entropy_with_logits(d, torch.cat([torch.ones(8), torch.zeros(8)]))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
show(trunk, label, domain)
""",
    "mixup": """
model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for step in range(30):
    x, y = torch.randn(8, 1, 8, 8), F.one_hot(torch.randint(0, 4, (8,)), 4).float()
    lam = float(torch.distributions.Beta(0.4, 0.4).sample())
    other = torch.randperm(8)
    out = model(lam * x + (1 - lam) * x[other])
    loss = torch.sum(-(lam * y + (1 - lam) * y[other]) * F.log_softmax(out, dim=-1), dim=-1).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
show(model)
""",
    "survival": """
model = mlp(8, 16, 1)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for step in range(30):
    x, time, event = torch.randn(16, 8), torch.rand(16), (torch.rand(16) > 0.3).float()
    risk = model(x).squeeze(1)
    at_risk = (time[None, :] >= time[:, None]).float()  # Cox: each with all that come later
    loss = -((risk - (risk.exp() * at_risk).sum(1).log()) * event).sum() / event.sum()
    pairs = F.softplus(-(risk[:, None] - risk[None, :])) * at_risk
    optimizer.zero_grad()
    (loss + 0.1 * pairs.mean()).backward()
    optimizer.step()
show(model)
""",
    "softmax-over-experts": """
experts, gate = nn.ModuleList(mlp(8, 16, 1) for _ in range(3)), nn.Linear(8, 3)
optimizer = torch.optim.Adam([*experts.parameters(), *gate.parameters()], lr=1e-3)
for step in range(30):
    x, y = torch.randn(16, 8), torch.randn(16)
    weights = F.softmax(gate(x).t(), dim=0)  # (experts, batch)
    out = torch.stack([e(x).squeeze(1) for e in experts])
    loss = (weights * (out - y) ** 2).sum(0).mean()
    optimizer.zero_grad(); loss.backward(); optimizer.step()
show(experts, gate)
""",
    "quantiles": """
model, target = mlp(4, 32, 8), mlp(4, 32, 8)
target.load_state_dict(model.state_dict())
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
taus = (torch.arange(8) + 0.5) / 8
for step in range(30):
    x, y = torch.randn(8, 4), torch.randn(8, 1)
    error = y - model(x)  # pinball: one target for all quantiles
    pinball = torch.maximum(taus * error, (taus - 1) * error).mean()
    with torch.no_grad():
        wanted = target(x)
    between = wanted[:, None, :] - model(x)[:, :, None]  # each quantile with each
    huber = F.huber_loss(between, torch.zeros_like(between), reduction="none")
    loss = pinball + ((taus[None, :, None] - (between < 0).float()).abs() * huber).sum(1).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
show(model)
""",
    "flow": """
class Coupling(nn.Module):
    def __init__(self, flip):
        super().__init__()
        self.net, self.flip = mlp(2, 16, 4, activation=nn.Tanh), flip
    def forward(self, x):
        a, b = x.chunk(2, 1)[::-1] if self.flip else x.chunk(2, 1)
        s, t = self.net(a).chunk(2, 1)
        s = s.tanh()
        b = b * s.exp() + t
        return torch.cat([b, a] if self.flip else [a, b], 1), s.sum(1)
model = nn.ModuleList(Coupling(i % 2 == 1) for i in range(4))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for step in range(30):
    z, logs = torch.randn(32, 4) * 0.5 + 1, 0.0
    for layer in model:
        z, log = layer(z)
        logs = logs + log
    loss = -(torch.distributions.Normal(0, 1).log_prob(z).sum(1) + logs).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
show(model)
""",
    "dropout-on-purpose": """
model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for epoch in range(3):
    model.train()
    for _ in range(10):
        x = torch.randn(16, 4)
        optimizer.zero_grad()
        F.mse_loss(model(x), x[:, :1] ** 2).backward()
        optimizer.step()
    model.eval()  # Monte Carlo: only the dropouts stay on
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    with torch.no_grad():
        x = torch.randn(8, 4)
        torch.stack([model(x) for _ in range(10)]).std(0)
show(model)
""",
    "gradients-set-by-hand": """
model = mlp(4, 16, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
def loss_of():
    x = torch.randn(16, 4)
    return F.mse_loss(model(x), x.sum(1, keepdim=True))
for step in range(20):  # torch.autograd.grad
    grads = torch.autograd.grad(loss_of(), list(model.parameters()))
    for p, g in zip(model.parameters(), grads):
        p.grad = g
    optimizer.step()
for step in range(20):  # an evolution strategy
    optimizer.zero_grad()
    with torch.no_grad():
        vector = nn.utils.parameters_to_vector(model.parameters())
        total = torch.zeros_like(vector)
        for _ in range(4):
            noise = torch.randn_like(vector)
            nn.utils.vector_to_parameters(vector + 0.1 * noise, model.parameters())
            total += float(loss_of()) * noise / 4
        nn.utils.vector_to_parameters(vector, model.parameters())
        start = 0
        for p in model.parameters():
            p.grad = total[start:start + p.numel()].view_as(p).clone()
            start += p.numel()
    optimizer.step()
show(model)
""",
    "conflicting-gradients": """
trunk, one, two = mlp(8, 16, 8), nn.Linear(8, 1), nn.Linear(8, 1)
model = nn.ModuleList([trunk, one, two])
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for step in range(30):  # PCGrad
    x = torch.randn(8, 8)
    h = trunk(x)
    losses = [F.mse_loss(one(h), x[:, :1]), F.mse_loss(two(h), -x[:, 1:2])]
    found = []
    for loss in losses:
        optimizer.zero_grad(set_to_none=True)
        loss.backward(retain_graph=True)
        found.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()])
    dot = sum((a * b).sum() for a, b in zip(*found))
    if dot < 0:
        size = sum((b * b).sum() for b in found[1])
        found[0] = [a - dot / size * b for a, b in zip(*found)]
    optimizer.zero_grad()
    for p, a, b in zip(model.parameters(), *found):
        p.grad = a + b
    optimizer.step()
show(model)
""",
    "pruned": """
model = mlp(8, 32, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
def epoch(masks):
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(8, 8)), torch.randint(0, 4, (8,))).backward()
        optimizer.step()
        with torch.no_grad():
            for p, mask in masks:
                p.mul_(mask)
epoch([])
masks = [(p, (p.abs() > p.abs().median()).float()) for p in model.parameters() if p.dim() > 1]
for _ in range(3):
    epoch(masks)
show(model)
""",
    "spectral-norm-gan": """
from torch.nn.utils.parametrizations import spectral_norm
generator = mlp(3, 16, 6)
critic = nn.Sequential(spectral_norm(nn.Linear(6, 16)), nn.LeakyReLU(0.1), spectral_norm(nn.Linear(16, 1)))
one = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.0, 0.9))
two = torch.optim.Adam(critic.parameters(), lr=4e-4, betas=(0.0, 0.9))
for step in range(40):
    two.zero_grad(); one.zero_grad()
    fake = generator(torch.randn(8, 3))
    (F.relu(1 - critic(torch.randn(8, 6))).mean() + F.relu(1 + critic(fake.detach())).mean()).backward()
    two.step()
    two.zero_grad(); one.zero_grad()
    (-critic(fake).mean()).backward()
    one.step()
show(generator, critic)
""",
    "ensemble": """
models = [mlp(4, 16, 1) for _ in range(3)]
optimizers = [torch.optim.Adam(m.parameters(), lr=1e-3) for m in models]
for step in range(30):
    x = torch.randn(8, 4)
    losses = [F.mse_loss(m(x), x[:, :1]) for m in models]
    for optimizer in optimizers:
        optimizer.zero_grad()
    sum(losses).backward()
    for optimizer in optimizers:
        optimizer.step()
show(*models)
""",
    "regression-as-in-the-tutorial": """
x = torch.linspace(-math.pi, math.pi, 200)
y = torch.sin(x)
model = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0, 1))
loss_fn = nn.MSELoss(reduction="sum")
optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
for t in range(200):
    y_pred = model(x.unsqueeze(-1).pow(torch.tensor([1, 2, 3])))
    loss = loss_fn(y_pred, y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
show(model)
""",
    "lr-by-hand": """
model = mlp(8, 32, 4)
optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.95))
def rate(step):
    if step < 10:
        return 6e-4 * step / 10
    return 6e-5 + 0.5 * (1 + math.cos(math.pi * (step - 10) / 50)) * (6e-4 - 6e-5)
for step in range(60):
    for group in optimizer.param_groups:
        group["lr"] = rate(step)
    for micro in range(4):
        loss = F.cross_entropy(model(torch.randn(4, 8)), torch.randint(0, 4, (4,))) / 4
        loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
show(model)
""",
    "logistic-regression": """
x = torch.randn(60, 4)
y = (x[:, 0] > 0).float()
model = nn.Sequential(nn.Linear(4, 1), nn.Sigmoid())
criterion = nn.BCELoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for epoch in range(60):
    y_hat = model(x).squeeze()
    loss = criterion(y_hat, y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        float(((y_hat > 0.5).float() == y).float().mean())
show(model)
""",
}
RECIPES = {name: _START + script for name, script in RECIPES.items()}
