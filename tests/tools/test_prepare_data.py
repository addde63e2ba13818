"""Checks of the drawn shapes against geometry and other rasterisers."""

import colorsys
import dataclasses
import json
import math

import cv2
import numpy as np
import prepare_data
import pytest
from prepare_data import CLASSES, PALETTE, Crop, Scene, Shape
from scipy.ndimage import distance_transform_edt
from skimage import data
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
    return prepare_data.render(Scene(background, 0.5, shapes), *size)


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


def read_tree(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in folder.rglob('*')
        if p.is_file()
    }


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
    distance = prepare_data.signed_distance(shape, x, y) * 240
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
    distance = prepare_data.signed_distance(shape, *points.T)
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
    scene = prepare_data.shapes_scene(3, 'train', index, 100 / 64)
    image, label = prepare_data.render(scene, 64, 100)
    large_image, large = prepare_data.render(scene, 192, 300)
    # Every third pixel of the large one shares a small one's centre.
    np.testing.assert_array_equal(large[1::3, 1::3], label)
    shrunk = cv2.resize(large_image, (100, 64), interpolation=cv2.INTER_AREA)
    difference = np.abs(shrunk.astype(float) - image)
    assert difference.mean() < 6
    other = prepare_data.shapes_scene(3, 'train', index + 1, 100 / 64)
    foreign = prepare_data.render(other, 64, 100)[0].astype(float)
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
        image = prepare_data.render(scene, 80, 120)[0].astype(float)
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
        scene = prepare_data.shapes_scene(0, 'train', index, 1.5)
        image, label = prepare_data.render(scene, 128, 192)
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


@pytest.mark.parametrize('name', prepare_data.TEXTURES)
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
            scene = prepare_data.shapes_scene(0, split, index, 1.5)
            seen |= set(np.unique(prepare_data.render(scene, 64, 96)[1]))
        assert seen == set(range(len(CLASSES)))
    assert len(PALETTE) == len(CLASSES)
    assert len({tuple(colour) for colour in PALETTE}) == len(CLASSES)


def test_thin_shapes_are_two_to_three_percent_of_the_height():
    thin = [
        shape.width
        for index in range(20)
        for shape in prepare_data.shapes_scene(0, 'val', index, 1.5).shapes
        if shape.kind in ('ring', 'bar')
    ]
    assert len(thin) > 20
    assert 0.02 <= min(thin) < 0.023 < 0.027 < max(thin) <= 0.03


def test_scene_depends_on_seed_split_and_index():
    def sample(seed=0, split='train', index=0):
        return prepare_data.shapes_scene(seed, split, index, 1.5)

    assert sample() == sample()
    shapes = {
        sample(**change).shapes
        for change in ({}, {'seed': 1}, {'split': 'val'}, {'index': 1})
    }
    assert len(shapes) == 4


def test_scene_follows_spawned_seeds():
    train, val = np.random.SeedSequence(5).spawn(2)
    child = train.spawn(4)[3]
    expected = prepare_data.sample_scene(np.random.default_rng(child), 1.5)
    assert prepare_data.shapes_scene(5, 'train', 3, 1.5) == expected
    assert val.spawn_key == (1,)


def test_aspect_ratio_only_moves_shapes_sideways():
    one = prepare_data.shapes_scene(0, 'train', 0, 1.0)
    two = prepare_data.shapes_scene(0, 'train', 0, 2.0)
    moved = [dataclasses.replace(s, x=2 * s.x) for s in one.shapes]
    assert two.shapes == tuple(moved)


def test_splits_share_no_background():
    names = {
        split: {
            prepare_data.shapes_scene(0, split, i, 1.5).background.name
            for i in range(30)
        }
        for split in ('train', 'val')
    }
    assert len(names['train']) >= 3
    assert len(names['val']) >= 3
    assert not names['train'] & names['val']


def run(out, *options):
    sizes = ['--num-train', '3', '--num-val', '2', '--size', '32', '48']
    prepare_data.main(['shapes', str(out), *sizes, *options])


