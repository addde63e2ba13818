import pytest
import torch
from small_editor import as_input, batch, build, packed, photos

pytestmark = pytest.mark.usefixtures('mmagic_scope')


@pytest.mark.parametrize('training', [True, False])
def test_image_and_reference_are_normalised_alike(training):
    samples = photos()
    model = build()
    done = model.data_preprocessor(
        batch(*(packed(**x) for x in samples)), training
    )
    (ref,) = done['inputs']['ref']
    for k, sample in enumerate(samples):
        torch.testing.assert_close(
            done['inputs']['img'][k : k + 1], as_input(sample['img'])
        )
        torch.testing.assert_close(ref[k : k + 1], as_input(sample['ref']))
        gt = as_input(sample['gt'])[0]
        if not training:
            gt = 255 * gt.flip(0)
        torch.testing.assert_close(done['data_samples'].gt_img[k].float(), gt)


def test_a_reference_has_the_order_of_its_image():
    (sample,) = photos(count=1)
    rgb = {key: x[..., ::-1].copy() for key, x in sample.items()}
    model = build()
    for meta in (
        dict(img_channel_order='RGB', gt_channel_order='RGB'),
        dict(img_channel_order='RGB', ref_channel_order='RGB'),
    ):
        found = model.data_preprocessor(batch(packed(**rgb, **meta)))
        torch.testing.assert_close(
            found['inputs']['ref'][0], as_input(sample['ref'])
        )
    mixed = {**rgb, 'ref': sample['ref']}
    meta = dict(img_channel_order='RGB', ref_channel_order='BGR')
    found = model.data_preprocessor(batch(packed(**mixed, **meta)))
    for key in ('img', 'ref'):
        (x,) = found['inputs'][key]
        torch.testing.assert_close(
            x.view(3, *x.shape[-2:]), as_input(sample[key])[0]
        )


def test_references_of_other_sizes_keep_them():
    one, two = (torch.rand(2, 3, *size) for size in ((5, 9), (8, 4)))
    data = dict(inputs=dict(img=[torch.zeros(3, 4, 4)] * 2, ref=[one, two]))
    refs = build().data_preprocessor(data)['inputs']['ref']
    assert len(refs) == 2
    for k, ref in enumerate(refs):
        for found, x in zip(ref, (one, two), strict=True):
            torch.testing.assert_close(found, x[k].flip(0) / 255)


def test_several_references_are_a_list():
    samples = photos()
    for sample in samples:
        sample['ref'] = [sample['ref'], sample['gt'][::-1].copy()]
    model = build()
    done = model.data_preprocessor(batch(*(packed(**x) for x in samples)))
    refs = done['inputs']['ref']
    assert len(refs) == 2
    torch.testing.assert_close(refs[1][1:], as_input(samples[1]['ref'][1]))


def test_unlike_counts_are_an_error():
    model = build()
    refs = [torch.rand(1, 3, 4, 4), torch.rand(2, 3, 4, 4)]
    data = dict(inputs=dict(img=[torch.zeros(3, 2, 2)] * 2, ref=refs))
    with pytest.raises(ValueError, match=r'equally many .* \[1, 2\]'):
        model.data_preprocessor(data)


def test_one_of_mmagic_does_as_well():
    own = dict(
        type='DataPreprocessor',
        mean=[0.0] * 3,
        std=[255.0] * 3,
        output_channel_order='RGB',
    )
    data = batch(*(packed(**x) for x in photos()))
    model = build().eval()
    other = build(data_preprocessor=own).eval()
    other.load_state_dict(model.state_dict())
    for one, two in zip(model.test_step(data), other.test_step(data)):
        torch.testing.assert_close(one.output.pred_img, two.output.pred_img)
