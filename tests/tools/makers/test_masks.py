"""Masks of drawn objects against geometry and other rasterisers."""

import dataclasses
import json
import math
from pathlib import Path

import cv2
import numpy as np
import prepare_data
import pytest
from makers import masks as maker
from makers.masks import Blob, MaskScene, Part, Strand, Surface
from makers.photographs import (
    TRAIN_PHOTOS,
    VAL_PHOTOS,
    Crop,
    split_photographs,
)
from scipy.ndimage import distance_transform_edt
from skimage.measure import label, perimeter, points_in_poly

WAVES = ((2, 0.2, 0.4), (3, -0.1, 2.0), (7, 0.05, 5.0))
BLOB = Blob(0.71, 0.48, 0.3, WAVES)
STRAND = Strand(0.5, 0.3, 0.4, length=0.5, width=0.03, bend=1.2, tip=1.0)


def surface(level=100, contrast=0.0, roughness=0.0):
    crop = Crop('coffee.png', 1.0, 0.5, 0.5)
    return Surface(crop, (level,) * 3, contrast, 'grass.png', roughness)


def scene(*objects, **kwargs):
    """Scene of objects, each a tuple of parts, grey on grey."""
    levels = range(200, 200 - 10 * len(objects), -10)
    pairs = [(parts, surface(level)) for parts, level in zip(objects, levels)]
    return MaskScene(surface(50), tuple(pairs), **kwargs)


def mask_of(*parts, size=(240, 361)):
    return maker.render_mask(scene(parts), *size)[1] > 0


def centres(height, width):
    """(H, W) coordinates x and y of pixel centres in image heights."""
    y, x = np.mgrid[:height, :width]
    return (x + 0.5) / height, (y + 0.5) / height


def curve_of(strand, count=2001):
    """(N, 2) points (x, y) of the arc, by adding up small steps."""
    angles = strand.angle + strand.bend * (np.arange(count - 1) + 0.5) / (
        count - 1
    )
    steps = np.stack([np.cos(angles), np.sin(angles)], 1)
    steps *= strand.length / (count - 1)
    start = [[strand.x, strand.y]]
    return np.concatenate([start, start + np.cumsum(steps, 0)])


def test_a_blob_without_waves_is_a_disc():
    blob = Blob(0.7, 0.45, 0.31)
    x, y = centres(240, 361)
    inside = (x - 0.7) ** 2 + (y - 0.45) ** 2 <= 0.31**2
    np.testing.assert_array_equal(mask_of(Part(blob)), inside)


def test_a_blob_is_the_polygon_of_its_formula():
    turn = np.linspace(0, 2 * math.pi, 4001)
    radius = 0.3 * (1 + sum(a * np.cos(k * turn + p) for k, a, p in WAVES))
    polygon = np.stack(
        [0.71 + radius * np.cos(turn), 0.48 + radius * np.sin(turn)], 1
    )
    x, y = centres(240, 361)
    points = np.stack([x.ravel(), y.ravel()], 1)
    inside = points_in_poly(points, polygon).reshape(240, 361)
    np.testing.assert_array_equal(mask_of(Part(BLOB)), inside)


@pytest.mark.parametrize('angle', [0.4, 2.0, 4.5])
@pytest.mark.parametrize('bend', [0.01, 1.2, 3.1])
def test_an_even_strand_is_all_near_its_curve(angle, bend):
    strand = dataclasses.replace(STRAND, x=0.75, y=0.5, angle=angle, bend=bend)
    curve = curve_of(strand)
    x, y = centres(60, 90)
    points = np.stack([x.ravel(), y.ravel()], 1)
    distance = np.array([np.hypot(*(curve - p).T).min() for p in points])
    distance = distance.reshape(60, 90) - strand.width / 2
    got = mask_of(Part(strand), size=(60, 90))
    sure = np.abs(distance) > 1e-6
    np.testing.assert_array_equal(got[sure], distance[sure] < 0)
    assert sure.mean() > 0.999
    # The distance itself, in pixels, where the box has it.
    box = (0, 60, 0, 90)
    found = maker.object_distance([Part(strand)], 60, box)
    near = np.isfinite(found)
    np.testing.assert_allclose(
        found[near], 60 * distance[near], atol=60 * 2e-4
    )


