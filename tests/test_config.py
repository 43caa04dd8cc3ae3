"""One resolver: who wins, what is refused, and how all mistakes are told at once."""

import dataclasses
import os
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sedd.config import MAX_BYTES, Config, from_yaml, resolve
from sedd.data.choices import DataConfig
from sedd.errors import ConfigError
from sedd.flags import FLAGS
from sedd.model.config import ModelConfig


@pytest.fixture
def file(tmp_path):
    def write(text: str | bytes) -> Path:
        path = tmp_path / "some.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def value(config: Config, key: str) -> object:
    for name in key.split("."):
        config = getattr(config, name)
    return config


def message(**given: object) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(**given)
    return str(caught.value)


# Who wins.


def test_flag_beats_environment_beats_file_beats_default(file):
    path = file("data: {cell_type_col: from_file, gene: from_file, control_name: from_file}")
    environment = {"CELL_TYPE_COL": "from_env", "TRAIN_DATA_PATH": "from_env"}

    config = resolve(file=path, environment=environment, flags={"train_data_path": "from_flag"})

    assert config.data.train_data_path == "from_flag"
    assert config.data.cell_type_col == "from_env"
    assert config.data.gene == "from_file"
    assert config.data.num_genes == 2000


def test_a_setting_beats_everything():
    config = resolve(
        flags={"num_steps": "5", "batch_size": "8"},
        settings=["inference.num_steps=6", "inference.num_steps=7"],
    )

    assert config.inference.num_steps == 7
    assert config.training.batch_size == 8


def test_a_base_stands_below_the_file_and_above_the_defaults(file):
    base = resolve(settings=["model.num_layers=3", "training.batch_size=7", "training.seed=5"])

    config = resolve(file=file("training: {batch_size: 9}"), base=base)

    assert (config.model.num_layers, config.training.batch_size) == (3, 9)
    assert config.training.seed == 5
    assert resolve(base=base) == base


def test_nothing_given_is_the_default():
    assert resolve() == Config()
    assert resolve(environment=dict(os.environ)) == Config()


EXAMPLES = {"num_genes": "all", "size": "medium", "use_gpu": "true", "mode": "population"}
TOLD_TYPES = resolve(settings=["model.cell_type_label_dropout=0.5"])
"""A base under which every flag may stand alone, vectors of cell types too."""


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_every_flag_reaches_its_value_and_only_that(flag):
    given = ["T cell", "B cell"] if flag.nargs else EXAMPLES.get(flag.name, "3")

    config = resolve(flags={flag.name: given}, base=TOLD_TYPES)

    found = value(config, flag.key)
    expected = tuple(given) if flag.nargs else {"3": (3, "3"), "true": (True,)}.get(given, (given,))
    assert found == expected if flag.nargs else found in expected
    assert found != value(Config(), flag.key) or flag.name == "use_gpu"
    changed = yaml.safe_load(config.to_yaml())
    default = yaml.safe_load(TOLD_TYPES.to_yaml())
    *section, name = flag.key.split(".")
    (changed[section[0]] if section else changed).pop(name)
    (default[section[0]] if section else default).pop(name)
    assert changed == default


@pytest.mark.parametrize("flag", [f for f in FLAGS if f.env], ids=lambda flag: flag.env)
def test_every_environment_variable_reaches_its_value(flag):
    config = resolve(environment={flag.env: "somewhere", "UNRELATED": "x"}, base=TOLD_TYPES)

    assert value(config, flag.key) == "somewhere"


@pytest.mark.parametrize("nothing", [None, "", [], (), [""]])
def test_empty_flags_and_variables_count_as_not_given(file, nothing):
    path = file("inference: {cell_type: B cell, cell_types: [T cell]}")
    flags = {"cell_type": nothing, "cell_types": nothing}

    config = resolve(file=path, flags=flags, environment={"CELL_TYPE": ""})

    assert config.inference.cell_type == "B cell"
    assert config.inference.cell_types == ("T cell",)


