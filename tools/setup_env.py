"""Build the environment a command needs: ``setup_env.py LEVEL``.

Levels are ``lint`` (ruff), ``mmseg`` (the demo) and ``tests`` (everything).
What is already there is kept. Standard library only.
"""

import sys

# Python 3.6 can still parse this file, so that it gets to this line.
if sys.version_info < (3, 11):
    raise SystemExit(
        'error: Python 3.11 or newer is needed, this is '
        f'{sys.version.split()[0]} (set PYTHON=... for make)'
    )

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sysconfig
import tempfile
import time
import zipfile
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Per level: what is installed with --no-deps, and the rest.
LEVELS = {
    'lint': ([], ['lint.txt']),
    'mmseg': (['hosts.txt'], ['mmseg.txt']),
    'tests': (
        ['hosts.txt', 'hosts-mmagic.txt'],
        ['mmseg.txt', 'mmagic.txt', 'tests.txt'],
    ),
}
NEEDED_GB = 8
OFFLINE = re.compile(
    'NewConnectionError|NameResolutionError|ConnectTimeout|ProxyError'
    '|Failed to establish|Temporary failure in name resolution'
)
PROBE = """
import json, torch
cuda = None
if torch.cuda.is_available():
    cuda = '{}.{}'.format(*torch.cuda.get_device_capability())
print(json.dumps([torch.__version__, cuda]))
"""


def need(met: object, message: str) -> None:
    """Stop with one line unless ``met``."""
    if not met:
        raise SystemExit(f'error: {message}')


