"""What a checkpoint remembers of its data comes back as it was."""

from dataclasses import fields, replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sedd.data.reference import Reference, measure_scales
from sedd.errors import StorageError
from tests.tiny_training import tiny_shards


def with_vectors() -> Reference:
    rng = np.random.default_rng(0)
    return replace(
        tiny_shards().reference,
        perturbation_vectors=rng.random((3, 5), np.float32),
        cell_type_vectors=rng.random((3, 2), np.float32),
    )


@pytest.mark.parametrize("make", [lambda: tiny_shards().reference, with_vectors])
def test_every_array_and_name_comes_back_as_it_was(tmp_path, make):
    reference = make()
    reference.save(tmp_path)

    loaded = Reference.load(tmp_path)

    assert loaded.vocabulary == reference.vocabulary
    assert loaded.tokenizer.kind == reference.tokenizer.kind
    for part in ("tokenizer", "controls", "control_cells", "effects", "scales"):
        for field in fields(getattr(reference, part)):
            if field.name == "kind":
                continue
            expected = getattr(getattr(reference, part), field.name)
            found = getattr(getattr(loaded, part), field.name)
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)
    for name in ("control_names", "perturbation_vectors", "cell_type_vectors"):
        np.testing.assert_equal(getattr(loaded, name), getattr(reference, name))


def test_control_names_in_any_script_come_back_as_text(tmp_path):
    reference = tiny_shards().reference
    odd = ["Zelle-ß", "", 'a,b\n"c"', "細胞 1", "x\x00"]
    names = reference.control_names.copy()
    names[: len(odd)] = odd
    replace(reference, control_names=names).save(tmp_path)

    loaded = Reference.load(tmp_path).control_names

    assert loaded.tolist() == names.tolist()
    assert {type(name) for name in loaded} == {str}


@pytest.mark.parametrize("lacking", ["control_names", "effects.shown"])
def test_a_reference_that_lacks_what_is_new_is_too_old_and_says_what_to_do(tmp_path, lacking):
    with_vectors().save(tmp_path)
    path = tmp_path / "reference.safetensors"
    tensors = load_file(path)
    del tensors[lacking]
    save_file(tensors, path, metadata={"kind": "counts"})

    with pytest.raises(StorageError, match=rf"earlier version .* lacks {lacking}.* Train again"):
        Reference.load(tmp_path)


def test_what_was_loaded_is_saved_as_the_same_bytes(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with_vectors().save(first)

    Reference.load(first).save(second)

    for name in ("vocabulary.json", "reference.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


@pytest.mark.parametrize("name", ["vocabulary.json", "reference.safetensors"])
def test_a_missing_file_is_a_storage_error(tmp_path, name):
    with_vectors().save(tmp_path)
    (tmp_path / name).unlink()

    with pytest.raises(StorageError, match="cannot be read"):
        Reference.load(tmp_path)


def test_a_file_that_was_cut_is_a_storage_error(tmp_path):
    with_vectors().save(tmp_path)
    path = tmp_path / "reference.safetensors"

    for size in (0, 7, 100, path.stat().st_size - 1):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(StorageError, match="cannot be read"):
            Reference.load(tmp_path)
        with_vectors().save(tmp_path)


def planted(num_cells: int = 2000, num_genes: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Two hidden directions, the first a little wider than the second, and a little noise."""
    rng = np.random.default_rng(0)
    directions, _ = np.linalg.qr(rng.standard_normal((num_genes, 2)))
    factors = rng.standard_normal((num_cells, 2)) * [4, 3.6]
    return factors @ directions.T + 0.3 * rng.standard_normal((num_cells, num_genes)), directions


def test_components_are_the_principal_directions_of_the_standardised_levels():
    levels, _ = planted()
    depth = np.full(len(levels), 1000.0)

    found = measure_scales(levels, depth, num_factors=2).components

    standardised = (levels - levels.mean(0)) / levels.std(0)
    _, _, expected = np.linalg.svd(standardised, full_matrices=False)
    # Up to sign: cosines of the two pairs of directions.
    np.testing.assert_allclose(np.abs((found * expected[:2].T).sum(0)), 1, atol=1e-3)
    np.testing.assert_allclose(found.T @ found, np.eye(2), atol=1e-4)


def test_scales_are_means_and_spreads():
    levels, _ = planted(num_cells=50)
    depth = np.exp(np.random.default_rng(1).normal(7, 0.5, 50))

    scales = measure_scales(levels, depth, num_factors=1)

    np.testing.assert_allclose(scales.gene_mean, levels.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scales.gene_std, levels.std(0), rtol=1e-4)
    np.testing.assert_allclose(scales.log_depth, [np.log(depth).mean(), np.log(depth).std()])


def test_constant_genes_equal_depths_and_few_cells_are_no_problem():
    levels = np.ones((3, 5))

    scales = measure_scales(levels, np.full(3, 9.0), num_factors=16)

    assert (scales.gene_std > 0).all()
    assert scales.log_depth[1] > 0
    assert scales.components.shape == (5, 3)
    assert np.isfinite(scales.components).all()