def test_a_setting_without_a_value_puts_back_null():
    base = resolve(settings=["model.hidden_dim=64"])

    assert resolve(base=base, settings=["model.hidden_dim="]).model.hidden_dim is None


# Values.


@pytest.mark.parametrize("text", ["3e-4", "3.0e-4", "0.0003", "'3e-4'", ".3e-3"])
def test_a_number_in_scientific_notation_is_a_number(file, text):
    from_file = resolve(file=file(f"training: {{learning_rate: {text}}}"))
    from_setting = resolve(settings=[f"training.learning_rate={text}"])

    assert from_file.training.learning_rate == 3e-4
    assert from_setting == from_file


@pytest.mark.parametrize(
    ("size", "expected"),
    [("small", (128, 4, 4)), ("medium", (256, 6, 8)), ("large", (512, 8, 8))],
)
def test_a_size_means_its_width_layers_and_heads(size, expected):
    model = resolve(flags={"size": size}).model

    assert (model.width, model.layers, model.heads) == expected


def test_single_numbers_of_a_size_can_be_overridden():
    model = resolve(file=None, settings=["model.size=large", "model.num_layers=2"]).model

    assert (model.width, model.layers, model.heads) == (512, 2, 8)


def test_lists_of_labels_are_given_as_yaml():
    config = resolve(
        settings=[
            "split.kind=unseen_pair",
            'split.pairs=[["B cells", "IFNb"], [T cells, IL6]]',
        ]
    )

    assert config.split.pairs == (("B cells", "IFNb"), ("T cells", "IL6"))


def test_an_empty_file_and_an_empty_section_mean_the_defaults(file):
    assert resolve(file=file("")) == Config()
    assert resolve(file=file("data:\nmodel:\n")) == Config()


# What is refused.


def test_all_mistakes_of_all_sections_are_told_together_with_the_nearest_key(file):
    path = file(
        "data: {cell_type: louvain}\n"
        "model: {hidden_dims: 64, num_heads: three}\n"
        "training: {batch_size: -1, patience: 0, precision: float64}\n"
        "modle: {size: small}\n"
        "split: {kind: unseen_cell_typ}\n"
        "num_steps: 4\n"
    )

    lines = message(file=path, settings=["inference.temperature=0"]).splitlines()

    assert lines[0] == f"{path} is not a valid configuration:"
    assert set(lines[1:]) == {
        "  data.cell_type: no such key. Did you mean 'cell_type_col'?",
        "  model.hidden_dims: no such key. Did you mean 'hidden_dim'?",
        "  model.num_heads: Input should be a valid integer, unable to parse string as an integer,"
        " got 'three'.",
        "  training.batch_size is -1, wanted more than 0.",
        "  training.patience is 0, wanted more than 0.",
        "  training.precision is 'float64', wanted auto, float32 or bfloat16.",
        "  modle: no such key. Did you mean 'model'?",
        "  split.kind: Input should be 'random_cells', 'unseen_cell_type', 'unseen_pair',"
        " 'unseen_perturbation' or 'none', got 'unseen_cell_typ'.",
        "  num_steps: no such key. Did you mean 'inference.num_steps'?",
        "  inference.temperature is 0.0, wanted more than 0.",
    }


