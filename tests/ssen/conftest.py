"""Fixtures that several files on SSEN share."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest


@pytest.fixture
def mmagic_scope(
    in_scope: Callable[[str | None], AbstractContextManager],
) -> Iterator[None]:
    """As a runner of mmagic runs it."""
    with in_scope('mmagic'):
        yield
