import subprocess
import sys
import textwrap

import pytest
from mmengine import registry as root

from mmplugins import registry

HOSTS = ('mmseg', 'mmagic', 'mmpretrain')
# What each host-free type needs to be built.
HOST_FREE = {
    'AttentionDownsampler': dict(in_channels=4, kernel_size=4, stride=2),
    'BilinearUpsampler': dict(in_channels=4),
    'BlurLoss': dict(),
    'CRFLoss': dict(),
    'CRM': dict(
        backbone=dict(type='mmplugins.CRMBackbone', depth=18),
        decode_head=dict(type='mmplugins.CRMHead', in_channels=(64, 64, 256)),
    ),
    'CRMBackbone': dict(
        backbone=dict(type='mmpretrain.MobileNetV2', out_indices=(0, 1, 2))
    ),
    'CRMHead': dict(),
    'ChannelNorm': dict(normalized_shape=4),
    'DynamicOffsetEstimator': dict(mid_channels=8),
    'FeatUp': dict(
        backbone=dict(type='mmpretrain.MobileNetV2', widen_factor=0.1),
        upsampler=dict(type='mmplugins.JBUStack', num_stages=2),
        downsampler=dict(
            type='mmplugins.AttentionDownsampler', kernel_size=4, stride=4
        ),
        in_channels=1280,
    ),
    'FeatUpNeck': dict(in_channels=4),
    'GrabCutRefiner': dict(data_preprocessor=dict(type='ImgDataPreprocessor')),
    'FrozenBackbone': dict(backbone=dict(type='mmpretrain.MobileNetV2')),
    'ImplicitDecoder': dict(in_channels=4),
    'ImplicitUpsampler': dict(in_channels=4),
    'JBUStack': dict(in_channels=4),
    'MaskCrossEntropyLoss': dict(),
    'MaskGradientLoss': dict(),
    'MaskL1Loss': dict(),
    'MaskL2Loss': dict(),
    'ScaleShiftInvariantLoss': dict(),
    'NearestUpsampler': dict(in_channels=4),
    'RCAN': dict(num_groups=1, num_blocks=1, mid_channels=8),
    'SSEN': dict(mid_channels=8),
    'Bicubic': dict(),
    'LocalSearch': dict(),
    'SSENNet': dict(mid_channels=8, num_blocks=1),
    'SimpleDownsampler': dict(kernel_size=4, stride=2),
    'TotalVariationLoss': dict(),
}
# Which registry has which adapters.
ADAPTERS = {
    'MODELS': registry.ADAPTERS,
    'METRICS': registry.METRIC_ADAPTERS,
}


def host_registry(scope, kind='MODELS'):
    """The registry that a runner of this host builds from."""
    if scope is None:
        return getattr(root, kind)
    module = __import__(f'{scope}.registry', fromlist=[kind])
    return getattr(module, kind)


@pytest.mark.parametrize('scope', [None, *HOSTS])
@pytest.mark.parametrize('name', list(HOST_FREE))
def test_host_free_types_build_in_any_scope(in_scope, scope, name):
    with in_scope(scope):
        cfg = dict(type=f'mmplugins.{name}', **HOST_FREE[name])
        module = host_registry(scope).build(cfg)
    assert type(module).__name__ == name


def test_every_type_is_covered(in_scope):
    """A new type has to join one of the two lists of this file."""
    with in_scope(None):
        registry.MODELS.get('JBUStack')
    ours = set(registry.MODELS.module_dict) - set(registry.ADAPTERS)
    assert ours == set(HOST_FREE)


@pytest.mark.parametrize(
    ('kind', 'name'),
    [(kind, name) for kind in ADAPTERS for name in ADAPTERS[kind]],
)
def test_adapters_build_in_their_host_only(in_scope, kind, name):
    host, _ = ADAPTERS[kind][name]
    with in_scope(host):
        cls = host_registry(host, kind).get(f'mmplugins.{name}')
        assert cls.__name__ == name
    for scope in {None, *HOSTS} - {host}:
        with (
            in_scope(scope),
            pytest.raises(ValueError, match=f"default_scope = '{host}'"),
        ):
            host_registry(scope, kind).build(dict(type=f'mmplugins.{name}'))


@pytest.mark.parametrize('scope', [None, 'mmseg'])
def test_an_unknown_type_is_told_the_known_ones(in_scope, scope):
    message = "no model 'FeatupNeck', it has .*'FeatUpNeck'"
    with in_scope(scope), pytest.raises(KeyError, match=message):
        host_registry(scope).build(dict(type='mmplugins.FeatupNeck'))


def test_registries_are_children_of_the_roots():
    for name in ('MODELS', 'TRANSFORMS', 'DATASETS', 'METRICS', 'HOOKS'):
        ours = getattr(registry, name)
        assert ours.scope == 'mmplugins'
        assert ours.parent.scope == 'mmengine'
        assert ours.parent.parent is None


@pytest.mark.parametrize('scope', [None, 'mmseg'])
def test_a_prefix_is_all_a_fresh_process_needs(scope):
    """No custom_imports, and no other host is imported on the way."""
    code = f"""
        import sys
        from mmengine.registry import MODELS, DefaultScope
        with DefaultScope.overwrite_default_scope({scope!r}):
            neck = dict(type='mmplugins.FeatUpNeck', in_channels=4)
            assert type(MODELS.build(neck)).__name__ == 'FeatUpNeck'
        hosts = {{'mmseg', 'mmpretrain', 'mmagic'}} & set(sys.modules)
        assert hosts <= {{{scope!r}}}, hosts
    """
    subprocess.run([sys.executable, '-c', textwrap.dedent(code)], check=True)