def test_command_writes_the_layout(tmp_path):
    out = tmp_path / 'deep' / 'set'
    run(out, '--seed', '7')
    files = read_tree(out)
    expected = {
        f'{part}/{split}/{index:06d}.png'
        for part in ('images', 'labels')
        for split, num in (('train', 3), ('val', 2))
        for index in range(num)
    }
    assert set(files) == expected | {'meta.json'}
    assert sorted(p.name for p in out.iterdir()) == [
        'images',
        'labels',
        'meta.json',
    ]
    meta = json.loads(files['meta.json'])
    assert meta['classes'] == list(CLASSES)
    assert meta['palette'] == PALETTE
    assert (meta['size'], meta['seed']) == ([32, 48], 7)
    assert meta['counts'] == {'train': 3, 'val': 2}

    scene = prepare_data.shapes_scene(7, 'val', 1, 48 / 32)
    image, label = prepare_data.render(scene, 32, 48)
    read = cv2.imread(str(out / 'labels/val/000001.png'), -1)
    np.testing.assert_array_equal(read, label)
    read = cv2.imread(str(out / 'images/val/000001.png'), -1)
    np.testing.assert_array_equal(read[..., ::-1], image)


def test_same_seed_gives_same_bytes_whatever_the_counts(tmp_path):
    run(tmp_path / 'a')
    run(tmp_path / 'b')
    run(tmp_path / 'longer', '--num-train', '5', '--num-val', '4')
    run(tmp_path / 'other', '--seed', '1')
    first = read_tree(tmp_path / 'a')
    assert read_tree(tmp_path / 'b') == first
    longer = read_tree(tmp_path / 'longer')
    pngs = [name for name in first if name.endswith('.png')]
    assert all(longer[name] == first[name] for name in pngs)
    assert len(longer) == len(first) + 8
    other = read_tree(tmp_path / 'other')
    assert all(other[name] != first[name] for name in pngs)


def test_second_call_skips(tmp_path, capsys):
    run(tmp_path)
    assert 'wrote 3 + 2' in capsys.readouterr().out
    mark = tmp_path / 'images/train/000000.png'
    mark.write_bytes(b'untouched')
    run(tmp_path)
    assert 'holds this set already' in capsys.readouterr().out
    assert mark.read_bytes() == b'untouched'


@pytest.mark.parametrize(
    'change',
    [
        ['--seed', '1'],
        ['--num-train', '4'],
        ['--num-val', '3'],
        ['--size', '32', '49'],
    ],
)
def test_different_call_refuses_unless_told(tmp_path, capsys, change):
    run(tmp_path)
    before = read_tree(tmp_path)
    with pytest.raises(SystemExit) as failure:
        run(tmp_path, *change)
    assert failure.value.code == 1
    message = capsys.readouterr().err
    assert message.count('\n') == 1
    assert '--overwrite' in message
    assert str(tmp_path) in message
    assert read_tree(tmp_path) == before

    run(tmp_path, *change, '--overwrite')
    run(tmp_path / 'fresh', *change)
    fresh = read_tree(tmp_path / 'fresh')
    after = read_tree(tmp_path)
    assert fresh.items() <= after.items()
    assert len(after) == 2 * len(fresh)


def test_unknown_files_are_neither_replaced_nor_removed(tmp_path, capsys):
    note = tmp_path / 'notes.txt'
    note.write_text('mine')
    with pytest.raises(SystemExit):
        run(tmp_path)
    assert '--overwrite' in capsys.readouterr().err
    assert read_tree(tmp_path) == {'notes.txt': b'mine'}
    run(tmp_path, '--overwrite')
    assert note.read_text() == 'mine'
    assert (tmp_path / 'meta.json').exists()


def test_cut_off_run_is_not_taken_for_a_set(tmp_path, monkeypatch):
    out = tmp_path / 'set'
    real = prepare_data.render

    def fail_late(scene, height, width):
        if (out / '.partial/images/val/000000.png').exists():
            raise KeyboardInterrupt
        return real(scene, height, width)

    monkeypatch.setattr(prepare_data, 'render', fail_late)
    with pytest.raises(KeyboardInterrupt):
        run(out)
    assert [p.name for p in out.iterdir()] == ['.partial']
    monkeypatch.undo()
    run(out)
    run(tmp_path / 'fresh')
    assert read_tree(out) == read_tree(tmp_path / 'fresh')


def test_replacement_cut_off_leaves_no_meta(tmp_path, monkeypatch):
    run(tmp_path)
    real = type(tmp_path).rename

    def fail_at_labels(self, target):
        if self.name == 'labels':
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), 'rename', fail_at_labels)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, '--seed', '1', '--overwrite')
    assert not (tmp_path / 'meta.json').exists()
    assert (tmp_path / 'images').exists()


