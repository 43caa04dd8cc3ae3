"""What a sweep may try, in which order, on which budget: without Ray."""

import math
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest

from pipelines.cluster import Cluster
from pipelines.experiment import load_cells, load_config, split_cells
from pipelines.journal import Journal
from pipelines.tuning.points import OptunaPoints, RandomPoints
from pipelines.tuning.room import Room, room_for
from pipelines.tuning.search import Budget, Search, in_cells, read_search
from pipelines.tuning.space import apply, draws, read_space, told
from pipelines.tuning.summary import as_csv, as_markdown, note, ranked
from pipelines.tuning.sweep import (
    SweepFolder,
    Trial,
    affordable_steps,
    paced,
    record_of,
    refit_config,
    trial_config,
    winner,
)
from sedd.config import Config, ScalingConfig
from sedd.data.cells import write_h5ad
from sedd.data.simulate import simulate
from sedd.errors import ConfigError, DataError, OutputExistsError, StorageError, UsageError

BASE = Config()
MANAGER = {"CPU": 0.0, "memory": 1.0}
SPACE = {
    "model.hidden_dim": {"choice": [32, 64]},
    "training.learning_rate": {"loguniform": [1e-4, 1e-2]},
}


def space(content=None, base=BASE):
    return read_space(SPACE if content is None else content, base, source="search.yaml")


def trial(number, nelbo, state="finished", **point):
    return Trial(
        name=f"trial_{number:03d}",
        point={"model.hidden_dim": 32, **point},
        state=state,
        nelbo=nelbo,
        cells_seen=1000 * (number + 1),
        wall_s=10.0 * (number + 1),
        num_parameters=1_000_000,
    )


# The space


def test_a_loguniform_draw_is_uniform_in_the_exponent():
    random = np.random.default_rng(0)
    (_, rate) = space().dimensions

    exponents = np.log10([rate.draw(random) for _ in range(4000)])

    assert exponents.min() >= -4
    assert exponents.max() <= -2
    assert exponents.mean() == pytest.approx(-3, abs=4 * 2 / math.sqrt(12 * 4000))


def test_a_choice_draws_each_value_equally_often():
    random = np.random.default_rng(0)
    (width, _) = space().dimensions

    share = np.mean([width.draw(random) == 32 for _ in range(4000)])

    assert share == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(4000))


def test_yaml_that_reads_3e_4_as_text_is_understood():
    rate = space({"training.learning_rate": {"loguniform": ["3e-4", "1e-2"]}}).dimensions[0]

    assert rate.values == (3e-4, 1e-2)