@pytest.mark.parametrize(
    ("setting", "near"),
    [
        ("train-data-path=x", "train-data-path: no such key. Did you mean 'data.train_data_path'?"),
        ("data.train-data-path=x", "data.train-data-path: .* Did you mean 'train_data_path'?"),
        ("data.dropout=0.1", "data.dropout: no such key. Did you mean 'model.dropout'?"),
        ("data.xyzzy=1", "data.xyzzy: no such key.$"),
        ("data.gene.column=1", "data.gene: Input should be a valid string"),
    ],
)
def test_an_unknown_key_is_named_whole_with_the_place_it_belongs_to(setting, near):
    assert re.search(near, message(settings=[setting]))


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (["model.hidden_dim=100", "model.num_heads=3"], "hidden_dim 100 is not a multiple of"),
        (["model.dropout=1.5"], "model.dropout is 1.5, wanted 0 to 1"),
        (["training.learning_rate=.nan"], "training.learning_rate is nan, wanted more than 0"),
        (["training.ema_decay=.nan"], "training.ema_decay is nan, wanted 0 to 1"),
        (["training.warmup_steps=-1"], "training.warmup_steps is -1, wanted 0 or more"),
        (["inference.sampler=euler"], "set inference.mode=population to use it"),
        (
            [
                "inference.sampler=euler",
                "inference.mode=population",
                "inference.block_schedule=measured",
            ],
            "set inference.sampler=blocks to use it",
        ),
        (["inference.mode=magic"], "inference.mode: Input should be 'counterfactual' or 'pop"),
        (
            ["scaling.num_workers=0", "scaling.num_actors=0"],
            "num_workers is 0.*\n.*num_actors is 0",
        ),
        (["data.num_genes=some"], "data.num_genes: Input should be a valid integer"),
        (["data.batch_col=depth"], "batch_col is 'depth', which generated cells have already"),
        (["model.batch_dropout=0"], "batch_dropout is 0.0, wanted more than 0 and less than 1"),
        (["model.batch_dropout=1"], "To tell it no batch, leave data.batch_col out"),
        (["data.num_genes=0", "data.bin_ratio=1"], "num_genes is 0.*\n.*bin_ratio is 1.0"),
        (["split.cell_types=[B cell]"], "split.cell_types belongs to split.kind='unseen_cell"),
        (["split.test_fraction=1"], "split.test_fraction is 1.0, wanted 0 <= x < 1"),
        (["split.pairs=[[a, b, c]]"], r"split\.pairs\.0: Tuple should have at most 2 items"),
        (["inference.cell_types=T cell"], "inference.cell_types: Input should be a valid tuple"),
        (["model=3"], "model: Input should be a dictionary"),
        (["model.size=tiny"], "model.size: Input should be 'small', 'medium' or 'large'"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_what_was_wanted(settings, wanted):
    assert re.search(wanted, message(settings=settings))


def test_vectors_of_cell_types_that_the_model_would_not_read_are_refused_in_one_line():
    given = {"celltype_labels_pt_path": "types.pt"}

    head, *lines = message(flags=given).splitlines()

    assert head == "the configuration is not a valid configuration:"
    assert lines == [
        "  data.celltype_labels_pt_path is 'types.pt', but model.cell_type_label_dropout is 1.0, "
        "so the model is told no cell-type label and would not read the file; set e.g. "
        "model.cell_type_label_dropout=0.1 to use it, or leave it out."
    ]
    for dropout in (0.0, 0.1, 0.999):
        setting = f"model.cell_type_label_dropout={dropout}"
        assert resolve(flags=given, settings=[setting]).data.celltype_labels_pt_path == "types.pt"


def test_rules_hold_for_python_callers_too():
    with pytest.raises(ValueError, match=r"not a multiple of model\.num_heads 7"):
        ModelConfig(num_heads=7)
    with pytest.raises(ValueError, match=r"set e\.g\. model\.cell_type_label_dropout=0\.1"):
        Config(data=DataConfig(celltype_labels_pt_path="types.pt"))


@pytest.mark.parametrize("setting", ["model.dropout", "=3", " =3"])
def test_a_setting_without_key_or_equals_sign_is_shown_the_form(setting):
    assert "is not of the form section.key=value" in message(settings=[setting])


def test_a_setting_below_a_value_is_refused():
    base = Config()

    assert "'data.gene.x': 'gene' is a value" in message(base=base, settings=["data.gene.x=1"])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("data: {gene: a, gene: b}", r"keys given twice: \['gene'\]"),
        ("data: {gene: a}\nmodel: {}\ndata: {gene: b}", r"keys given twice: \['data'\]"),
        ("data: &x {gene: a}\nmodel: *x", "aliases .* are not used"),
        ("data: !!python/object/apply:os.getcwd []", "not plain YAML: .*python/object/apply"),
        ("data: !!python/name:os.system", "not plain YAML"),
        ("- a\n- b", "holds list, wanted sections with keys"),
        ("just text", "holds str, wanted sections with keys"),
        ("data: [unclosed", "not plain YAML"),
        ("data:\n\tgene: x", "not plain YAML"),
        ("? [a]\n: b", "not plain YAML"),
        ("data: {gene: 2024-13-45}", "not plain YAML: month must be in"),
        ("[" * 2_000, "nested too deeply"),
        (b"data: {gene: \xff}", "is not text in UTF-8"),
        (b"data: {gene: '\x00'}", "not plain YAML"),
        ("data: {3: x}", "data.3: Keys should be strings"),
        ("data: 5", "data: Input should be a dictionary"),
    ],
)
def test_a_file_that_is_not_plain_data_is_refused(file, text, wanted):
    path = file(text)

    found = message(file=path)

    assert str(path) in found
    assert re.search(wanted, found)


