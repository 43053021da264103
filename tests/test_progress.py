"""Messages, results and bars on standard output and standard error."""

from __future__ import annotations

import json
import logging
import sys

from resnetkit.errors import Interrupted, TrainingError
from resnetkit.progress import bar, print_error, print_json, print_result, say


def test_output_holds_no_escape_sequences(capsys):
    evil = "a\x1b[31mb\x07c\x9b2J\u202ed\r\ne\u3000\xa0花"
    kept = "a\\x1b[31mb\\x07c\\x9b2J\\u202ed\\r\ne\u3000\xa0花\n"
    say(evil)
    print_error(TrainingError(evil))
    print_error(OSError(evil))
    with bar("reading", 2, every=0) as advance:
        advance(evil.split("\r")[0])
    print_result(evil)
    print_json({evil: 1})
    found = capsys.readouterr()
    line = kept.split("\\r")[0]
    assert found.err == f"{kept}resnet: {kept}resnet: {kept}reading 1/2 {line}\n"
    assert found.out.startswith(kept)
    assert json.loads(found.out.removeprefix(kept)) == {evil: 1}
    assert all(c.isprintable() or c in "\n\u3000\xa0" for c in found.out)


class Writes(list):
    def write(self, text):
        self.append(text)


def test_a_message_is_written_with_its_newline(monkeypatch):
    """One write keeps another process's output from getting in between."""
    for rank, expected in (("0", "resnet: one\ntwo\n"), ("1", "resnet: process 1: one\n")):
        writes = Writes()
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setattr(sys, "stderr", writes)
        print_error(TrainingError("one\ntwo"))
        if rank == "1":
            print_error(Interrupted("all were asked to stop", 130))
        assert writes == [expected]


def test_one_line_silences_messages_and_bars(capsys):
    log = logging.getLogger("resnetkit")
    before = log.level
    try:
        log.setLevel(logging.WARNING)
        say("a message")
        with bar("reading", 2, every=0) as advance:
            advance("one")
        log.warning("a warning")
    finally:
        log.setLevel(before)
    assert capsys.readouterr().err == "a warning\n"


def test_messages_reach_the_handlers_of_a_program(caplog):
    say("100% of [images]")
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [("INFO", "100% of [images]")]