def test_impossible_points_are_left_out_and_all_others_come():
    crossed = space(
        {"model.hidden_dim": {"choice": [12, 16]}, "model.num_heads": {"choice": [3, 8, 4]}}
    )

    drawn = {
        (p["model.hidden_dim"], p["model.num_heads"])
        for p in islice(draws(crossed, BASE, np.random.default_rng(0)), 200)
    }

    assert drawn == {(12, 3), (12, 4), (16, 8), (16, 4)}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"model.hiden_dim": {"choice": [1]}}, "Did you mean 'model.hidden_dim'?"),
        ({"learning_rate": {"choice": [1]}}, "Did you mean 'training.learning_rate'?"),
        ({"model.hidden_dim": 64}, "is no distribution; wanted one of"),
        ({"model.hidden_dim": {"choice": []}}, "wanted a list"),
        ({"model.hidden_dim": {"uniform": [16, 64]}}, "is no fraction; name its values"),
        ({"training.learning_rate": {"loguniform": [0, 1]}}, "wanted more than 0"),
        ({"training.learning_rate": {"uniform": [2, 1]}}, "wanted low < high"),
        ({"training.learning_rate": {"uniform": [1, "many"]}}, "wanted two numbers"),
        ({"training.seed": {"choice": [0, 1]}}, "a lucky seed is no better setting"),
        ({"data.num_genes": {"choice": [500]}}, "it changes what is measured"),
        ({"split.seed": {"choice": [0, 1]}}, "it changes what is measured"),
        ({"inference.num_steps": {"choice": [1]}}, "no part in training"),
        ({"training.max_steps": {"choice": [9]}}, "the budget decides"),
        ({"model.hidden_dim": {"choice": [64, 65]}}, "model.hidden_dim = 65"),
        ({"model.size": {"choice": ["small", "huge"]}}, "model.size = 'huge'"),
        ({"model.dropout": {"uniform": [0.0, 1.5]}}, "wanted 0 to 1"),
        (
            {
                "model.size": {"choice": ["small", "large"]},
                "model.hidden_dim": {"choice": [64]},
                "model.num_layers": {"choice": [2]},
                "model.num_heads": {"choice": [2]},
            },
            "all three are given",
        ),
        ({}, "wanted names with their distributions"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused_with_the_reason(content, said):
    with pytest.raises(ConfigError, match=r"search[.]yaml") as refused:
        space(content)

    assert said in str(refused.value)


def test_all_mistakes_of_a_space_are_told_at_once():
    with pytest.raises(ConfigError) as refused:
        space({"model.x": {"choice": [1]}, "training.seed": {"choice": [1]}})

    assert "model.x" in str(refused.value)
    assert "training.seed" in str(refused.value)


def test_a_point_replaces_its_values_and_nothing_else():
    point = {"model.hidden_dim": 64, "training.learning_rate": 0.01}

    config = apply(point, BASE)

    assert config == replace(
        BASE,
        model=replace(BASE.model, hidden_dim=64),
        training=replace(BASE.training, learning_rate=0.01),
    )
    assert told(point) == "hidden_dim 64, learning_rate 0.01"


# The order of points


def test_random_points_are_the_same_for_the_same_seed_and_go_on_after_those_tried():
    search = Search(space=SPACE, seed=3)
    whole = RandomPoints(search, space(), BASE, ())
    all_points = [whole.propose() for _ in range(6)]
    tried = [Trial(name=f"trial_{n:03d}", point=p) for n, p in enumerate(all_points[:4])]

    rest = RandomPoints(search, space(), BASE, tried)

    assert [rest.propose() for _ in range(2)] == all_points[4:]
    assert all_points != [RandomPoints(replace(search, seed=4), space(), BASE, ()).propose()] * 6


def test_a_trial_whose_folder_was_removed_is_run_again_under_its_name(tmp_path):
    sweep, search = SweepFolder(tmp_path), Search(space=SPACE)
    points = RandomPoints(search, space(), BASE, ())
    made = [sweep.new_trial(points.propose()) for _ in range(4)]
    (sweep.folder("trial_001") / "trial.json").unlink()
    (sweep.folder("trial_001") / "config.yaml").write_text("left over")

    again = RandomPoints(search, space(), BASE, sweep.trials())
    trial = sweep.new_trial(again.propose())

    assert trial == made[1]
    assert sweep.trials() == made
    assert not (sweep.folder("trial_001") / "config.yaml").exists()


def test_a_space_of_three_points_is_used_up_after_three():
    three = {"model.hidden_dim": {"choice": [16, 32, 64]}}
    points = RandomPoints(Search(space=three), space(three), BASE, ())

    drawn = [points.propose() for _ in range(5)]

    assert sorted(p["model.hidden_dim"] for p in drawn[:3]) == [16, 32, 64]
    assert drawn[3:] == [None, None]


def test_optuna_learns_where_the_best_is_and_never_repeats_itself():
    flat = {"training.learning_rate": {"loguniform": [1e-4, 1e-1]}}
    search = Search(space=flat, searcher="optuna")
    points = OptunaPoints(search, space(flat), BASE, ())
    distances, seen = [], set()
    for number in range(40):
        point = points.propose()
        rate = point["training.learning_rate"]
        distance = abs(math.log10(rate) + 2)
        points.learn(Trial(name=str(number), point=point, state="finished", nelbo=distance))
        distances.append(distance)
        seen.add(rate)

    assert len(seen) == 40
    blind = (2**2 / 2 + 1**2 / 2) / 3  # mean distance to 1e-2 of a draw between 1e-4 and 1e-1
    assert np.mean(distances[20:]) < 0.5 * blind


def test_optuna_goes_on_from_earlier_trials_without_their_points():
    few = {"model.hidden_dim": {"choice": [16, 32, 64]}}
    tried = [trial(0, 1.0), trial(1, None, "failed")]
    tried[1] = replace(tried[1], point={"model.hidden_dim": 16})
    points = OptunaPoints(Search(space=few, searcher="optuna"), space(few), BASE, tried)

    assert points.propose() == {"model.hidden_dim": 64}
    assert points.propose() is None


# The budget


@pytest.mark.parametrize("batch_size", [16, 48, 64, 100])
@pytest.mark.parametrize("cells", [2_000, 64_000, 1_000_000])
def test_every_batch_size_sees_the_budget_s_cells_and_is_measured_at_each_rung(batch_size, cells):
    search = Search(space=SPACE, budget=Budget(per_trial=float(cells)))
    base = replace(BASE, training=replace(BASE.training, batch_size=batch_size))

    training = trial_config({}, base, search, Path("t")).training

    seen = training.max_steps * batch_size
    first = training.validate_every * batch_size
    assert training.max_steps % training.validate_every == 0
    assert abs(seen - cells) <= max(first, batch_size) / 2
    assert first <= max(cells / 9, batch_size)
    assert training.patience is None


def test_an_open_budget_is_all_the_cells_of_the_configuration():
    search = Search(space=SPACE)
    epochs = replace(BASE, training=replace(BASE.training, num_epochs=3.0))
    steps = replace(BASE, training=replace(BASE.training, max_steps=100, batch_size=32))

    assert in_cells(search, epochs, 500).budget.per_trial == 1500
    assert in_cells(search, steps, 500).budget.per_trial == 3200


def test_a_trial_in_seconds_is_paced_later():
    search = Search(space=SPACE, budget=Budget(unit="seconds", per_trial=10.0))
    base = replace(BASE, training=replace(BASE.training, max_steps=7))

    assert trial_config({}, base, search, Path("t")).training.max_steps is None
    assert paced(base, 900, search).training.max_steps == 900


@pytest.mark.parametrize(
    ("step_s", "measuring_s", "validate_every"),
    [(0.01, 1.0, 100), (0.1, 2.0, 500), (1.0, 30.0, 500), (0.1, 0.0, 10)],
)
def test_steps_and_validations_of_a_trial_in_seconds_fill_its_budget(
    step_s, measuring_s, validate_every
):
    search = Search(space=SPACE, budget=Budget(unit="seconds", per_trial=600.0))
    base = replace(BASE, training=replace(BASE.training, validate_every=validate_every))

    steps = affordable_steps(search.budget, step_s, measuring_s, validate_every)
    training = paced(base, steps, search).training

    validations = training.max_steps / training.validate_every
    spent = training.max_steps * step_s + validations * measuring_s
    assert spent == pytest.approx(600, rel=0.06)


def test_a_trial_of_a_sweep_that_was_moved_trains_where_it_is_now(tmp_path):
    from pipelines.tuning.duties import Preparer

    write_h5ad(simulate(num_cells=200, num_genes=30, num_cell_types=2).cells, tmp_path / "c.h5ad")
    config = replace(
        BASE, data=replace(BASE.data, train_data_path=str(tmp_path / "c.h5ad"), num_genes=20)
    )
    cells = load_cells(config)
    search = Search(space=SPACE, budget=Budget(unit="seconds", per_trial=9.0))

    def prepare(folder):
        data = replace(config.data, prepared_dir=str(folder / "prepared"))
        preparer = Preparer(
            sweep=SweepFolder(folder), search=search, config=replace(config, data=data),
            cells=cells, split=split_cells(config, cells),
        )  # fmt: skip
        preparer.prepare("trial_000", {"model.hidden_dim": 32})
        return SweepFolder(folder).folder("trial_000")

    old = prepare(tmp_path / "old")
    paced_there = paced(load_config(old), 450, search)
    (old / "config.yaml").write_text(paced_there.to_yaml())
    (tmp_path / "old").rename(tmp_path / "new")
    now = load_config(prepare(tmp_path / "new"))

    assert now.experiment_dir == str(tmp_path / "new" / "trials" / "trial_000")
    assert now.data.prepared_dir == str(tmp_path / "new" / "prepared")
    assert now.training == paced_there.training
    assert now.training.max_steps == 450
    assert not (tmp_path / "old").exists()


def test_the_refit_sees_as_many_cells_with_another_batch_size():
    base = replace(BASE, training=replace(BASE.training, max_steps=100, batch_size=64))

    config = refit_config({"training.batch_size": 32}, base, Path("r"))

    assert config.training.max_steps == 200
    assert refit_config({"model.hidden_dim": 32}, base, Path("r")).training.max_steps == 100


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("space: {}\nbudget: {unit: steps}", "'cells' or 'seconds'"),
        ("space: {}\nbudget: {unit: seconds}", "how many seconds"),
        ("space: {}\nbudget: {reduction: 1}", "wanted more than 1"),
        ("space: {}\nbudget: {first_rung: 0}", "wanted a share"),
        ("space: {}\ntrials: 3", "trials: no such key"),
        ("num_trials: 3", "space"),
        ("space: {}\ngpus_per_trial: 2", "wanted more than 0 and up to 1"),
        ("space: {}\nseed: -1", "wanted 0 or more"),
    ],
)
def test_a_search_file_that_cannot_be_used_is_refused(tmp_path, content, said):
    path = tmp_path / "s.yaml"
    path.write_text(content)

    with pytest.raises(ConfigError) as refused:
        read_search(path)

    assert said in str(refused.value)


