"""The three rings: imports point inwards only."""

import ast
from pathlib import Path

import pytest

import mmplugins
from mmplugins.registry import ADAPTERS, METRIC_ADAPTERS

PACKAGE = Path(mmplugins.__file__).parent
FILES = sorted(PACKAGE.rglob('*.py'))
HOSTS = {'mmseg', 'mmpretrain', 'mmagic'}
SYSTEMS = {'featup', 'crm', 'ssen'}
# Parts of mmplugins that the files of a ring may import; None are the files
# outside of all rings.
SHARED = {'registry', 'typing', 'visualization'}
RINGS = {
    None: SHARED,
    'ops': {'ops'},
    **{name: {name, 'ops'} | SHARED for name in SYSTEMS},
    'apis': {'apis', 'ops', 'compat'} | SHARED | SYSTEMS,
}
LIBRARIES_OF_OPS = {'torch', 'mmcv', 'triton'}
PARTS = {p.relative_to(PACKAGE).parts[0].removesuffix('.py') for p in FILES}


def imports(path):
    """Absolute names of all that a file imports, anywhere in it."""
    package = ('mmplugins', *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1]
            base = '.'.join(above) if node.level else ''
            module = '.'.join(filter(None, [base, node.module]))
            yield module
            # A name may be a module of its own: from mmplugins import apis.
            yield from (f'{module}.{alias.name}' for alias in node.names)


def module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix('').parts
    return '.'.join(('mmplugins', *parts))


def ring(path):
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else None


def test_there_are_files():
    assert {ring(path) for path in FILES} >= {None, 'ops', 'featup', 'apis'}


@pytest.mark.parametrize('path', FILES, ids=module_name)
def test_imports_point_inwards(path):
    allowed = RINGS[ring(path)]
    for name in imports(path):
        parts = name.split('.')
        if parts[0] == 'mmplugins' and len(parts) > 1 and parts[1] in PARTS:
            assert parts[1] in allowed, f'{path}: {name}'


@pytest.mark.parametrize(
    'line',
    [
        'from mmplugins import apis, featup',
        'from .. import apis',
        'import mmplugins.apis',
        'from ..apis import launch',
        'from mmplugins.apis.launch import read_config',
    ],
)
def test_an_outward_import_is_seen(line, tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), 'PACKAGE', tmp_path)
    path = tmp_path / 'ops' / 'new.py'
    path.parent.mkdir()
    path.write_text(line + '\n')
    with pytest.raises(AssertionError, match='apis'):
        test_imports_point_inwards(path)


@pytest.mark.parametrize('path', FILES, ids=module_name)
def test_only_adapters_import_a_host(path):
    hosts = {name.split('.')[0] for name in imports(path)} & HOSTS
    adapters = [*ADAPTERS.values(), *METRIC_ADAPTERS.values()]
    own = {h for h, module in adapters if module == module_name(path)}
    assert hosts <= own, f'{path} imports {hosts}'


def test_ops_need_torch_mmcv_and_triton_only():
    import sys

    for path in FILES:
        if ring(path) == 'ops':
            roots = {name.split('.')[0] for name in imports(path)}
            others = roots - LIBRARIES_OF_OPS - {'mmplugins'}
            assert others <= sys.stdlib_module_names, f'{path}: {others}'


def test_the_package_itself_imports_nothing():
    assert not list(imports(PACKAGE / '__init__.py'))
