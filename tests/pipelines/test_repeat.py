"""The card and the report say how the evaluated cells were made, and their commands make them."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pytest

from pipelines import command_line, evaluate, generate, repeat
from pipelines.experiment import load_config
from sedd.config import Config
from sedd.data.reference import Reference
from sedd.data.splits import SplitConfig
from sedd.errors import UsageError
from sedd.flags import FLAGS
from sedd.inference import InferenceConfig
from sedd.storage import write_text
from tests.tiny_experiment import tiny_config, tiny_experiment
from tests.worlds import tiny_cells

pytestmark = pytest.mark.usefixtures("without_ray")

TYPES = ("B cell", "T cell")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("repeat")
    split = SplitConfig(kind="unseen_pair", pairs=tuple((name, "raise") for name in TYPES))
    return tiny_experiment(folder, tiny_cells(), tiny_config(folder, split, num_steps=2))


def cells_of(config: Config, folder: Path, *cell_types: str, **inference: object) -> None:
    asked = replace(config.inference, cell_types=cell_types or TYPES, **inference)
    generate.run(replace(config, inference=asked), generate.Output(folder=folder))


def evaluated(config: Config, folder: Path) -> repeat.Evaluated:
    """What `evaluate` would know of the cells in a folder."""
    source = generate.find_source(config)
    vocabulary = Reference.load(source.checkpoint).vocabulary
    drawn = repeat.read_how_generated(folder, TYPES, vocabulary, source, config.inference)
    return repeat.Evaluated(config=config, experiment=config, drawn=drawn, generated=folder)


def arguments(command: str, verb: str) -> list[str]:
    """What a shell hands to the verb."""
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", f"pipelines.{verb}"]
    return words[3:]


def resolved(verb: str, words: list[str], base: Config | None = None) -> Config:
    parser = command_line.verb_parser(verb, "")
    command_line.add_config_flags(parser, FLAGS)
    return command_line.read_config(parser.parse_args(words), FLAGS, base=base)


# Flags.


@pytest.mark.parametrize(
    "changes",
    [
        {"cell_types": ("B cell", 'it\'s a "T"', "#1", "null", "a; b")},
        {"cell_types": ("[x]",)},
        {"cell_types": ("-1", "-x"), "num_steps": 64},
        {"cell_types": ("two\nlines", " ", "é, ∆")},
        {"cell_type": None},
        {"cell_type": "[x]"},
        {"perturbations": (), "seed": 0, "shrink_effects": False},
        {"mode": "population", "sampler": "tweedie", "temperature": 1e-5},
        {"guidance": 1.5, "effect_anchor": 0.0, "block_schedule": "measured"},
    ],
)
def test_the_flags_between_two_configurations_lead_from_one_to_the_other(changes):
    inference = InferenceConfig(cell_type="B cell", perturbations=("raise",), seed=7)
    base = Config(inference=inference)
    asked = replace(base, inference=replace(inference, **changes))

    words = repeat.overrides(base, asked, "inference")

    assert asked != base
    assert resolved("generate", shlex.split(shlex.join(words)), base) == asked
    assert shlex.join(words).isprintable()


def test_a_flag_is_written_as_a_user_would():
    base, inference = Config(), InferenceConfig(num_steps=64, guidance=1.5, cell_types=("B cell",))

    words = repeat.overrides(base, replace(base, inference=inference), "inference")

    assert shlex.join(words) == (
        "--cell_types 'B cell' --num_steps 64 --set inference.guidance=1.5"
    )
    assert repeat.overrides(base, base, "inference") == []


# What card and report say.


def test_the_card_says_how_the_cells_were_generated_and_not_what_the_experiment_says(
    trained, tmp_path, tracking_uri, monkeypatch
):
    monkeypatch.chdir(Path(trained.experiment_dir).parent)
    how = {"num_steps": 2, "seed": 3, "mode": "population"}
    cells_of(trained, tmp_path, effect_anchor=0.25, **how)

    evaluate.run(trained, tmp_path, tracking_uri=tracking_uri)

    folder = Path(trained.experiment_dir) / "evaluation"
    card, report = ((folder / name).read_text("utf-8") for name in ("model_card.md", "report.html"))
    assert "Cells drawn in population mode with 2 steps, seed 3." in card
    assert re.search(r"```sh\n(.*?)\n*```", card, re.DOTALL)[1].split("\n") == [
        "python -m pipelines.train --config e/config.yaml --experiment_dir e_again",
        "python -m pipelines.generate --experiment_dir e_again --cell_types 'B cell' 'T cell' "
        "--num_steps 2 --mode population --set inference.effect_anchor=0.25 "
        "--set inference.seed=3",
        "python -m pipelines.evaluate --experiment_dir e_again",
    ]
    command = f"python -m pipelines.evaluate --experiment_dir e --generated_dir {tmp_path}"
    assert f"<code>{command}</code>" in report


def test_the_commands_train_what_was_trained_and_make_the_cells_that_were_evaluated(
    trained, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    folders = tmp_path / "first", tmp_path / "again"
    cells_of(trained, folders[0], "B cell", num_samples_per_condition=20, num_steps=3)
    cells_of(trained, folders[0], "T cell", perturbations=("raise",), num_steps=3)
    train, *generations, _ = repeat.repeat_commands(evaluated(trained, folders[0]))
    again = Path(f"{trained.experiment_dir}_again")

    config = resolved("train", arguments(train, "train"))
    shutil.copytree(trained.experiment_dir, again)
    for command in generations:
        parser = command_line.verb_parser("generate", "")
        command_line.add_config_flags(parser, FLAGS)
        _, asked = generate.read_arguments(parser, arguments(command, "generate"))
        generate.run(asked, generate.Output(folder=folders[1]))

    assert config == replace(trained, experiment_dir=str(again))
    assert len(generations) == 2
    for name in ("celltype_B_cell", "celltype_T_cell"):
        one, other = (anndata.read_h5ad(folder / name / generate.CELLS) for folder in folders)
        assert (one.X != other.X).nnz == 0
        assert one.obs.equals(other.obs)


def test_what_evaluate_was_asked_beside_the_experiment_is_in_its_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = Config(experiment_dir=str(tmp_path / "e"), checkpoint_dir="/c", resume="/c/step_1")
    moved = replace(experiment.data, train_data_path="/moved cells.h5ad")
    inference = replace(experiment.inference, num_steps=16)
    asked = repeat.Evaluated(
        config=replace(experiment, data=moved, inference=inference, checkpoint_dir="/d"),
        experiment=experiment,
        drawn=(replace(experiment.inference, cell_types=("B cell",)),),
        generated=tmp_path / "e" / "inference_results",
        flags=("--judges", "cell-eval"),
    )

    assert repeat.evaluate_command(asked) == (
        "python -m pipelines.evaluate --experiment_dir e --checkpoint_dir /d --train_data_path "
        "'/moved cells.h5ad' --num_steps 16 --judges cell-eval"
    )
    assert repeat.repeat_commands(asked) == (
        "python -m pipelines.train --config e/config.yaml --experiment_dir e_again "
        "--train_data_path '/moved cells.h5ad' --checkpoint_dir e_again/checkpoints "
        "--set resume=null",
        "python -m pipelines.generate --experiment_dir e_again --cell_types 'B cell'",
        "python -m pipelines.evaluate --experiment_dir e_again --num_steps 16 --judges cell-eval",
    )


# What is refused.


def test_cells_that_were_not_generated_alike_are_not_scored_together(trained, tmp_path):
    cells_of(trained, tmp_path, "B cell", num_steps=2)
    cells_of(trained, tmp_path, "T cell", num_steps=3)

    with pytest.raises(
        UsageError,
        match=r"not generated alike: inference\.num_steps is 2 for 'B cell' and 3 for 'T cell'\. "
        r"Generate .* --cell_types 'B cell' 'T cell' --overwrite",
    ):
        evaluated(trained, tmp_path)


def test_a_record_of_an_earlier_commit_lacks_settings_and_is_read_all_the_same(trained, tmp_path):
    cells_of(trained, tmp_path, num_steps=2, effect_anchor=0.25)
    for path in tmp_path.rglob(generate.RECORD):
        record = json.loads(path.read_text())
        del record["guidance"], record["effect_anchor"]
        write_text(path, json.dumps(record))

    (how,) = evaluated(trained, tmp_path).drawn

    assert how == replace(trained.inference, cell_types=TYPES, num_steps=2)


# Where predictions come from.


def test_predictions_come_from_the_checkpoint_and_the_generated_files_alone(trained, tmp_path):
    cells_of(trained, tmp_path / "cells")
    conditions = [(name, "raise") for name in TYPES]
    alone = replace(
        trained,
        data=replace(trained.data, train_data_path=None),
        experiment_dir=str(tmp_path / "empty"),
        checkpoint_dir=str(trained.checkpoints),
    )

    with_cells, without_cells = (
        evaluate._predictions(config, generate.find_source(config), conditions, tmp_path / "cells")
        for config in (trained, alone)
    )

    assert load_config(Path(trained.experiment_dir)) == trained
    for condition in conditions:
        assert set(with_cells[condition]) == {"counterfactual", "population"}
        for mode, prediction in with_cells[condition].items():
            np.testing.assert_array_equal(
                prediction.cells_log1p, without_cells[condition][mode].cells_log1p
            )
            # Sixteen cells were drawn together, and then eight.
            np.testing.assert_array_equal(prediction.unit, np.repeat([0, 1], [16, 8]))