# The scheduler


def write_course(folder, nelbos, *, every=10, batch=16):
    with Journal(folder / "metrics.jsonl") as journal:
        for number, nelbo in enumerate(nelbos, start=1):
            step = number * every
            journal.append(
                step,
                {
                    "train/cells_seen": step * batch,
                    "speed/cells_per_s": 160.0,
                    "val/nelbo": nelbo,
                },
            )


def test_a_scheduler_that_starts_anew_stops_whom_the_old_one_would_have_stopped(tmp_path):
    from types import SimpleNamespace

    from pipelines.tuning.run import _scheduler

    sweep = SweepFolder(tmp_path)
    search = Search(space=SPACE, budget=Budget(per_trial=9 * 160.0))
    ended = [trial(n, nelbo) for n, nelbo in enumerate([1.0, 1.1, 1.2])]
    for each in ended:
        sweep.save(each)
        write_course(sweep.folder(each.name), [each.nelbo + 0.1] + [each.nelbo] * 8)
    late = replace(trial(3, 1.9, "stopped"), cells_seen=160)  # heard of it after one more
    sweep.save(late)
    write_course(sweep.folder(late.name), [1.9, 0.1, 0.1])
    ended.append(late)
    asha = _scheduler(sweep, search, ended)

    def verdict(name, nelbo):
        fresh = SimpleNamespace(trial_id=name)
        asha.on_trial_add(None, fresh)
        return asha.on_trial_result(None, fresh, {"cells_seen": 160, "wall_s": 1, "nelbo": nelbo})

    assert verdict("worse", 1.25) == "STOP"
    assert verdict("better", 1.05) == "CONTINUE"
    later = {"cells_seen": 480, "wall_s": 3, "nelbo": 1.05}
    assert asha.on_trial_result(None, SimpleNamespace(trial_id="better"), later) == "CONTINUE"


