"""The pure parts of tools/setup_env.py; nothing is installed."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import setup_env

KEY = {
    'torch': '2.14.1+cu130',
    'mmcv': '2.3.6',
    'cuda': None,
    'python': (3, 11),
    'machine': 'x86_64',
}


@pytest.fixture
def requirements(tmp_path):
    source = setup_env.ROOT / 'requirements'
    return Path(shutil.copytree(source, tmp_path / 'requirements'))


@pytest.mark.parametrize(
    'change',
    [
        {'torch': '2.14.1'},
        {'mmcv': '2.3.7'},
        {'cuda': '9.0'},
        {'python': (3, 12)},
        {'machine': 'aarch64'},
    ],
)
def test_cache_key_names_all_the_wheel_depends_on(change):
    assert setup_env.cache_key(**KEY) != setup_env.cache_key(**KEY | change)


def test_cache_key_of_two_gpus_differ_and_is_one_folder():
    one, two = (
        setup_env.cache_key(**KEY | {'cuda': cuda})
        for cuda in ('9.0', '8.0;9.0')
    )
    assert one != two
    assert Path(two).name == two


@pytest.mark.parametrize(
    ('level', 'name', 'changes'),
    [
        ('lint', 'lint.txt', True),
        ('lint', 'constraints.txt', False),
        ('mmseg', 'torch.txt', True),
        ('mmseg', 'tests.txt', False),
        ('tests', 'tests.txt', True),
        ('tests', 'constraints.txt', True),
    ],
)
def test_stamp_follows_the_files_of_its_level(
    requirements, level, name, changes
):
    venv = Path('venv')
    before = setup_env.stamp(level, venv, requirements)
    assert setup_env.stamp(level, venv, requirements) == before
    with (requirements / name).open('a') as file:
        file.write('one-more\n')
    assert (setup_env.stamp(level, venv, requirements) != before) is changes


def test_stamp_follows_a_moved_checkout(requirements):
    assert setup_env.stamp('lint', Path('a'), requirements) != setup_env.stamp(
        'lint', Path('b'), requirements
    )


def test_tests_level_includes_mmseg_but_not_the_reverse(
    tmp_path, requirements
):
    def write(level):
        stamp = setup_env.stamp(level, tmp_path, requirements)
        (tmp_path / f'.stamp-{level}').write_text(stamp)

    assert not setup_env.is_current('mmseg', tmp_path, requirements)
    write('mmseg')
    assert setup_env.is_current('mmseg', tmp_path, requirements)
    assert not setup_env.is_current('tests', tmp_path, requirements)
    (tmp_path / '.stamp-mmseg').unlink()
    write('tests')
    assert setup_env.is_current('mmseg', tmp_path, requirements)


def test_no_gpu_drops_force_cuda_whatever_nvcc_is_on_path(tmp_path):
    nvcc = tmp_path / 'nvcc'
    nvcc.touch(mode=0o755)
    env = setup_env.build_env(
        {'FORCE_CUDA': '1', 'PATH': str(tmp_path)}, Path('venv'), None
    )
    assert 'FORCE_CUDA' not in env
    assert 'TORCH_CUDA_ARCH_LIST' not in env
    assert 'CUDA_HOME' not in env


def test_gpu_is_built_for_its_own_capability_unless_told():
    given = {'TORCH_CUDA_ARCH_LIST': '8.0'}
    env = setup_env.build_env({}, Path('venv'), '9.0')
    assert env['TORCH_CUDA_ARCH_LIST'] == '9.0'
    env = setup_env.build_env(given, Path('venv'), '9.0')
    assert env['TORCH_CUDA_ARCH_LIST'] == '8.0'


def test_build_env_is_optimised_and_finds_ninja():
    env = setup_env.build_env({'PATH': 'p', 'MAX_JOBS': '3'}, Path('v'), None)
    assert env['PATH'].split(os.pathsep) == [str(Path('v/bin')), 'p']
    assert env['MAX_JOBS'] == '3'
    assert env['MMCV_WITH_OPS'] == '1'
    assert {'-O3', '-g0'} <= set(env['CFLAGS'].split())


def test_cuda_home_has_both_nvcc_and_headers(tmp_path):
    (tmp_path / 'bin').mkdir()
    (tmp_path / 'bin/nvcc').touch(mode=0o755)
    environ = {'CUDA_HOME': str(tmp_path), 'PATH': ''}
    assert setup_env.find_cuda_home(environ) != str(tmp_path)
    (tmp_path / 'include').mkdir()
    (tmp_path / 'include/cuda_runtime.h').touch()
    assert setup_env.find_cuda_home(environ) == str(tmp_path)


@pytest.mark.parametrize(
    ('line', 'expected'),
    [
        ('[12/78] c++ -MMD a.cpp', (12, 78)),
        ('  [78/78] c++ -MMD a.cpp\n', (78, 78)),
        ('copying mmcv/a.py [1/2] b', None),
        ('[notice] c++', None),
        ('', None),
    ],
)
def test_parse_progress(line, expected):
    assert setup_env.parse_progress(line) == expected


@pytest.mark.parametrize(
    ('output', 'expected'),
    [
        ('a.cpp:5:2: error: first\nb.cpp:1:1: error: next\nERROR: x', 'first'),
        ('c++: fatal error: Killed signal\nERROR: x', 'try MAX_JOBS=1'),
        ('ERROR: no version\nERROR: no match\n\n', 'ERROR: no match'),
        ('WARNING: NewConnectionError\nERROR: no match', 'no network?'),
        ('something\nlast', 'last'),
        ('', 'no output'),
    ],
)
def test_reason_is_the_one_line_that_says_why(output, expected):
    line = setup_env.reason(output)
    assert expected in line
    assert '\n' not in line


@pytest.mark.parametrize('level', ['mmseg', 'tests'])
def test_missing_compiler_is_one_line(tmp_path, level):
    script = setup_env.ROOT / 'tools/setup_env.py'
    done = subprocess.run(
        [sys.executable, script, level, '--venv', tmp_path / 'venv'],
        env={'PATH': ''},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert done.stdout == ''
    assert len(done.stderr.splitlines()) == 1
    assert 'C++ compiler' in done.stderr
    assert not (tmp_path / 'venv').exists()


def test_old_pythons_can_parse_it_and_say_they_are_old():
    source = Path(setup_env.__file__).read_text()
    ast.parse(source, feature_version=(3, 7))
