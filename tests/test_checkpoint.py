"""A checkpoint is whole, explains itself, and a run goes on from it bit for bit."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sedd import checkpoint
from sedd.checkpoint import (
    best_or_newest,
    has_checkpoints,
    load_trained,
    load_training,
    newest_valid,
    rewind_to,
    save_checkpoint,
    save_profile,
)
from sedd.config import Config, from_yaml
from sedd.diffusion.schedule import InformationProfile
from sedd.errors import StorageError
from sedd.model.config import ModelConfig
from sedd.storage import folder_digest, verify_folder
from tests.tiny_training import TINY_MODEL, TINY_TRAINING, TinyRun, tiny_run, tiny_shards

FILES = {
    "config.yaml", "vocabulary.json", "reference.safetensors", "model.safetensors",
    "average.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json",
}  # fmt: skip


def save(root: Path, run: TinyRun, **given: object) -> Path:
    return save_checkpoint(
        root,
        run.state,
        tiny_shards().reference,
        config_yaml=replace(Config(), model=TINY_MODEL, training=TINY_TRAINING).to_yaml(),
        provenance={"data_digest": "abc", "split_digest": "def"},
        **given,
    )


def at_step(run: TinyRun, step: int) -> TinyRun:
    run.state.step = step
    return run


def names(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


def damage(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def assert_same_weights(first: torch.nn.Module, second: torch.nn.Module) -> None:
    for (name, one), (other_name, other) in zip(
        first.state_dict().items(), second.state_dict().items(), strict=True
    ):
        assert name == other_name
        assert torch.equal(one, other), name


@pytest.mark.parametrize("stop", [1, 6, 8, 11])
def test_a_resumed_run_repeats_the_uninterrupted_one_bit_for_bit(tmp_path, stop):
    model = replace(TINY_MODEL, dropout=0.1, cell_type_label_dropout=0.5)
    straight, halting = tiny_run(model), tiny_run(model)
    expected = straight.steps()
    before = halting.steps(stop)
    save(tmp_path, halting)

    state, _ = load_training(newest_valid(tmp_path), model, TINY_TRAINING)
    after = replace(halting, state=state).steps()

    assert before + after == expected
    assert_same_weights(state.denoiser, straight.state.denoiser)
    assert_same_weights(state.average, straight.state.average)
    assert state.best_nelbo == straight.state.best_nelbo
    moments, expected = (s.optimizer.state_dict()["state"] for s in (state, straight.state))
    assert moments.keys() == expected.keys()
    for number, moment in moments.items():
        assert all(torch.equal(value, expected[number][name]) for name, value in moment.items())


def test_an_untrained_state_can_be_saved_and_trained_on(tmp_path):
    straight, fresh = tiny_run(), tiny_run()
    folder = save(tmp_path, fresh)

    state, _ = load_training(folder, TINY_MODEL, TINY_TRAINING)

    assert state.step == 0
    assert state.best_nelbo == float("inf")
    assert replace(fresh, state=state).steps() == straight.steps()


def test_patience_is_remembered(tmp_path):
    run = tiny_run()
    run.state.since_best, run.state.best_nelbo = 3, 1.25
    folder = save(tmp_path, run)

    state, _ = load_training(folder, TINY_MODEL, TINY_TRAINING)

    assert (state.since_best, state.best_nelbo) == (3, 1.25)


def test_a_checkpoint_explains_itself(tmp_path):
    run = tiny_run()
    run.steps(3)

    folder = save(tmp_path, run)

    assert folder.name == "step_00000003"
    assert names(folder) == FILES
    verify_folder(folder)
    assert from_yaml((folder / "config.yaml").read_text()).model == TINY_MODEL
    state = json.loads((folder / "state.json").read_text())
    assert (state["step"], state["data_digest"], state["split_digest"]) == (3, "abc", "def")
    assert state["versions"]["torch"] == torch.__version__


# The information profile.

PROFILE = InformationProfile(40, (0, 3, 17), (1.5, 1.25, 1 / 3))


def test_a_profile_is_put_into_a_checkpoint_and_comes_back_with_the_model(tmp_path):
    folder = save(tmp_path, tiny_run())
    before = load_trained(folder, TINY_MODEL)

    save_profile(folder, PROFILE)

    after = load_trained(folder, TINY_MODEL)
    assert names(folder) == FILES | {"information_profile.json"}
    assert (before.profile, after.profile) == (None, PROFILE)
    assert before.digest == after.digest
    assert json.loads((folder / "information_profile.json").read_text())["num_genes"] == 40
    verify_folder(folder)
    (folder / "information_profile.json").write_text("{}")
    with pytest.raises(StorageError):
        load_trained(folder, TINY_MODEL)


def test_a_profile_that_cannot_be_written_leaves_the_checkpoint_as_it_was(tmp_path, monkeypatch):
    folder = save(tmp_path, tiny_run())
    before = folder_digest(folder)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.shutil, "copytree", full)
    with pytest.raises(StorageError, match="No space left"):
        save_profile(folder, PROFILE)

    assert folder_digest(folder) == before
    assert names(tmp_path) == {folder.name}


def test_a_damaged_checkpoint_is_not_made_whole_by_a_profile(tmp_path):
    folder = save(tmp_path, tiny_run())
    damage(folder)

    with pytest.raises(StorageError, match="changed after it was written"):
        save_profile(folder, PROFILE)


# What is kept.


def test_a_checkpoint_from_elsewhere_is_copied_in_and_becomes_the_newest(tmp_path):
    folder = save(tmp_path / "there", at_step(tiny_run(), 10))
    save(tmp_path / "here", at_step(tiny_run(), 20))

    rewind_to(tmp_path / "here", folder)

    assert newest_valid(tmp_path / "here").name == "step_00000010"
    assert names(tmp_path / "here") == {"step_00000010", "step_00000020.superseded"}
    assert folder_digest(tmp_path / "here" / "step_00000010") == folder_digest(folder)


def test_the_last_two_and_the_best_are_kept(tmp_path):
    run = tiny_run()

    for step in (10, 20, 30, 40):
        save(tmp_path, at_step(run, step), is_best=step == 20)

    assert names(tmp_path) == {"best", "step_00000030", "step_00000040"}
    assert json.loads((tmp_path / "best" / "state.json").read_text())["step"] == 20


def test_the_best_is_replaced_by_a_better_one(tmp_path):
    run = tiny_run()

    save(tmp_path, at_step(run, 10), is_best=True)
    save(tmp_path, at_step(run, 20), is_best=True)

    assert json.loads((tmp_path / "best" / "state.json").read_text())["step"] == 20


def test_a_run_that_goes_on_from_an_earlier_step_keeps_what_it_writes(tmp_path):
    run = tiny_run()
    for step in (30, 40):
        save(tmp_path, at_step(run, step))

    save(tmp_path, at_step(run, 10))

    assert "step_00000010" in names(tmp_path)


def test_saving_a_step_again_replaces_it(tmp_path):
    run = tiny_run()
    first = folder_digest(save(tmp_path, at_step(run, 10)))
    with torch.no_grad():
        run.state.denoiser.head_bias += 1

    assert folder_digest(save(tmp_path, run)) != first
    assert names(tmp_path) == {"step_00000010"}


@pytest.mark.parametrize(
    "broken", ["_write", "save_file", "_optimizer_tensors", "whole_folder", "json"]
)
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_checkpoint_that_fails_half_way_leaves_the_previous_ones(
    tmp_path, monkeypatch, broken, error
):
    run = tiny_run()
    for step in (10, 20):
        save(tmp_path, at_step(run, step), is_best=True)
    before = {path.name: folder_digest(path) for path in tmp_path.iterdir()}

    def failing(*_, **__):
        raise error

    # Each of these stands at another point of writing.
    where, name = (checkpoint.json, "dumps") if broken == "json" else (checkpoint, broken)
    monkeypatch.setattr(where, name, failing)
    expected = StorageError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises((expected, type(error))):
        save(tmp_path, at_step(run, 30), is_best=True)
    monkeypatch.undo()

    assert {path.name: folder_digest(path) for path in tmp_path.iterdir()} == before
    assert newest_valid(tmp_path).name == "step_00000020"


def test_what_a_killed_process_left_half_written_is_not_a_checkpoint(tmp_path):
    run = tiny_run()
    save(tmp_path, at_step(run, 10))
    half = tmp_path / ".step_00000020.0a1b2c3d.tmp"
    shutil.copytree(tmp_path / "step_00000010", half)
    (half / "MANIFEST.json").unlink()

    assert newest_valid(tmp_path).name == "step_00000010"
    assert best_or_newest(tmp_path).name == "step_00000010"


# What is found.


def test_the_newest_is_found_by_its_step_and_not_by_its_date(tmp_path):
    run = tiny_run()
    for step in (100_000_00, 99):
        save(tmp_path, at_step(run, step))

    assert newest_valid(tmp_path).name == "step_10000000"


def test_a_damaged_newest_is_set_aside_and_the_previous_one_used(tmp_path):
    run = tiny_run()
    for step in (10, 20):
        save(tmp_path, at_step(run, step))
    damage(tmp_path / "step_00000020")

    assert newest_valid(tmp_path).name == "step_00000010"

    assert names(tmp_path) == {"step_00000010", "step_00000020.damaged"}
    # The step is reached again, and damaged again.
    save(tmp_path, at_step(run, 20))
    damage(tmp_path / "step_00000020")
    assert newest_valid(tmp_path).name == "step_00000010"


def test_if_all_are_damaged_none_is_used(tmp_path):
    save(tmp_path, at_step(tiny_run(), 10))
    damage(tmp_path / "step_00000010")

    assert newest_valid(tmp_path) is None


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_checkpoint_with_a_damaged_or_missing_file_is_not_loaded(tmp_path, name):
    folder = save(tmp_path, tiny_run())
    path = folder / name
    whole = path.read_bytes()

    for content in (None, whole[: len(whole) // 2], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(StorageError):
            load_training(folder, TINY_MODEL, TINY_TRAINING)
        with pytest.raises(StorageError):
            load_trained(folder, TINY_MODEL)
        path.write_bytes(whole)


def test_the_best_generates_and_else_the_newest(tmp_path):
    run = tiny_run()
    save(tmp_path, at_step(run, 10))
    save(tmp_path, at_step(run, 20))
    assert best_or_newest(tmp_path).name == "step_00000020"

    save(tmp_path, at_step(run, 15), is_best=True)

    assert best_or_newest(tmp_path).name == "best"


def test_without_a_checkpoint_the_way_to_one_is_told(tmp_path):
    with pytest.raises(StorageError, match=r"no checkpoint in .*Train first: python -m pipelines"):
        best_or_newest(tmp_path / "nothing")

    assert newest_valid(tmp_path / "nothing") is None
    assert not has_checkpoints(tmp_path / "nothing")
    save(tmp_path, tiny_run())
    assert has_checkpoints(tmp_path)


# Whose it is.


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"hidden_dim": 32}, "model.hidden_dim 16, the configuration says 32"),
        ({"num_layers": 2}, "model.num_layers 1, the configuration says 2"),
        # The same tensors, cut into other heads.
        ({"num_heads": 4}, "model.num_heads 2, the configuration says 4"),
        ({"genes_per_token": 1}, "model.genes_per_token 8, the configuration says 1"),
        ({"ordinal_rank": None}, "model.ordinal_rank 5, the configuration says None"),
        ({"global_share": 0.5}, "model.global_share 0.1, the configuration says 0.5"),
        ({"effect_prior": False}, "model.effect_prior True, the configuration says False"),
    ],
)
def test_a_model_of_another_shape_is_refused_with_the_difference(tmp_path, changed, difference):
    folder = save(tmp_path, tiny_run())
    other = replace(TINY_MODEL, **changed)

    for load in (
        lambda: load_training(folder, other, TINY_TRAINING),
        lambda: load_trained(folder, other),
    ):
        with pytest.raises(StorageError) as caught:
            load()
        assert difference in str(caught.value)
        assert "Use the experiment's own config.yaml" in str(caught.value)


def test_a_model_described_in_other_words_is_accepted(tmp_path):
    folder = save(tmp_path, tiny_run())
    same = replace(TINY_MODEL, size="large", dropout=0.5)
    assert asdict(same) != asdict(TINY_MODEL)

    assert load_training(folder, same, TINY_TRAINING)[0].step == 0


def test_a_trained_model_holds_the_averaged_weights_and_does_not_train(tmp_path):
    run = tiny_run()
    run.steps(5)
    trained = load_trained(save(tmp_path, run), TINY_MODEL)

    assert_same_weights(trained.denoiser, run.state.average)
    assert not torch.equal(trained.denoiser.token_map, run.state.denoiser.token_map)
    assert not trained.denoiser.training
    assert not any(parameter.requires_grad for parameter in trained.denoiser.parameters())
    assert trained.step == 5
    for name in ("features", "log_prior"):
        assert torch.equal(getattr(trained.contexts, name), getattr(run.contexts, name))


def test_the_digest_depends_on_weights_and_reference_and_on_nothing_else(tmp_path):
    run, reference = tiny_run(), tiny_shards().reference
    given = {"config_yaml": "", "provenance": {}}

    def digest(name: str, reference=reference, **changed) -> str:
        folder = save_checkpoint(tmp_path / name, run.state, reference, **given | changed)
        return load_trained(folder, TINY_MODEL).digest

    first = digest("first")
    assert digest("again") == first
    assert digest("other_words", config_yaml="# else", provenance={"data_digest": "x"}) == first
    effects = replace(reference.effects, reliability=np.zeros_like(reference.effects.reliability))
    assert digest("reference", replace(reference, effects=effects)) != first
    with torch.no_grad():
        run.state.denoiser.head_bias[0, 0] += 1e-6
    assert digest("raw_weights") == first
    with torch.no_grad():
        run.state.average.head_bias[0, 0] += 1e-6
    assert digest("averaged_weights") != first


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path):
    folder = save(tmp_path, tiny_run())

    for path in folder.iterdir():
        assert path.suffix in {".yaml", ".json", ".safetensors"}
        assert not path.read_bytes().startswith((b"PK", b"\x80"))


def test_presets_differ_in_more_than_their_name():
    small, large = ModelConfig(), ModelConfig(size="large")

    assert checkpoint._shape(small) != checkpoint._shape(large)
    assert checkpoint._shape(small) == checkpoint._shape(ModelConfig(hidden_dim=128))
