"""Modulated deformable convolution (Zhu et al., arXiv 1811.11168).

B images, C input and O output channels, H x W input, H' x W' output, K taps
of the kernel row by row, and G deformable groups of C / G channels. Offsets
are pixels of the input, (dy, dx) of every tap, group after group; pixel (0, 0)
is the centre of the first one, and outside of the map there are zeros.

``out(p) = bias + sum_k weight_k (mask_k(p) x(p + p_k + offset_k(p)))``, where
x between pixels is bilinear.
"""

import functools
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from . import backends
from .deform_conv_operators import Geometry, by_mmcv, by_tap, formula
from .operators import is_compiling

BACKENDS = ('auto', 'reference', 'torch', 'mmcv')


def modulated_deform_conv2d(
    x: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    deform_groups: int = 1,
    *,
    backend: str = 'auto',
) -> Tensor:
    """Convolve with taps that are moved and weighed at every pixel.

    Positions and sums are of float32 at least, also under autocast, for half
    precision would misplace the samples. An offset that is not a number
    samples nothing and gets no gradient.

    Args:
        x (Tensor): Map, (B, C, H, W).
        offset (Tensor): How far each tap moves in pixels, (B, G * K * 2, H',
            W'), dy before dx.
        mask (Tensor): What each tap is multiplied by, (B, G * K, H', W').
        weight (Tensor): Kernels, (O, C / groups, kh, kw).
        bias (Tensor, optional): Added to the result, (O,). Defaults to None.
        stride (int | tuple[int, int]): Defaults to 1.
        padding (int | tuple[int, int]): Zeros around the map. Defaults to 0.
        dilation (int | tuple[int, int]): Pixels between taps. Defaults to 1.
        groups (int): Groups of channels convolved alone. Defaults to 1.
        deform_groups (int): Groups G of channels with offsets and masks of
            their own. Defaults to 1.
        backend (str): ``'reference'``, the plain formula; ``'torch'``, one
            tap at a time, whose samples are made again in the backward pass;
            ``'mmcv'``, the operator of mmcv; ``'auto'``, mmcv's on a GPU if it
            is compiled for one, else ``'torch'``. Gradients that have
            gradients themselves (``create_graph=True``, ``torch.func``) and
            forward mode are the formula's. Defaults to ``'auto'``.

    Returns:
        Tensor: Result, (B, O, H', W'), in the dtype of ``x``.

    Raises:
        ValueError: If the shapes or the backend do not fit.
    """
    geometry = Geometry(
        tuple(weight.shape[-2:]),
        _pair(stride),
        _pair(padding),
        _pair(dilation),
        groups,
        deform_groups,
    )
    _check_shapes(x, offset, mask, weight, bias, geometry)
    backend = check_backend(backend, x.device)
    dtype = functools.reduce(
        torch.promote_types,
        (x.dtype, offset.dtype, mask.dtype, weight.dtype),
        torch.float32,
    )
    with torch.autocast(x.device.type, enabled=False):
        args = [t.to(dtype) for t in (x, offset, mask, weight)]
        args.append(None if bias is None else bias.to(dtype))
        if backend == 'reference' or backends.has_tangent(*args):
            out = formula(*args, geometry)
        else:
            by = by_mmcv if backend == 'mmcv' else by_tap
            out = by(*args, geometry.flat())
    return out.to(x.dtype)


def check_backend(backend: str, device: torch.device) -> str:
    """Backend to run, with ``'auto'`` resolved.

    Args:
        backend (str): One of :data:`BACKENDS`.
        device (torch.device): Where the tensors are.

    Returns:
        str: The backend, never ``'auto'``.

    Raises:
        ValueError: If there is no such backend.
    """
    backends.check_backend('modulated_deform_conv2d', backend, BACKENDS)
    if backend == 'auto':
        # Compilers cannot follow the gradients of mmcv's.
        fits = device.type == 'cuda' and not is_compiling()
        return 'mmcv' if fits and _has_cuda_op() else 'torch'
    return backend


@functools.cache
def _has_cuda_op() -> bool:
    """Whether mmcv's operators are there and compiled for a GPU."""
    try:
        from mmcv.ops import get_compiling_cuda_version
    except ImportError:
        return False
    return get_compiling_cuda_version() != 'not available'


