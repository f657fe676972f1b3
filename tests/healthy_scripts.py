"""No tests: training loops as people write them, with nothing wrong. Each prints its weights."""

from __future__ import annotations

_START = """\
import copy, torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
torch.manual_seed(0)
def network():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
def batch():
    return torch.randn(8, 6), torch.randint(0, 4, (8,))
def show(*models):
    for model in models:
        print([p.detach().double().flatten().tolist() for p in model.parameters()])
model = network()
"""

HEALTHY: dict[str, str] = {
    "plain": """
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for _ in range(30):
    optimizer.zero_grad()
    x, y = batch()
    cross_entropy(model(x), y).backward()
    optimizer.step()
show(model)
""",
    "cleared-behind": """
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
for _ in range(30):
    x, y = batch()
    cross_entropy(model(x), y).backward()
    optimizer.step()
    model.zero_grad()
show(model)
""",
    "steps-in-backward": """
import gradstep
model = nn.ModuleList([network(), network()])
rates = torch.optim.lr_scheduler.LinearLR
optimizer = gradstep.StepInBackward(gradstep.EMA(gradstep.AdamW(model.parameters(), lr=1e-3)))
scheduler = rates(optimizer, 0.5, total_iters=20)
for step in range(60):
    x, y = batch()
    cross_entropy(model[step > 40](x), y).backward()  # the second is reached late
    optimizer.step()
    optimizer.zero_grad()
    scheduler.step()
show(model)
""",
    "offloaded": """
import gradstep
class Travelling(gradstep.Offload):
    def _travels(self, p):
        return True  # on the CPU, too
other = network()
one = Travelling(gradstep.AdamW(model.parameters(), lr=1e-3))
two = Travelling(gradstep.AdamW(other.parameters(), lr=1e-3), free_gradients=True)
for _ in range(30):
    for each, optimizer in ((model, one), (other, two)):
        x, y = batch()
        cross_entropy(each(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
show(model, other)
""",
    "accumulation": """
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for step in range(60):
    x, y = batch()
    (cross_entropy(model(x), y) / 3).backward()
    if step % 3 == 2:
        optimizer.step()
        optimizer.zero_grad(set_to_none=step % 2 == 0)
show(model)
""",
    "gan": """
generator = nn.Sequential(nn.Linear(3, 16), nn.LeakyReLU(0.2), nn.Linear(16, 6))
critic = nn.Sequential(nn.Linear(6, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
one = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.999))
two = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.5, 0.999))
for step in range(30):
    two.zero_grad()
    fake = generator(torch.randn(8, 3))
    (critic(fake.detach()).mean() - critic(torch.randn(8, 6)).mean()).backward()
    two.step()
    if step % 2:
        one.zero_grad()
        (-critic(fake).mean()).backward()
        one.step()
show(generator, critic)
""",
    "wgan-with-clipped-weights": """
generator = nn.Sequential(nn.Linear(3, 16), nn.LeakyReLU(0.2), nn.Linear(16, 6))
critic = nn.Sequential(nn.Linear(6, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
one = torch.optim.RMSprop(generator.parameters(), lr=5e-4)
two = torch.optim.RMSprop(critic.parameters(), lr=5e-4)
for step in range(40):
    two.zero_grad()
    fake = generator(torch.randn(8, 3))
    (critic(fake).mean() - critic(torch.randn(8, 6)).mean()).backward()
    two.step()
    for p in critic.parameters():
        p.data.clamp_(-0.3, 0.3)
    if step % 5 == 4:
        one.zero_grad()
        (-critic(generator(torch.randn(8, 3))).mean()).backward()
        one.step()
show(generator, critic)
""",
    "gan-with-zeros-through-data": """
generator = nn.Sequential(nn.Linear(3, 16), nn.LeakyReLU(0.2), nn.Linear(16, 6))
critic = nn.Sequential(nn.Linear(6, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
one = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.999))
two = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.5, 0.999))
def clear(model):
    for p in model.parameters():
        if p.grad is not None:
            p.grad.data.zero_()
for step in range(30):
    clear(critic)
    fake = generator(torch.randn(8, 3))
    (critic(fake.detach()).mean() - critic(torch.randn(8, 6)).mean()).backward()
    two.step()
    clear(generator)
    (-critic(fake).mean()).backward()
    one.step()
show(generator, critic)
""",
    "frozen-backbone": """
backbone = network().requires_grad_(False)
model = nn.Sequential(backbone, nn.Linear(4, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for step in range(30):
    if step == 15:
        backbone.requires_grad_(True)
    optimizer.zero_grad()
    x, y = batch()
    cross_entropy(model(x), y).backward()
    optimizer.step()
show(model)
""",
    "backbone-without-grad": """
backbone, head = network(), nn.Linear(4, 4)
optimizer = torch.optim.SGD(head.parameters(), lr=0.05)
for step in range(30):
    optimizer.zero_grad()
    x, y = batch()
    with torch.no_grad():
        features = backbone(x)
    cross_entropy(head(features), y).backward()
    optimizer.step()
show(head)
""",
    "tied-weights": """
class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(12, 6)
        self.out = nn.Linear(6, 12, bias=False)
        self.out.weight = self.table.weight
    def forward(self, x):
        return self.out(torch.tanh(self.table(x)))
model = Tied()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for step in range(30):
    optimizer.zero_grad()
    x = torch.randint(0, 12, (8,))
    cross_entropy(model(x), (x + 1) % 12).backward()
    optimizer.step()
show(model)
""",
    "shared-embeddings": """
table = nn.Embedding(12, 6)
one, two = nn.Linear(6, 4), nn.Linear(6, 4)
optimizer = torch.optim.Adam([*table.parameters(), *one.parameters(), *two.parameters()], lr=1e-3)
for step in range(30):
    optimizer.zero_grad()
    x = torch.randint(0, 12, (8,))
    cross_entropy(one(table(x)) + two(table(x.flip(0))), x % 4).backward()
    optimizer.step()
show(table, one, two)
""",
    "grad-scaler-with-skipped-steps": """
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=4)
import warnings
warnings.simplefilter("ignore")  # torch's own about the scheduler, when the first step is skipped
for step in range(60):
    optimizer.zero_grad()
    x, y = batch()
    scaler.scale(100 * cross_entropy(model(x), y)).backward()
    if step % 2:
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    scheduler.step()
show(model)
""",
    "grad-scaler-and-fused": """
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=4)
for step in range(40):
    optimizer.zero_grad()
    x, y = batch()
    scaler.scale(100 * cross_entropy(model(x), y)).backward()
    scaler.step(optimizer)
    scaler.update()
show(model)
""",
    "lbfgs": """
optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)
for step in range(25):
    x, y = batch()
    def closure():
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        return loss
    optimizer.step(closure)
show(model)
""",
    "sam-by-hand": """
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
for step in range(30):
    x, y = batch()
    optimizer.zero_grad()
    cross_entropy(model(x), y).backward()
    with torch.no_grad():
        norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
        ways = [0.05 * p.grad / norm for p in model.parameters()]
        for p, way in zip(model.parameters(), ways):
            p.add_(way)
    optimizer.zero_grad()
    cross_entropy(model(x), y).backward()
    with torch.no_grad():
        for p, way in zip(model.parameters(), ways):
            p.sub_(way)
    optimizer.step()
show(model)
""",
    "sam-as-an-optimizer": """
class SAM(torch.optim.Optimizer):
    def __init__(self, params, base, rho=0.05, **kwargs):
        super().__init__(params, dict(rho=rho, **kwargs))
        self.base = base(self.param_groups, **kwargs)
        self.param_groups = self.base.param_groups
    @torch.no_grad()
    def first_step(self):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["old"] = p.clone()
                p.add_(p.grad, alpha=group["rho"] / (p.grad.norm() + 1e-12))
        self.zero_grad()
    @torch.no_grad()
    def second_step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.copy_(self.state[p]["old"])
        self.base.step()
        self.zero_grad()
    def step(self, closure):
        with torch.enable_grad():
            closure()
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()
optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.05)
for step in range(30):
    x, y = batch()
    def closure():
        loss = cross_entropy(model(x), y)
        loss.backward()
        return loss
    if step % 2:
        optimizer.step(closure)
    else:
        closure()
        optimizer.first_step()
        closure()
        optimizer.second_step()
show(model)
""",
    "ddp": """
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
for views in (False, True):
    model = network()
    ddp = DDP(model, gradient_as_bucket_view=views)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05)
    for step in range(30):
        optimizer.zero_grad(set_to_none=step < 15)
        x, y = batch()
        with ddp.no_sync():
            cross_entropy(ddp(x), y).backward()
        cross_entropy(ddp(x), y).backward()
        optimizer.step()
    show(model)
dist.destroy_process_group()
""",
    "checkpointing": """
from torch.utils.checkpoint import checkpoint
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for step in range(30):
    optimizer.zero_grad()
    x, y = batch()
    x.requires_grad_(True)
    hidden = checkpoint(model[:2], x, use_reentrant=step % 2 == 0)
    cross_entropy(checkpoint(model[2], hidden, use_reentrant=step % 2 == 0), y).backward()
    optimizer.step()
show(model)
""",
    "sparse-gradients": """
table = nn.Embedding(50, 4, sparse=True)
optimizer = torch.optim.SparseAdam(table.parameters(), lr=1e-3)
for step in range(30):
    optimizer.zero_grad(set_to_none=step % 2 == 0)
    table(torch.randint(0, 50, (6,))).sum(1).sub(1).square().mean().backward()
    optimizer.step()
show(table)
""",
    "alternating-losses": """
trunk, one, two = network(), nn.Linear(4, 3), nn.Linear(4, 2)
optimizer = torch.optim.Adam([*trunk.parameters(), *one.parameters(), *two.parameters()], lr=1e-3)
other = torch.optim.SGD(model.parameters(), lr=0.05)
for step in range(30):
    optimizer.zero_grad()
    other.zero_grad()
    x, _ = batch()
    if step % 2:
        one(trunk(x)).square().mean().backward()
    else:
        (two(trunk(x)).square().mean() + model(x).square().mean() * (step > 4)).backward()
    optimizer.step()
    other.step()
show(trunk, one, two, model)
""",
    "optimizer-in-backward": """
optimizers = {p: torch.optim.SGD([p], lr=0.05, momentum=0.9) for p in model.parameters()}
def update(p):
    optimizers[p].step()
    optimizers[p].zero_grad()
for p in model.parameters():
    p.register_post_accumulate_grad_hook(update)
for step in range(30):
    x, y = batch()
    cross_entropy(model(x), y).backward()
show(model)
""",
    "averaged-model": """
from torch.optim.swa_utils import AveragedModel, SWALR, update_bn, get_ema_multi_avg_fn
model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
average = AveragedModel(model)
moving = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
scheduler = SWALR(optimizer, swa_lr=0.02, anneal_epochs=3)
for step in range(30):
    optimizer.zero_grad()
    x, y = batch()
    cross_entropy(model(x), y).backward()
    optimizer.step()
    moving.update_parameters(model)
    if step % 5 == 4:
        average.update_parameters(model)
        scheduler.step()
        held = copy.deepcopy(model.state_dict())  # evaluate with the average, then go on
        model.load_state_dict(moving.module.state_dict())
        with torch.no_grad():
            model(x)
        model.load_state_dict(held)
update_bn([batch()[0] for _ in range(3)], average)
show(model, average, moving)
""",
    "compiled": """
compiled = torch.compile(model, backend="aot_eager")
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for step in range(30):
    optimizer.zero_grad()
    x, y = batch()
    cross_entropy(compiled(x), y).backward()
    optimizer.step()
show(model)
""",
    "compiled-step": """
optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(1e-3))
@torch.compile(backend="aot_eager")
def step():
    optimizer.step()
for _ in range(20):
    optimizer.zero_grad()
    x, y = batch()
    cross_entropy(model(x), y).backward()
    step()
show(model)
""",
    "zeros-in-place": """
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for step in range(30):
    optimizer.zero_grad(set_to_none=False)
    x, y = batch()
    cross_entropy(model(x), y).backward()
    optimizer.step()
show(model)
""",
    "zeros-through-data": """
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for step in range(150):
    for p in model.parameters():
        if p.grad is not None:
            p.grad.data.zero_()
    x, y = batch()
    cross_entropy(model(x), y).backward()
    optimizer.step()
show(model)
""",
    "gradients-clipped": """
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, 30)
for step in range(30):
    optimizer.zero_grad()
    x, y = batch()
    cross_entropy(model(x), y).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()
    scheduler.step()
show(model)
""",
    "weights-clipped": """
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for step in range(60):
    optimizer.zero_grad()
    x, y = batch()
    cross_entropy(model(x), y).backward()
    optimizer.step()
    with torch.no_grad():
        for p in model.parameters():
            p.clamp_(-0.2, 0.2)
show(model)
""",
    "lookahead-by-hand": """
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
slow = [p.detach().clone() for p in model.parameters()]
for step in range(60):
    optimizer.zero_grad()
    x, y = batch()
    cross_entropy(model(x), y).backward()
    optimizer.step()
    if step % 6 == 5:
        with torch.no_grad():
            for p, s in zip(model.parameters(), slow):
                s.lerp_(p, 0.5)
                p.copy_(s)
show(model)
""",
    "double-backward": """
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for step in range(30):
    optimizer.zero_grad()
    x, y = batch()
    x.requires_grad_(True)
    loss = cross_entropy(model(x), y)
    slope, = torch.autograd.grad(loss, x, create_graph=True)
    (loss + slope.square().sum()).backward()
    optimizer.step()
show(model)
""",
    "two-phases": """
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for step in range(40):
    if step == 20:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [
            torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 5),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)], [50])
    optimizer.zero_grad()
    x, y = batch()
    cross_entropy(model(x), y).backward()
    optimizer.step()
    if step >= 20:
        scheduler.step()
show(model)
""",
    "resumed": """
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
def train(steps):
    for step in range(steps):
        optimizer.zero_grad()
        x, y = batch()
        cross_entropy(model(x), y).backward()
        optimizer.step()
train(10)
saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
train(10)
model.load_state_dict(saved[0])
optimizer.load_state_dict(saved[1])
train(20)
show(model)
""",
    "low-precision": """
model = network().to(torch.bfloat16)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(30):
    optimizer.zero_grad()
    x, y = batch()
    cross_entropy(model(x.bfloat16()), y).backward()
    optimizer.step()
show(model)
""",
    "gradsteps-own": """
import gradstep
optimizer = gradstep.AdamW(model.parameters(), lr=1e-3)
for step in range(30):
    optimizer.zero_grad()
    x, y = batch()
    cross_entropy(model(x), y).backward()
    optimizer.step()
show(model)
""",
    "added-and-pruned": """
from torch.nn.utils import parametrizations, prune
model = network()
parametrizations.weight_norm(model[0])
prune.l1_unstructured(model[2], "weight", 0.3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for step in range(30):
    if step == 10:
        more = nn.Linear(4, 4)
        model.append(more)
        optimizer.add_param_group({"params": more.parameters(), "lr": 0.02})
    optimizer.zero_grad()
    x, y = batch()
    cross_entropy(model(x), y).backward()
    optimizer.step()
show(model)
""",
    # What people really write, and what was once taken for a mistake.
    "bert-like": """
class Bert(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(20, 16), nn.Embedding(8, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.out = nn.LayerNorm(16), nn.Linear(16, 20)
    def forward(self, x):
        x = self.words(x) + self.places(torch.arange(x.shape[1]))
        return self.out(self.norm(self.encoder(x)))
model = Bert()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
scheduler = torch.optim.lr_scheduler.LambdaLR(
    optimizer, lambda i: min(i / 10, max(0.0, (40 - i) / 30)))
for step in range(40):
    model.train()
    x = torch.randint(0, 20, (4, 8))
    mask = torch.rand(4, 8) < 0.3
    mask[0, 0] = True
    loss = cross_entropy(model(x.masked_fill(mask, 0))[mask], x[mask])
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
    if step % 10 == 9:
        model.eval()
        with torch.no_grad():
            for _ in range(4):
                model(x)
show(model)
""",
    "seq2seq-with-attention": """
class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.query = nn.Embedding(12, 16), nn.Linear(16, 16)
        self.key = nn.Linear(16, 16)
        self.value, self.cell = nn.Linear(16, 1), nn.GRU(32, 16, batch_first=True)
        self.out, self.drop = nn.Linear(16, 12), nn.Dropout(0.1)
    def forward(self, memory, hidden, words):
        outputs = []
        for i in range(words.shape[1]):
            scores = self.value(torch.tanh(self.query(hidden[0])[:, None] + self.key(memory)))
            context = (torch.softmax(scores.squeeze(2), -1)[:, None] @ memory)
            x = torch.cat([self.drop(self.table(words[:, i : i + 1])), context], 2)
            output, hidden = self.cell(x, hidden)
            outputs.append(self.out(output))
        return torch.log_softmax(torch.cat(outputs, 1), -1)
class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.cell = nn.Embedding(12, 16), nn.GRU(16, 16, batch_first=True)
    def forward(self, x):
        return self.cell(self.table(x))
encoder, decoder = Encoder(), Decoder()
one = torch.optim.Adam(encoder.parameters(), lr=1e-3)
two = torch.optim.Adam(decoder.parameters(), lr=1e-3)
criterion = nn.NLLLoss()
for step in range(40):
    x, y = torch.randint(0, 12, (4, 5)), torch.randint(0, 12, (4, 5))
    one.zero_grad()
    two.zero_grad()
    memory, hidden = encoder(x)
    found = decoder(memory, hidden, y)
    criterion(found.view(-1, 12), y.view(-1)).backward()
    one.step()
    two.step()
show(encoder, decoder)
""",
    "gan-with-batch-norm": """
def block(inputs, outputs):
    return [nn.Linear(inputs, 16), nn.BatchNorm1d(16, 0.8), nn.LeakyReLU(0.2),
            nn.Linear(16, outputs)]
generator = nn.Sequential(*block(3, 6), nn.Tanh())
critic = nn.Sequential(*block(6, 1), nn.Sigmoid())
adversarial = nn.BCELoss()
one = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
two = torch.optim.Adam(critic.parameters(), lr=2e-4, betas=(0.5, 0.999))
for step in range(60):
    real = torch.randn(8, 6)
    valid, fake = torch.ones(8, 1), torch.zeros(8, 1)
    one.zero_grad()
    made = generator(torch.randn(8, 3))
    adversarial(critic(made), valid).backward()
    one.step()
    two.zero_grad()
    loss = (adversarial(critic(real), valid) + adversarial(critic(made.detach()), fake)) / 2
    loss.backward()
    two.step()
show(generator, critic)
""",
    "adam-then-lbfgs": """
# A physics-informed network: u'' = -u on [0, 1]
model = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
points = torch.linspace(0, 1, 16)[:, None].requires_grad_(True)
def loss_of():
    u = model(points)
    slope, = torch.autograd.grad(u.sum(), points, create_graph=True)
    curve, = torch.autograd.grad(slope.sum(), points, create_graph=True)
    return mse_loss(curve, -u) + u[0].square().sum() + (u[-1] - 0.84).square().sum()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for step in range(30):
    optimizer.zero_grad()
    loss = loss_of()
    loss.backward()
    optimizer.step()
optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=5, line_search_fn="strong_wolfe")
def closure():
    optimizer.zero_grad()
    loss = loss_of()
    loss.backward()
    return loss
for step in range(5):
    optimizer.step(closure)
show(model)
""",
    "moco": """
def encoder():
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))
query, key = encoder(), encoder()
key.load_state_dict(query.state_dict())
for p in key.parameters():
    p.requires_grad = False
queue = nn.functional.normalize(torch.randn(8, 32), dim=0)
optimizer = torch.optim.SGD(query.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4)
for step in range(30):
    x, _ = batch()
    q = nn.functional.normalize(query(x + 0.1 * torch.randn_like(x)), dim=1)
    with torch.no_grad():
        for p, k in zip(query.parameters(), key.parameters()):
            k.data = k.data * 0.99 + p.data * 0.01
        k = nn.functional.normalize(key(x + 0.1 * torch.randn_like(x)), dim=1)
    scores = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.clone().detach()], dim=1) / 0.07
    loss = cross_entropy(scores, torch.zeros(8, dtype=torch.long))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    queue = torch.cat([k.T, queue[:, :-8]], dim=1)
show(query, key)
""",
    "ppo": """
from torch.distributions import Categorical
class Agent(nn.Module):
    def __init__(self):
        super().__init__()
        self.critic = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
        self.actor = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))
    def forward(self, x, action=None):
        chances = Categorical(logits=self.actor(x))
        action = chances.sample() if action is None else action
        return action, chances.log_prob(action), chances.entropy(), self.critic(x)
agent = Agent()
optimizer = torch.optim.Adam(agent.parameters(), lr=2.5e-4, eps=1e-5)
for update in range(6):
    optimizer.param_groups[0]["lr"] = (1 - update / 6) * 2.5e-4
    seen, done, chance, value = [], [], [], []
    for _ in range(8):
        with torch.no_grad():
            x = torch.randn(4, 6)
            a, logprob, _, v = agent(x)
        seen.append(x), done.append(a), chance.append(logprob), value.append(v.flatten())
    x, a, logprob, v = map(torch.cat, (seen, done, chance, value))
    returns = v + torch.randn_like(v)
    for epoch in range(4):
        for at in torch.randperm(32).split(8):
            _, new, entropy, guess = agent(x[at], a[at])
            ratio = (new - logprob[at]).exp()
            gain = returns[at] - v[at]
            gain = (gain - gain.mean()) / (gain.std() + 1e-8)
            policy = torch.max(-gain * ratio, -gain * ratio.clamp(0.8, 1.2)).mean()
            values = 0.5 * ((guess.view(-1) - returns[at]) ** 2).mean()
            loss = policy - 0.01 * entropy.mean() + 0.5 * values
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()
show(agent)
""",
    "sac": """
def net(inputs):
    return nn.Sequential(nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, 1))
actor, one, two, target = nn.Linear(6, 2), net(7), net(7), net(7)
target.load_state_dict(one.state_dict())
critics = torch.optim.Adam(list(one.parameters()) + list(two.parameters()), lr=1e-3)
policy = torch.optim.Adam(list(actor.parameters()), lr=3e-4)
log_alpha = torch.zeros(1, requires_grad=True)
alphas = torch.optim.Adam([log_alpha], lr=1e-3)
def act(x):
    mean, log_std = actor(x).chunk(2, -1)
    noise = torch.randn_like(mean)
    return torch.tanh(mean + log_std.clamp(-5, 2).exp() * noise), -0.5 * noise.square() - log_std
for step in range(40):
    x, after = torch.randn(8, 6), torch.randn(8, 6)
    with torch.no_grad():
        a, logp = act(after)
        value = target(torch.cat([after, a], 1)) - log_alpha.exp() * logp
        goal = torch.randn(8) + 0.99 * value.view(-1)
    done = torch.rand(8, 1) * 2 - 1
    loss = sum(mse_loss(q(torch.cat([x, done], 1)).view(-1), goal) for q in (one, two))
    critics.zero_grad()
    loss.backward()
    critics.step()
    if step % 2 == 0:
        for _ in range(2):
            a, logp = act(x)
            least = torch.min(one(torch.cat([x, a], 1)), two(torch.cat([x, a], 1)))
            policy.zero_grad()
            (log_alpha.exp().item() * logp - least).mean().backward()
            policy.step()
            with torch.no_grad():
                _, logp = act(x)
            alphas.zero_grad()
            (-log_alpha.exp() * (logp - 1)).mean().backward()
            alphas.step()
    for p, t in zip(one.parameters(), target.parameters()):
        t.data.copy_(0.005 * p.data + 0.995 * t.data)
show(actor, one, two)
""",
    "forward-forward": """
class Layer(nn.Linear):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.optimizer = torch.optim.Adam(self.parameters(), lr=0.03)
    def forward(self, x):
        x = x / (x.norm(2, 1, keepdim=True) + 1e-4)
        return torch.relu(x @ self.weight.T + self.bias.unsqueeze(0))
    def train_on(self, good, bad):
        for _ in range(60):
            g, b = self(good).pow(2).mean(1), self(bad).pow(2).mean(1)
            loss = torch.log(1 + torch.exp(torch.cat([2 - g, b - 2]))).mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return self(good).detach(), self(bad).detach()
layers = [Layer(784, 100), Layer(100, 100)]
x = torch.rand(50, 784)
good, bad = x.clone(), x.clone()
good[:, :10] = nn.functional.one_hot(torch.arange(50) % 10, 10).float()
bad[:, :10] = nn.functional.one_hot((torch.arange(50) + 3) % 10, 10).float()
for layer in layers:
    good, bad = layer.train_on(good, bad)
print(layers[0].weight.sum().tolist(), [[layers[1].weight.sum().tolist()]])
""",
    "cifar": """
class Block(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.one, self.norm = nn.Conv2d(n, n, 3, padding=1, bias=False), nn.BatchNorm2d(n)
        self.two, self.last = nn.Conv2d(n, n, 3, padding=1, bias=False), nn.BatchNorm2d(n)
    def forward(self, x):
        return torch.relu(x + self.last(self.two(torch.relu(self.norm(self.one(x))))))
net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Block(8), nn.AvgPool2d(4), nn.Flatten(),
                    nn.Linear(32, 10))
data = torch.utils.data.TensorDataset(torch.randn(64, 3, 8, 8), torch.randint(0, 10, (64,)))
loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6)
for epoch in range(6):
    net.train()
    for inputs, targets in loader:
        optimizer.zero_grad()
        criterion(net(inputs), targets).backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        for inputs, targets in loader:
            net(inputs).max(1)
    scheduler.step()
show(net)
""",
    "nanogpt": """
class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.all, self.out, self.drop = nn.Linear(16, 48), nn.Linear(16, 16), nn.Dropout(0.1)
    def forward(self, x):
        q, k, v = (part.view(4, 8, 2, 8).transpose(1, 2) for part in self.all(x).split(16, 2))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.drop(self.out(y.transpose(1, 2).reshape(4, 8, 16)))
class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(20, 16), nn.Embedding(8, 16)
        self.norm, self.attention, self.last = nn.LayerNorm(16), Attention(), nn.LayerNorm(16)
        self.head = nn.Linear(16, 20, bias=False)
        self.words.weight = self.head.weight
    def forward(self, x, y):
        x = self.words(x) + self.places(torch.arange(8))
        scores = self.head(self.last(x + self.attention(self.norm(x))))
        return scores, cross_entropy(scores.view(-1, 20), y.view(-1), ignore_index=-1)
model = GPT()
decay = [p for p in model.parameters() if p.dim() >= 2]
rest = [p for p in model.parameters() if p.dim() < 2]
groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
optimizer = torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95))
scaler = torch.amp.GradScaler("cpu", enabled=False)
@torch.no_grad()
def estimate():
    model.eval()
    for _ in range(4):
        x = torch.randint(0, 20, (4, 8))
        model(x, x)
    model.train()
for step in range(20):
    for group in optimizer.param_groups:
        group["lr"] = 6e-4 * min(1, (step + 1) / 5)
    if step % 10 == 0:
        estimate()
    for micro in range(2):
        x = torch.randint(0, 20, (4, 8))
        scaler.scale(model(x, x)[1] / 2).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
show(model)
""",
    "by-hand": """
w = torch.randn(6, 4, requires_grad=True)
for step in range(40):
    x, y = batch()
    cross_entropy(x @ w, y).backward()
    with torch.no_grad():
        w -= 0.1 * w.grad
        w.grad = None
for step in range(40):
    for micro in range(3):
        x, y = batch()
        (cross_entropy(model(x), y) / 3).backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.1 * p.grad
    model.zero_grad(set_to_none=step % 2 == 0)
show(model)
""",
    "adversarial-training": """
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for step in range(30):
    x, y = batch()
    attack = x.clone().requires_grad_(True)
    cross_entropy(model(attack), y).backward()
    optimizer.zero_grad()
    cross_entropy(model(x + 0.1 * attack.grad.sign()), y).backward()
    optimizer.step()
show(model)
""",
    "adversarial-steps": """
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
for step in range(30):
    x, y = batch()
    move = torch.zeros_like(x, requires_grad=True)
    for _ in range(3):
        cross_entropy(model(x + move), y).backward()
        move.data = (move + 0.1 * move.grad.detach().sign()).clamp(-0.3, 0.3)
        move.grad.zero_()
    optimizer.zero_grad()
    cross_entropy(model(x + move.detach()), y).backward()
    optimizer.step()
show(model)
""",
    "language-model-by-hand": """
class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.cell = nn.Embedding(20, 16), nn.LSTM(16, 16, 2, dropout=0.2)
        self.out = nn.Linear(16, 20)
    def forward(self, x, hidden):
        y, hidden = self.cell(self.table(x), hidden)
        return torch.log_softmax(self.out(y).view(-1, 20), dim=1), hidden
model = Words()
hidden = torch.zeros(2, 4, 16), torch.zeros(2, 4, 16)
for step in range(40):
    x = torch.randint(0, 20, (6, 4))
    model.zero_grad()
    found, hidden = model(x, tuple(h.detach() for h in hidden))
    nn.NLLLoss()(found, x.view(-1)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
    for p in model.parameters():
        p.data.add_(p.grad, alpha=-5.0)
show(model)
""",
    "perceptual-loss": """
judge = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 6))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for step in range(30):
    optimizer.zero_grad()
    x, _ = batch()
    mse_loss(judge(model(x)), judge(x)).backward()
    optimizer.step()
show(model)
""",
    "gradient-surgery": """
heads = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 2)])
optimizer = torch.optim.Adam([*model.parameters(), *heads.parameters()], lr=1e-3)
for step in range(20):
    x, _ = batch()
    both = []
    for head in heads:
        optimizer.zero_grad()
        head(model(x)).square().mean().backward()
        both.append([None if p.grad is None else p.grad.clone() for p in model.parameters()])
    optimizer.zero_grad()
    for p, one, two in zip(model.parameters(), *both):
        p.grad = one + two
    optimizer.step()
show(model)
""",
    "schedule-free": """
import gradstep
model.append(nn.BatchNorm1d(4))
optimizer = gradstep.AdamWScheduleFree(model.parameters(), lr=1e-3)
for epoch in range(3):
    model.train()
    optimizer.train()
    for _ in range(6):
        optimizer.zero_grad()
        x, y = batch()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.eval()
    with torch.no_grad():
        for _ in range(5):
            model(batch()[0])  # statistics for the averages
    model.eval()
    with torch.no_grad():
        for _ in range(5):
            model(batch()[0])
show(model)
""",
    "fine-tuned-with-frozen-norms": """
model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
for epoch in range(3):
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()
    for _ in range(6):
        optimizer.zero_grad()
        x, y = batch()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        model(x)
show(model)
""",
    "compiled-whole": """
model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2),
                      nn.Linear(16, 4))
@torch.compile(backend="aot_eager", fullgraph=True)
def loss_of(x, y):
    return nn.CrossEntropyLoss()(model(x), y)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for step in range(20):
    optimizer.zero_grad()
    loss_of(*batch()).backward()
    optimizer.step()
show(model)
""",
}
HEALTHY = {name: _START + script for name, script in HEALTHY.items()}
