"""What the tests of all converters share."""

import convert_checkpoint
import pytest


def refused(*args):
    """The error of a call of the converter, one line for the shell."""
    with pytest.raises(SystemExit) as failure:
        convert_checkpoint.main([str(arg) for arg in args])
    message = failure.value.code
    assert message.startswith('error: ')
    assert '\n' not in message
    return message