def test_set_without_meta_is_not_taken_for_whole(tmp_path, capsys):
    run(tmp_path)
    whole = read_tree(tmp_path)
    for text in (None, '{"cut'):
        (tmp_path / 'meta.json').unlink()
        if text:
            (tmp_path / 'meta.json').write_text(text)
        with pytest.raises(SystemExit):
            run(tmp_path)
        assert '--overwrite' in capsys.readouterr().err
        run(tmp_path, '--overwrite')
        assert read_tree(tmp_path) == whole


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (['--size', '15', '48'], ['size', '16 16', '15 48']),
        (['--size', '48', '0'], ['size', '16 16', '48 0']),
        (['--num-train', '0'], ['num-train', 'at least 1', 'got 0']),
        (['--num-val', '-2'], ['num-val', 'at least 1', 'got -2']),
        (['--seed', '-1'], ['seed', 'at least 0', 'got -1']),
        (['--size', '48'], ['--size', 'expected 2']),
        (['--seed', 'x'], ['--seed', "'x'"]),
    ],
)
def test_bad_option_is_named(tmp_path, capsys, options, words):
    with pytest.raises(SystemExit) as failure:
        run(tmp_path / 'set', *options)
    assert failure.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    for word in words:
        assert word in message
    assert not (tmp_path / 'set').exists()


def test_file_in_place_of_the_folder_is_one_line(tmp_path, capsys):
    path = tmp_path / 'file'
    path.write_text('mine')
    with pytest.raises(SystemExit) as failure:
        run(path)
    assert failure.value.code == 1
    message = capsys.readouterr().err
    assert message.count('\n') == 1
    assert str(path) in message
    assert path.read_text() == 'mine'


def test_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit):
        prepare_data.main(['circles', 'out'])
    assert "'circles'" in capsys.readouterr().err


def test_bad_arguments_of_functions():
    with pytest.raises(ValueError, match=r"kind must be one of .*'blob'"):
        Shape('blob', 0, 0, 1, 1, 0, (0, 0, 0), GRAVEL)
    with pytest.raises(ValueError, match=r"split must be one of .*'test'"):
        prepare_data.shapes_scene(0, 'test', 0, 1.5)
    rng = np.random.default_rng(0)
    for ratio in (0, -1.5, math.inf, math.nan):
        with pytest.raises(ValueError, match='aspect_ratio must be'):
            prepare_data.sample_scene(rng, ratio)
    with pytest.raises(ValueError, match=r'size .* 16 16, got 8 64'):
        render(size=(8, 64))


@pytest.mark.slow
def test_4k_is_the_same_scene():
    scene = prepare_data.shapes_scene(0, 'train', 0, 3840 / 2160)
    image, label = prepare_data.render(scene, 2160, 3840)
    assert image.shape == (2160, 3840, 3)
    # 720 x 1280 is a third of it.
    _, small = prepare_data.render(scene, 720, 1280)
    np.testing.assert_array_equal(label[1::3, 1::3], small)


def run_depth(out, *options):
    sizes = ['--num-train', '3', '--size', '160', '180']
    prepare_data.main(['depth', str(out), *sizes, *options])


def test_depth_is_that_of_the_disparity():
    """The camera's constants are those of skimage's text."""
    _, _, disparity = data.stereo_motorcycle()
    depth = prepare_data.stereo_depth()
    assert depth.dtype == np.uint16
    known = np.isfinite(disparity)
    np.testing.assert_array_equal(depth > 0, known)
    wanted = 193.001 * 994.978 / (disparity[known] + 31.086)
    assert np.abs(depth[known] - wanted).max() <= 0.5 + 1e-3
    assert (depth[known].min(), depth.max()) == (2110, 5017)
    text = data.stereo_motorcycle.__doc__
    assert all(x in text for x in ('994.978px', '31.086px', '193.001mm'))


def test_depth_belongs_to_the_left_photograph():
    """Moved by their disparity, its pixels are those of the right one."""
    left, right, _ = data.stereo_motorcycle()
    name = prepare_data.STEREO_PHOTO
    np.testing.assert_array_equal(prepare_data._photograph(name), left)
    depth = prepare_data.stereo_depth().astype(float)
    rows, columns = np.nonzero(depth)
    moved = 193.001 * 994.978 / depth[rows, columns] - 31.086

    def difference(image, offset):
        there = np.rint(columns - offset).astype(int)
        seen = there >= 0
        rest = image[rows[seen], there[seen]].astype(int)
        return np.abs(left[rows[seen], columns[seen]] - rest).mean()

    assert difference(right, moved) < 0.3 * difference(right, moved.mean())


