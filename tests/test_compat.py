"""One host must not need another, and nothing stays changed."""

import os
import subprocess
import sys
from pathlib import Path

import mmcv
import numpy as np
import pytest
from mmengine.config import utils as config_utils

from mmplugins import compat

ROOT = Path(__file__).parents[1]

TRAIN_STEP = """
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, init_default_scope

def train(cfg, data):
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [p.clone() for p in model.parameters()]
    losses = model.train_step(data, OptimWrapper(optimizer))
    assert all(loss.isfinite().all() for loss in losses.values()), losses
    changed = [(p != q).any() for p, q in zip(before, model.parameters())]
    assert any(changed)
    print('trained')
"""

SEG_CONFIG = """
_base_ = 'mmseg::_base_/models/fcn_r50-d8.py'
default_scope = 'mmseg'
model = dict(
    type='mmplugins.GuidedEncoderDecoder',
    pretrained=None,
    auxiliary_head=None,
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(
        _delete_=True,
        type='mmpretrain.MobileNetV2',
        widen_factor=0.25,
        out_indices=(7,),
    ),
    neck=dict(type='mmplugins.FeatUpNeck', in_channels=1280, out_channels=8),
    decode_head=dict(
        in_channels=8,
        in_index=-1,
        channels=8,
        num_convs=1,
        concat_input=False,
        norm_cfg=dict(type='BN'),
    ),
)
"""

SEG_STEP = """
from mmplugins.compat import load_config
cfg = load_config('seg.py')
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
image = torch.randint(256, (3, 64, 64), dtype=torch.uint8)
label = PixelData(data=torch.randint(19, (1, 64, 64)))
sample = SegDataSample(gt_sem_seg=label)
train(cfg, dict(inputs=[image] * 2, data_samples=[sample] * 2))
"""

EDIT_CONFIG = """
default_scope = 'mmagic'
model = dict(
    type='BaseEditModel',
    generator=dict(
        type='EDSRNet',
        in_channels=3,
        out_channels=3,
        mid_channels=4,
        num_blocks=1,
        upscale_factor=2,
    ),
    pixel_loss=dict(type='L1Loss'),
    data_preprocessor=dict(type='DataPreprocessor'),
)
"""

EDIT_STEP = """
from mmplugins.compat import load_config
cfg = load_config('edit.py')
from mmagic.structures import DataSample
image = torch.rand(3, 8, 8) * 255
sample = DataSample(gt_img=torch.rand(3, 16, 16) * 255)
train(cfg, dict(inputs=[image], data_samples=[sample]))
"""


