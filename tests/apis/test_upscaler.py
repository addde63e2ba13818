import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from skimage import data

from mmplugins.apis.inference import build_model
from mmplugins.apis.upscaler import ReferenceUpscaler
from mmplugins.compat import load_config

NET = """dict(
    type='mmplugins.SSENNet',
    mid_channels=8,
    num_blocks=2,
    num_extract_blocks=1,
    num_layers=2,
    upscale_factor=2,
)"""
RCAN = """dict(
    type='mmplugins.RCAN',
    num_groups=1,
    num_blocks=1,
    mid_channels=8,
    reduction=2,
    upscale_factor=3,
)"""
EDITOR = f"""
default_scope = 'mmagic'
model = dict(
    type='mmplugins.RefSREditor',
    generator={NET},
    test_cfg=dict(tile=7),
)
"""


def perturbed(model):
    """Weights under which references are displaced."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return model


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Configs and checkpoints, an image and two references."""
    monkeypatch.chdir(tmp_path)
    for name, model in (('net', NET), ('rcan', RCAN)):
        (tmp_path / f'{name}.py').write_text(f'model = {model}\n')
        torch.manual_seed(0)
        built = perturbed(build_model(f'{name}.py'))
        torch.save(built.state_dict(), f'{name}.pth')
    photo = data.astronaut()[..., ::-1]
    save('small.png', photo[:26, 100:118])
    save('wide.png', photo[8:30, 90:190])
    save('large.png', photo[:300, :333])
    return tmp_path


def save(path, image):
    assert cv2.imwrite(path, image)


def read(path):
    return cv2.imread(path, cv2.IMREAD_UNCHANGED)


def as_input(image):
    pixels = np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1))
    return torch.from_numpy(pixels)[None].float() / 255


def by_hand(model, image, references=()):
    """What the network makes of arrays, BGR."""
    others = [as_input(x) for x in references]
    with torch.no_grad():
        if others:
            found = model(as_input(image), others)
        else:
            found = model(as_input(image))
    pixels = 255 * found[0].clamp(0, 1).permute(1, 2, 0).numpy()
    return pixels[..., ::-1]


def loaded(name):
    model = build_model(f'{name}.py')
    model.load_state_dict(torch.load(f'{name}.pth'))
    return model.eval()


@pytest.mark.parametrize('tile', [None, 5])
@pytest.mark.parametrize('refs', [[], ['wide.png'], ['wide.png', 'large.png']])
def test_upscales_as_the_network(folder, refs, tile):
    upscaler = ReferenceUpscaler('net.py', 'net.pth', tile=tile)
    found = upscaler.upscale('small.png', refs)
    assert found.shape == (52, 36, 3)
    assert found.dtype == np.uint8
    wanted = by_hand(loaded('net'), read('small.png'), map(read, refs))
    # Rounded, not cut.
    assert np.abs(found - wanted).max() <= 0.5 + 1e-2
    assert found.std() > 1


def test_order_of_the_channels(folder):
    upscaler = ReferenceUpscaler('net.py', 'net.pth')
    image, ref = read('small.png'), read('wide.png')
    bgr = upscaler.upscale(image, ref)
    rgb = upscaler.upscale(image[..., ::-1], ref[..., ::-1], 'rgb')
    np.testing.assert_array_equal(bgr, rgb[..., ::-1])
    assert (bgr != rgb).any()
    with pytest.raises(ValueError, match="got 'xyz'"):
        upscaler.upscale(image, ref, 'xyz')


def test_grey_and_deep_and_transparent_images(folder):
    upscaler = ReferenceUpscaler('net.py', 'net.pth')
    image = read('small.png')
    wanted = upscaler.upscale(image, 'wide.png')
    clear = np.concatenate([image, image[..., :1]], -1)
    deep = image.astype(np.uint16) * 256 + 3
    for other in (clear, deep):
        found = upscaler.upscale(other, 'wide.png')
        np.testing.assert_array_equal(found, wanted)
    save('clear.png', clear)
    np.testing.assert_array_equal(
        upscaler.upscale('clear.png', 'wide.png'), wanted
    )
    grey = upscaler.upscale(image[..., 0])
    three = upscaler.upscale(np.repeat(image[..., :1], 3, -1))
    np.testing.assert_array_equal(grey, three)


def test_any_size_and_any_reference(folder):
    upscaler = ReferenceUpscaler('net.py', 'net.pth')
    for size in ((1, 1), (1, 9), (7, 2)):
        image = np.full((*size, 3), 90, np.uint8)
        for ref in (np.zeros((1, 1, 3), np.uint8), read('large.png')):
            found = upscaler.upscale(image, ref)
            assert found.shape == (2 * size[0], 2 * size[1], 3)


def test_of_rcan(folder):
    upscaler = ReferenceUpscaler('rcan.py', 'rcan.pth', tile=7)
    found = upscaler.upscale('small.png')
    assert upscaler.scale == 3
    assert not upscaler.takes_references
    wanted = by_hand(loaded('rcan'), read('small.png'))
    assert np.abs(found - wanted).max() <= 0.5 + 1e-2
    with pytest.raises(ValueError, match='takes no references, got 1'):
        upscaler.upscale('small.png', 'wide.png')
    with pytest.raises(ValueError, match='RCAN of the config aligns nothing'):
        upscaler.show('small.png', found)


def test_large_images_need_little_memory(folder, monkeypatch):
    """No more than a tile's surroundings are ever reconstructed at once."""
    upscaler = ReferenceUpscaler('net.py', 'net.pth', tile=16)
    seen = []

    def watch(module, inputs, output):
        seen.append(max(output.shape[-2:]))

    upscaler.generator.upsampler.register_forward_hook(watch)
    image = np.zeros((64, 100, 3), np.uint8)
    assert upscaler.upscale(image).shape == (128, 200, 3)
    assert len(seen) == 4 * 7
    assert max(seen) <= 2 * (16 + 2 * upscaler.generator.radius)


