"""What is said on standard error."""

from __future__ import annotations

import json
import sys

from resnetkit.errors import Interrupted, TrainingError
from resnetkit.progress import answer, answer_json, bar, complain, say


def test_what_is_said_holds_no_commands_for_the_terminal(capsys):
    evil = "a\x1b[31mb\x07c\x9b2J\u202ed\r\ne\u3000\xa0花"
    kept = "a\\x1b[31mb\\x07c\\x9b2J\\u202ed\\r\ne\u3000\xa0花\n"
    say(evil)
    complain(TrainingError(evil))
    complain(OSError(evil))
    with bar("reading", 2, every=0) as advance:
        advance(evil.split("\r")[0])
    answer(evil)
    answer_json({evil: 1})
    found = capsys.readouterr()
    line = kept.split("\\r")[0]
    assert found.err == f"{kept}resnet: {kept}resnet: {kept}reading 1/2 {line}\n"
    assert found.out.startswith(kept)
    assert json.loads(found.out.removeprefix(kept)) == {evil: 1}
    assert all(c.isprintable() or c in "\n\u3000\xa0" for c in found.out)


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
            complain(Interrupted("all were asked to stop", 130))
        assert said == [expected]
