"""A search has no weights: a checkpoint fits with it and without."""

import pytest
import torch
from mmengine.runner import load_checkpoint, save_checkpoint
from mmengine.runner.checkpoint import get_state_dict
from small_editor import NET, build

from mmplugins.ssen import generator as module

pytestmark = pytest.mark.usefixtures('mmagic_scope')

WITH = {**NET, 'search': dict(levels=1)}
SELF = {**NET, 'reference': 'self'}


@pytest.fixture
def warnings(monkeypatch):
    """Warnings, as they come."""
    lines = []
    monkeypatch.setattr(
        module, 'print_log', lambda line, *args: lines.append(line)
    )
    return lines


@pytest.mark.parametrize('part', ['model', 'generator', 'bare'])
@pytest.mark.parametrize(
    ('trained', 'config', 'message'),
    [
        (WITH, NET, 'is of an SSENNet with a search, this one has none'),
        (NET, WITH, 'is of an SSENNet with none, this one has a search'),
        (WITH, WITH, None),
        (NET, NET, None),
        # Not of a network with references at all.
        (SELF, WITH, None),
        (WITH, SELF, None),
    ],
)
def test_a_checkpoint_of_another_search_is_told_once(
    tmp_path, warnings, part, trained, config, message
):
    one, two = build(trained), build(config)
    if part != 'model':
        one, two = one.generator, two.generator
    path = str(tmp_path / 'a.pth')
    if part == 'bare':
        torch.save(one.state_dict(), path)
    else:
        save_checkpoint(dict(meta={}, state_dict=get_state_dict(one)), path)
    load_checkpoint(two, path, 'cpu', strict=False, logger='silent')
    if message is None:
        assert warnings == []
    else:
        (line,) = warnings
        assert message in line
    weights = one.state_dict()
    for key, value in two.state_dict().items():
        assert key not in weights or torch.equal(value, weights[key])


def test_torchs_own_loading_tells_too(warnings):
    one, two = build(WITH), build(NET)
    assert two.load_state_dict(one.state_dict())
    assert two.generator.load_state_dict(one.generator.state_dict())
    assert len(warnings) == 2


def test_of_weights_alone_nothing_is_known(warnings):
    """As converted checkpoints hold them: they load as ever."""
    one, two = build(WITH), build(NET)
    two.load_state_dict({**one.state_dict()})
    assert warnings == []
    for key, value in two.state_dict().items():
        assert torch.equal(value, one.state_dict()[key])