@pytest.mark.parametrize('tip', [0.0, 0.3, 1.0])
def test_a_strand_thins_evenly(tip):
    strand = dataclasses.replace(STRAND, tip=tip)
    pixels = mask_of(Part(strand), size=(1200, 1800)).sum()
    length, width = 1200 * strand.length, 1200 * strand.width
    body = length * width * (1 + tip) / 2
    caps = math.pi / 8 * (width**2 + (tip * width) ** 2)
    assert pixels == pytest.approx(body + caps, rel=0.01)


def test_distance_near_the_outline_is_that_in_pixels():
    mask = mask_of(Part(BLOB), size=(400, 600))
    expected = distance_transform_edt(~mask) - distance_transform_edt(mask)
    found = maker.object_distance([Part(BLOB)], 400, (0, 400, 0, 600))
    near = np.abs(expected) < 4
    # The transform measures from pixel centre to pixel centre.
    assert np.abs(found - expected)[near].max() < 1.7
    assert ((found <= 0) == mask).all()


def test_parts_add_up_and_holes_cut_what_came_before():
    hole = Blob(0.71, 0.48, 0.1)
    bar = Strand(0.4, 0.48, 0.0, length=0.6, width=0.04, bend=0.01, tip=1.0)
    body, cut, strand = (mask_of(Part(x)) for x in (BLOB, hole, bar))
    both = mask_of(Part(BLOB), Part(hole, hole=True))
    # A centre on the edge of the hole is in both.
    assert np.count_nonzero(both != (body & ~cut)) <= 2
    all_three = mask_of(Part(BLOB), Part(hole, hole=True), Part(bar))
    np.testing.assert_array_equal(all_three, both | strand)
    last = mask_of(Part(BLOB), Part(bar), Part(hole, hole=True))
    assert np.count_nonzero(last != ((body | strand) & ~cut)) <= 2
    assert all_three.sum() > last.sum()


@pytest.mark.parametrize('softness', [1.0, 3.0])
def test_soft_edge_keeps_the_area(softness):
    drawn = scene((Part(BLOB), Part(STRAND)), softness=softness)
    image, mask = maker.render_mask(drawn, 400, 600)
    # Grey 200 over grey 50, and the sensor's noise.
    cover = (image[..., 0].astype(float) - 50) / 150
    assert cover.sum() == pytest.approx((mask > 0).sum(), rel=0.01)
    distance = distance_transform_edt(mask > 0) + distance_transform_edt(
        mask == 0
    )
    hard = distance > softness / 2 + 1.5
    assert np.abs(cover - (mask > 0))[hard].max() < 0.1
    grey = (cover > 0.15) & (cover < 0.85)
    length = (distance <= 1).sum() / 2
    assert grey.sum() == pytest.approx(0.7 * softness * length, rel=0.3)


def test_the_last_object_is_in_front_and_the_only_foreground():
    behind, front = (Part(BLOB),), (Part(STRAND),)
    image, mask = maker.render_mask(scene(behind, front), 240, 361)
    np.testing.assert_array_equal(mask > 0, mask_of(Part(STRAND)))
    assert set(np.unique(mask)) == {0, 255}
    inner = cv2.erode(mask, np.ones((3, 3)), borderValue=0) > 0
    assert image[inner].mean() == pytest.approx(190, abs=1)
    body = cv2.erode(mask_of(Part(BLOB)).astype(np.uint8), np.ones((5, 5)))
    shown = (body > 0) & (cv2.dilate(mask, np.ones((5, 5))) == 0)
    assert image[shown].mean() == pytest.approx(200, abs=1)
    away = (mask == 0) & ~cv2.dilate(
        mask_of(Part(BLOB)).astype(np.uint8), np.ones((5, 5))
    ).astype(bool)
    away &= cv2.dilate(mask, np.ones((5, 5))) == 0
    assert image[away].mean() == pytest.approx(50, abs=1)


