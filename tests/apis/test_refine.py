from argparse import ArgumentParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from skimage import data

from mmplugins.apis import refine
from mmplugins.apis.inference import build_model
from mmplugins.apis.refine import MaskRefiner
from mmplugins.crm import MaskRefinementMetric

CONFIG = """
model = dict(
    type='mmplugins.CRM',
    backbone=dict(type='mmplugins.CRMBackbone', depth=18),
    decode_head=dict(
        type='mmplugins.CRMHead',
        in_channels=(64, 64, 256),
        channels=(4, 4, 4),
        hidden_channels=(4,),
    ),
    scales=(0.5, 1),
    data_preprocessor=dict(
        type='ImgDataPreprocessor', mean=[128] * 3, std=[64] * 3
    ),
)
"""
COMMON = ['--config', 'config.py', '--checkpoint', 'a.pth', '--out-dir', 'out']
NAMES = ['mask', 'refined', 'sheet']


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """Random weights that do not find all or nothing."""
    torch.manual_seed(6)
    path = tmp_path_factory.mktemp('weights') / 'config.py'
    path.write_text(CONFIG)
    model = build_model(str(path))
    model.init_weights()
    torch.nn.init.normal_(model.backbone.net.conv1.mask_weight, std=0.3)
    last = model.decode_head.decoder.layers[-1]
    torch.nn.init.normal_(last.weight, std=3)
    return model.state_dict()


@pytest.fixture
def folder(tmp_path, monkeypatch, weights):
    """Images, masks, their truth and label maps, of equal names."""
    monkeypatch.chdir(tmp_path)
    Path('config.py').write_text(CONFIG)
    torch.save(weights, 'a.pth')
    photo = data.astronaut()
    for index, name in enumerate('ab'):
        image = photo[:45, 100 + index : 170, ::-1]
        save(f'images/{name}.png', image)
        truth = np.zeros(image.shape[:2], np.uint8)
        cv2.circle(truth, (30, 22), 14, 255, -1)
        save(f'truth/{name}.png', truth)
        save(f'masks/{name}.png', np.roll(truth, 3 + index, 1))
        labels = (np.roll(truth, 3, 1) > 0).astype(np.uint8)
        labels[:8] = 2
        save(f'labels/{name}.png', labels)
    return tmp_path


def save(path, image):
    Path(path).parent.mkdir(exist_ok=True)
    assert cv2.imwrite(str(path), image)


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def run(*arguments):
    parser = ArgumentParser()
    refine.add_arguments(parser)
    refine.run(parser.parse_args([*COMMON, *arguments]))


def names(path='.'):
    return sorted(
        str(file.relative_to(path)) for file in Path(path).rglob('*')
    )


def test_one_mask(folder, capsys):
    run('images/a.png', 'masks/b.png', '--resize-mask')
    assert names('out') == [f'a_{name}.png' for name in NAMES]
    line = capsys.readouterr().out
    assert line.startswith('out/a_refined.png: image 45 x 70, ')
    assert line.endswith(' s\n')
    refiner = MaskRefiner('config.py', 'a.pth')
    mask = read('masks/b.png').astype(np.float32) / 255
    mask = cv2.resize(mask, (70, 45))
    prob = refiner.refine(read('images/a.png'), mask)
    refined, binary = read('out/a_refined.png'), read('out/a_mask.png')
    assert refined.dtype == binary.dtype == np.uint8
    # Rounded, not cut.
    assert np.abs(refined - 255 * prob).max() <= 0.5 + 1e-3
    np.testing.assert_array_equal(binary, 255 * (prob > 0.5))
    assert 0 < binary.mean() < 255
    assert read('out/a_sheet.png').shape[1] == 8 + 4 * 488


def test_stages_are_written(folder):
    run('images/a.png', 'masks/a.png', '--save-stages', '--scales', '.5', '1')
    stages = [read(f'out/a_stage{k}.png') for k in (1, 2)]
    np.testing.assert_array_equal(stages[1], read('out/a_refined.png'))
    assert (stages[0] != stages[1]).any()
    assert len(names('out')) == len(NAMES) + 2