def test_depth_crops_are_the_photographs_and_share_no_pixel(tmp_path):
    run_depth(tmp_path)
    files = read_tree(tmp_path)
    assert set(files) == {'meta.json'} | {
        f'{part}/{split}/motorcycle_{index:03d}.png'
        for part in ('images', 'depth')
        for split, count in (('train', 3), ('val', 6))
        for index in range(count)
    }
    photo = prepare_data._photograph(prepare_data.STEREO_PHOTO)[..., ::-1]
    covered = {}
    for split in ('train', 'val'):
        covered[split] = np.zeros(photo.shape[:2], int)
        for path in sorted((tmp_path / 'images' / split).iterdir()):
            image = cv2.imread(str(path))
            scores = cv2.matchTemplate(
                np.ascontiguousarray(photo), image, cv2.TM_SQDIFF
            )
            top, left = np.unravel_index(scores.argmin(), scores.shape)
            box = np.s_[top : top + 160, left : left + 180]
            np.testing.assert_array_equal(image, photo[box])
            depth = cv2.imread(
                str(tmp_path / 'depth' / split / path.name),
                cv2.IMREAD_UNCHANGED,
            )
            wanted = prepare_data.stereo_depth()[box]
            np.testing.assert_array_equal(depth, wanted, strict=True)
            covered[split][box] += 1
    assert not covered['train'][:, 370:].any()
    assert not covered['val'][:, :371].any()
    assert covered['val'].max() == 1  # tiles
    assert covered['val'].sum() == 6 * 160 * 180
    meta = json.loads(files['meta.json'])
    assert meta['counts'] == {'train': 3, 'val': 6}
    assert (meta['unit'], meta['held_out']) == ('mm', 'right')


@pytest.mark.parametrize('size', [(160, 352), (500, 370), (16, 16), (33, 70)])
@pytest.mark.parametrize('held_out', prepare_data.SIDES)
def test_depth_windows_stay_in_their_half(size, held_out):
    taken = np.zeros((500, 741), bool)
    for split in ('val', 'train'):
        seen = taken.copy()
        right = (split == 'val') == (held_out == 'right')
        half = (371, 741) if right else (0, 370)
        for top, left in prepare_data.depth_windows(
            split, size, count=50, held_out=held_out
        ):
            box = np.s_[top : top + size[0], left : left + size[1]]
            assert half[0] <= left <= left + size[1] <= half[1]
            assert 0 <= top <= top + size[0] <= 500
            assert not taken[box].any()
            seen[box] = True
            if split == 'val':
                taken |= seen
    count = len(prepare_data.depth_windows('val', size))
    assert count == (500 // size[0]) * (370 // size[1])


def test_depth_set_is_reproducible_and_guarded(tmp_path, capsys):
    run_depth(tmp_path / 'a')
    run_depth(tmp_path / 'b')
    first = read_tree(tmp_path / 'a')
    assert read_tree(tmp_path / 'b') == first
    assert 'wrote 3 + 6' in capsys.readouterr().out
    run_depth(tmp_path / 'a')
    assert 'holds this set already' in capsys.readouterr().out
    for change in (['--seed', '1'], ['--held-out', 'left']):
        with pytest.raises(SystemExit):
            run_depth(tmp_path / 'a', *change)
        assert 'images, depth and meta.json' in capsys.readouterr().err
        assert read_tree(tmp_path / 'a') == first
    with pytest.raises(SystemExit):
        run(tmp_path / 'a')  # shapes
    run_depth(tmp_path / 'a', '--held-out', 'left', '--overwrite')
    run_depth(tmp_path / 'c', '--held-out', 'left')
    assert read_tree(tmp_path / 'a') == read_tree(tmp_path / 'c') != first


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (['--num-train', '0'], 'num-train must be at least 1, got 0'),
        (['--seed', '-1'], 'seed must be at least 0, got -1'),
        (['--size', '501', '64'], 'at most 500 370, got 501 64'),
        (['--size', '64', '371'], 'at most 500 370, got 64 371'),
        (['--size', '8', '64'], 'at least 16 16, got 8 64'),
        (['--held-out', 'top'], "invalid choice: 'top'"),
    ],
)
def test_bad_depth_option_is_named(tmp_path, capsys, options, words):
    with pytest.raises(SystemExit) as failure:
        run_depth(tmp_path / 'set', *options)
    assert failure.value.code == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / 'set').exists()


def test_bad_arguments_of_depth_windows():
    with pytest.raises(ValueError, match=r"split must be one of .*'test'"):
        prepare_data.depth_windows('test', (64, 64))
    with pytest.raises(ValueError, match=r"held-out must be .*'top'"):
        prepare_data.depth_windows('val', (64, 64), held_out='top')
