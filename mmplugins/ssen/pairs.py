"""Pairs of a target and its references: listed, made of frames, and checked.

A pair is a dict of ``gt`` (str), the target, ``refs`` (list[str]), its
references, the best first, and ``scene`` (str), what it shows. Paths are
relative to folders that the reader knows. Two targets of one scene may show
the same things, those of two scenes do not.
"""

import json
import posixpath
import re
import zlib
from collections.abc import Iterable, Sequence

from mmengine import fileio

# As CUFED5 names its files: 000_0 is a target, 000_1 to 000_5 its references,
# from the most similar to the least.
CUFED5_NAME = re.compile(r'(\d+)_([0-5])')


def read_pairs(path: str, backend_args: dict | None = None) -> list[dict]:
    """Read an annotation file.

    Args:
        path (str): A text file, each line a target and its references with
            spaces between, or a ``.json`` file, a list of pairs or a dict
            with that list as ``data_list``.
        backend_args (dict, optional): Of mmengine's file client. Defaults to
            None.

    Returns:
        list[dict]: Pairs in the file's order; those without a scene have
        their target's name without its suffix.

    Raises:
        ValueError: If the file does not read, has no pairs, or one of them is
            none or leaks its target.
    """
    if not fileio.exists(path, backend_args=backend_args):
        raise ValueError(f'ann_file {path} does not exist')
    text = fileio.get_text(path, backend_args=backend_args)
    if path.endswith('.json'):
        entries = _parse_json(text, path)
    else:
        rows = [line.split() for line in text.splitlines()]
        entries = [dict(gt=row[0], refs=row[1:]) for row in rows if row]
    if not entries:
        raise ValueError(f'ann_file {path} has no pairs')
    pairs = []
    for number, entry in enumerate(entries, 1):
        try:
            pairs.append(_as_pair(entry))
        except ValueError as error:
            raise ValueError(f'pair {number} of {path}: {error}') from error
    return pairs


def _parse_json(text: str, path: str) -> list:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f'ann_file {path} is no JSON: {error}') from error
    if isinstance(content, dict):
        content = content.get('data_list')
    if not isinstance(content, list):
        raise ValueError(
            f'ann_file {path} must be a list of pairs or have one as '
            f"'data_list'"
        )
    return content


def _as_pair(entry: object) -> dict:
    if not isinstance(entry, dict):
        raise ValueError(f"must be a dict with 'gt' and 'refs', got {entry!r}")
    gt, refs = entry.get('gt'), entry.get('refs', [])
    refs = [refs] if isinstance(refs, str) else refs
    if not isinstance(gt, str) or not isinstance(refs, list):
        raise ValueError(f"must have 'gt' and a list 'refs', got {entry!r}")
    pair = {'scene': stem(gt), **entry, 'gt': gt, 'refs': [*refs]}
    for ref in refs:
        require_no_leak(gt, ref)
    return pair


def write_pairs(path: str, pairs: Sequence[dict], **metainfo: object) -> None:
    """Write an annotation file that :func:`read_pairs` reads.

    Args:
        path (str): A ``.json`` file.
        pairs (Sequence[dict]): Pairs; further keys are kept.
        metainfo (object): What to say of the set.

    Raises:
        ValueError: If a pair leaks its target.
    """
    for pair in pairs:
        for ref in pair['refs']:
            require_no_leak(pair['gt'], ref)
    content = dict(metainfo=metainfo, data_list=[*pairs])
    fileio.put_text(json.dumps(content, indent=1) + '\n', path)


def stem(path: str) -> str:
    """A path without the suffix of its file.

    Args:
        path (str): Path, with slashes of either kind between folders.

    Returns:
        str: The same with forward slashes and without suffix.
    """
    folders, slash, name = path.replace('\\', '/').rpartition('/')
    return folders + slash + (name.rpartition('.')[0] or name)


