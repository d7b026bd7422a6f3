"""encode_in_micro_batches: one big batch's embeddings and gradients, with the activations of a small one."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import assert_near
from memory import peak_of
from torch import Tensor, nn

from cw_ext import cw_loss_in_batch, encode_in_micro_batches

ROWS, LENGTH, DIM = 13, 5, 8


class Encoder(nn.Module):
    """Tokens and, maybe, a mask to embeddings."""

    def __init__(self, dropout: float = 0.0, seed: int = 0, layers: int = 1) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.tokens = nn.Embedding(30, DIM, dtype=torch.float64)
            shape = {"dim_feedforward": 16, "dropout": dropout, "batch_first": True, "dtype": torch.float64}
            self.layers = nn.ModuleList([nn.TransformerEncoderLayer(DIM, 2, **shape) for _ in range(layers)])

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        states = self.tokens(tokens)
        for layer in self.layers:
            states = layer(states)
        return states.mean(1) if mask is None else (states * mask.unsqueeze(-1)).sum(1)


def tokens(seed: int, rows: int = ROWS, length: int = LENGTH) -> Tensor:
    return torch.randint(30, (rows, length), generator=torch.Generator().manual_seed(seed))


def mask(seed: int) -> Tensor:
    return torch.rand(ROWS, LENGTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def in_batch(queries: Tensor, items: Tensor, **loss: Any) -> Tensor:
    known: dict[str, Any] = {"temperature": 0.3, "prior": 0.1, "log_q_correction": False, "backend": "reference"}
    return cw_loss_in_batch(queries, items, torch.arange(len(queries), device=queries.device), **known | loss)


def gradients(loss: Tensor, *modules: nn.Module) -> list[Tensor]:
    """The loss, and the gradient of each parameter."""
    parameters = [p for module in modules for p in module.parameters()]
    return [loss.detach(), *torch.autograd.grad(loss, parameters)]


def assert_all_near(found: list[Tensor], expected: list[Tensor]) -> None:
    for n, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert_near(a, b, torch.float64, str(n))


def by_parts(encoder: Callable[..., Tensor], inputs: list[Tensor], size: int) -> Tensor:
    """What keeps all activations, and draws what dropout draws for each part."""
    return torch.cat([encoder(*parts) for parts in zip(*(x.split(size) for x in inputs), strict=True)])


@pytest.mark.parametrize("size", [1, 4, ROWS, 100])
def test_gradients_are_those_of_the_big_batch(device: torch.device, size: int) -> None:
    queries, items = Encoder(seed=1).to(device), Encoder(seed=2).to(device)
    of_query, of_item = tokens(1).to(device), tokens(2).to(device)
    whole = gradients(in_batch(queries(of_query), items(of_item)), queries, items)
    parts = [encode_in_micro_batches(*of, size) for of in ((queries, of_query), (items, of_item))]
    assert_all_near(gradients(in_batch(*parts), queries, items), whole)


@pytest.mark.parametrize(
    "given", [lambda x, m: (x, m), lambda x, m: [x, m], lambda x, m: {"mask": m, "tokens": x},
              lambda x, m: UserDict(mask=m, tokens=x)], ids=["tuple", "list", "dict", "mapping"]
)  # fmt: skip
def test_dropout_is_replayed(device: torch.device, given: Callable[[Tensor, Tensor], Any]) -> None:
    """And so is all that comes from torch's generator, which is then where it is after plain passes."""
    encoder = Encoder(dropout=0.4).to(device)
    inputs = [tokens(1).to(device), mask(2).to(device)]
    torch.manual_seed(3)
    plain = by_parts(encoder, inputs, 4)
    expected = [*gradients(in_batch(plain, plain.flip(0)), encoder), torch.rand(2)]
    torch.manual_seed(3)
    found = encode_in_micro_batches(encoder, given(*inputs), 4)
    assert not torch.equal(found[:4], encoder(*inputs)[:4]), "dropout does nothing"
    torch.manual_seed(3)
    found = encode_in_micro_batches(encoder, given(*inputs), 4)
    loss = in_batch(found, found.flip(0))
    assert_all_near([*gradients(loss, encoder), torch.rand(2)], expected)


def test_gradients_reach_the_inputs() -> None:
    """Twice, too, and a gradient of the gradient."""
    encoder = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: encode_in_micro_batches(encoder, x, 2), x)
    assert torch.autograd.gradgradcheck(lambda x: encode_in_micro_batches(encoder, x, 2), x)
    loss = encode_in_micro_batches(encoder, x, 2).square().sum()
    first = torch.autograd.grad(loss, x, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(loss, x)[0])