@pytest.mark.parametrize('place', [(-0.1, 0.5), (1.5, 0.9), (0.7, -0.2)])
def test_an_object_beyond_the_image_is_cut(place):
    moved = dataclasses.replace(BLOB, x=place[0], y=place[1])
    x, y = centres(240, 361)
    inside = moved.distance(x, y) <= 0
    assert 0 < inside.sum() < mask_of(Part(BLOB)).sum()
    np.testing.assert_array_equal(mask_of(Part(moved)), inside)
    far = dataclasses.replace(BLOB, x=-3)
    assert not mask_of(Part(far)).any()


@pytest.mark.parametrize('index', range(4))
def test_scene_is_the_same_at_three_times_the_size(index):
    drawn = maker.mask_scene(3, 'train', index, 200 / 128)
    image, mask = maker.render_mask(drawn, 128, 200)
    large_image, large = maker.render_mask(drawn, 384, 600)
    # Every third pixel of the large one shares a small one's centre.
    np.testing.assert_array_equal(large[1::3, 1::3], mask)
    shrunk = cv2.resize(large_image, (200, 128), interpolation=cv2.INTER_AREA)
    difference = np.abs(shrunk.astype(float) - image).mean()
    other = maker.mask_scene(3, 'train', index + 1, 200 / 128)
    foreign = maker.render_mask(other, 128, 200)[0].astype(float)
    assert difference < 0.25 * np.abs(foreign - image).mean()


def test_scenes_are_varied_and_thin():
    shares, widths, holes, others = [], [], 0, set()
    for index in range(30):
        drawn = maker.mask_scene(0, 'train', index, 1.5)
        shares.append((maker.render_mask(drawn, 64, 96)[1] > 0).mean())
        parts = drawn.objects[-1][0]
        strands = [p.figure for p in parts if isinstance(p.figure, Strand)]
        assert len(strands) >= 3
        widths += [strand.width * strand.tip for strand in strands]
        holes += sum(part.hole for part in parts)
        others.add(len(drawn.objects))
    assert 0.01 < min(shares) < max(shares) < 0.5
    assert min(widths) < 3 / 2160 < 20 / 2160 < max(widths)
    assert holes > 10
    assert others == {1, 2, 3}


def test_objects_differ_moderately_from_what_is_behind():
    steps = []
    for index in range(20):
        drawn = maker.mask_scene(0, 'train', index, 1.5)
        tints = (drawn.background.tint, drawn.objects[-1][1].tint)
        steps.append(math.dist(*tints))
        image, mask = maker.render_mask(drawn, 128, 192)
        inside = image[mask > 0].mean(0)
        assert np.linalg.norm(inside - tints[1]) < 30
    assert 29.999 <= min(steps) < max(steps) <= 80.001


def test_splits_share_no_background_and_scenes_differ():
    names = {
        split: {
            maker.mask_scene(0, split, i, 1.5).background.crop.name
            for i in range(40)
        }
        for split in ('train', 'val')
    }
    assert names == {'train': set(TRAIN_PHOTOS), 'val': set(VAL_PHOTOS)}
    assert maker.mask_scene(0, 'val', 0, 1.5) == maker.mask_scene(
        0, 'val', 0, 1.5
    )
    assert len({maker.mask_scene(s, 'val', 0, 1.5).noise for s in (0, 1)}) == 2
    with pytest.raises(ValueError, match=r"split must be one of .*'test'"):
        maker.mask_scene(0, 'test', 0, 1.5)
    with pytest.raises(ValueError, match=r'size .* 16 16, got 8 64'):
        maker.render_mask(scene((Part(BLOB),)), 8, 64)


def run(out, *options):
    sizes = ['--num-train', '2', '--num-val', '1', '--size', '64', '96']
    prepare_data.main(['masks', str(out), *sizes, *options])