def require_no_leak(gt: str, ref: str) -> None:
    """Check by their names that a reference is not what is to be predicted.

    Args:
        gt (str): Path of the target.
        ref (str): Path of a reference.

    Raises:
        ValueError: If both are one path, or the set is named as CUFED5 and
            the reference is a target.
    """
    first, second = (_normal(path) for path in (gt, ref))
    if first == second:
        raise ValueError(f'reference of {gt} is the target itself')
    names = [
        CUFED5_NAME.fullmatch(stem(path).rpartition('/')[-1])
        for path in (first, second)
    ]
    if all(name and name[2] == '0' for name in names):
        raise ValueError(
            f'reference of {gt} is {ref}: files of CUFED5 that end in _0 are '
            'targets'
        )


def _normal(path: str) -> str:
    return posixpath.normpath(path.replace('\\', '/'))


def frame_pairs(
    frames: Sequence[str], steps: Iterable[int] = (1,)
) -> list[dict]:
    """Pair each frame of a scene with others of it.

    Args:
        frames (Sequence[str]): Paths in the order of time, or of place.
        steps (Iterable[int]): How far each reference is ahead, or behind
            where negative. Where there is no such frame, as at the end, it is
            the one as far in the other direction. Defaults to (1,).

    Returns:
        list[dict]: Pairs without scenes; a frame without references has none.

    Raises:
        ValueError: If a step is 0, which is the frame itself.
    """
    steps = [*steps]
    if not steps or 0 in steps:
        raise ValueError(f'steps must be other than 0, got {steps}')
    pairs = []
    for place, gt in enumerate(frames):
        refs: dict[str, None] = {}
        for step in steps:
            for other in (place + step, place - step):
                if 0 <= other < len(frames):
                    refs.setdefault(frames[other])
                    break
        if refs:
            pairs.append(dict(gt=gt, refs=[*refs]))
    return pairs


def split_scenes(
    scenes: Iterable[str], share: float, seed: int = 0
) -> tuple[list[str], list[str]]:
    """Hold scenes out for validation.

    A scene's name decides its place in the draw, so that new scenes hardly
    move the old ones.

    Args:
        scenes (Iterable[str]): Names, two at least.
        share (float): Part of them for validation, above 0 and below 1; one
            at least stays on either side.
        seed (int): Of the draw. Defaults to 0.

    Returns:
        tuple[list[str], list[str]]: Names for training and for validation.

    Raises:
        ValueError: If there are fewer than two, or ``share`` is out of range.
    """
    names = sorted(set(scenes))
    if not 0 < share < 1:
        raise ValueError(
            f'share of validation must be between 0 and 1, got {share}'
        )
    if len(names) < 2:
        raise ValueError(f'a split needs two scenes at least, got {names}')
    ranks = {x: zlib.crc32(f'{seed}:{x}'.encode()) for x in names}
    count = min(max(round(share * len(names)), 1), len(names) - 1)
    held = set(sorted(names, key=lambda x: (ranks[x], x))[:count])
    return [x for x in names if x not in held], sorted(held)


def unrelated_references(pairs: Sequence[dict]) -> list[list[str]]:
    """References of other scenes, a control of robustness.

    Args:
        pairs (Sequence[dict]): Pairs with references and scenes.

    Returns:
        list[list[str]]: Of each pair, the references of the next pair of
        another scene, counted from half the list ahead. The same pairs have
        the same ones in every run.

    Raises:
        ValueError: If there is no other scene with references.
    """
    found = []
    for place, pair in enumerate(pairs):
        for step in range(len(pairs)):
            other = pairs[(place + len(pairs) // 2 + step) % len(pairs)]
            if other['refs'] and other['scene'] != pair['scene']:
                found.append([*other['refs']])
                break
        else:
            raise ValueError(
                f'unrelated references of {pair["gt"]} need another scene '
                f'than {pair["scene"]!r} that has references'
            )
    return found
