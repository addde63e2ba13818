"""Fixtures of all tests: seeds, a GPU where there is one, a default scope."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
import torch
from mmengine.registry import DefaultScope

from mmplugins import compat

compat.enable_mmseg_bases()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu skip themselves without one."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker('gpu'):
            item.add_marker(pytest.mark.skip(reason='needs a GPU'))


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """The same random numbers for a test whatever ran before it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def in_scope() -> Callable[[str | None], AbstractContextManager]:
    """Run under a default scope, as a runner of that host does.

    None stands for no scope at all, whatever an earlier test left behind.
    """
    from contextlib import contextmanager

    @contextmanager
    def overwrite(scope: str | None) -> Iterator[None]:
        if scope == 'mmagic':
            compat.import_mmagic()
        instances = DefaultScope._instance_dict
        before = instances.copy()
        instances.clear()
        try:
            with DefaultScope.overwrite_default_scope(scope):
                yield
        finally:
            instances.clear()
            instances.update(before)

    return overwrite
