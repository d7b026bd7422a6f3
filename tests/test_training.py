"""Sampling, the losses of the benchmarks, and training end to end on made-up data."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import data, plots, reporting, sampling, step_cost, training
from benchmarks.losses import LOSSES, LossOptions, build_loss
from benchmarks.metrics import ranking_metrics
from benchmarks.sampling import InteractionSampler
from benchmarks.trainer import Trainer, TrainingConfig, train

FLAGS = ["--backend", "reference", "--negatives", "8", "--batch-size", "64", "--dim", "8", "--core", "2"]


def p_value(counts: torch.Tensor) -> float:
    """Of the chi-square test that counts come from a uniform distribution."""
    expected = counts.double().mean()
    statistic = ((counts - expected) ** 2 / expected).sum()
    return torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2).double(), statistic / 2).item()


@pytest.fixture
def blocks(tmp_path: Path) -> Path:
    """A file in which users of each of 4 blocks take 10 of their block's 14 items, and no others."""
    rng = np.random.default_rng(0)
    lines = [
        f"user{user} item{14 * (user % 4) + item}\n"
        for user in range(60)
        for item in rng.choice(14, size=10, replace=False)
    ]
    path = tmp_path / "blocks.txt"
    path.write_text("".join(lines), encoding="utf-8")
    return path


# --- sampling ---


@pytest.fixture(params=["bitmap", "search"])
def sampler_kind(request, monkeypatch):
    if request.param == "search":
        monkeypatch.setattr(sampling, "_MAX_BITMAP_BYTES", 0)
    return request.param


def seeded(device: torch.device, seed: int = 0) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def test_negatives_are_uniform_on_what_the_user_has_not(sampler_kind, device):
    positives = {0: [0, 1, 2, 19], 1: [7], 2: [], 3: list(range(19)), 4: [3, 4, 5, 6, 10, 12, 18]}
    pairs = torch.tensor([(user, item) for user, items in positives.items() for item in items])
    pairs = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(1))].to(device)
    sampler = InteractionSampler(pairs[:, 0], pairs[:, 1], num_users=5, num_items=20)

    users = torch.tensor([4, 0, 1, 2, 3, 4, 0]).repeat(100)
    drawn = sampler.negatives(users.to(device), 200, seeded(device))
    assert drawn.device.type == device.type
    drawn = drawn.cpu()
    assert drawn.shape == (700, 200)
    assert drawn.dtype == torch.int32
    for user, items in positives.items():
        counts = torch.bincount(drawn[users == user].flatten(), minlength=20)
        others = [item for item in range(20) if item not in items]
        assert len(counts) == 20
        assert counts[items].sum() == 0
        assert p_value(counts[others]) > 1e-4 if len(others) > 1 else counts[others].item() == 20_000


def test_negatives_are_independent_along_a_row(sampler_kind, device):
    # Two draws of a row fall on each pair of the 3 x 3 candidates equally often.
    sampler = InteractionSampler(torch.zeros(2, dtype=torch.int64).to(device), torch.tensor([1, 3]).to(device), 1, 5)
    drawn = sampler.negatives(torch.zeros(20_000, dtype=torch.int64, device=device), 2, seeded(device))
    rank = torch.tensor([0, -1, 1, -1, 2])[drawn.cpu()]
    assert p_value(torch.bincount(3 * rank[:, 0] + rank[:, 1], minlength=9)) > 1e-4


