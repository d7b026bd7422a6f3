"""The Lightning example: it trains on made-up data, and runs from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_cases import load_blocks, write_split

lightning = pytest.importorskip("lightning", reason="the example of Lightning needs the package lightning")

from examples import lightning_mf  # noqa: E402

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class _Losses(lightning.Callback):
    """The mean loss of each epoch."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.seen.append(trainer.callback_metrics["loss"].item())


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*is deprecated")
def test_it_learns_blocks(kernels: None, tmp_path: Path) -> None:
    """Users take items of their own block only: a model that finds the blocks ranks the rest of the block first."""
    lightning.seed_everything(0)
    dataset = load_blocks(tmp_path)
    model, losses = lightning_mf.LightningMF(dataset, dim=16, num_negatives=16), _Losses()
    before = model.ndcg(dataset)
    trainer = lightning.Trainer(max_epochs=10, accelerator="cpu", callbacks=[losses], **QUIET)
    trainer.fit(model, lightning_mf.batches(dataset, batch_size=64))
    assert trainer.global_step == 10 * -(-len(dataset.train_users) // 64)
    assert len(losses.seen) == 10 and losses.seen[-1] < losses.seen[0] - 0.5
    assert model.ndcg(dataset) > before + 0.2


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*is deprecated")
def test_command_line(kernels: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_split(tmp_path, load_blocks(tmp_path))
    assert lightning_mf.main(["--data", str(tmp_path), "--epochs", "1"]) == 0
    assert f"{tmp_path.name}: NDCG@20 0." in capsys.readouterr().out
    assert lightning_mf.main(["--data", str(tmp_path / "nothing")]) == 2
    assert "nothing: expected an interaction file" in capsys.readouterr().err