def test_a_bomb_of_aliases_is_refused_before_it_grows(file):
    bomb = "a0: &a0 [x, x]\n" + "".join(
        f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60)
    )

    assert "aliases" in message(file=file(bomb))


def test_a_huge_file_is_not_read(file):
    path = file(b"#" * (MAX_BYTES + 1))

    assert "a configuration is small" in message(file=path)


def test_a_missing_file_is_answered_with_those_beside_it(file):
    path = file("")

    found = message(file=path.with_name("smal.yaml"))

    assert "smal.yaml does not exist. YAML files beside it: " in found
    assert "some.yaml" in found


# Round trips.

LABEL = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(
    cell_types=st.lists(LABEL, max_size=4).map(tuple),
    gene=LABEL,
    learning_rate=st.floats(1e-12, 1e3),
    num_genes=st.integers(1, 10**6) | st.just("all"),
    pairs=st.lists(st.tuples(LABEL, LABEL), min_size=1, max_size=3).map(tuple),
    layer=st.none() | st.sampled_from(["NO", "3e-4", "null", "1_000", "0x1F", "12:30", "~", "yes"]),
)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_yaml_gives_back_the_very_configuration(
    cell_types, gene, learning_rate, num_genes, pairs, layer
):
    default = Config()
    config = dataclasses.replace(
        default,
        data=dataclasses.replace(default.data, gene=gene, num_genes=num_genes, layer=layer),
        split=dataclasses.replace(default.split, kind="unseen_pair", pairs=pairs),
        training=dataclasses.replace(default.training, learning_rate=learning_rate),
        inference=dataclasses.replace(default.inference, cell_types=cell_types),
    )

    assert from_yaml(config.to_yaml()) == config


def test_paths_become_absolute_and_everything_else_stays(tmp_path):
    config = resolve(
        flags={"train_data_path": "cells.h5ad", "resume": "auto", "experiment_dir": "e"},
        settings=["data.gene_list=/genes.txt"],
    )

    moved = config.with_absolute_paths(tmp_path)

    assert moved.data.train_data_path == str(tmp_path / "cells.h5ad")
    assert moved.data.gene_list == "/genes.txt"
    assert moved.data.cond_labels_pt_path is None
    assert moved.resume == "auto"
    assert moved.checkpoints == tmp_path / "e" / "checkpoints"
    assert moved.with_absolute_paths(Path("/elsewhere")) == moved
    assert moved.training == config.training
    resumed = resolve(flags={"resume": "e/step", "checkpoint_dir": "c"}).with_absolute_paths(
        tmp_path
    )
    assert (resumed.resume, resumed.checkpoints) == (str(tmp_path / "e/step"), tmp_path / "c")


def test_a_configuration_cannot_be_edited():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().training.batch_size = 3