def _check_shapes(
    x: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
) -> None:
    if x.ndim != 4 or weight.ndim != 4:
        raise ValueError(
            'x (B, C, H, W) and weight (O, C / groups, kh, kw) of '
            'modulated_deform_conv2d must have 4 dimensions, got '
            f'{tuple(x.shape)} and {tuple(weight.shape)}'
        )
    channels, groups = x.shape[1], geometry.groups
    if channels % groups or weight.shape[1:2] != (channels // groups,):
        raise ValueError(
            f'weight must take {channels} channels in {groups} groups, got '
            f'{tuple(weight.shape)}'
        )
    if weight.shape[0] % groups or channels % geometry.deform_groups:
        raise ValueError(
            f'groups {groups} must divide {weight.shape[0]} kernels, and '
            f'deform_groups {geometry.deform_groups} the {channels} channels'
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f'bias must be ({weight.shape[0]},), got {tuple(bias.shape)}'
        )
    size = _output_size(x, geometry)
    if min(size) < 1:
        raise ValueError(
            f'kernel {geometry.kernel} is larger than the padded map: '
            f'{tuple(x.shape[-2:])} and padding {geometry.padding}'
        )
    taps = geometry.deform_groups * weight.shape[2] * weight.shape[3]
    for key, given, count in (
        ('offset', offset, 2 * taps),
        ('mask', mask, taps),
    ):
        wanted = (x.shape[0], count, *size)
        if tuple(given.shape) != wanted:
            raise ValueError(
                f'{key} must be {wanted}, got {tuple(given.shape)}'
            )


def _output_size(x: Tensor, geometry: Geometry) -> tuple[int, int]:
    return tuple(
        (n + 2 * pad - dilation * (k - 1) - 1) // stride + 1
        for n, k, stride, pad, dilation in zip(x.shape[-2:], *geometry[:4])
    )


class ModulatedDeformConv2d(nn.Module):
    """Layer of :func:`modulated_deform_conv2d`, with mmcv's parameters.

    Args:
        in_channels (int): Channels C of the map.
        out_channels (int): Channels O of the result.
        kernel_size (int | tuple[int, int]): Height and width of the kernel.
        stride (int | tuple[int, int]): Defaults to 1.
        padding (int | tuple[int, int]): Defaults to 0.
        dilation (int | tuple[int, int]): Defaults to 1.
        groups (int): Groups of channels convolved alone. Defaults to 1.
        deform_groups (int): Groups of channels with offsets and masks of
            their own. Defaults to 1.
        bias (bool): Add a bias. Defaults to True.
        backend (str): As in the function. Defaults to ``'auto'``.

    Raises:
        ValueError: If groups do not divide channels, or there is no such
            backend.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: bool = True,
        backend: str = 'auto',
    ) -> None:
        super().__init__()
        if (
            in_channels % groups
            or out_channels % groups
            or in_channels % deform_groups
        ):
            raise ValueError(
                f'groups {groups} must divide in_channels {in_channels} and '
                f'out_channels {out_channels}, deform_groups {deform_groups} '
                'in_channels'
            )
        check_backend(backend, torch.device('cpu'))
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _pair(kernel_size)
        self.stride = _pair(stride)
        self.padding = _pair(padding)
        self.dilation = _pair(dilation)
        self.groups = groups
        self.deform_groups = deform_groups
        self.backend = backend
        self.weight = nn.Parameter(
            torch.empty(out_channels, in_channels // groups, *self.kernel_size)
        )
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels))
        else:
            self.register_parameter('bias', None)
        self.init_weights()

    def init_weights(self) -> None:
        """Uniform weights as mmcv's, zero bias.

        Their bound 1 / sqrt(C K) makes samples quieter: with one group the
        variance becomes a third of theirs.
        """
        bound = 1 / sqrt(self.in_channels * self.weight[0, 0].numel())
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """Convolve; see :func:`modulated_deform_conv2d`.

        Args:
            x (Tensor): Map, (B, C, H, W).
            offset (Tensor): Offsets in pixels, (B, G * K * 2, H', W').
            mask (Tensor): Factors, (B, G * K, H', W').

        Returns:
            Tensor: Result, (B, O, H', W').
        """
        return modulated_deform_conv2d(
            x,
            offset,
            mask,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.deform_groups,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """Its arguments."""
        return (
            f'{self.in_channels}, {self.out_channels}, '
            f'kernel_size={self.kernel_size}, stride={self.stride}, '
            f'padding={self.padding}, dilation={self.dilation}, '
            f'groups={self.groups}, deform_groups={self.deform_groups}, '
            f'bias={self.bias is not None}, backend={self.backend!r}'
        )
