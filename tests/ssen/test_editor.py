import cv2
import numpy as np
import pytest
import torch
from small_editor import as_input, batch, build, packed, photos

pytestmark = pytest.mark.usefixtures('mmagic_scope')


def test_predictions_are_those_of_the_generator():
    (sample,) = photos(count=1)
    model = build().eval()
    (found,) = model.test_step(batch(packed(**sample)))
    result = model.generator(as_input(sample['img']), as_input(sample['ref']))
    wanted = 255 * result[0].flip(0).clamp(0, 1)
    torch.testing.assert_close(found.output.pred_img, wanted)
    np.testing.assert_array_equal(
        found.gt_img.permute(1, 2, 0).numpy(), sample['gt']
    )
    np.testing.assert_allclose(
        found.input.permute(1, 2, 0).numpy(), sample['img'], atol=1e-3
    )
    assert found.ref_img.shape == (3, *sample['ref'].shape[:2])


def test_the_reference_matters_and_may_be_missing():
    (sample,) = photos(count=1)
    alone = {key: sample[key] for key in ('img', 'gt')}
    other = {**sample, 'ref': 255 - sample['ref']}
    model = build().eval()
    images = [
        model.test_step(batch(packed(**x)))[0].output.pred_img
        for x in (sample, other, alone)
    ]
    assert (images[0] - images[1]).abs().max() > 0.1
    wanted = model.generator(as_input(sample['img']), None)[0]
    torch.testing.assert_close(images[2], 255 * wanted.flip(0).clamp(0, 1))


def test_predictions_need_no_truth():
    (sample,) = photos(count=1)
    data = batch(packed(sample['img'], ref=sample['ref']))
    (found,) = build().eval().test_step(data)
    assert found.output.pred_img.shape == (3, 24, 28)


def test_forms_of_references():
    model = build().eval()
    image = torch.rand(2, 3, 6, 7)
    refs = torch.rand(2, 3, 3, 12, 14)
    stacked = model(dict(img=image, ref=refs))
    listed = model(dict(img=image, ref=[*refs.unbind(1)]))
    torch.testing.assert_close(stacked, listed)
    one = model(dict(img=image, ref=refs[:, 0]))
    assert (one - stacked).abs().max() > 1e-4
    alone = model(image)
    for none in (None, []):
        torch.testing.assert_close(model(dict(img=image, ref=none)), alone)


def test_images_of_a_batch_have_references_of_their_own_sizes():
    """Each is what it is alone, beside a much larger one too."""
    samples = photos()
    large = cv2.resize(samples[0]['gt'], (90, 70))
    small = samples[1]['ref'][:15, :17]
    for sample, ref in zip(samples, (large, small)):
        sample['ref'] = [ref, 255 - ref]
    model = build().eval()
    both = model.test_step(batch(*(packed(**x) for x in samples)))
    for sample, found in zip(samples, both, strict=True):
        (wanted,) = model.test_step(batch(packed(**sample)))
        torch.testing.assert_close(
            found.output.pred_img, wanted.output.pred_img
        )


def test_an_unknown_mode_is_an_error():
    with pytest.raises(ValueError, match="'loss', got 'predicted'"):
        build()(torch.rand(1, 3, 4, 4), mode='predicted')
