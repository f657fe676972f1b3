"""The training loop, against one written out by hand with torch.optim; and its repeatability."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from gradstep.cli import main
from gradstep.lab.dataset import Dataset, shifted
from gradstep.lab.digits import load_digits
from gradstep.lab.lenet import LeNet
from gradstep.lab.repeatable import repeatable
from gradstep.lab.settings import Settings
from gradstep.lab.training import (
    TIMES,
    Learner,
    Training,
    batch_count,
    batches,
    begin_training,
    count_right,
    evaluate,
    initial_model,
    train_epoch,
    warm_up,
)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_digits(seed=0).limited(200)


def settings(optimizers: tuple[str, ...], **changes: object) -> Settings:
    values: dict[str, object] = {
        "optimizers": optimizers,
        "lrs": (0.01,) * len(optimizers),
        "epochs": 3,
        "batch_size": 32,
        "lr_decay": 0.5,
        "shift": 3,
        "seed": 0,
        "threads": 1,
        "data": None,
        "train_limit": None,
    }
    return Settings(**(values | changes))  # type: ignore[arg-type]


def train(chosen: Settings, data: Dataset) -> Training:
    with repeatable(chosen.threads):
        training = begin_training(chosen)
        for _ in range(chosen.epochs):
            train_epoch(training, data, chosen, lambda learners: None)
        return training


def same_bits(first: LeNet, second: LeNet) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )


def test_it_does_what_a_loop_by_hand_with_torch_optim_does(data: Dataset) -> None:
    """Plain SGD's arithmetic is settled, so the weights agree to the last bit."""
    ours = train(settings(("sgd",)), data)

    with repeatable(1):
        torch.manual_seed(0)
        model = LeNet()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        random = torch.Generator().manual_seed(0)
        for epoch in range(3):
            optimizer.param_groups[0]["lr"] = 0.01 * 0.5**epoch
            losses, right = [], 0
            for chosen in torch.randperm(200, generator=random).split(32):
                images = shifted(data.train_images[chosen], 3, data.background, random)
                scores = model(images)
                loss = cross_entropy(scores, data.train_labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses += [loss.item()] * len(chosen)
                right += (scores.argmax(1) == data.train_labels[chosen]).sum().item()

    assert same_bits(ours.learners[0].model, model)
    last = ours.records[-1]
    assert last["epoch"] == 3
    assert last["lr"] == 0.0025
    assert last["steps"] == 7
    assert last["train_loss"] == pytest.approx(sum(losses) / 200, rel=1e-12)
    assert last["train_accuracy"] == right / 200
    with torch.no_grad():
        scores = model.eval()(data.test_images)
    assert last["test_loss"] == pytest.approx(
        cross_entropy(scores, data.test_labels).item(), rel=1e-5
    )
    assert last["test_accuracy"] == (scores.argmax(1) == data.test_labels).sum().item() / 360


def test_several_side_by_side_are_the_same_as_each_alone(data: Dataset) -> None:
    names = ("adam", "sgd", "lion")
    together = train(settings(names), data)
    for learner in together.learners:
        alone = train(settings((learner.name,)), data)
        assert same_bits(learner.model, alone.learners[0].model), learner.name
        ours = [r for r in together.records if r["optimizer"] == learner.name]
        for a, b in zip(ours, alone.records, strict=True):
            assert {k: v for k, v in a.items() if k not in TIMES} == {
                k: v for k, v in b.items() if k not in TIMES
            }


def test_all_begin_with_the_same_weights_which_the_seed_decides() -> None:
    first, second = begin_training(settings(("adam", "sgd"))).learners
    assert same_bits(first.model, second.model)
    assert same_bits(first.model, initial_model(0))
    assert not same_bits(first.model, initial_model(1))


def test_an_epoch_shows_each_image_once_in_an_order_of_its_own(data: Dataset) -> None:
    random = torch.Generator().manual_seed(3)
    orders = []
    for _ in range(2):
        seen = list(batches(data, 32, 0, random))
        assert [len(labels) for _, labels in seen] == [32] * 6 + [8]
        assert len(seen) == batch_count(data, 32)
        images = torch.cat([images for images, _ in seen])
        places = [int((data.train_images == image).all((1, 2, 3)).nonzero()[0]) for image in images]
        assert len(set(places)) == 200
        assert torch.equal(
            torch.cat([labels for _, labels in seen]), data.train_labels[torch.tensor(places)]
        )
        orders.append(places)
    assert orders[0] != orders[1]


def test_the_caller_sees_every_batch_and_the_times_add_up(data: Dataset) -> None:
    chosen = settings(("sgd", "adam"))
    training = begin_training(chosen)
    images_seen = []

    def after_batch(learners: list[Learner]) -> None:
        images_seen.append([learner.tally.images for learner in learners])

    records = train_epoch(training, data, chosen, after_batch)
    assert images_seen == [[n, n] for n in (32, 64, 96, 128, 160, 192, 200)]
    for record in records:
        assert 0 < record["step_seconds"] < record["seconds"]
        assert record["step_share"] == record["step_seconds"] / record["seconds"]
        assert record["images_per_second"] == pytest.approx(200 / record["seconds"])


def test_evaluate_counts_in_pieces_what_it_would_at_once() -> None:
    torch.manual_seed(0)
    model = LeNet()
    images, labels = torch.randn(1203, 1, 32, 32), torch.randint(0, 10, (1203,))
    loss, accuracy = evaluate(model, images, labels)
    with torch.no_grad():
        scores = model(images)
    assert loss == pytest.approx(cross_entropy(scores, labels).item(), rel=1e-5)
    assert accuracy == count_right(scores, labels) / 1203
    assert model.training


def test_warming_up_leaves_no_trace(data: Dataset) -> None:
    chosen = settings(("adam",), epochs=1)
    cold = train(chosen, data)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    warm_up(chosen)
    assert torch.equal(torch.get_rng_state(), state)
    assert same_bits(train(chosen, data).learners[0].model, cold.learners[0].model)


def test_repeatable_puts_everything_back() -> None:
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with repeatable(3):
        assert torch.get_num_threads() == 3
        assert torch.are_deterministic_algorithms_enabled()
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


HASH_OF_A_RUN = """
import hashlib, random, sys
import torch
from gradstep.lab.digits import load_digits
from gradstep.lab.repeatable import prepare_environment, repeatable
from gradstep.lab.settings import Settings
from gradstep.lab.training import begin_training, train_epoch

prepare_environment()
threads = int(sys.argv[1])
litter = [torch.empty(random.randrange(1, 5000)) for _ in range(random.randrange(200))]
del litter[::2]  # so that tensors stand elsewhere in memory in each process
settings = Settings(("adamw", "sgd"), (0.002, 0.1), 2, 32, 0.9, 3, 0, threads, None, None)
with repeatable(threads):
    data = load_digits(0).limited(300)
    training = begin_training(settings)
    for _ in range(2):
        train_epoch(training, data, settings, lambda learners: None)
sha256 = hashlib.sha256()
for learner in training.learners:
    for weight in learner.model.parameters():
        sha256.update(weight.detach().numpy().tobytes())
print(sha256.hexdigest())
"""


@pytest.mark.slow
@pytest.mark.deep
@pytest.mark.parametrize("threads", [2, 1])
def test_fresh_processes_compute_the_same_bits(threads: int) -> None:
    hashes = {
        subprocess.run(
            [sys.executable, "-c", HASH_OF_A_RUN, str(threads)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(3)
    }
    assert len(hashes) == 1
    assert len(hashes.pop()) == 65


MISALIGNED = """
import torch
from gradstep.lab.repeatable import prepare_environment

prepare_environment()
torch.manual_seed(0)

def at(offset, tensor):
    room = torch.empty(tensor.numel() + 16)
    return room[offset : offset + tensor.numel()].view_as(tensor).copy_(tensor)

images, weight, bias = torch.randn(29, 84), torch.randn(10, 84), torch.randn(10)
results = {
    tuple(torch.nn.functional.linear(at(i, images), at(j, weight), bias).flatten().tolist())
    for i in range(16) for j in range(16)
}
print(len(results))
"""


def test_the_bits_do_not_depend_on_where_a_tensor_stands_in_memory() -> None:
    """Without ``prepare_environment`` MKL gives more than one result here."""
    run = subprocess.run(
        [sys.executable, "-c", MISALIGNED], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "1"


def test_a_network_that_runs_away_under_estimates_of_the_hessian(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--lr", "1e30", "--epochs", "1", "--train-limit", "96", "--batch-size", "8"]
    out = str(tmp_path / "run")
    assert main(["train", "--optimizer", "adahessian", *settings, "--out", out]) == 0
    assert "the loss of adahessian is no longer a finite number" in capsys.readouterr().err
