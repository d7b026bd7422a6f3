"""The block of docs/guides/beyond-recommendation.md that trains sentence-transformers, as it stands there."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed (.ci/integrations does it)")

import torch  # noqa: E402
from documentation.markdown_blocks import blocks  # noqa: E402
from test_sentence_transformers import make_model  # noqa: E402


@pytest.mark.filterwarnings("ignore")  # the library's own, and those of what it builds on
def test_text_pairs(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = checkout / "docs" / "guides" / "beyond-recommendation.md"
    (block,) = [block for block in blocks(page) if Path(__file__).name in block.comment]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "my-model").mkdir()
    before = [weight.clone() for weight in make_model(tmp_path / "my-model").parameters()]
    names = {"__name__": "__main__"}
    exec(block.code, names)
    after = list(names["model"].parameters())
    assert all(weight.isfinite().all() for weight in after)
    assert any(not torch.equal(new.cpu(), old) for new, old in zip(after, before, strict=True))
