"""What is said on standard error."""

from __future__ import annotations

import sys

from resnetkit.errors import Interrupted, TrainingError
from resnetkit.progress import complain


class Writes(list):
    def write(self, text):
        self.append(text)


def test_a_message_is_written_with_the_end_of_its_line(monkeypatch):
    """Else what another process says at the same moment comes between."""
    for rank, expected in (("0", "resnet: one\ntwo\n"), ("1", "resnet: process 1: one\n")):
        said = Writes()
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setattr(sys, "stderr", said)
        complain(TrainingError("one\ntwo"))
        if rank == "1":
            complain(Interrupted("all were asked to stop"))
        assert said == [expected]
