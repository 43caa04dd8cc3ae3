import math
import os

import pytest

from pipelines.journal import Journal, JournalFollower, Point, read_journal, truncate_after
from sedd.errors import StorageError


def ticking(*times):
    remaining = iter(times)
    return lambda: next(remaining)


def write_steps(path, steps):
    with Journal(path) as journal:
        for step in steps:
            journal.append(step, {"train/loss": step / 8})


def test_points_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "deep" / "metrics.jsonl"

    with Journal(path, clock_ms=ticking(100, 200)) as journal:
        journal.append(1, {"train/loss": 0.1, "speed/cells": 5})
        journal.append(2, {"train/loss": 1e-300})

    assert read_journal(path) == [
        Point(step=1, timestamp_ms=100, metrics={"train/loss": 0.1, "speed/cells": 5.0}),
        Point(step=2, timestamp_ms=200, metrics={"train/loss": 1e-300}),
    ]


def test_numbers_that_json_has_no_word_for_come_back(tmp_path):
    path = tmp_path / "metrics.jsonl"

    with Journal(path) as journal:
        journal.append(1, {"a": math.nan, "b": math.inf, "c": -math.inf})

    (point,) = read_journal(path)
    assert math.isnan(point.metrics["a"])
    assert (point.metrics["b"], point.metrics["c"]) == (math.inf, -math.inf)
    assert "NaN" not in path.read_text()


@pytest.mark.parametrize("cut", [1, 10, 30])
def test_a_cut_off_last_line_is_left_out_and_written_over(tmp_path, cut):
    path = tmp_path / "metrics.jsonl"
    write_steps(path, [1, 2, 3])
    path.write_bytes(path.read_bytes()[:-cut])

    assert [p.step for p in read_journal(path)] == [1, 2]
    write_steps(path, [3, 4])

    assert [p.step for p in read_journal(path)] == [1, 2, 3, 4]


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_steps(path, [1, 2, 3])
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1].replace('"step"', '"stop"') + lines[2])

    with pytest.raises(StorageError, match=r"Line 2 of the journal .* is damaged"):
        read_journal(path)


def test_truncation_removes_exactly_the_later_steps(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_steps(path, range(1, 11))
    before = read_journal(path)

    removed = truncate_after(path, 6)

    assert removed == 4
    assert read_journal(path) == before[:6]
    assert [f.name for f in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert truncate_after(path, 6) == 0
    assert truncate_after(tmp_path / "absent.jsonl", 3) == 0


def test_truncation_is_one_move_of_a_whole_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_steps(path, range(1, 11))
    before = path.read_bytes()

    with path.open("rb") as opened_before:
        truncate_after(path, 6)

        assert opened_before.read() == before


def test_a_resumed_run_leaves_each_step_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_steps(path, range(1, 8))

    truncate_after(path, 5)
    write_steps(path, range(6, 11))

    assert [p.step for p in read_journal(path)] == list(range(1, 11))


def test_an_interrupted_truncation_leaves_the_old_journal(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    write_steps(path, range(1, 11))
    before = path.read_bytes()

    def full_disk(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(StorageError, match="No space left on device"):
        truncate_after(path, 2)

    assert path.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_full_disk_keeps_whole_lines_and_the_points_for_later(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    really_write = os.pwrite
    journal = Journal(path)
    journal.append(1, {"a": 1.0})
    journal.flush()

    def half_then_full(handle, block, offset):
        if len(block) < 20:
            raise OSError(28, "No space left on device")
        return really_write(handle, block[:-15], offset)

    journal.append(2, {"a": 2.0})
    monkeypatch.setattr(os, "pwrite", half_then_full)
    with pytest.raises(StorageError, match="No space left"):
        journal.flush()
    assert path.read_bytes().endswith(b"}\n")
    monkeypatch.setattr(os, "pwrite", really_write)
    journal.close()

    assert [p.step for p in read_journal(path)] == [1, 2]


def test_timestamps_never_go_back_even_when_the_clock_does(tmp_path):
    path = tmp_path / "metrics.jsonl"

    with Journal(path, clock_ms=ticking(500, 400)) as journal:
        journal.append(1, {})
        journal.append(2, {})
    with Journal(path, clock_ms=ticking(100, 600)) as journal:
        journal.append(3, {})
        journal.append(4, {})

    assert [p.timestamp_ms for p in read_journal(path)] == [500, 500, 500, 600]


def test_points_reach_the_disk_by_themselves(tmp_path):
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path, flush_every_s=0.0)

    journal.append(1, {"a": 1.0})

    assert [p.step for p in read_journal(path)] == [1]
    journal.close()


def test_a_follower_gets_each_whole_line_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    follower = JournalFollower(path)

    assert follower.poll() == []
    write_steps(path, [1, 2])
    assert [p.step for p in follower.poll()] == [1, 2]
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(b'{"step": 3, "timest')
        file.flush()
        assert follower.poll() == []
        file.write(b'amp_ms": 0, "metrics": {}}\n')
    assert [p.step for p in follower.poll()] == [3]
    assert follower.poll() == []
    assert whole in path.read_bytes()


def test_a_follower_starts_again_when_the_journal_was_truncated(tmp_path):
    path = tmp_path / "metrics.jsonl"
    follower = JournalFollower(path)
    write_steps(path, [1, 2, 3])
    follower.poll()
    assert not follower.restarted

    truncate_after(path, 1)
    write_steps(path, [2])

    assert [p.step for p in follower.poll()] == [1, 2]
    assert follower.restarted