def capture(*command: object) -> subprocess.CompletedProcess:
    """Run ``command`` and return its result, stdout and stderr in one."""
    return subprocess.run(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def stamp(level: str, venv: Path, requirements: Path) -> str:
    """Return what has to be unchanged for ``venv`` to be still right."""
    hosts, others = LEVELS[level]
    names = [*hosts, *others]
    parts = [platform.python_version(), str(venv)]
    if level != 'lint':
        names += ['torch.txt', 'constraints.txt']
        # A GPU that appears later asks for another build of mmcv.
        parts.append(f'gpu {os.path.exists("/dev/nvidiactl")}')
    parts += [(requirements / name).read_text() for name in names]
    return hashlib.sha256('\0'.join(parts).encode()).hexdigest()


def is_current(level: str, venv: Path, requirements: Path) -> bool:
    """Tell whether ``venv`` holds ``level``; ``tests`` includes ``mmseg``."""
    for name in ('mmseg', 'tests') if level == 'mmseg' else (level,):
        file = venv / f'.stamp-{name}'
        current = stamp(name, venv, requirements)
        if file.is_file() and file.read_text() == current:
            return True
    return False


def cache_key(
    torch: str,
    mmcv: str,
    cuda: str | None = None,
    python: tuple[int, int] = sys.version_info[:2],
    machine: str = platform.machine(),
) -> str:
    """Return the folder name of mmcv's wheel: all it was built for."""
    device = 'cuda' + re.sub(r'[^\w.+]+', '_', cuda) if cuda else 'cpu'
    tag = 'cp{}{}'.format(*python)
    return f'mmcv-{mmcv}-torch-{torch}-{tag}-{machine}-{device}'


def build_env(environ: dict, venv: Path, cuda: str | None) -> dict:
    """Return the environment variables mmcv's operators are built with."""
    env = {'MAX_JOBS': str(os.cpu_count()), **environ, 'MMCV_WITH_OPS': '1'}
    # Without ninja on PATH torch compiles one file after the other.
    env['PATH'] = f'{venv / "bin"}{os.pathsep}{env.get("PATH", "")}'
    # CFLAGS replaces Python's own flags, hence -O3; -g0 for small files.
    env.setdefault('CFLAGS', '-O3 -DNDEBUG -fwrapv -g0')
    if cuda:
        env.setdefault('TORCH_CUDA_ARCH_LIST', cuda)
    else:
        # It would compile CUDA operators that nothing here can run.
        env.pop('FORCE_CUDA', None)
    return env


def find_cuda_home(environ: dict) -> str | None:
    """Return the folder with both nvcc and CUDA's headers, if any."""
    nvcc = shutil.which('nvcc', path=environ.get('PATH', ''))
    folders = [environ.get('CUDA_HOME'), environ.get('CUDA_PATH')]
    folders += [Path(nvcc).resolve().parents[1] if nvcc else None]
    for folder in map(Path, filter(None, [*folders, '/usr/local/cuda'])):
        files = folder / 'bin/nvcc', folder / 'include/cuda_runtime.h'
        if all(file.is_file() for file in files):
            return str(folder)
    return None


def parse_progress(line: str) -> tuple[int, int] | None:
    """Return ``(12, 78)`` for ninja's ``[12/78] c++ ...``, else None."""
    match = re.match(r'\s*\[(\d+)/(\d+)\] ', line)
    return (int(match[1]), int(match[2])) if match else None


def reason(output: str) -> str:
    """Return the line of a failed command's output that says why."""
    lines = output.strip().splitlines() or ['no output']
    for line in lines:
        if re.search(': (fatal )?error: ', line):  # the first of a compiler's
            hint = ' (out of memory? try MAX_JOBS=1)' * ('Killed' in line)
            return line.strip() + hint
    errors = [x for x in lines if re.match(r'\s*(ERROR|\w+Error): ', x)]
    hint = 'no network? ' * bool(OFFLINE.search(output))
    return hint + (errors or lines)[-1].strip()


def clock(start: float) -> str:
    """Return the time since ``start`` as ``3m05s``."""
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    return f'{minutes}m{seconds:02d}s'


def run(title: str, command: list, log: Path, env: dict | None = None) -> None:
    """Run ``command``: its output goes to ``log``, its progress to stdout."""
    print(f'{title} ...', flush=True)
    start, lines, tenth = time.monotonic(), [], 0
    live = sys.stdout.isatty()
    process = subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=env,
        text=True,
        errors='replace',
    )
    with process, log.open('a') as sink:
        for line in process.stdout:
            sink.write(line)
            lines.append(line)
            done, total = parse_progress(line) or (0, 0)
            if total and (live or done * 10 // total > tenth):
                tenth = done * 10 // total
                text = f'  {done}/{total} files, {clock(start)}'
                print(text, end='\r' if live else '\n', flush=True)
    failed = process.returncode != 0
    need(not failed, f'{title}: {reason("".join(lines))} (log: {log})')
    print(f'  done in {clock(start)}      ', flush=True)


def check_machine(level: str, venv: Path) -> None:
    """Stop with one line if the machine lacks what ``level`` takes."""
    need(
        find_spec('venv') and find_spec('ensurepip'),
        "this Python has no venv module: install the system's python3-venv",
    )
    release = 'python{}.{}'.format(*sys.version_info[:2])
    need(
        not venv.exists() or (venv / 'lib' / release).is_dir(),
        f'{venv} is not of {release}: remove it (make clean)',
    )
    if level == 'lint':
        return
    compiler = os.environ.get('CXX', '').split() or ['c++']
    need(
        shutil.which(compiler[0]),
        'a C++ compiler is needed to build mmcv: install g++ 11 or newer',
    )
    # torch's headers check this number; g++ 10 takes the flag and falls short.
    flags = ['-std=c++20', '-dM', '-E', '-x', 'c++', os.devnull]
    macros = capture(*compiler, *flags).stdout
    standard = re.search(r'__cplusplus (\d+)', macros)
    need(
        standard and int(standard[1]) >= 202002,
        f'{compiler[0]} lacks C++20, which torch needs: install g++ 11 or '
        'newer, or set CXX',
    )
    need(
        (Path(sysconfig.get_path('include')) / 'Python.h').is_file(),
        "Python's C headers are missing: install the system's python3-dev",
    )
    folder = next(path for path in venv.parents if path.is_dir())
    free = shutil.disk_usage(folder).free / 1e9
    need(
        free >= NEEDED_GB or any(venv.glob('lib/*/site-packages/torch')),
        f'{folder} has {free:.1f} GB free, about {NEEDED_GB} GB are needed',
    )


def mmcv_wheel(python: Path, pip: list, log: Path, version: str) -> Path:
    """Return mmcv's wheel for the installed torch, built if not cached."""
    probe = capture(python, '-c', PROBE)
    need(not probe.returncode, f'importing torch: {reason(probe.stdout)}')
    torch, cuda = json.loads(probe.stdout.splitlines()[-1])
    if cuda:
        cuda = os.environ.get('TORCH_CUDA_ARCH_LIST', cuda)
    cache = Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser()
    target = cache / 'mmplugins' / cache_key(torch, version, cuda)
    wheels = list(target.glob('*.whl'))
    if wheels:
        print(f'mmcv: compiled earlier, kept in {target}')
        return wheels[0]

    env = build_env(dict(os.environ), python.parents[1], cuda)
    if cuda:
        home = find_cuda_home(env)
        need(home, 'there is a GPU but no CUDA toolkit (nvcc) to build for it')
        env['CUDA_HOME'] = home
    # Isolated from torch, mmcv builds without its operators and says nothing;
    # pip's cache would keep one wheel for every torch.
    flags = ['--no-deps', '--no-build-isolation', '--no-cache-dir']
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        tmp = Path(folder)
        fetch = [*pip, 'download', *flags, '--no-binary', ':all:', '-d', tmp]
        title = f'fetching the sources of mmcv {version}'
        run(title, [*fetch, f'onedl-mmcv=={version}'], log, env)
        shutil.unpack_archive(next(tmp.glob('*.tar.gz')), tmp)
        source = next(path for path in tmp.iterdir() if path.is_dir())
        # mmcv asks for C++17, the headers of torch 2.14 for C++20.
        setup = (source / 'setup.py').read_text()
        setup = setup.replace('-std=c++17', '-std=c++20')
        (source / 'setup.py').write_text(setup)
        title = (
            f"compiling mmcv's operators for {'CUDA' if cuda else 'the CPU'}, "
            f'{env["MAX_JOBS"]} at once (8-15 minutes on two cores)'
        )
        build = [*pip, 'wheel', '-v', *flags, '-w', tmp / 'wheel', source]
        run(title, build, log, env)
        wheel = next((tmp / 'wheel').glob('*.whl'))
        names = zipfile.ZipFile(wheel).namelist()
        built = any(name.startswith('mmcv/_ext') for name in names)
        need(built, f'mmcv was built without its operators (log: {log})')
        # Renamed only when whole: an interrupted build leaves no half wheel.
        if not target.exists():
            (tmp / 'wheel').rename(target)
    return target / wheel.name


def install(level: str, venv: Path, requirements: Path) -> None:
    """Install everything ``level`` takes into ``venv``."""
    check_machine(level, venv)
    print(f'Building the environment "{level}" in {venv}')
    if not any(venv.glob('lib/*/site-packages/pip')):
        made = capture(sys.executable, '-m', 'venv', venv)
        need(not made.returncode, f'making {venv}: {reason(made.stdout)}')
    python = venv / 'bin/python'
    log = venv / 'setup.log'
    log.write_text('')
    pip = [python, '-m', 'pip', '--disable-pip-version-check']
    pip += ['--retries', '2', '--no-input']
    add = [*pip, 'install']

    def files(*names: str) -> list:
        return [part for name in names for part in ('-r', requirements / name)]

    hosts, others = LEVELS[level]
    if level == 'lint':
        run('installing ruff', [*add, *files(*others)], log)
        return
    print(
        'It takes 2-5 minutes of downloads (3 GB) and, once per machine, '
        "8-15 minutes to compile mmcv's operators."
    )
    # From here on it is neither what it was nor yet what it shall be.
    for name in ('mmseg', 'tests'):
        (venv / f'.stamp-{name}').unlink(missing_ok=True)
    pins = (requirements / 'constraints.txt').read_text()
    version = re.search('^onedl-mmcv==(.+)$', pins, re.MULTILINE)[1]
    alone = [*add, '--no-deps', '--no-build-isolation']
    run('installing torch', [*add, *files('torch.txt')], log)
    run('installing what the hosts import', [*add, *files(*others)], log)
    run('installing the hosts', [*alone, *files(*hosts)], log)
    wheel = mmcv_wheel(python, pip, log, version)
    run('installing mmcv', [*alone, '--force-reinstall', wheel], log)
    try:
        check = 'import torch, mmcv._ext'
        run("checking mmcv's operators", [python, '-c', check], log)
    except SystemExit:
        shutil.rmtree(wheel.parent)  # the next run compiles anew
        raise
    run('installing mmplugins', [*alone, '-e', ROOT], log)
    check = 'import mmcv.ops, mmpretrain, mmseg, mmplugins'
    run('checking the hosts', [python, '-c', check], log)


def main() -> None:
    """Build the environment unless it is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('level', choices=LEVELS)
    parser.add_argument('--venv', type=Path, default=ROOT / '.venv')
    args = parser.parse_args()
    venv, requirements = args.venv.absolute(), ROOT / 'requirements'
    if is_current(args.level, venv, requirements):
        return
    try:
        install(args.level, venv, requirements)
        current = stamp(args.level, venv, requirements)
        (venv / f'.stamp-{args.level}').write_text(current)
    except KeyboardInterrupt:
        raise SystemExit('interrupted') from None
    except OSError as error:
        raise SystemExit(f'error: {error}') from None


if __name__ == '__main__':
    main()