def test_the_end_of_a_budget_is_no_rung(tmp_path):
    from types import SimpleNamespace

    from pipelines.tuning.run import _scheduler

    search = Search(space=SPACE, budget=Budget(per_trial=1440.0))
    asha = _scheduler(SweepFolder(tmp_path), search, [])
    trials = [SimpleNamespace(trial_id=str(n)) for n in range(2)]
    for each in trials:
        asha.on_trial_add(None, each)

    def verdict(number, cells, nelbo):
        result = {"cells_seen": cells, "wall_s": cells / 100, "nelbo": nelbo}
        return asha.on_trial_result(None, trials[number], result)

    assert verdict(0, 160, 2.0) == verdict(0, 480, 1.8) == "CONTINUE"
    assert verdict(1, 160, 1.9) == verdict(1, 480, 1.7) == "CONTINUE"
    assert verdict(0, 1440, 1.0) == "CONTINUE"
    assert verdict(1, 1440, 1.5) == "CONTINUE"


# Room and cells


def cluster(*nodes):
    """Nodes of so many (CPUs, GPUs)."""
    return Cluster(
        address="local",
        num_cpus=sum(cpus for cpus, _ in nodes),
        num_gpus=sum(gpus for _, gpus in nodes),
        num_workers=1,
        nodes=tuple({"CPU": float(cpus), "GPU": float(gpus)} for cpus, gpus in nodes),
    )