class TestEditor:
    @pytest.fixture
    def config(self, folder, in_scope):
        (folder / 'editor.py').write_text(EDITOR)
        with in_scope('mmagic'):
            model = perturbed(build_model('editor.py'))
        torch.save(dict(state_dict=model.state_dict()), 'editor.pth')
        return load_config('editor.py')

    def test_is_that_of_its_generator(self, config, in_scope):
        upscaler = ReferenceUpscaler('editor.py', 'editor.pth')
        assert upscaler.tile == 7
        assert ReferenceUpscaler(config, 'editor.pth', tile=9).tile == 9
        found = upscaler.upscale('small.png', 'wide.png')
        net = build_model('net.py')
        state = torch.load('editor.pth')['state_dict']
        net.load_state_dict(
            {k.removeprefix('generator.'): v for k, v in state.items()}
        )
        wanted = by_hand(net.eval(), read('small.png'), [read('wide.png')])
        assert np.abs(found - wanted).max() <= 0.5 + 1e-2

    def test_weights_of_the_generator_alone_do(self, config):
        """As a converted checkpoint holds them."""
        state = torch.load('editor.pth')['state_dict']
        torch.save(
            {k.removeprefix('generator.'): v for k, v in state.items()},
            'bare.pth',
        )
        one, two = (
            ReferenceUpscaler('editor.py', path).upscale('small.png')
            for path in ('editor.pth', 'bare.pth')
        )
        np.testing.assert_array_equal(one, two)

    def test_a_discriminator_in_the_file_is_left_out(self, config):
        held = torch.load('editor.pth')
        held['state_dict']['discriminator.model.weight'] = torch.ones(1)
        torch.save(held, 'gan.pth')
        one, two = (
            ReferenceUpscaler('editor.py', path).upscale('small.png')
            for path in ('editor.pth', 'gan.pth')
        )
        np.testing.assert_array_equal(one, two)

    def test_images_in_another_range_are_an_error(self, config):
        config.model.data_preprocessor = dict(
            type='DataPreprocessor', mean=[127.5] * 3, std=[127.5] * 3
        )
        with pytest.raises(ValueError, match=r'RGB in \[0, 1\]'):
            ReferenceUpscaler(config, 'editor.pth')


def test_a_file_in_the_older_format_of_torch_does(folder):
    state = torch.load('net.pth')
    torch.save(state, 'old.pth', _use_new_zipfile_serialization=False)
    one, two = (
        ReferenceUpscaler('net.py', path).upscale('small.png')
        for path in ('net.pth', 'old.pth')
    )
    np.testing.assert_array_equal(one, two)


def test_a_checkpoint_of_a_search_is_told(folder, monkeypatch):
    said = []
    monkeypatch.setattr(
        'mmplugins.ssen.generator.print_log',
        lambda text, *_: said.append(text),
    )
    ReferenceUpscaler('net.py', 'net.pth')
    assert said == []
    text = (folder / 'net.py').read_text()
    (folder / 'found.py').write_text(
        text.replace('8,', '8, search=dict(),', 1)
    )
    ReferenceUpscaler('found.py', 'net.pth')
    (line,) = said
    assert 'with none, this one has a search' in line


class TestShow:
    def test_shows_the_point(self, folder):
        upscaler = ReferenceUpscaler('net.py', 'net.pth')
        refs = ['wide.png', 'large.png']
        result = upscaler.upscale('small.png', refs)
        sheets = [
            upscaler.show('small.png', result, refs, point, size=64)
            for point in (None, (13, 9), (0, 0))
        ]
        np.testing.assert_array_equal(sheets[0], sheets[1])
        assert (sheets[1] != sheets[2]).any()
        alone = upscaler.show('small.png', result, size=64)
        assert len(alone) < len(sheets[0])

    def test_a_point_outside_is_an_error(self, folder):
        upscaler = ReferenceUpscaler('net.py', 'net.pth')
        result = upscaler.upscale('small.png')
        with pytest.raises(ValueError, match=r'26 x 18 of them, got \(26, 0'):
            upscaler.show('small.png', result, point=(26, 0))


class TestErrors:
    @pytest.mark.parametrize(
        ('kwargs', 'message'),
        [
            (dict(), 'SSENNet needs a checkpoint'),
            (dict(checkpoint='net.pth', tile=0), 'tile must be 1 or more'),
            (dict(checkpoint='rcan.pth'), 'rcan.pth does not fit the config'),
            (dict(checkpoint='small.png'), 'small.png does not read'),
            (dict(checkpoint='net.py'), 'not a file of torch.save'),
            (dict(checkpoint='gone.pth'), 'gone.pth does not read'),
        ],
    )
    def test_arguments(self, folder, capfd, kwargs, message):
        with pytest.raises(ValueError, match=message):
            ReferenceUpscaler('net.py', **kwargs)
        # Nothing but the one line of the error.
        assert capfd.readouterr() == ('', '')

    def test_another_model(self):
        model = dict(type='mmplugins.JBUStack', in_channels=4)
        config = Config(dict(model=model))
        with pytest.raises(ValueError, match='its is JBUStack'):
            ReferenceUpscaler(config)

    def test_no_image(self, folder):
        upscaler = ReferenceUpscaler('net.py', 'net.pth')
        with pytest.raises(ValueError, match='gone.png does not exist'):
            upscaler.upscale('gone.png')
        with pytest.raises(ValueError, match=r'got \(4,\) of uint8'):
            upscaler.upscale('small.png', np.zeros(4, np.uint8))