def test_same_seed_same_negatives(sampler_kind, device):
    users = torch.arange(4, device=device)
    sampler = InteractionSampler(users, users, 4, 50)
    first, again, other = (sampler.negatives(users, 30, seeded(device, seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_batches_of_any_size_can_follow_each_other(sampler_kind):
    pairs = torch.randperm(40 * 3000, generator=torch.Generator().manual_seed(0))[:12000]
    users, items = pairs // 3000, pairs % 3000
    sampler = InteractionSampler(users, items, num_users=40, num_items=3000)
    known = set(pairs.tolist())
    shapes = [(40, 50), (7, 200), (40, 3), (1, 1), (40, 50)]
    drawn = []
    for seed, (rows, num_negatives) in enumerate(shapes):
        negatives = sampler.negatives(torch.arange(rows), num_negatives, torch.Generator().manual_seed(seed))
        keys = torch.arange(rows).unsqueeze(1) * 3000 + negatives
        assert not known & set(keys.flatten().tolist())
        drawn.append((negatives, negatives.clone()))
    for seed, ((rows, num_negatives), (negatives, copy)) in enumerate(zip(shapes, drawn, strict=True)):
        assert torch.equal(negatives, copy)  # later calls have not written to it
        fresh = InteractionSampler(users, items, num_users=40, num_items=3000)
        again = fresh.negatives(torch.arange(rows), num_negatives, torch.Generator().manual_seed(seed))
        assert torch.equal(negatives, again)


def test_a_user_without_a_negative_is_refused():
    users, items = torch.tensor([0, 1, 1, 1]), torch.tensor([0, 2, 0, 1])
    with pytest.raises(ValueError, match="user 1: expected an item that is no positive of theirs, got all 3"):
        InteractionSampler(users, items, num_users=2, num_items=3)


def test_further_positives_are_uniform_on_the_users_others(device):
    positives = {0: [3, 5, 8, 11], 1: [2], 2: [0, 9], 4: [7]}
    pairs = torch.tensor([(user, item) for user, items in positives.items() for item in items]).to(device)
    sampler = InteractionSampler(pairs[:, 0], pairs[:, 1], num_users=5, num_items=12)
    interactions = torch.arange(len(pairs), device=device).repeat(400)
    drawn = sampler.further_positives(interactions, 30, seeded(device))
    assert drawn.shape == (len(interactions), 30)
    drawn, interactions = drawn.cpu(), interactions.cpu()
    for index in range(len(pairs)):
        user, own = sampler.users[index].item(), sampler.items[index].item()
        others = [item for item in positives[user] if item != own]
        found = drawn[interactions == index].flatten()
        if not others:
            assert (found == -1).all()
            continue
        counts = torch.bincount(found, minlength=12)
        assert counts[others].sum() == len(found)
        assert p_value(counts[others]) > 1e-4 if len(others) > 1 else True


# --- losses ---


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)

    def ids(*shape):
        return torch.randint(30, shape, generator=generator)

    queries = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    items = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    return queries, items, ids(6), ids(6, 9), ids(6, 3)


def cosines(queries, items, ids):
    x = items[ids]
    q = queries.reshape(len(queries), *[1] * (x.dim() - 2), -1)
    return (q * x).sum(-1) / (q.norm(dim=-1) * x.norm(dim=-1))


def expected_loss(name: str, queries, items, pos_ids, neg_ids, extra_ids) -> torch.Tensor:
    """Each loss as published for the cosine, for τ = 0.2 there, which is 0.1 on the half cosine."""
    tau, prior = 0.2, 0.05
    p, n, e = (cosines(queries, items, ids) for ids in (pos_ids, neg_ids, extra_ids))
    d = n - p.unsqueeze(1)
    if name == "bpr":
        scores = [(queries * items[ids]).sum(-1) for ids in (pos_ids, neg_ids[:, 0])]
        return -torch.log(torch.sigmoid(scores[0] - scores[1])).mean()
    if name == "sl":
        return torch.logsumexp(d / tau, 1).mean()
    if name == "infonce":
        return -torch.log(torch.exp(p / tau) / (torch.exp(p / tau) + torch.exp(n / tau).sum(1))).mean()
    if name.startswith("psl"):
        surrogate = {"tanh": torch.tanh, "atan": torch.atan, "relu": lambda x: torch.relu(x + 1) - 1}[name[4:]]
        return torch.log(((surrogate(d / 2) + 1) ** (1 / 0.1)).sum(1)).mean()
    margin_of_extra = e - p.unsqueeze(1)
    if name == "dcl":
        difference = torch.exp(d / tau).mean(1) - prior * torch.exp(margin_of_extra / tau).mean(1)
        mass = torch.clamp(difference, min=math.exp(-2 / tau)) / (1 - prior)
        return torch.log(1 + 9 * mass).mean()
    a, c = ((torch.sigmoid(-x / tau) * torch.exp(x / tau)).mean(1) for x in (d, margin_of_extra))
    mass = torch.maximum(a - prior * c, 0.3 * a) / (1 - prior)
    return (2 * torch.sigmoid(p / 2.5) * torch.log(9 * mass)).mean()


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_the_published_ones(name, batch):
    options = LossOptions(temperature=0.1, prior=0.05, confidence_temperature=1.25, backend="reference")
    found = build_loss(name, options).function(*batch)
    torch.testing.assert_close(found, expected_loss(name, *batch), rtol=1e-10, atol=0)


def test_bad_hyper_parameters_are_refused_before_training():
    with pytest.raises(ValueError, match=r"loss must be one of bpr, sl, .*got 'ls'"):
        build_loss("ls")
    with pytest.raises(ValueError, match="prior must be in"):
        build_loss("cw", LossOptions(prior=1.0, backend="reference"))
    with pytest.raises(ValueError, match="temperature must be > 0"):
        build_loss("sl", LossOptions(temperature=0.0, backend="reference"))


# --- training ---


def load_results(directory: Path) -> dict:
    report = json.loads((directory / "results.json").read_text(encoding="utf-8"))
    assert (directory / "results.png").read_bytes().startswith(b"\x89PNG")
    return report


def test_training_end_to_end(blocks, device, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    losses = ["bpr", "sl", "cw"]
    arguments = ["--epochs", "15", "--eval-every", "3", "--device", device.type, "--out", str(out)]
    status = training.main(["--data", str(blocks), "--loss", *losses, *arguments, *FLAGS])
    assert status == 0

    dataset = data.load(blocks, core=2)
    tables = (torch.randn(count, 8, generator=torch.Generator().manual_seed(0)) for count in (60, 56))
    untrained = ranking_metrics(
        *tables, dataset.test_users, dataset.test_items, dataset.train_users, dataset.train_items
    )
    report = load_results(out)
    assert [run["loss"] for run in report["runs"]] == losses
    assert report["data"] == {"name": "blocks", "users": 60, "items": 56, "train": 480, "test": 120}
    assert report["environment"]["torch"] == torch.__version__
    assert ("gpu" in report["environment"]) == (device.type == "cuda")
    for run in report["runs"]:
        assert run["config"]["device"] == device.type
        assert [point["epoch"] for point in run["validation"]] == [3, 6, 9, 12, 15]
        assert run["best_validation"]["ndcg"] == max(point["ndcg"] for point in run["validation"])
        assert run["test"]["recall"] > 2 * untrained["recall"]
        assert run["test"]["ndcg"] > 2 * untrained["ndcg"]
        assert run["test_validation_masked"]["ndcg"] >= run["test"]["ndcg"]
        assert run["seconds"]["total"] >= sum(
            run["seconds"][part] for part in ("sampling", "loss", "optimizer", "evaluation")
        )
    printed = capsys.readouterr().out
    assert "NDCG@20" in printed
    assert str(out / "results.json") in printed
    for run in report["runs"]:
        assert f"{run['test']['ndcg']:.4f}" in printed


def test_the_best_epoch_is_what_gets_tested(blocks):
    dataset = data.load(blocks, core=2)
    config = TrainingConfig(dim=8, lr=0.3, epochs=15, batch_size=64, negatives=8, eval_every=1)
    trainer = Trainer(dataset, build_loss("sl", LossOptions(backend="reference")), config)
    trainer.train()
    assert trainer.best["epoch"] < 15
    fit = trainer.fit
    found = ranking_metrics(
        *trainer._best_tables,
        trainer.validation_users,
        trainer.validation_items,
        fit.train_users,
        fit.train_items,
    )
    assert found["ndcg"] == trainer.best["ndcg"]
    masked_more = ranking_metrics(
        *trainer._best_tables,
        dataset.test_users,
        dataset.test_items,
        torch.cat([fit.train_users, trainer.validation_users]),
        torch.cat([fit.train_items, trainer.validation_items]),
    )
    assert trainer.test()["test_validation_masked"] == masked_more


@pytest.mark.parametrize(("name", "by_cosine"), [("bpr", False), ("sl", True), ("cw", True)])
def test_items_are_ranked_by_the_similarity_trained_with(blocks, name, by_cosine):
    dataset = data.load(blocks, core=2)
    config = TrainingConfig(dim=8, lr=0.0, epochs=1, batch_size=64, negatives=8)
    trainer = Trainer(dataset, build_loss(name, LossOptions(backend="reference")), config)
    trainer.train()
    users, items = trainer.model()
    if by_cosine:
        items = items / items.norm(dim=1, keepdim=True)
    targets = (dataset.test_users, dataset.test_items)
    fit = (trainer.fit.train_users, trainer.fit.train_items)
    expected = ranking_metrics(users.detach(), items.detach(), *targets, *fit)
    assert trainer.test()["test"] == pytest.approx(expected)


def test_training_starts_alike_on_every_device(blocks, device):
    dataset = data.load(blocks, core=2)
    loss = build_loss("sl", LossOptions(backend="reference"))
    here, on_cpu = (Trainer(dataset, loss, TrainingConfig(dim=8, seed=3, device=name)) for name in (device.type, "cpu"))
    for table, expected in zip(here.model(), on_cpu.model(), strict=True):
        assert torch.equal(table.cpu(), expected)
    assert torch.equal(here.validation_items.cpu(), on_cpu.validation_items)
    assert torch.equal(torch.cat(here.shuffled_batches()).sort().values.cpu(), torch.arange(len(on_cpu.sampler.users)))


def test_the_same_seed_gives_the_same_run(blocks):
    dataset = data.load(blocks, core=2)
    loss = build_loss("cw", LossOptions(backend="reference"))
    runs = [
        train(dataset, loss, TrainingConfig(dim=8, epochs=2, negatives=8, eval_every=1, seed=seed))
        for seed in (1, 1, 2)
    ]
    assert runs[0]["validation"] == runs[1]["validation"]
    assert runs[0]["validation"] != runs[2]["validation"]


def test_patience_ends_training(blocks, tmp_path):
    # With a learning rate of 0 no validation is better than the first.
    arguments = [
        "--lr",
        "0",
        "--epochs",
        "50",
        "--eval-every",
        "2",
        "--patience",
        "3",
        "--out",
        str(tmp_path),
    ]
    assert training.main(["--data", str(blocks), "--loss", "sl", *arguments, *FLAGS]) == 0
    run = load_results(tmp_path)["runs"][0]
    assert (run["ended_by"], run["epochs"], run["best_epoch"]) == ("patience", 8, 2)


def interrupt_at(monkeypatch, loss: str, epoch: int) -> None:
    """Let Ctrl-C arrive in the given epoch (from 0) of the given loss."""
    original = Trainer._train_epoch

    def train_epoch(self):
        if self.loss.name == loss and self.epoch == epoch:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(Trainer, "_train_epoch", train_epoch)


def test_an_interrupted_run_is_tested_and_written(blocks, tmp_path, monkeypatch, capsys):
    interrupt_at(monkeypatch, "sl", 5)
    arguments = ["--loss", "bpr", "sl", "cw", "--epochs", "6", "--eval-every", "2", "--out", str(tmp_path)]
    assert training.main(["--data", str(blocks), *arguments, *FLAGS]) == 130
    runs = load_results(tmp_path)["runs"]
    assert [(run["loss"], run["epochs"], run["ended_by"]) for run in runs] == [
        ("bpr", 6, "epochs"),
        ("sl", 5, "interrupt"),
    ]
    assert "interrupted; runs written: bpr, sl" in capsys.readouterr().err


def test_an_interrupt_before_the_first_validation_keeps_the_runs_before(blocks, tmp_path, monkeypatch, capsys):
    interrupt_at(monkeypatch, "sl", 1)
    arguments = ["--loss", "bpr", "sl", "--epochs", "6", "--eval-every", "2", "--out", str(tmp_path)]
    assert training.main(["--data", str(blocks), *arguments, *FLAGS]) == 130
    assert [run["loss"] for run in load_results(tmp_path)["runs"]] == ["bpr"]
    assert "interrupted; runs written: bpr\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--data", "no/such/file"], "no/such/file: expected an interaction file, got nothing there"),
        (["--prior", "1.5"], "prior must be in [0, 1), got 1.5"),
        (["--tau", "-1"], "temperature must be > 0, got -1.0"),
        (["--core", "1000"], "expected interactions left after the 1000-core filter, got none"),
        (["--loss", "bpr", "--lr", "1e38", "--epochs", "3"], "bpr: the training loss became"),
    ],
)
def test_errors_are_one_line_with_status_2(blocks, tmp_path, capsys, arguments, complaint):
    status = training.main(["--data", str(blocks), *FLAGS, "--out", str(tmp_path / "out"), *arguments])
    assert status == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert complaint in last


