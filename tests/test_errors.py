from __future__ import annotations

import copy
import pickle

import pytest

from resnetkit import errors

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.ResnetkitError)
]


@pytest.mark.parametrize("kind", KINDS)
def test_errors_can_be_pickled(kind):
    """Pools pickle what a worker raises; an error that cannot be unpickled breaks the pool."""
    fields = ("run again", 143) if kind is errors.Interrupted else ("run again",)
    error = kind(*fields)
    for again in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert type(again) is kind
        assert (str(again), again.exit_code) == ("run again", error.exit_code)
        assert again.args == error.args