def test_command_writes_the_layout(tmp_path, capsys):
    run(tmp_path, '--seed', '7')
    assert 'wrote 2 + 1 images' in capsys.readouterr().out
    files = {
        p.relative_to(tmp_path).as_posix()
        for p in tmp_path.rglob('*')
        if p.is_file()
    }
    names = ('train/000000', 'train/000001', 'val/000000')
    assert files == {'meta.json'} | {
        file for x in names for file in (f'images/{x}.jpg', f'masks/{x}.png')
    }
    meta = json.loads((tmp_path / 'meta.json').read_text())
    assert meta == dict(
        kind='masks', size=[64, 96], seed=7, counts=dict(train=2, val=1)
    )
    drawn = maker.mask_scene(7, 'train', 1, 1.5)
    image, mask = maker.render_mask(drawn, 64, 96)
    read = cv2.imread(str(tmp_path / 'masks/train/000001.png'), -1)
    np.testing.assert_array_equal(read, mask, strict=True)
    read = cv2.imread(str(tmp_path / 'images/train/000001.jpg'))
    difference = np.abs(read[..., ::-1].astype(float) - image)
    assert difference.mean() < 6
    run(tmp_path, '--seed', '7')
    assert 'holds this set already' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run(tmp_path, '--seed', '8')
    assert 'replace its images, masks' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (['--num-val', '0'], 'num-val must be at least 1, got 0'),
        (['--seed', '-1'], 'seed must be at least 0, got -1'),
        (['--size', '8', '64'], 'at least 16 16, got 8 64'),
    ],
)
def test_bad_option_is_named(tmp_path, capsys, options, words):
    with pytest.raises(SystemExit) as failure:
        run(tmp_path / 'set', *options)
    assert failure.value.code == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / 'set').exists()


@pytest.mark.slow
def test_4k_is_the_same_scene():
    drawn = maker.mask_scene(0, 'train', 0, 3840 / 2160)
    image, mask = maker.render_mask(drawn, 2160, 3840)
    assert image.shape == (2160, 3840, 3)
    _, small = maker.render_mask(drawn, 720, 1280)
    np.testing.assert_array_equal(mask[1::3, 1::3], small)


def test_over_photographs_of_a_folder(tmp_path):
    colours = {}
    for i in range(12):
        colours[i] = (20 * i, 255 - 20 * i, 128)
        image = np.full((40, 60, 3), colours[i][::-1], np.uint8)
        cv2.imwrite(str(tmp_path / f'{i:02d}.png'), image)
    photos = split_photographs(tmp_path)
    assert [Path(x).stem for x in photos['val']] == ['00', '10']
    assert len(photos['train']) == 10
    for split in ('train', 'val'):
        drawn = maker.mask_scene(0, split, 0, 1.5, photos)
        crop = drawn.background.crop
        assert crop.name in photos[split]
        # A plain photograph is the mean that its surface is drawn around.
        assert drawn.background.tint == colours[int(Path(crop.name).stem)]
    out = tmp_path / 'set'
    given = (out, {'train': 2, 'val': 1}, (32, 48), 0)
    assert maker.write_masks(*given, photographs=tmp_path)
    meta = json.loads((out / 'meta.json').read_text())
    assert meta['photographs']['val'] == [*photos['val']]
    with pytest.raises(FileExistsError, match='holds something else'):
        maker.write_masks(*given)


def test_thickets_are_many_and_thin():
    """Against single objects: more pieces, more outline for their area."""
    pieces, thin, soft = {}, {}, {}
    for kind in maker.KINDS:
        scenes = [
            maker.mask_scene(0, 'train', i, 1.5, kind=kind) for i in range(6)
        ]
        masks = [maker.render_mask(scene, 160, 240)[1] for scene in scenes]
        assert all(mask.any() for mask in masks)
        pieces[kind] = np.mean([label(m).max() for m in masks])
        thin[kind] = np.mean(
            [perimeter(m > 0) / np.sqrt((m > 0).sum()) for m in masks]
        )
        soft[kind] = max(scene.softness for scene in scenes)
    assert pieces['thickets'] > 2 * pieces['objects']
    assert thin['thickets'] > 1.5 * thin['objects']
    assert soft['objects'] <= 3 < soft['thickets'] <= 6


def test_a_set_of_thickets_is_another_set(tmp_path):
    given = (tmp_path / 'set', {'train': 1, 'val': 1}, (32, 48), 0)
    assert maker.write_masks(*given, kind='thickets')
    assert not maker.write_masks(*given, kind='thickets')
    with pytest.raises(FileExistsError, match='holds something else'):
        maker.write_masks(*given)


def test_needs_photographs_in_the_folder(tmp_path):
    with pytest.raises(ValueError, match='two images or more.* has 0'):
        maker.write_masks(
            tmp_path / 'set',
            {'train': 1, 'val': 1},
            (32, 48),
            0,
            True,
            tmp_path,
        )