def test_an_output_directory_that_cannot_be_is_refused_before_training(blocks, capsys, monkeypatch):
    monkeypatch.setattr(training, "train", lambda *_: pytest.fail("training began"))
    assert training.main(["--data", str(blocks), *FLAGS, "--out", str(blocks / "out")]) == 2
    assert f"{blocks / 'out'}: expected a writable output directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--loss", "nonsense"], "invalid choice: 'nonsense'"),
        (["--epochs", "0"], "expected a whole number of at least 1, got '0'"),
        (["--epochs", "many"], "expected a whole number of at least 1, got 'many'"),
        (["--lr", "nan"], "expected a finite number of at least 0, got 'nan'"),
        (["--patience", "-1"], "expected a whole number of at least 0, got '-1'"),
    ],
)
def test_bad_flags_are_refused(capsys, arguments, complaint):
    with pytest.raises(SystemExit) as caught:
        training.main(arguments)
    assert caught.value.code == 2
    assert complaint in capsys.readouterr().err


# --- results ---


def test_a_failed_write_leaves_the_file_before_it(tmp_path):
    path = tmp_path / "results.json"
    reporting.write_json(path, {"value": 1})
    with pytest.raises(TypeError):
        reporting.write_json(path, {"value": object()})
    assert json.loads(path.read_text()) == {"value": 1}


