"""Checks of the drawn shapes against geometry and other rasterisers."""

import colorsys
import dataclasses
import math

import cv2
import numpy as np
import pytest
from makers import shapes as maker
from makers.photographs import TEXTURES, Crop
from makers.shapes import CLASSES, PALETTE, Scene, Shape
from scipy.ndimage import distance_transform_edt
from skimage.measure import points_in_poly

GRAVEL = Crop('gravel.png', 0.5, 0.5, 0.5)
KINDS = CLASSES[1:]
# Whole inside a 2:3 image, at a place and angle with no symmetry.
LENGTHS = {
    'disc': (0.31, 0.0),
    'ring': (0.31, 0.03),
    'triangle': (0.36, 0.3),
    'star': (0.4, 0.1),
    'bar': (0.41, 0.025),
}


def make_shape(kind, angle=0.4, **kwargs):
    radius, width = LENGTHS[kind]
    options = {'x': 0.713, 'y': 0.482, 'tint': (200, 100, 50)}
    options |= {'radius': radius, 'width': width, 'angle': angle}
    return Shape(kind, texture=GRAVEL, **(options | kwargs))


def render(*shapes, size=(400, 600)):
    background = Crop('coffee.png', 1.0, 0.0, 0.0)
    return maker.render(Scene(background, 0.5, shapes), *size)


def area(kind):
    radius, width = LENGTHS[kind]
    return {
        'disc': math.pi * radius**2,
        'ring': 2 * math.pi * radius * width,
        'triangle': radius * width,
        # Ten triangles between centre, spike and notch, 36 degrees apart.
        'star': 10 * 0.5 * radius * width / 2 * math.sin(math.pi / 5),
        'bar': 2 * radius * width,
    }[kind]


def corners(shape):
    """(N, 2) corners (x, y) from the text of `Shape`."""
    r, half = shape.radius, shape.width / 2
    if shape.kind == 'triangle':
        local = [(r, 0), (-r, half), (-r, -half)]
    elif shape.kind == 'bar':
        local = [(r, half), (-r, half), (-r, -half), (r, -half)]
    else:
        turns = [k * math.pi / 5 for k in range(10)]
        radii = [r, half] * 5
        local = [
            (s * math.cos(t), s * math.sin(t))
            for s, t in zip(radii, turns, strict=True)
        ]
    turn = complex(math.cos(shape.angle), math.sin(shape.angle))
    points = [complex(*p) * turn for p in local]
    return np.array([(p.real + shape.x, p.imag + shape.y) for p in points])


