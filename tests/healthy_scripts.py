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
}
HEALTHY = {name: _START + script for name, script in HEALTHY.items()}