@pytest.mark.parametrize(
    ("scaling", "gpus_per_trial", "there", "at_once", "threads", "bundle"),
    [
        ({}, 1.0, cluster((2, 0)), 2, 1, {"CPU": 1.0}),
        ({}, 1.0, cluster((32, 0)), 8, 4, {"CPU": 4.0}),
        ({}, 1.0, cluster((4, 0), (4, 0)), 8, 1, {"CPU": 1.0}),
        ({}, 1.0, cluster((32, 0), (32, 0)), 8, 8, {"CPU": 8.0}),
        ({"cpus_per_worker": 2.0}, 1.0, cluster((5, 0)), 2, 2, {"CPU": 2.0}),
        ({"cpus_per_worker": 8.0}, 1.0, cluster((4, 0), (9, 0)), 1, 9, {"CPU": 9.0}),
        ({"use_gpu": True}, 0.5, cluster((16, 2)), 4, 4, {"CPU": 4.0, "GPU": 0.5}),
        ({"use_gpu": True}, 0.6, cluster((16, 2)), 2, 8, {"CPU": 8.0, "GPU": 0.6}),
        ({"use_gpu": True}, 1.0, cluster((16, 2)), 2, 8, {"CPU": 8.0, "GPU": 1.0}),
        ({"use_gpu": True, "num_workers": 2}, 0.5, cluster((16, 4)), 2, 4, MANAGER),
    ],
)
def test_as_many_trials_run_at_once_as_the_nodes_have_room_for(
    scaling, gpus_per_trial, there, at_once, threads, bundle
):
    search = Search(space=SPACE, gpus_per_trial=gpus_per_trial)

    room = room_for(search, ScalingConfig(**scaling), there)

    assert room == Room(at_once=at_once, threads=threads, bundle=bundle)


@pytest.mark.parametrize(
    ("scaling", "there", "said"),
    [
        ({"cpus_per_worker": 999.0}, cluster((2, 0)), "needs 1 × 999 CPUs"),
        ({"cpus_per_worker": 8.0}, cluster((4, 0), (4, 0)), "4 CPUs, 0 GPUs, 4 CPUs, 0 GPUs"),
        ({"use_gpu": True, "num_workers": 3}, cluster((9, 2)), "3 × 1 GPUs"),
    ],
)
def test_a_trial_that_fits_nowhere_is_refused(scaling, there, said):
    with pytest.raises(UsageError, match=said):
        room_for(Search(space=SPACE), ScalingConfig(**scaling), there)


def test_workers_that_cannot_share_a_batch_equally_are_refused_before_any_trial():
    from pipelines.tune import _require_equal_shares

    sizes = space({"training.batch_size": {"choice": [64, 33]}})
    two = replace(BASE, scaling=replace(BASE.scaling, num_workers=2))

    with pytest.raises(UsageError, match="batch_size 33 cannot be shared equally by 2 workers"):
        _require_equal_shares(two, sizes)


def test_without_cells_for_validation_there_is_nothing_to_choose_by(tmp_path):
    from pipelines.tune import _begin

    write_h5ad(simulate(num_cells=200, num_genes=30, num_cell_types=2).cells, tmp_path / "c.h5ad")
    config = replace(
        BASE,
        data=replace(BASE.data, train_data_path=str(tmp_path / "c.h5ad"), num_genes=20),
        split=replace(BASE.split, validation_fraction=0.0),
    )
    sweep = SweepFolder(tmp_path / "sweep")

    with pytest.raises(DataError, match="No cells are kept for validation"):
        _begin(sweep, config, Search(space=SPACE))

    assert not (sweep.path / "sweep.json").exists()


# The folder and what is shown of it


def test_a_sweep_may_change_its_size_and_place_but_not_what_is_compared(tmp_path):
    sweep = SweepFolder(tmp_path)
    search = Search(space=SPACE)
    sweep.remember(record_of(search, BASE, data_digest="a"))

    sweep.require_same(record_of(replace(search, num_trials=99), BASE, data_digest="a"))
    with pytest.raises(UsageError, match="data_digest: there 'a', now 'b'"):
        sweep.require_same(record_of(search, BASE, data_digest="b"))
    changed = replace(search, budget=Budget(per_trial=5.0))
    with pytest.raises(UsageError, match=r"search[.]budget[.]per_trial: there None, now 5[.]0"):
        sweep.require_same(record_of(changed, BASE, data_digest="a"))


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"name": "trial_000", "point": {}, "nelbo": "x"}',
     '{"name": "trial_000", "point": {}, "state": "wat"}', '{"name": "trial_007", "point": {}}'],
)  # fmt: skip
def test_a_damaged_record_of_a_trial_is_named_with_its_folder(tmp_path, text):
    sweep = SweepFolder(tmp_path)
    sweep.save(trial(0, 1.0))
    (sweep.folder("trial_000") / "trial.json").write_text(text)

    with pytest.raises(StorageError, match=r"trial_000.*damaged"):
        sweep.trials()


