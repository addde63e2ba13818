"""Exact attention between all positions of maps, without their matrix.

B batch, D channels that are compared, C channels that are averaged, H x W
queries, H' x W' keys and values; N = H W, M = H' W'.

``out(p) = sum_q softmax_q(scale <query(p), key(q)>) value(q)`` (Wang et al.,
Non-local Neural Networks, arXiv 1711.07971, embedded Gaussian).
"""

from collections.abc import Sequence
from math import sqrt

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from torch import Tensor, func, nn
from torch.utils.checkpoint import checkpoint

from .backends import check_backend, has_tangent
from .operators import Operator, is_compiling

BACKENDS = ('auto', 'reference', 'torch')

# Elements of the rows of the matrix that are there at once, where no fused
# kernel is.
_BLOCK = 2**22
# Fused kernels on GPUs want so many channels or a multiple.
_ALIGNMENT = 8


def non_local(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None = None,
    *,
    backend: str = 'auto',
) -> Tensor:
    """Average the values at all positions by their keys' likeness.

    Args:
        query (Tensor): What is asked at every pixel, (B, D, H, W).
        key (Tensor): What it is compared with, (B, D, H', W').
        value (Tensor): What is averaged, (B, C, H', W').
        scale (float, optional): Factor of the dot products. Defaults to None,
            1 / sqrt(D).
        backend (str): ``'reference'``, the formula with its (N, M) matrix;
            ``'torch'``, memory linear in the pixels, also with gradients, and
            about 0.6 MiB for each further thread of a CPU;
            ``'auto'``, the better one. Gradients that have gradients
            themselves (``create_graph=True``, ``torch.func``) and forward mode
            are the formula's, with its matrix. Defaults to ``'auto'``.

    Returns:
        Tensor: Averages, (B, C, H, W).

    Raises:
        ValueError: If the shapes or the backend do not fit.
    """
    check_backend('non_local', backend, BACKENDS)
    _check_shapes(query, key, value)
    if scale is None:
        scale = 1 / sqrt(query.shape[1])
    # Rows of contiguous channels: others make SDPA build the matrix.
    rows = [t.flatten(2).mT.contiguous() for t in (query, key, value)]
    if backend == 'reference' or has_tangent(*rows):
        out = _attend(*rows, scale)
    elif _is_fused(rows[0]):
        out = fused(*rows, scale)
    else:
        out = _chunked(*rows, scale)
    return out.mT.unflatten(2, query.shape[-2:])  # (B, C, H, W)


def _check_shapes(query: Tensor, key: Tensor, value: Tensor) -> None:
    shapes = [tuple(t.shape) for t in (query, key, value)]
    fits = {len(shape) for shape in shapes} == {4}
    if (
        not fits
        or query.shape[:2] != key.shape[:2]
        or key.shape[:1] + key.shape[2:] != value.shape[:1] + value.shape[2:]
    ):
        raise ValueError(
            "non_local needs query (B, D, H, W), key (B, D, H', W') and "
            f"value (B, C, H', W'), got {shapes}"
        )


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Rows of the matrix and their averages, (B, N, C)."""
    return (query @ key.mT * scale).softmax(-1) @ value


def _is_fused(query: Tensor) -> bool:
    """Whether torch has a kernel that needs no matrix."""
    enabled, device = torch.backends.cuda, query.device.type
    if device == 'cuda' and query.dtype != torch.float64:
        # Compilers cannot ask.
        return is_compiling() or enabled.mem_efficient_sdp_enabled()
    return device == 'cpu' and (is_compiling() or enabled.flash_sdp_enabled())


def _fused(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    # Such kernels want as many channels in the values as in the keys.
    channels = value.shape[-1]
    wanted = max(channels, query.shape[-1])
    if query.device.type != 'cpu':
        wanted += -wanted % _ALIGNMENT
    rows = [
        # A padding of nothing would be a copy.
        F.pad(t, (0, wanted - t.shape[-1])) if t.shape[-1] < wanted else t
        for t in (query, key, value)
    ]
    query, key, value = (t[:, None] for t in rows)
    out = F.scaled_dot_product_attention(query, key, value, scale=scale)
    return out[:, 0, :, :channels]


def _gradients(
    grad: Tensor,
    needs: Sequence[bool],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
) -> Sequence[Tensor]:
    """Torch's, from the inputs alone; it has no second ones."""
    rows = (query, key, value)
    if torch.is_grad_enabled():
        return func.vjp(lambda *args: _attend(*args, scale), *rows)[1](grad)
    rows = [t.detach().requires_grad_() for t in rows]
    with torch.enable_grad():
        out = _fused(*rows, scale)
    return torch.autograd.grad(out, rows, grad)


