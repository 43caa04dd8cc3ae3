import io
import re

import pytest

from pipelines.progress import PlainProgress, Speedometer, clock_text, progress


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_come_every_few_seconds_and_at_the_end():
    clock, stream = Clock(), io.StringIO()
    shown = PlainProgress("train", 43, stream=stream, every_s=10, clock=clock)

    for step in range(1, 44):
        clock.now += 1
        shown.update(step, cells=step * 64, loss=1 / step)

    assert stream.getvalue().splitlines() == [
        "train step 10/43  loss 0.1000  64 cells/s  0:33 left",
        "train step 20/43  loss 0.0500  64 cells/s  0:23 left",
        "train step 30/43  loss 0.0333  64 cells/s  0:13 left",
        "train step 40/43  loss 0.0250  64 cells/s  0:03 left",
        "train step 43/43  loss 0.0233  64 cells/s  0:00 left",
    ]


def test_a_resumed_job_s_earlier_steps_do_not_count_as_fast():
    clock, stream = Clock(), io.StringIO()
    shown = PlainProgress("train", 1000, start=900, stream=stream, every_s=5, clock=clock)

    clock.now = 10
    shown.update(910, cells=640)

    assert stream.getvalue() == "train step 910/1000  64 cells/s  1:30 left\n"


def test_the_rate_is_that_of_the_last_half_minute():
    clock = Clock()
    speed = Speedometer(10_000, clock)
    speed.measure(0, 0)
    for step in range(1, 101):
        clock.now += 1
        pace = speed.measure(step, step * 10 if step <= 50 else 500 + (step - 50) * 100)

    assert pace.cells_per_s == pytest.approx(100)


def test_a_job_that_stands_still_has_no_time_left_to_tell():
    clock = Clock()
    speed = Speedometer(10, clock)
    speed.measure(3, 0)
    clock.now = 5.0

    pace = speed.measure(3, 0)

    assert (pace.cells_per_s, pace.seconds_left) == (0.0, None)


@pytest.mark.parametrize(
    ("seconds", "text"), [(9.4, "0:09"), (750, "12:30"), (59.7, "1:00"), (11_100, "3:05:00")]
)
def test_durations_read_like_a_clock(seconds, text):
    assert clock_text(seconds) == text


def test_a_log_file_gets_lines_and_a_terminal_a_bar():
    log, terminal = io.StringIO(), Terminal()

    for stream in (log, terminal):
        with progress("generate", 4, unit="unit", stream=stream, every_s=0) as shown:
            for unit in range(1, 5):
                shown.update(unit, cells=unit * 100)
            shown.note("checkpoint [kept]")

    assert len(log.getvalue().splitlines()) == 5
    assert "\x1b" not in log.getvalue()
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "unit 4/4" in drawn
    assert "cells/s" in drawn
    assert "checkpoint [kept]" in drawn