def test_folders_and_the_truth(folder, capsys):
    """Figures as of the metric, for each image and all of them."""
    run('images', 'masks', '--truth', 'truth')
    assert names('out') == [f'{x}_{name}.png' for x in 'ab' for name in NAMES]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    figures = []
    for name in 'ab':
        metric = MaskRefinementMetric()
        samples = dict(
            gt_sem_seg=read(f'truth/{name}.png'),
            coarse_sem_seg=read(f'masks/{name}.png'),
            pred_sem_seg=read(f'out/{name}_mask.png'),
        )
        sample = {
            key: dict(data=torch.from_numpy(x // 255)[None])
            for key, x in samples.items()
        }
        metric.process({}, [sample])
        found = metric.evaluate(1)
        figures.append(
            [
                found[f'{stage}/{kind}']
                for kind in ('IoU', 'mBA')
                for stage in ('coarse', 'refined')
            ]
        )
    figures.append(np.mean(figures, 0))
    text = 'IoU {:.2f} to {:.2f}, mBA {:.2f} to {:.2f}'
    assert lines[2].startswith('mean of 2 images: IoU')
    for line, wanted in zip(lines, figures):
        parts = line.replace(',', '').split()
        found = [float(parts[i]) for i in (-7, -5, -3, -1)]
        np.testing.assert_allclose(found, wanted, atol=0.011)
        assert line.endswith(text.format(*found))
    assert figures[0] != figures[1]


def test_sheet_has_errors_with_the_truth(folder):
    run('images/a.png', 'masks/a.png')
    plain = read('out/a_sheet.png')
    run('images/a.png', 'masks/a.png', '--truth', 'truth/a.png')
    assert len(read('out/a_sheet.png')) > len(plain)


def test_ignored_pixels_do_not_count(folder, capsys):
    truth = read('truth/a.png') // 255
    truth[truth != read('masks/a.png') // 255] = 255
    save('truth.png', truth)
    run('images/a.png', 'masks/a.png', '--truth', 'truth.png')
    assert 'IoU 100.00 to' in capsys.readouterr().out


def test_an_empty_mask_has_figures_too(folder, capsys):
    save('empty.png', np.zeros((45, 70), np.uint8))
    run('images/a.png', 'empty.png', '--truth', 'empty.png')
    note, line = capsys.readouterr().out.splitlines()
    assert note.startswith('empty.png has no foreground')
    assert line.endswith('IoU 100.00 to 100.00, mBA nan to nan')
    assert not read('out/a_refined.png').any()


def test_label_maps(folder, capsys):
    run('images', '--masks', 'labels', '--label-map', '--truth', 'labels')
    assert names('out') == [
        f'{x}_{name}.png' for x in 'ab' for name in ('labels', 'sheet')
    ]
    assert 'IoU 100.00 to' in capsys.readouterr().out.splitlines()[-1]
    refiner = MaskRefiner('config.py', 'a.pth')
    wanted = refiner.refine_labels(
        read('images/a.png'), read('labels/a.png').astype(int)
    )
    found = read('out/a_labels.png')
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, wanted)


def test_only_some_classes_of_a_label_map(folder):
    labels = read('labels/a.png').astype(np.uint16)
    labels[labels == 2] = 300
    save('deep.png', labels)
    run('images/a.png', 'deep.png', '--classes', '1')
    found = read('out/a_labels.png')
    assert found.dtype == np.uint16
    assert set(np.unique(found)) <= {0, 1, 300}
    kept = (found != 1) & (labels != 1)
    np.testing.assert_array_equal(found[kept], labels[kept])


def test_classes_that_a_label_map_lacks_are_told(folder, capsys):
    run('images', '--masks', 'labels', '--classes', '1', '9')
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        f'--classes 9: the label map labels/{x}.png has 0, 1, 2' for x in 'ab'
    ]
    assert len(lines) == 4
    run('images/a.png', 'labels/a.png', '--classes', '1', '2')
    assert '--classes' not in capsys.readouterr().out


def test_a_class_of_one_map_is_enough(folder, capsys):
    save('labels/b.png', np.eye(45, 69, dtype=np.uint8) * 7)
    run('images', '--masks', 'labels', '--classes', '7')
    line = capsys.readouterr().out.splitlines()[0]
    assert line == '--classes 7: the label map labels/a.png has 0, 1, 2'
    np.testing.assert_array_equal(
        read('out/a_labels.png'), read('labels/a.png')
    )


def test_many_labels_are_not_all_listed(folder):
    save('many.png', np.resize(np.arange(100, dtype=np.uint8), (45, 70)))
    with pytest.raises(ValueError, match=r'has 0, 1, .* 19 and 80 more$'):
        run('images/a.png', 'many.png', '--classes', '200')


def test_label_maps_taken_for_masks_are_told(folder, capsys):
    run('images/a.png', 'labels/a.png')
    note = capsys.readouterr().out.splitlines()[0]
    assert note == (
        'labels/a.png has no foreground, its highest share is 0.01: of a '
        'label map say --label-map'
    )


def test_far_from_the_boundary_nothing_changes(folder):
    run('images/a.png', 'masks/a.png', '--band', '0', '--tile', '64')
    np.testing.assert_array_equal(
        read('out/a_refined.png'), read('masks/a.png')
    )


def test_an_upright_mask_fits_a_turned_image(folder):
    picture = Image.fromarray(np.ascontiguousarray(read('images/a.png')))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save('turned.png', exif=exif)
    save('upright.png', cv2.rotate(read('masks/a.png'), 0))
    run('turned.png', 'upright.png')
    assert read('out/turned_refined.png').shape == (70, 45)
    with pytest.raises(ValueError, match='turn the mask alike'):
        run('turned.png', 'masks/a.png')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['images/a.png'], 'come in pairs'),
        (['images/a.png', 'images/b.png'], 'b.png must be grey'),
        (['images/a.png', 'a.pth'], 'a.pth is not a mask'),
        (['a.pth', 'masks/a.png'], 'a.pth is not an image'),
        (
            ['images/a.png', 'masks/b.png'],
            'is of 45 x 69 pixels, its image images/a.png of 45 x 70: --res',
        ),
        (
            ['images/a.png', 'masks/a.png', '--truth', 'truth/b.png'],
            '--truth truth/b.png is of 45 x 69',
        ),
        (['images/a.png', 'masks/a.png'] * 2, 'would have the same'),
        (
            ['images', 'masks', '--label-map', '--save-stages'],
            'not for label maps',
        ),
        (
            ['images/a.png', 'labels/a.png', '--classes', '9', '12'],
            '^--classes 9 12: the label map labels/a.png has 0, 1, 2$',
        ),
        (
            ['images', 'labels', '--label-map', '--classes', '9'],
            r'labels/a.png has 0, 1, 2, and 1 more lack them$',
        ),
        (
            ['images', 'labels', '--classes', '255'],
            'labels/a.png has 0, 1, 2; 255 is ignored, and 1 more',
        ),
        (['images', 'masks', '--tile', '0'], 'tile must be above 0'),
        (['images', 'masks', '--scales', '-1'], 'scales must be above 0'),
        (['images', 'masks', '--out-dir', 'a.pth'], 'a.pth is not a folder'),
        (['images', 'masks', '--checkpoint', 'b'], 'checkpoint b does not'),
    ],
)
def test_errors_leave_nothing(folder, arguments, message):
    before = names()
    with pytest.raises(ValueError, match=message):
        run(*arguments)
    assert names() == before


def test_what_is_read_is_not_written_over(folder):
    save('out/a_mask.png', read('masks/a.png'))
    before = Path('out/a_mask.png').read_bytes()
    with pytest.raises(ValueError, match='written over what is read'):
        run('images/a.png', './out/a_mask.png')
    assert Path('out/a_mask.png').read_bytes() == before
    assert names('out') == ['a_mask.png']


def test_a_config_of_something_else_is_named(folder):
    Path('config.py').write_text(
        "model = dict(type='mmplugins.ImplicitDecoder', in_channels=3)"
    )
    with pytest.raises(ValueError, match='its model is ImplicitDecoder'):
        run('images/a.png', 'masks/a.png')
    assert not Path('out').exists()
    with pytest.raises(ValueError, match='its model is ImplicitDecoder'):
        MaskRefiner(Config.fromfile('config.py'))