def centres(height, width):
    """(H * W, 2) pixel centres (x, y) in image heights."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x.ravel() + 0.5, y.ravel() + 0.5], 1) / height


@pytest.mark.parametrize('kind', KINDS)
def test_mask_area_is_the_area_of_the_figure(kind):
    _, label = render(make_shape(kind), size=(1000, 1500))
    pixels = np.count_nonzero(label == CLASSES.index(kind))
    assert np.count_nonzero(label) == pixels
    # Pixels astride the outline are drawn or not; their errors, which
    # change sign along it, sum to well below a tenth of its length.
    perimeter = {'disc': 2, 'ring': 4, 'triangle': 2, 'star': 4, 'bar': 2}
    radius = LENGTHS[kind][0] * 1000
    limit = 0.1 * perimeter[kind] * math.pi * radius
    assert abs(pixels - area(kind) * 1e6) < limit


@pytest.mark.parametrize('kind', KINDS)
def test_soft_edge_keeps_the_area(kind):
    # Colour sums of white less black fill leave the coverage alone.
    white, black = (
        render(make_shape(kind, tint=(level,) * 3, contrast=0.0))[0]
        for level in (255, 0)
    )
    coverage = (white.astype(float) - black)[..., 0] / 255
    expected = area(kind) * 400**2
    assert coverage.sum() == pytest.approx(expected, rel=0.01)
    # Grey levels only astride the outline, and some of them.
    _, label = render(make_shape(kind))
    inside = cv2.erode(label, np.ones((3, 3)), borderValue=0) > 0
    outside = cv2.dilate(label, np.ones((3, 3)), borderValue=0) == 0
    assert (coverage[inside] == 1).all()
    # A spike's tip is thinner than a pixel, hence the few over zero.
    assert np.count_nonzero(coverage[outside]) <= 10
    assert len(np.unique(coverage[~inside & ~outside])) > 10


def test_edge_pixel_shows_the_share_covered():
    # An upright bar from x = 20.3 to 50.7 and y = 30.6 to 33.4 pixels.
    bar = make_shape(
        'bar',
        angle=0.0,
        x=0.355,
        y=0.32,
        radius=0.152,
        width=0.028,
        tint=(255, 255, 255),
        contrast=0.0,
    )
    white, _ = render(bar, size=(100, 150))
    black, _ = render(dataclasses.replace(bar, tint=(0,) * 3), size=(100, 150))
    coverage = (white.astype(float) - black)[..., 0] / 255
    row, column = coverage[32, :], coverage[:, 40]
    assert row[[19, 20, 21, 49, 50, 51]] == pytest.approx(
        [0, 0.7, 1, 1, 0.7, 0], abs=0.01
    )
    assert column[29:35] == pytest.approx([0, 0.4, 1, 1, 0.4, 0], abs=0.01)


def test_opacity_is_the_share_of_the_fill():
    shapes = [make_shape('disc', opacity=level) for level in (0, 0.25, 1)]
    none, some, full = (render(s)[0].astype(float) for s in shapes)
    np.testing.assert_array_equal(none, render()[0])
    assert np.abs(some - (0.75 * none + 0.25 * full)).max() < 0.7
    assert np.abs(full - none).max() > 50


@pytest.mark.parametrize('angle', [0.0, 0.4, 2.0, 4.1, 5.9])
@pytest.mark.parametrize('kind', ['triangle', 'star', 'bar'])
def test_mask_is_the_polygon(kind, angle):
    shape = make_shape(kind, angle)
    _, label = render(shape, size=(240, 361))
    inside = points_in_poly(centres(240, 361), corners(shape))
    np.testing.assert_array_equal(label.ravel() > 0, inside)


@pytest.mark.parametrize('kind', KINDS)
def test_cut_off_shape_is_the_window_of_the_whole_one(kind):
    # Moved by whole pixels so that it leaves each side of the image.
    image, whole = render(make_shape(kind, y=0.5, x=0.75), size=(400, 600))
    padded = np.pad(whole, 400)
    photo = np.pad(image, [(400, 400), (400, 400), (0, 0)])
    for dy, dx in [(-200, 0), (200, 0), (0, -300), (0, 300), (-160, 260)]:
        moved = make_shape(kind, y=0.5 + dy / 400, x=0.75 + dx / 400)
        image, label = render(moved, size=(400, 600))
        place = np.s_[400 - dy : 800 - dy, 400 - dx : 1000 - dx]
        window = padded[place]
        # The texture moves along, whatever is cut off.
        inner = cv2.erode(label & window, np.ones((3, 3)), borderValue=0) > 0
        change = image[inner].astype(float) - photo[place][inner]
        assert np.abs(change).mean() < 8
        # The shift rounds, so a centre on the outline may change side.
        assert np.count_nonzero(label != window) <= 4
        assert 0 < np.count_nonzero(label) < np.count_nonzero(whole)


@pytest.mark.parametrize(
    'place', [(-0.5, 0.5), (2, 0.5), (0.5, -0.5), (0.5, 3)]
)
def test_shape_beyond_the_image_changes_nothing(place):
    image, label = render(make_shape('disc', x=place[0], y=place[1]))
    np.testing.assert_array_equal(image, render()[0])
    assert not label.any()


@pytest.mark.parametrize('kind', ['disc', 'ring'])
def test_signed_distance_agrees_with_distance_transform(kind):
    shape = make_shape(kind, width=0.1)
    x, y = centres(240, 360).T.reshape(2, 240, 360)
    distance = maker.signed_distance(shape, x, y) * 240
    _, label = render(shape, size=(240, 360))
    expected = distance_transform_edt(label == 0)
    expected -= distance_transform_edt(label > 0)
    # The transform measures from pixel centre to pixel centre.
    assert np.abs(distance - expected).max() < 1.5


@pytest.mark.parametrize('angle', [0.0, 0.4, 3.7])
@pytest.mark.parametrize('kind', ['triangle', 'star', 'bar'])
def test_signed_distance_is_that_to_the_polygon(kind, angle):
    shape = make_shape(kind, angle)
    points = centres(50, 75)
    distance = maker.signed_distance(shape, *points.T)
    contour = corners(shape).astype(np.float32)
    expected = [-cv2.pointPolygonTest(contour, p, True) for p in points]
    np.testing.assert_allclose(distance, expected, atol=1e-6)


def test_later_shape_hides_earlier_one():
    disc = make_shape('disc')
    bar = make_shape('bar', tint=(0, 0, 255), contrast=0.0)
    image, label = render(disc, bar)
    _, bar_alone = render(bar)
    _, disc_alone = render(disc)
    expected = np.where(bar_alone, bar_alone, disc_alone)
    np.testing.assert_array_equal(label, expected)
    inner = cv2.erode(bar_alone, np.ones((3, 3))) > 0
    assert (image[inner] == (0, 0, 255)).all()
    _, swapped = render(bar, disc)
    both = (bar_alone > 0) & (disc_alone > 0)
    assert (swapped[both] == CLASSES.index('disc')).all()


@pytest.mark.parametrize('index', range(6))
def test_scene_is_the_same_at_three_times_the_size(index):
    scene = maker.shapes_scene(3, 'train', index, 100 / 64)
    image, label = maker.render(scene, 64, 100)
    large_image, large = maker.render(scene, 192, 300)
    # Every third pixel of the large one shares a small one's centre.
    np.testing.assert_array_equal(large[1::3, 1::3], label)
    shrunk = cv2.resize(large_image, (100, 64), interpolation=cv2.INTER_AREA)
    difference = np.abs(shrunk.astype(float) - image)
    assert difference.mean() < 6
    other = maker.shapes_scene(3, 'train', index + 1, 100 / 64)
    foreign = maker.render(other, 64, 100)[0].astype(float)
    assert difference.mean() < 0.2 * np.abs(foreign - image).mean()


def test_render_types():
    image, label = render(size=(16, 20))
    assert (image.shape, image.dtype) == ((16, 20, 3), np.uint8)
    assert (label.shape, label.dtype) == ((16, 20), np.uint8)


def test_saturation_is_the_colour_left():
    crop = Crop('coffee.png', 1.0, 0.0, 0.0)
    chroma = []
    for saturation in (0.0, 0.5, 1.0):
        scene = Scene(crop, saturation, ())
        image = maker.render(scene, 80, 120)[0].astype(float)
        chroma.append(np.ptp(image, axis=2).mean())
    assert chroma[0] == 0
    assert chroma[2] > 20
    assert chroma[1] == pytest.approx(chroma[2] / 2, rel=0.05)


@pytest.mark.parametrize('kind', KINDS)
def test_sampled_shapes_show_the_hue_of_their_class(kind):
    palette = np.array(PALETTE[CLASSES.index(kind)]) / 255
    hue = colorsys.rgb_to_hsv(*palette)[0]
    seen = 0
    for index in range(12):
        scene = maker.shapes_scene(0, 'train', index, 1.5)
        image, label = maker.render(scene, 128, 192)
        mask = (label == CLASSES.index(kind)).astype(np.uint8)
        # The soft edge shows what is behind.
        inner = cv2.erode(mask, np.ones((3, 3)), borderValue=0) > 0
        if not inner.any():
            continue
        seen += 1
        mean = np.median(image[inner], axis=0) / 255
        found = colorsys.rgb_to_hsv(*mean)[0]
        assert abs((found - hue + 0.5) % 1 - 0.5) < 1 / 12
    assert seen >= 3


@pytest.mark.parametrize('name', TEXTURES)
def test_texture_varies_the_fill_about_its_tint(name):
    disc = make_shape('disc', tint=(160, 120, 60))
    texture = dataclasses.replace(GRAVEL, name=name)
    image, label = render(dataclasses.replace(disc, texture=texture))
    inside = image[cv2.erode(label, np.ones((3, 3))) > 0]
    assert inside.std(axis=0).min() > 4
    assert inside.mean(axis=0) == pytest.approx([160, 120, 60], rel=0.05)


def test_scenes_have_every_class_and_only_valid_labels():
    for split, num in (('train', 12), ('val', 8)):
        seen = set()
        for index in range(num):
            scene = maker.shapes_scene(0, split, index, 1.5)
            seen |= set(np.unique(maker.render(scene, 64, 96)[1]))
        assert seen == set(range(len(CLASSES)))
    assert len(PALETTE) == len(CLASSES)
    assert len({tuple(colour) for colour in PALETTE}) == len(CLASSES)


def test_thin_shapes_are_two_to_three_percent_of_the_height():
    thin = [
        shape.width
        for index in range(20)
        for shape in maker.shapes_scene(0, 'val', index, 1.5).shapes
        if shape.kind in ('ring', 'bar')
    ]
    assert len(thin) > 20
    assert 0.02 <= min(thin) < 0.023 < 0.027 < max(thin) <= 0.03


def test_scene_depends_on_seed_split_and_index():
    def sample(seed=0, split='train', index=0):
        return maker.shapes_scene(seed, split, index, 1.5)

    assert sample() == sample()
    shapes = {
        sample(**change).shapes
        for change in ({}, {'seed': 1}, {'split': 'val'}, {'index': 1})
    }
    assert len(shapes) == 4


def test_scene_follows_spawned_seeds():
    train, val = np.random.SeedSequence(5).spawn(2)
    child = train.spawn(4)[3]
    expected = maker.sample_scene(np.random.default_rng(child), 1.5)
    assert maker.shapes_scene(5, 'train', 3, 1.5) == expected
    assert val.spawn_key == (1,)


def test_aspect_ratio_only_moves_shapes_sideways():
    one = maker.shapes_scene(0, 'train', 0, 1.0)
    two = maker.shapes_scene(0, 'train', 0, 2.0)
    moved = [dataclasses.replace(s, x=2 * s.x) for s in one.shapes]
    assert two.shapes == tuple(moved)


def test_splits_share_no_background():
    names = {
        split: {
            maker.shapes_scene(0, split, i, 1.5).background.name
            for i in range(30)
        }
        for split in ('train', 'val')
    }
    assert len(names['train']) >= 3
    assert len(names['val']) >= 3
    assert not names['train'] & names['val']


def test_bad_arguments_of_functions():
    with pytest.raises(ValueError, match=r"kind must be one of .*'blob'"):
        Shape('blob', 0, 0, 1, 1, 0, (0, 0, 0), GRAVEL)
    with pytest.raises(ValueError, match=r"split must be one of .*'test'"):
        maker.shapes_scene(0, 'test', 0, 1.5)
    rng = np.random.default_rng(0)
    for ratio in (0, -1.5, math.inf, math.nan):
        with pytest.raises(ValueError, match='aspect_ratio must be'):
            maker.sample_scene(rng, ratio)
    with pytest.raises(ValueError, match=r'size .* 16 16, got 8 64'):
        render(size=(8, 64))


@pytest.mark.slow
def test_4k_is_the_same_scene():
    scene = maker.shapes_scene(0, 'train', 0, 3840 / 2160)
    image, label = maker.render(scene, 2160, 3840)
    assert image.shape == (2160, 3840, 3)
    # 720 x 1280 is a third of it.
    _, small = maker.render(scene, 720, 1280)
    np.testing.assert_array_equal(label[1::3, 1::3], small)
