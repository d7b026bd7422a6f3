"""Models on the graph of users and their training items: LightGCN and XSimGCL, by PyTorch Geometric's LGConv."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common.data import InteractionData
from benchmarks.training.matrix_factorization import MatrixFactorization, ModelOptions

with warnings.catch_warnings():
    # PyTorch Geometric scripts two of its functions when it is imported.
    warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", DeprecationWarning)
    from torch_geometric.nn import LGConv

# Of XSimGCL, as in the comparisons of Yang et al. (NeurIPS 2024, appendix B.4, and KDD 2025, appendix D.3).
NOISE = 0.1
TEMPERATURE = 0.1
CONTRASTED_LAYER = 1


def normalized_adjacency(data: InteractionData) -> Tensor:
    """Return D^-1/2 A D^-1/2 of the training pairs, without self loops (He et al., SIGIR 2020, eq. 6 and 7).

    Args:
        data: a repeated pair counts twice, in A and in the degrees D.

    Returns:
        float32 [V, V] in CSR layout on the CPU, symmetric, with V = num_users + num_items and the users first. Rows of
        users and items without a pair are empty.
    """
    size = data.num_users + data.num_items
    users, items = data.train_users.cpu(), data.train_items.cpu() + data.num_users
    edges = torch.stack([torch.cat([users, items]), torch.cat([items, users])])
    degrees = torch.bincount(edges[0], minlength=size)
    weights = degrees[edges].prod(0).double().rsqrt().float()
    adjacency = torch.sparse_coo_tensor(edges, weights, (size, size), check_invariants=True).coalesce()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state", UserWarning)
        return adjacency.to_sparse_csr()


class _SymmetricProduct(torch.autograd.Function):
    """adjacency @ x, which is symmetric: torch's own backward transposes the matrix in each step."""

    @staticmethod
    def forward(ctx, adjacency: Tensor, x: Tensor) -> Tensor:
        ctx.adjacency = adjacency
        # Naming the reduction leads to a kernel that is 1.5 times as fast as MKL's on a large graph; CUDA has none.
        return torch.sparse.mm(adjacency, x, "sum") if x.device.type == "cpu" else torch.sparse.mm(adjacency, x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[None, Tensor]:
        return None, _SymmetricProduct.apply(ctx.adjacency, gradient)


class SymmetricLGConv(LGConv):
    """LGConv with a normalised and symmetric matrix in CSR layout: x [V, dim] becomes adjacency @ x [V, dim]."""

    def __init__(self) -> None:
        super().__init__(normalize=False)

    def message_and_aggregate(self, adj_t: Tensor, x: Tensor) -> Tensor:
        return _SymmetricProduct.apply(adj_t, x)


class LightGCN(MatrixFactorization):
    """The mean of the embeddings and of what L graph convolutions make of them (He et al., SIGIR 2020, eq. 3 and 4).

    Attributes:
        num_layers: L, 2 by default.
        adjacency: of :func:`normalized_adjacency`.
    """

    default_layers = 2

    def __init__(
        self,
        data: InteractionData,
        dim: int,
        generator: torch.Generator,
        options: ModelOptions = ModelOptions(),
    ) -> None:
        super().__init__(data, dim, generator)
        self.num_layers = self.default_layers if options.num_layers is None else options.num_layers
        self.convolution = SymmetricLGConv()
        self.register_buffer("adjacency", normalized_adjacency(data), persistent=False)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the table of all users [num_users, dim] and of all items [num_items, dim]."""
        return self._of_users_and_items(_mean(self._layers()))

    def _layers(self) -> list[Tensor]:
        """Layers 0 to L, each [V, dim]."""
        layers = [torch.cat([self.user_embeddings, self.item_embeddings])]
        for _ in range(self.num_layers):
            layers.append(self._convolve(layers[-1]))
        return layers

    def _convolve(self, layer: Tensor) -> Tensor:
        return self.convolution(layer, self.adjacency)

    def _of_users_and_items(self, table: Tensor) -> tuple[Tensor, Tensor]:
        return table.split([len(self.user_embeddings), len(self.item_embeddings)])


class XSimGCL(LightGCN):
    """LightGCN without layer 0 and, in training, with noise on each layer and a contrastive loss between two views.

    Yu et al., TKDE 2023 (arXiv 2209.02544): to each row e of a layer comes sign(e) ∘ u, where u is drawn from U[0, 1]
    and scaled to length 0.1; the views are the mean of layers 1 to L and layer 1.

    The noise has a separate generator, seeded from that of the embeddings without drawing from it. Its state is in
    ``state_dict``: load it on the kind of device that it was saved on, after the model was moved there.

    Attributes:
        num_layers: L, 3 by default and at least 2.
        contrastive_weight: of the contrastive loss.

    Raises:
        ValueError: there are fewer than 2 layers.
    """

    default_layers = 3

    def __init__(
        self,
        data: InteractionData,
        dim: int,
        generator: torch.Generator,
        options: ModelOptions = ModelOptions(),
    ) -> None:
        super().__init__(data, dim, generator, options)
        if self.num_layers <= CONTRASTED_LAYER:
            raise ValueError(f"num_layers of xsimgcl must be at least {CONTRASTED_LAYER + 1}, got {self.num_layers}")
        self.contrastive_weight = options.contrastive_weight
        self._noise_seed = torch.randint(2**63 - 1, (), generator=generator.clone_state()).item()
        self._noise: torch.Generator | None = None
        self._views: tuple[Tensor, Tensor] | None = None

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the table of all users [num_users, dim] and of all items [num_items, dim]."""
        layers = self._layers()
        final = _mean(layers[1:])
        self._views = (final, layers[CONTRASTED_LAYER]) if self.training else None
        return self._of_users_and_items(final)

    def _convolve(self, layer: Tensor) -> Tensor:
        layer = super()._convolve(layer)
        if not self.training:
            return layer
        with torch.no_grad():
            noise = torch.rand(layer.shape, generator=self._noise_generator(), dtype=layer.dtype, device=layer.device)
            noise = F.normalize(noise, dim=1).mul_(layer.sign()).mul_(NOISE)
        return layer + noise

    def auxiliary_loss(self, users: Tensor, items: Tensor) -> Tensor:
        """Return the weighted contrastive loss of the views that the last forward pass, in training mode, left.

        The mean InfoNCE over the batch's users between their final embeddings and those of layer 1, by cosine, and the
        same over its items, added up. A user or an item that occurs more than once in the batch counts once.

        Args:
            users, items: int64 ids of the batch's users and of their positives, each [B].

        Raises:
            RuntimeError: there was no forward pass, or the last one was in eval mode.
        """
        if self._views is None:
            raise RuntimeError("auxiliary_loss needs a forward pass in training mode before it")
        losses = [
            _info_nce(*(F.normalize(F.embedding(rows, view), dim=1) for view in self._views))
            for rows in (users.unique(), items.unique() + len(self.user_embeddings))
        ]
        return self.contrastive_weight * sum(losses)

    def _noise_generator(self) -> torch.Generator:
        device = self.user_embeddings.device
        if self._noise is None or self._noise.device != device:
            self._noise = torch.Generator(device).manual_seed(self._noise_seed)
        return self._noise

    def get_extra_state(self) -> Tensor:
        """Return the state of the noise, for ``state_dict``."""
        return self._noise_generator().get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Go on with the noise from a state that ``state_dict`` had."""
        self._noise_generator().set_state(state.cpu())


def _mean(tables: list[Tensor]) -> Tensor:
    return sum(tables[1:], tables[0]) / len(tables)


def _info_nce(queries: Tensor, keys: Tensor) -> Tensor:
    """The mean cross-entropy of each query [B, dim] with its own key among all keys [B, dim]; all of length 1."""
    return F.cross_entropy(queries @ keys.T / TEMPERATURE, torch.arange(len(keys), device=keys.device))
