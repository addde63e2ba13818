import itertools

import pytest
import torch
import torch.nn.functional as F
from mmengine.model import BaseModel, BaseModule

from mmplugins.featup import FeatUp, FeatUpNeck
from mmplugins.featup.implicit import ImplicitUpsampler
from mmplugins.featup.inspection import (
    component_rows,
    composed_kernel,
    inspect_image,
    kernel_rows,
    similarity_rows,
    stage_kernels,
)
from mmplugins.visualization import contact_sheet

CHANNELS = 10
PREPROCESSOR = dict(
    type='ImgDataPreprocessor',
    mean=[128.0] * 3,
    std=[64.0] * 3,
    bgr_to_rgb=True,
)


class Backbone(BaseModule):
    """Cells of eight pixels."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, CHANNELS, 9, 8, 4)

    def forward(self, x):
        return (self.conv(x).tanh(),)


class Segmentor(BaseModel):
    def __init__(self, **neck):
        super().__init__(PREPROCESSOR)
        self.backbone = Backbone()
        self.neck = FeatUpNeck(CHANNELS, **neck)
        self.neck.measure(self.backbone)

    def forward(self, inputs):
        return self.neck(self.backbone(inputs), inputs)[-1]


def featup(upsampler=None, downsampler='AttentionDownsampler', **kwargs):
    upsampler = upsampler or dict(type='mmplugins.JBUStack', num_stages=2)
    return FeatUp(
        dict(type=Backbone),
        upsampler,
        dict(type=f'mmplugins.{downsampler}', kernel_size=5, stride=4),
        CHANNELS,
        data_preprocessor=PREPROCESSOR,
        **kwargs,
    ).eval()


def photo(height=35, width=52):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


def inspect(model=None, image=None):
    image = photo() if image is None else image
    return inspect_image((model or featup()).double(), image)


class TestInspection:
    def test_maps_are_those_of_the_model(self):
        model, image = featup().double(), photo(32, 48)
        inspection = inspect_image(model, image)
        inputs = (image.flip(0)[None].double() - 128) / 64
        feats = model.extract_feat(inputs)
        torch.testing.assert_close(inspection.feats, feats)
        high = inspection.linear(torch.eye(CHANNELS))
        torch.testing.assert_close(high, model.upsample(inputs)[0])
        torch.testing.assert_close(
            inspection.uncertainty, model.uncertainty(feats)[0, 0]
        )

    @pytest.mark.parametrize(
        'neck', [dict(), dict(out_channels=6), dict(levels=(0,))]
    )
    def test_maps_are_those_of_a_neck(self, neck):
        upsampler = dict(type='mmplugins.JBUStack', num_stages=2)
        model = Segmentor(upsampler=upsampler, **neck).eval().double()
        image = photo(32, 48)
        inspection = inspect_image(model, image)
        inputs = (image.flip(0)[None].double() - 128) / 64
        eye = torch.eye(neck.get('out_channels', CHANNELS))
        torch.testing.assert_close(inspection.linear(eye), model(inputs)[0])
        assert inspection.uncertainty is None
        assert inspection.saliency is None

    def test_cells_beyond_the_image_are_cut(self):
        inspection = inspect(image=photo(35, 52))
        assert inspection.area == (40, 56)
        assert inspection.low.shape == (CHANNELS, 5, 7)
        parts = list(inspection.high_chunks(1))
        # Cells of two pixels.
        assert parts[0].shape == (CHANNELS, 18, 26)
        assert inspection.paint(inspection.feats).shape[-2:] == (35, 52)

    def test_memory_bounds_the_channels(self):
        inspection = inspect()
        each = 3 * 20 * 28 * 8 / 2**20
        assert inspection.chunk(2.5 * each) == 2
        assert inspection.chunk(0.1 * each) == 1
        parts = list(inspection.high_chunks(2.5 * each))
        assert [len(part) for part in parts] == [2] * 5
        whole = next(inspection.high_chunks(100))
        torch.testing.assert_close(torch.cat(parts), whole)

    def test_other_models_are_told_what_they_lack(self):
        class Plain(BaseModel):
            def forward(self, inputs):
                return inputs

        model = Plain(PREPROCESSOR)
        model.decode_head = torch.nn.Module()
        model.decode_head.upsamplers = torch.nn.ModuleList()
        with pytest.raises(ValueError, match='inside the head, .* not shown'):
            inspect_image(model, torch.zeros(3, 16, 16, dtype=torch.uint8))
        del model.decode_head
        with pytest.raises(ValueError, match='Plain holds no upsampler'):
            inspect_image(model, photo())


UPSAMPLERS = [
    dict(type='mmplugins.JBUStack', num_stages=2),
    dict(type='mmplugins.JBUStack', num_stages=2, backend='reference'),
    dict(type='mmplugins.JBUStack', num_stages=3, shared=True, radius=1),
    dict(type='mmplugins.JBUStack', num_stages=2, scale='image'),
    dict(type='mmplugins.BilinearUpsampler', num_stages=2),
]


class TestComposedKernel:
    @pytest.mark.parametrize('upsampler', UPSAMPLERS)
    @pytest.mark.parametrize('pixel', [(0, 0), (10, 15), (18, 27)])
    def test_is_the_response_to_impulses(self, upsampler, pixel):
        """One feature at a time through the whole upsampler."""
        model = featup(upsampler)
        fixup = getattr(model.upsampler, 'fixup_proj', None)
        if fixup is not None:  # it mixes channels
            torch.nn.init.zeros_(fixup[1].weight)
        inspection = inspect(model, photo(19, 28))
        kernel = composed_kernel(inspection, pixel)
        rows, columns = inspection.feats.shape[-2:]
        assert kernel.shape == (rows, columns)
        # One impulse for each cell, as a batch; the last sample has none.
        count = rows * columns
        ones = torch.zeros(count + 1, CHANNELS, rows, columns).double()
        ones[:-1, 3] = torch.eye(count).double().view(count, rows, columns)
        guidance = inspection.guidance.expand(count + 1, -1, -1, -1)
        high = model.upsampler(ones, guidance)[:, 3]
        cell = inspection.cell(pixel, high.shape[-2:])
        response = (high[:-1] - high[-1:])[:, cell[0], cell[1]]
        torch.testing.assert_close(kernel, response.view(rows, columns))

    def test_makes_the_feature(self):
        """The weighted sum of the cells, mixed, is what comes out."""
        model = featup()
        inspection, pixel = inspect(model), (9, 40)
        kernel = composed_kernel(inspection, pixel)
        summed = torch.einsum('hw,chw->c', kernel, inspection.feats[0])
        conv = model.upsampler.fixup_proj[1]
        wanted = summed + 0.1 * (conv.weight[..., 0, 0] @ summed + conv.bias)
        high = inspection.linear(torch.eye(CHANNELS))
        cell = inspection.cell(pixel, high.shape[-2:])
        torch.testing.assert_close(high[:, cell[0], cell[1]], wanted)

    def test_no_parameter_gets_a_gradient(self):
        model = featup()
        composed_kernel(inspect(model), (3, 3))
        assert all(p.grad is None for p in model.parameters())

    def test_an_upsampler_without_features_has_none(self):
        upsampler = dict(type=ImplicitUpsampler, dim=4, scale=2)
        model = featup(upsampler, 'SimpleDownsampler').requires_grad_(False)
        model.double()
        image = photo(32, 48)
        inputs = model.data_preprocessor({'inputs': [image]})[
            'inputs'
        ].double()
        model.upsampler.prepare(model.extract_feat(inputs), inputs)
        inspection = inspect(model, image)
        assert composed_kernel(inspection, (3, 3)) is None
        assert kernel_rows(inspection, image / 255, (3, 3)) == []


def test_kernels_of_the_stages():
    model = featup()
    inspection = inspect(model)
    found = stage_kernels(inspection, (9, 40))
    assert [size for _, size in found] == [(10, 14), (20, 28)]
    for stage, (kernel, size) in zip(model.upsampler.stages, found):
        guidance = F.adaptive_avg_pool2d(inspection.guidance, size)
        # Cells of four, then of two pixels.
        step = 40 // size[0]
        y, x = 9 // step, 40 // step
        wanted = stage.kernel(guidance)[0, :, y, x].view(7, 7)
        torch.testing.assert_close(kernel, wanted)


class TestPanels:
    def test_all_that_a_model_knows(self):
        image = photo()
        inspection = inspect(image=image)
        picture = image / 255
        rows = component_rows(inspection, picture)
        assert [row[0].caption.partition(',')[0] for row in rows] == [
            'image',
            'uncertainty s',
            'saliency',
        ]
        assert [row[1].caption for row in rows] == [
            f'components {i} to {i + 2}, 5 x 7 cells' for i in (1, 4, 7)
        ]
        assert rows[0][2].caption.endswith('18 x 26 cells')
        rows += kernel_rows(inspection, picture, (20, 30))
        rows += similarity_rows(inspection, picture, (20, 30))
        for panel in itertools.chain(*rows):
            assert panel.image.shape[-2:] in [(35, 52), (7, 7)]
            assert panel.image.min() >= 0
            assert panel.image.max() <= 1
        assert contact_sheet(rows, 300).shape[1] == 300

    def test_few_channels_have_few_components(self):
        upsampler = dict(type='mmplugins.BilinearUpsampler', num_stages=1)
        model = Segmentor(upsampler=upsampler, out_channels=4).eval()
        rows = component_rows(inspect(model), photo() / 255)
        assert [[p.caption[:10] for p in row] for row in rows] == [
            ['image', 'components', 'components']
        ]

    def test_saliency_is_the_downsamplers(self):
        model, image = featup(), photo(32, 48)
        inspection = inspect(model, image)
        high = inspection.linear(torch.eye(CHANNELS))
        saliency = model.downsampler.saliency(high[None]).detach()
        caption = component_rows(inspection, image / 255)[2][0].caption
        low, high = (float(x) for x in (saliency.min(), saliency.max()))
        assert caption == f'saliency, {low:.2g} to {high:.2g}'

    def test_similarity_before_and_after(self):
        inspection, image = inspect(), photo()
        query = torch.randn(CHANNELS)
        row = similarity_rows(inspection, image / 255, query=query)[0]
        for panel, x in zip(
            row[1:],
            (inspection.feats[0], inspection.linear(torch.eye(CHANNELS))),
        ):
            wanted = F.cosine_similarity(x, query.to(x)[:, None, None], dim=0)
            wanted = inspection.paint(wanted)
            assert panel.caption.endswith(
                f'{float(wanted.min()):.2g} to {float(wanted.max()):.2g}'
            )
            assert panel.point is None

    def test_the_picture_of_a_pixel_is_marked_there(self):
        row = similarity_rows(inspect(), photo() / 255, pixel=(34, 0))[0]
        assert all(p.point == (34.5 / 35, 0.5 / 52) for p in row)
