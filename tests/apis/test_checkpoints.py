import os
from collections import OrderedDict

import pytest
import torch
from torch import nn

from mmplugins.apis import checkpoints
from mmplugins.apis.checkpoints import (
    read_state_dict,
    require_fit,
    write_state_dict,
)


class Attack:
    """An object that makes a folder as it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def save(path, content):
    torch.save(content, path)
    return str(path)


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize('under', ['', 'state_dict'])
@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_tensors_are_read(prefix, under, legacy, tmp_path):
    tensors = OrderedDict({f'{prefix}a.b': torch.randn(2, 3)})
    content = {under: tensors, 'epoch': 3, 'x': [1]} if under else tensors
    path = tmp_path / 'a.ckpt'
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    out = read_state_dict(str(path))
    assert list(out) == ['a.b']
    assert torch.equal(out['a.b'], tensors[f'{prefix}a.b'])


def test_a_pickle_with_code_is_refused(tmp_path):
    content = {'state_dict': {'a': torch.zeros(1)}}
    content['callback'] = Attack(str(tmp_path / 'made'))
    path = save(tmp_path / 'evil.ckpt', content)
    message = r'evil.ckpt is not read: .* tensors and containers .*mkdir'
    with pytest.raises(ValueError, match=message) as failure:
        read_state_dict(path)
    assert '\n' not in str(failure.value)
    assert 'weights_only' not in str(failure.value)
    assert not (tmp_path / 'made').exists()
    # The file is what it is meant to be.
    torch.load(path, weights_only=False)
    assert (tmp_path / 'made').exists()


@pytest.mark.parametrize(
    'content', [b'', b'<html>not found</html>', b'PK\x03\x04 cut off']
)
def test_a_file_that_is_no_checkpoint_is_named(content, tmp_path):
    path = tmp_path / 'odd.ckpt'
    path.write_bytes(content)
    with pytest.raises(ValueError, match='odd.ckpt does not') as failure:
        read_state_dict(str(path))
    assert '\n' not in str(failure.value)


def test_a_file_cut_off_is_named(tmp_path):
    path = tmp_path / 'cut.ckpt'
    torch.save({'a': torch.zeros(99)}, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(
        ValueError, match=r'cut.ckpt does not read: '
    ) as failure:
        read_state_dict(str(path))
    assert '\n' not in str(failure.value)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ([torch.zeros(1)], 'holds no state dict but list'),
        ({}, 'holds no state dict but dict'),
        ({'state_dict': 3}, 'holds no state dict but int'),
        ({'a': torch.zeros(1), 'b': 3}, "'b' is int, not a tensor"),
        ({4: torch.zeros(1)}, '4 is Tensor, not a tensor with a name'),
        ({'a': torch.zeros(1), 'module.a': torch.ones(1)}, 'has a twice'),
    ],
)
def test_what_is_no_state_dict_is_named(content, message, tmp_path):
    path = save(tmp_path / 'a.ckpt', content)
    with pytest.raises(ValueError, match=f'a.ckpt.*{message}'):
        read_state_dict(path)


def test_a_module_filled_but_not_exactly():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    full = model.state_dict()
    require_fit(model, full)
    require_fit(model.to('meta'), full)
    less = {k: v for k, v in full.items() if k != '1.running_var'}
    with pytest.raises(ValueError, match='no key fills 1.running_var of Seq'):
        require_fit(model, less)
    with pytest.raises(ValueError, match='^2.weight have no place in Seq'):
        require_fit(model, {**full, '2.weight': torch.zeros(1)})
    message = r'0.weight is \(3, 2, 1\), not \(3, 2, 1, 1\)'
    with pytest.raises(ValueError, match=message):
        require_fit(model, {**full, '0.weight': torch.zeros(3, 2, 1)})


def test_many_names_are_counted():
    model = nn.Sequential(*[nn.Linear(1, 1) for _ in range(6)])
    message = r'fills 0.weight, .*, 3.bias and 4 more of'
    with pytest.raises(ValueError, match=message):
        require_fit(model, {})


def test_what_is_written_is_small_and_plain(tmp_path):
    large = torch.randn(1000, 1000)
    tensors = dict(view=large[0, :4], parameter=nn.Parameter(torch.randn(2)))
    tensors['wide'] = torch.randn(3, 1).expand(3, 4)
    path = tmp_path / 'new' / 'a.pth'
    write_state_dict(tensors, str(path))
    assert path.stat().st_size < 10_000
    out = torch.load(path, weights_only=True)
    for name, value in tensors.items():
        assert torch.equal(out[name], value)
    assert type(out['parameter']) is torch.Tensor
    assert [p.name for p in path.parent.iterdir()] == ['a.pth']


@pytest.mark.parametrize('error', [OSError('full'), KeyboardInterrupt()])
@pytest.mark.parametrize('place', ['write', 'replace'])
def test_a_write_that_fails_leaves_nothing_behind(
    place, error, tmp_path, monkeypatch
):
    path = tmp_path / 'a.pth'
    path.write_bytes(b'mine')

    def fail(*args):
        if place == 'write':  # half of it is there already
            args[0].open('wb').write(b'half')
        raise error

    if place == 'write':
        monkeypatch.setattr(type(path), 'write_bytes', fail)
    else:
        monkeypatch.setattr(checkpoints.os, 'replace', fail)
    with pytest.raises(type(error)):
        write_state_dict({'a': torch.zeros(1)}, str(path))
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ['a.pth']
    assert path.read_bytes() == b'mine'