@pytest.mark.parametrize("text", ["{", "[]", "3", "null"])
def test_a_damaged_record_of_a_sweep_is_named(tmp_path, text):
    (tmp_path / "sweep.json").write_text(text)

    with pytest.raises(StorageError, match=r"sweep[.]json is damaged"):
        SweepFolder(tmp_path).require_same({})


def test_a_sweep_and_an_experiment_never_share_a_folder(tmp_path):
    from pipelines.train import _require_fresh

    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "config.yaml").touch()
    sweep = SweepFolder(tmp_path / "s")
    sweep.remember({})

    with pytest.raises(OutputExistsError, match="holds an experiment"):
        SweepFolder(tmp_path / "e").require_same({})
    with pytest.raises(OutputExistsError, match="holds a sweep"):
        _require_fresh(replace(BASE, experiment_dir=str(sweep.path)))


def test_trials_come_back_as_they_were_saved(tmp_path):
    sweep = SweepFolder(tmp_path)
    saved = [trial(0, 0.1 + 0.2, rate=1e-3), trial(1, None, "failed")]
    for each in saved:
        sweep.save(each)

    assert sweep.trials() == saved


def test_the_winner_used_its_budget_if_any_did_and_nan_never_wins():
    stopped, finished = trial(0, 0.9, "stopped"), trial(1, 1.0)

    assert winner([stopped, finished]) == finished
    assert winner([stopped, trial(2, math.nan)]) == stopped
    assert winner([trial(3, None, "failed")]) is None


def test_the_table_is_ranked_and_the_chosen_trial_bold():
    trials = [trial(0, 0.9, "stopped"), trial(1, 1.2), trial(2, 1.1), trial(3, None, "failed")]

    lines = as_markdown(trials).splitlines()[2:]

    assert [line.split("|")[1].strip() for line in lines] == [
        "**trial_002**", "trial_000", "trial_001", "trial_003",
    ]  # fmt: skip
    assert lines[0].split(" | ")[3:] == ["1.1000", "1,000,000", "3,000", "30 |"]
    assert [t.name for t in ranked(trials)] == ["trial_002", "trial_000", "trial_001", "trial_003"]
    assert as_csv(trials).splitlines()[1].startswith("trial_002,finished,32,1.1,")
    assert "**trial_002**, hidden_dim 32." in note(trials, Search(space=SPACE))


def test_the_curve_of_a_trial_never_rises(tmp_path):
    from pipelines.tuning.trial import Course

    write_course(tmp_path, [2.0, 1.5, 1.7, 1.2])
    course, seen = Course(tmp_path / "metrics.jsonl"), []
    while course.advance():
        seen.append(course.numbers)

    assert [n["nelbo"] for n in seen] == [2.0, 1.5, 1.5, 1.2]
    assert [n["cells_seen"] for n in seen] == [160, 320, 480, 640]
    assert [n["wall_s"] for n in seen] == [1.0, 2.0, 3.0, 4.0]
    assert all(a["nelbo"] >= b["nelbo"] for a, b in pairwise(seen))


# The command line


def test_the_command_of_the_readme_is_understood_as_it_stands(monkeypatch):
    from pipelines import tune

    root = Path(__file__).resolve().parents[2]
    text = (root / "README.md").read_text(encoding="utf-8")
    (line,) = [one for one in text.splitlines() if one.startswith("python -m pipelines.tune ")]
    asked = []
    monkeypatch.setattr(tune, "run", lambda *given: asked.append(given))
    monkeypatch.chdir(root)

    assert tune.main(line.split()[3:]) == 0
    assert tune.main([*line.split()[3:], "--searcher", "optuna", "--gpus_per_trial", "0.5"]) == 0

    (config, search, space), (_, other, _) = asked
    assert (search.num_trials, search.searcher, search.gpus_per_trial) == (8, "random", 1.0)
    assert (other.searcher, other.gpus_per_trial) == ("optuna", 0.5)
    assert config.data.train_data_path == str(root / "cells.h5ad")
    assert config.experiment_dir == str(root / "experiments" / "sweep")
    assert len(space.names) == 5