@pytest.fixture
def python(tmp_path):
    """Run code in a fresh interpreter where some packages are broken."""

    def run(code, broken=()):
        for name in broken:
            package = tmp_path / name
            package.mkdir()
            (package / '__init__.py').write_text(
                "raise RuntimeError('torn to pieces')\n"
            )
        path = os.pathsep.join([str(tmp_path), str(ROOT)])
        return subprocess.run(
            [sys.executable, '-c', code],
            cwd=tmp_path,
            env=os.environ | {'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


def output(result):
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.strip().splitlines()[-1:]


class TestImport:
    def test_of_the_package_loads_nothing_else(self, python):
        code = """
import sys
import mmplugins
heavy = ('torch', 'numpy', 'mmengine', 'mmcv', 'mmseg', 'mmpretrain', 'mmagic')
print([name for name in heavy if name in sys.modules])
"""
        assert output(python(code)) == ['[]']

    def test_of_systems_loads_no_host(self, python):
        code = """
import sys
import mmplugins.featup, mmplugins.registry, mmplugins.compat
hosts = ('mmseg', 'mmpretrain', 'mmagic')
print([name for name in hosts if name in sys.modules])
"""
        assert output(python(code)) == ['[]']


def absent(*names):
    """Code after which some packages do not exist."""
    lines = [f'sys.modules[{name!r}] = None' for name in names]
    return '\n'.join(['import sys', *lines, ''])


@pytest.mark.slow
class TestHosts:
    def test_mmseg_trains_without_mmagic(self, python, tmp_path):
        (tmp_path / 'seg.py').write_text(SEG_CONFIG)
        result = python(absent('mmagic') + TRAIN_STEP + SEG_STEP)
        assert output(result) == ['trained']

    def test_mmagic_trains_without_mmseg(self, python, tmp_path):
        (tmp_path / 'edit.py').write_text(EDIT_CONFIG)
        code = absent('mmseg', 'mmpretrain') + TRAIN_STEP + EDIT_STEP
        assert output(python(code)) == ['trained']

    @pytest.mark.parametrize('how', ['broken', 'absent'])
    def test_an_adapter_names_the_host_it_lacks(self, python, how):
        code = (
            'from mmengine.registry import DefaultScope\n'
            'from mmplugins.registry import MODELS\n'
            "with DefaultScope.overwrite_default_scope('mmseg'):\n"
            "    MODELS.get('mmplugins.GuidedEncoderDecoder')\n"
        )
        if how == 'absent':
            result = python(absent('mmseg') + code)
            cause = 'ModuleNotFoundError'
        else:
            result = python(code, broken=['mmseg'])
            cause = 'RuntimeError: torn to pieces'
        last = result.stderr.strip().splitlines()[-1]
        assert last.startswith(
            "ImportError: type='mmplugins.GuidedEncoderDecoder' needs mmseg, "
            f'which does not import: {cause}'
        )

    def test_mmseg_trains_next_to_a_broken_mmagic(self, python, tmp_path):
        (tmp_path / 'seg.py').write_text(SEG_CONFIG)
        result = python(TRAIN_STEP + SEG_STEP, broken=['mmagic'])
        assert output(result) == ['trained']

    def test_mmagic_trains_next_to_a_broken_mmseg(self, python, tmp_path):
        (tmp_path / 'edit.py').write_text(EDIT_CONFIG)
        broken = ['mmseg', 'mmpretrain']
        result = python(TRAIN_STEP + EDIT_STEP, broken=broken)
        assert output(result) == ['trained']

    def test_error_of_a_broken_mmagic_names_the_cause(self, python, tmp_path):
        (tmp_path / 'edit.py').write_text(EDIT_CONFIG)
        result = python(EDIT_STEP, broken=['mmagic'])
        last = result.stderr.strip().splitlines()[-1]
        assert last == (
            'ImportError: mmagic does not import: RuntimeError: torn to pieces'
        )


class TestImportMmagic:
    def test_leaves_numpy_and_mmcv_as_they_were(self):
        before = mmcv.__version__, hasattr(np, 'bool8')
        compat.import_mmagic()
        assert 'mmagic' in sys.modules
        assert (mmcv.__version__, hasattr(np, 'bool8')) == before

    def test_leaves_them_when_it_fails(self, monkeypatch):
        seen = []

        def fail(name):
            seen.append((mmcv.__version__, np.bool8))
            raise AssertionError(f'{name} wants another mmcv')

        before = mmcv.__version__, hasattr(np, 'bool8')
        monkeypatch.setattr(compat, 'import_module', fail)
        with pytest.raises(ImportError) as info:
            compat.import_mmagic()
        assert str(info.value) == (
            'mmagic does not import: AssertionError: mmagic wants another mmcv'
        )
        assert isinstance(info.value.__cause__, AssertionError)
        assert seen == [('2.1.0', np.bool_)]
        assert (mmcv.__version__, hasattr(np, 'bool8')) == before


class TestLoadConfig:
    @pytest.fixture
    def config(self, tmp_path):
        path = tmp_path / 'seg.py'
        path.write_text(SEG_CONFIG)
        return str(path)

    def test_inherits_from_mmseg(self, config, monkeypatch):
        monkeypatch.delitem(config_utils.MODULE2PACKAGE, 'mmseg')
        model = compat.load_config(config).model
        assert model.type == 'mmplugins.GuidedEncoderDecoder'
        assert model.decode_head.type == 'FCNHead'  # the base's

    def test_applies_options(self, config):
        options = {'model.decode_head.channels': 5, 'work_dir': 'here'}
        cfg = compat.load_config(config, options)
        assert cfg.model.decode_head.channels == 5
        assert cfg.model.decode_head.in_channels == 8
        assert cfg.work_dir == 'here'

    def test_leaves_the_options_alone(self, config):
        def options():
            neck = {'_delete_': True, 'type': 'FPN', 'norm_cfg': {'a': [1]}}
            return {'model.neck': neck}

        given = options()
        cfg = compat.load_config(config, given)
        cfg.model.neck.norm_cfg.a.append(2)
        assert cfg.model.neck.to_dict() == {
            'type': 'FPN',
            'norm_cfg': {'a': [1, 2]},
        }
        assert given == options()

    def test_names_the_config_that_does_not_read(self, tmp_path):
        path = tmp_path / 'bad.py'
        path.write_text("_base_ = './gone.py'\n")
        with pytest.raises(ValueError, match='bad.py does not read: .*gone'):
            compat.load_config(str(path))

    def test_names_options_that_do_not_fit(self, config):
        with pytest.raises(ValueError, match='options do not fit .*seg.py'):
            compat.load_config(config, {'model.type.x': 1})

    def test_imports_mmagic_for_its_configs_alone(
        self, config, tmp_path, monkeypatch
    ):
        calls = []
        monkeypatch.setattr(
            compat, 'import_mmagic', lambda: calls.append('mmagic')
        )
        compat.load_config(config)
        assert calls == []
        (tmp_path / 'edit.py').write_text(EDIT_CONFIG)
        compat.load_config(str(tmp_path / 'edit.py'))
        assert calls == ['mmagic']