def test_table_columns_line_up():
    table = reporting.format_table(["loss", "x"], [["a", "10.25"], ["longer", "3"]])
    assert table.splitlines() == ["loss        x", "------  -----", "a       10.25", "longer      3"]


def test_plot_of_many_runs(tmp_path):
    point = {"epoch": 5, "ndcg": 0.0, "recall": 0.0}
    runs = [
        {"loss": f"loss-{i}", "k": 20, "validation": [point], "test": {"recall": 0.0, "ndcg": 0.0}} for i in range(11)
    ]
    plots.plot_runs(runs, tmp_path / "runs.png", "zeros")
    assert (tmp_path / "runs.png").read_bytes().startswith(b"\x89PNG")


# --- step cost ---


def test_step_cost_sees_the_memory_of_the_reference():
    shape = step_cost.StepShape(batch_size=256, negatives=128, extra_positives=2, dim=64, items=100)
    report = step_cost.measure(shape, repeats=3)
    reference = report["backends"]["reference"]
    assert 0 < reference["seconds"]["q20"] <= reference["seconds"]["median"] <= reference["seconds"]["q80"]
    # The reference gathers [B, N, D] floats, and keeps some copies of that size for the backward pass.
    gathered = 256 * 128 * 64 * 4
    assert gathered < reference["peak_extra_bytes"] < 20 * gathered
    described = step_cost.describe(report)
    assert f"{1e3 * reference['seconds']['median']:.1f}" in described