def _tangent(
    tangents: Sequence[Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
) -> Tensor:
    rows = (query, key, value)
    return func.jvp(lambda *args: _attend(*args, scale), rows, tangents[:3])[1]


fused = Operator(_fused)
fused.differentiate(_gradients, _tangent)


def _chunked(
    query: Tensor, key: Tensor, value: Tensor, scale: float
) -> Tensor:
    """Some queries at a time, made again in the backward pass."""
    step = max(1, _BLOCK // (key.shape[0] * key.shape[1]))
    return torch.cat(
        [
            checkpoint(_attend, some, key, value, scale, use_reentrant=False)
            for some in query.split(step, 1)
        ],
        1,
    )


class NonLocal2d(nn.Module):
    """Non-local block: a map plus what it finds of itself elsewhere.

    The embedded Gaussian of ``mmcv.cnn.NonLocal2d``, with its parameters, its
    results and its keys in a checkpoint, in memory linear in the pixels.

    Args:
        in_channels (int): Channels of the map.
        reduction (int): How many times fewer channels are compared. Defaults
            to 2.
        use_scale (bool): Divide the dot products by the root of the number of
            channels compared. Defaults to True.
        sub_sample (bool): Take the maxima of 2 x 2 keys and values. Defaults
            to False.
        zeros_init (bool): Begin as the identity. Defaults to True.
        backend (str): As in :func:`non_local`. Defaults to ``'auto'``.

    Raises:
        ValueError: If there is no such backend.
    """

    def __init__(
        self,
        in_channels: int,
        reduction: int = 2,
        use_scale: bool = True,
        sub_sample: bool = False,
        zeros_init: bool = True,
        backend: str = 'auto',
    ) -> None:
        super().__init__()
        check_backend('NonLocal2d', backend, BACKENDS)
        self.in_channels = in_channels
        self.inter_channels = max(in_channels // reduction, 1)
        self.use_scale = use_scale
        self.sub_sample = sub_sample
        self.zeros_init = zeros_init
        self.backend = backend
        embed = (in_channels, self.inter_channels, 1)
        self.g = ConvModule(*embed, act_cfg=None)
        # In mmcv's order, for the state of optimizers.
        self.conv_out = ConvModule(
            self.inter_channels, in_channels, 1, act_cfg=None
        )
        self.theta = ConvModule(*embed, act_cfg=None)
        self.phi = ConvModule(*embed, act_cfg=None)
        if sub_sample:
            # In a sequence, as mmcv's: the keys of a checkpoint say so.
            self.g = nn.Sequential(self.g, nn.MaxPool2d(2))
            self.phi = nn.Sequential(self.phi, nn.MaxPool2d(2))
        self.init_weights()

    def init_weights(self) -> None:
        """Small embeddings; the output's weights zero or small."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
        if self.zeros_init:
            nn.init.zeros_(self.conv_out.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Add what is found.

        Args:
            x (Tensor): Map, (B, C, H, W).

        Returns:
            Tensor: Map, (B, C, H, W).
        """
        found = non_local(
            self.theta(x),
            self.phi(x),
            self.g(x),
            None if self.use_scale else 1.0,
            backend=self.backend,
        )
        return x + self.conv_out(found)