def test_autocast_is_that_of_the_forward_pass() -> None:
    encoder, x = nn.Linear(DIM, DIM), torch.randn(7, DIM)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, found = encoder(x), encode_in_micro_batches(encoder, x, 3)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, plain)
    for a, b in zip(gradients(found.square().sum(), encoder), gradients(plain.square().sum(), encoder), strict=True):
        assert_near(a, b, torch.bfloat16, "autocast")


def test_without_gradients_nothing_is_kept_or_computed_twice() -> None:
    calls = []
    encoder = nn.Linear(DIM, 2)
    with torch.no_grad():
        found = encode_in_micro_batches(lambda x: calls.append(len(x)) or encoder(x), torch.ones(7, DIM), 3)
    assert not found.requires_grad
    assert calls == [3, 3, 1]


def test_an_empty_batch_is_one_call() -> None:
    """Whose gradients are zeros and not absent, as DistributedDataParallel needs them."""
    encoder = Encoder()
    found = encode_in_micro_batches(encoder, tokens(1, rows=0), 3)
    assert found.shape == (0, DIM)
    found.sum().backward()
    assert all(torch.count_nonzero(p.grad) == 0 for p in encoder.parameters())


def test_compiled() -> None:
    encoder = Encoder(seed=1)
    compiled = torch.compile(lambda x: encode_in_micro_batches(encoder, x, 4), fullgraph=True, backend="aot_eager")
    whole = encoder(tokens(1))
    found = compiled(tokens(1))
    losses = [in_batch(embeddings, embeddings.flip(0)) for embeddings in (found, whole)]
    assert_all_near(*(gradients(loss, encoder) for loss in losses))


def test_batch_norm_sees_a_part_twice() -> None:
    """What the documentation says of it: the parts' own statistics, which count in both passes."""
    norm = nn.BatchNorm1d(3, momentum=0.1)
    x = torch.randn(8, 3, requires_grad=True)
    found = encode_in_micro_batches(norm, x, 4)
    twin = nn.BatchNorm1d(3, momentum=0.1)
    assert torch.equal(found, by_parts(twin, [x], 4))
    assert torch.equal(norm.running_mean, twin.running_mean)
    found.square().sum().backward()
    assert norm.num_batches_tracked == 4
    norm.eval()
    torch.testing.assert_close(encode_in_micro_batches(norm, x, 4), norm(x))


def test_memory_is_that_of_a_micro_batch() -> None:
    encoder, x = Encoder(layers=4), tokens(1, rows=64, length=16)

    def peak(encode: Callable[[], Tensor]) -> int:
        return peak_of(torch.device("cpu"))(lambda: encode().sum().backward())[0]

    for parameter in encoder.parameters():  # so that none is allocated while we measure
        parameter.grad = torch.zeros_like(parameter)
    whole = peak(lambda: encoder(x))
    peaks = {size: peak(lambda size=size: encode_in_micro_batches(encoder, x, size)) for size in (4, 16)}
    assert peaks[4] < peaks[16] < whole
    assert peaks[16] < whole / 3
    assert peaks[4] < whole / 8


BAD: dict[str, tuple[Any, Any, Any, type[Exception], str]] = {
    "encoder": (None, torch.ones(2, 3), 1, TypeError, "encoder must be a module or function, got NoneType"),
    "text": (len, "text", 1, TypeError, "inputs must be .* a tuple, list or mapping of them, got str"),
    "nothing": (len, (), 1, ValueError, "inputs must hold at least one tensor, got an empty tuple"),
    "texts": (len, {"ids": ["text"]}, 1, TypeError, r"inputs\['ids'\] must be a torch\.Tensor, got list"),
    "scalar": (len, [torch.ones(())], 1, ValueError, r"inputs\[0\] must have shape \[B, \.\.\.\], got a tensor w"),
    "lengths": (len, (torch.ones(2), torch.ones(3, 1)), 1, ValueError,
                r"inputs\[1\] must have as many rows as inputs\[0\], 2, got shape \(3, 1\)"),
    "size": (len, torch.ones(2, 3), 0, ValueError, "micro_batch_size must be an integer ≥ 1, got 0"),
    "float": (len, torch.ones(2, 3), 2.0, TypeError, "micro_batch_size must be an integer ≥ 1, got float"),
    "output": (len, torch.ones(2, 3), 1, TypeError, r"encoder must return a torch\.Tensor, got int"),
    "rows": (torch.sum, torch.ones(2, 3), 1, ValueError, r"encoder must return a row for each of the 1 r.*shape \(\)"),
    "longer": (lambda x: torch.cat([x, x]), torch.ones(5, 3), 2, ValueError, r"each of the 2 rows.*shape \(4, 3\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    encoder, inputs, size, error, message = BAD[name]
    with pytest.raises(error, match=message):
        encode_in_micro_batches(encoder, inputs, size)
