"""CRM's implicit decoder: a perceptron that answers at any point of a map.

B batch, C channels of the map, h x w cells, H x W targets, K outputs.
"""

from collections.abc import Sequence
from itertools import pairwise

from mmengine.model import BaseModule
from torch import Tensor, nn

from mmplugins.ops.implicit import local_ensemble
from mmplugins.registry import MODELS
from mmplugins.typing import OptMultiConfig


@MODELS.register_module()
class ImplicitDecoder(BaseModule):
    """Continuous alignment and decoding (CRM, arXiv 2111.14482, section 3).

    Each target takes the map's four cells around it, C + 6 numbers each: the
    features, the offset C_r, the coordinate C_t and the ratio r. A perceptron
    answers for each cell, and the areas opposite to them weigh the answers.

    Args:
        in_channels (int): Channels C.
        hidden_channels (Sequence[int]): Widths of the hidden layers. Defaults
            to (32, 32, 32, 32), as published.
        out_channels (int): Outputs K. Defaults to 1.
        offset (bool): Use the offset C_r. Defaults to True.
        coord (bool): Use the coordinate C_t. Defaults to True.
        ratio (bool): Use the ratio r. Defaults to True.
        backend (str): As in :func:`mmplugins.ops.local_ensemble`. Defaults to
            ``'auto'``.
        init_cfg (dict, optional): Weight initialisation. Defaults to None,
            Kaiming's, which keeps the features' share through the layers.

    Raises:
        ValueError: If there is no hidden layer.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: Sequence[int] = (32, 32, 32, 32),
        out_channels: int = 1,
        offset: bool = True,
        coord: bool = True,
        ratio: bool = True,
        backend: str = 'auto',
        init_cfg: OptMultiConfig = None,
    ) -> None:
        super().__init__(
            init_cfg or dict(type='Kaiming', layer='Linear', mode='fan_in')
        )
        if not hidden_channels:
            raise ValueError(
                'hidden_channels of ImplicitDecoder must be one or more '
                f'widths, got {hidden_channels}'
            )
        self.switches = dict(offset=offset, coord=coord, ratio=ratio)
        self.backend = backend
        widths = [
            in_channels + 2 * sum(self.switches.values()),
            *hidden_channels,
            out_channels,
        ]
        self.layers = nn.ModuleList(
            nn.Linear(*pair) for pair in pairwise(widths)
        )

    def forward(
        self,
        feats: Tensor,
        size: Sequence[int],
        window: Sequence[int] | None = None,
        grid: Sequence[int] | None = None,
        origin: Sequence[int] = (0, 0),
    ) -> Tensor:
        """Answer at the targets of a grid, or of a window of it.

        Args:
            feats (Tensor): Map, (B, C, h, w).
            size (Sequence[int]): Rows H and columns W of the grid.
            window (Sequence[int], optional): Top, left, height and width.
                Defaults to None, all.
            grid (Sequence[int], optional): Cells of the whole map, of which
                ``feats`` are a part. Defaults to None, those of ``feats``.
            origin (Sequence[int]): Cell of the whole map that ``feats`` begin
                at. Defaults to (0, 0).

        Returns:
            Tensor: Answers, (B, K, H, W) or of the window.
        """
        return local_ensemble(
            feats,
            size,
            [(layer.weight, layer.bias) for layer in self.layers],
            window=window,
            grid=grid,
            origin=origin,
            backend=self.backend,
            **self.switches,
        )
