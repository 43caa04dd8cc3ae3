"""What each condition should do is told by others, and as far as they can be believed."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from sedd.data import kriging
from sedd.data.controls import ControlStatistics, control_statistics
from sedd.data.effects import (
    MIN_CELLS,
    ControlLaw,
    Shifts,
    expected_shifts,
    measure_reliability,
    measure_shifts,
)
from sedd.data.kriging import Kernel, Measured, correlation_distance
from sedd.data.tilt import LARGEST
from sedd.data.tokens import Tokenizer

NUM_TYPES, NUM_PERTURBATIONS, NUM_GENES = 4, 5, 30


@dataclass(frozen=True)
class Cohort:
    """Cells on the log1p scale, Gaussian about the mean of their condition."""

    log1p: np.ndarray
    cell_type: np.ndarray
    perturbation: np.ndarray

    @property
    def shifts(self) -> Shifts:
        return measure_shifts(
            self.log1p,
            cell_type=self.cell_type,
            perturbation=self.perturbation,
            num_types=NUM_TYPES,
            num_perturbations=NUM_PERTURBATIONS,
        )

    def without(self, cell_type: int, perturbation: int) -> "Cohort":
        """The same, but no cell shows the condition."""
        kept = (self.cell_type != cell_type) | (self.perturbation != perturbation)
        return Cohort(self.log1p[kept], self.cell_type[kept], self.perturbation[kept])

    def scrambled(self, cell_type: int, perturbation: int) -> "Cohort":
        """The same, but the cells of the condition show something else."""
        own = (self.cell_type == cell_type) & (self.perturbation == perturbation)
        log1p = self.log1p.copy()
        log1p[own] = np.random.default_rng(9).normal(-7, 5, log1p[own].shape)
        return replace(self, log1p=log1p)


def cohort(effect: np.ndarray, *, cells: int = 60, noise: float = 0.5, seed: int = 0) -> Cohort:
    """`cells` cells of each condition; effects [types, perturbations, genes], control's is zero."""
    rng = np.random.default_rng(seed)
    before = rng.uniform(2, 4, (NUM_TYPES, 1, NUM_GENES))
    mean = np.repeat((before + effect).reshape(-1, NUM_GENES), cells, axis=0)
    number = np.repeat(np.arange(NUM_TYPES * NUM_PERTURBATIONS), cells)
    drawn = mean + noise * rng.normal(size=mean.shape)
    return Cohort(drawn, number // NUM_PERTURBATIONS, number % NUM_PERTURBATIONS)


def effects(scale: float = 1.0, seed: int = 1, *, own_share: float = 0.3) -> np.ndarray:
    """Effects that types have in common but for a part of their own."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(0, scale, (1, NUM_PERTURBATIONS, NUM_GENES))
    own = rng.normal(0, scale, (NUM_TYPES, NUM_PERTURBATIONS, NUM_GENES))
    both = np.sqrt(1 - own_share) * shared + np.sqrt(own_share) * own
    both[:, 0] = 0
    return both


def apart(num_places: int = NUM_TYPES) -> np.ndarray:
    """Places on a line, 0.3 from each other."""
    return 0.3 * np.abs(np.subtract.outer(np.arange(num_places), np.arange(num_places)))


def kriged(shifts: Shifts, places: list[int], at: int, perturbation: int, distance, kernel):
    """One prediction, written out."""
    known = Measured(
        shifts.mean[places, perturbation].astype(np.float64),
        shifts.error[places, perturbation].astype(np.float64),
        distance[np.ix_(places, places)],
    )
    return kriging.predict(known, distance[places, at], kernel)


@pytest.fixture
def known_kernel(monkeypatch) -> Kernel:
    """A kernel that does not depend on the cells."""
    kernel = Kernel(0.7, 0.5, 0.05)
    monkeypatch.setattr("sedd.data.kriging.likeliest_kernel", lambda measured: kernel)
    return kernel


# Shifts.


def test_a_shift_is_the_difference_of_means_and_its_error_that_of_two_means():
    cells = cohort(effects())

    shifts = cells.shifts

    for number in range(NUM_TYPES):
        control = cells.log1p[(cells.cell_type == number) & (cells.perturbation == 0)]
        for perturbation in range(1, NUM_PERTURBATIONS):
            own = (cells.cell_type == number) & (cells.perturbation == perturbation)
            treated = cells.log1p[own]
            np.testing.assert_allclose(
                shifts.mean[number, perturbation], treated.mean(0) - control.mean(0), atol=1e-6
            )
            squares = ((treated - treated.mean(0)) ** 2).sum(0) / 59 / 60
            squares += ((control - control.mean(0)) ** 2).sum(0) / 59 / 60
            np.testing.assert_allclose(shifts.error[number, perturbation], squares, rtol=1e-5)
    assert shifts.measured[:, 1:].all()
    assert not shifts.measured[:, 0].any()


def test_shifts_err_as_much_as_they_say():
    truth = effects()

    z = [
        ((shifts.mean - truth)[:, 1:] / np.sqrt(shifts.error[:, 1:]))
        for shifts in (cohort(truth, seed=seed).shifts for seed in range(5))
    ]

    # 2400 z-scores of t-like errors, of which conditions of one type share their controls.
    assert np.mean(np.square(z)) == pytest.approx(1.03, abs=0.12)


def test_a_type_with_fewer_cells_than_the_least_has_no_say_unless_no_type_has_more():
    cells = cohort(effects(), cells=MIN_CELLS)
    one_less = np.ones(len(cells.log1p), bool)
    one_less[np.flatnonzero((cells.cell_type == 1) & (cells.perturbation == 2))[0]] = False
    for number in range(NUM_TYPES):
        own = (cells.cell_type == number) & (cells.perturbation == 3)
        one_less[np.flatnonzero(own)[:5]] = False
    fewer = Cohort(*(part[one_less] for part in (cells.log1p, cells.cell_type, cells.perturbation)))

    measured = fewer.shifts.measured

    assert cells.shifts.measured[:, 1:].all()
    assert measured[:, 2].tolist() == [True, False, True, True]
    assert measured[:, 3].all()


@pytest.mark.parametrize("left", [0, 1])
def test_a_type_without_controls_shows_no_shift(left):
    cells = cohort(effects())
    controls = np.flatnonzero((cells.cell_type == 2) & (cells.perturbation == 0))
    kept = np.delete(np.arange(len(cells.log1p)), controls[left:])
    bare = Cohort(cells.log1p[kept], cells.cell_type[kept], cells.perturbation[kept])

    shifts = bare.shifts

    assert shifts.measured[:, 1:].all(1).tolist() == [True, True, False, True]
    np.testing.assert_array_equal(shifts.mean[2], 0)
    # Others tell what it should show.
    assert np.abs(expected_shifts(shifts, apart())[2, 1:]).mean() > 0.3


# Which cells tell what.


def test_what_types_show_is_kriged_over_all_of_them(known_kernel):
    shifts, everywhere = cohort(effects()).shifts, list(range(NUM_TYPES))

    found = expected_shifts(shifts, apart())

    for number in range(NUM_TYPES):
        for perturbation in range(1, NUM_PERTURBATIONS):
            expected = kriged(shifts, everywhere, number, perturbation, apart(), known_kernel)
            np.testing.assert_allclose(found[number, perturbation], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[:, 0], 0)


def test_a_held_out_condition_is_told_by_the_other_types_alone(known_kernel):
    cells = cohort(effects()).without(1, 2)
    shifts = cells.shifts

    found = expected_shifts(shifts, apart())

    expected = kriged(shifts, [0, 2, 3], 1, 2, apart(), known_kernel)
    np.testing.assert_allclose(found[1, 2], expected, rtol=1e-5, atol=1e-6)


def test_a_training_condition_expects_nearly_what_its_own_cells_show():
    """With errors of .1 and effects of 1 that types share by 70%."""
    truth = effects()
    shifts = cohort(truth).shifts

    found = expected_shifts(shifts, apart())

    for number in range(NUM_TYPES):
        for perturbation in range(1, NUM_PERTURBATIONS):
            own = shifts.mean[number, perturbation]
            others = np.delete(shifts.mean[:, perturbation], number, axis=0).mean(0)
            nearly = np.square(found[number, perturbation] - own).mean()
            assert nearly < 0.1 * np.square(others - own).mean()


@pytest.mark.usefixtures("known_kernel")
def test_a_condition_has_no_say_in_what_other_perturbations_do():
    cells = cohort(effects())

    before, changed = (
        expected_shifts(some.shifts, apart()) for some in (cells, cells.scrambled(1, 2))
    )

    np.testing.assert_array_equal(np.delete(changed, 2, axis=1), np.delete(before, 2, axis=1))
    assert (changed[:, 2] != before[:, 2]).all()


def test_a_type_that_alone_shows_a_perturbation_expects_its_own_shrunk_shift(known_kernel):
    cells = cohort(effects())
    for other in (0, 1, 3):
        cells = cells.without(other, 4)
    shifts = cells.shifts

    found = expected_shifts(shifts, apart())

    own, error = shifts.mean[2, 4].astype(np.float64), shifts.error[2, 4].astype(np.float64)
    amplitude = np.maximum(own**2 - error, kriging.SMALLEST_AMPLITUDE)
    own_part = known_kernel.idiosyncrasy * amplitude
    all_of_it = amplitude + own_part + error + kriging.SMALLEST_ERROR
    np.testing.assert_allclose(found[2, 4], own * (amplitude + own_part) / all_of_it, rtol=1e-4)
    # The others are told by it, at their distance, but not of what is its own.
    alike = known_kernel.covariance(np.array([0.3])).item()
    np.testing.assert_allclose(found[1, 4], alike * own * amplitude / all_of_it, rtol=1e-4)


def test_a_combination_that_no_cell_shows_is_expected_to_do_what_its_parts_do(known_kernel):
    cells = cohort(effects())
    shown = cells.shifts
    for number in range(NUM_TYPES):
        cells = cells.without(number, 4)
    shifts, everywhere = cells.shifts, list(range(NUM_TYPES))

    found = expected_shifts(shifts, apart(), combinations={4: (1, 3)}, vectors=described())

    for number in range(NUM_TYPES):
        expected = sum(
            kriged(shifts, everywhere, number, part, apart(), known_kernel) for part in (1, 3)
        )
        np.testing.assert_allclose(found[number, 4], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[:, :4], expected_shifts(shifts, apart())[:, :4])
    # One that some type shows is told by it.
    np.testing.assert_array_equal(
        expected_shifts(shown, apart(), combinations={4: (1, 3)}), expected_shifts(shown, apart())
    )


@pytest.mark.usefixtures("known_kernel")
def test_a_part_counts_as_often_as_it_is_named_and_one_that_nobody_measured_breaks_the_sum():
    cells = cohort(effects())
    for number in range(NUM_TYPES):
        cells = cells.without(number, 3).without(number, 4)
    once, twice, broken = (
        expected_shifts(cells.shifts, apart(), combinations={4: parts})[:, 4]
        for parts in ((1,), (1, 1), (1, 3))
    )

    assert np.abs(once).mean() > 0.3
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-6)
    np.testing.assert_array_equal(broken, 0)


# Perturbations that are described by vectors.


def described(alike: float = 0.999) -> np.ndarray:
    """Vectors of which 3 and 4 are alike, 1 and 2 unlike all."""
    vectors = np.random.default_rng(2).normal(size=(NUM_PERTURBATIONS, 400))
    vectors[0] = 0
    vectors[4] = alike * vectors[3] + np.sqrt(1 - alike**2) * vectors[4]
    return vectors


def effects_of_alike() -> np.ndarray:
    """Perturbations 3 and 4 do the same, 1 and 2 something else, in every type."""
    truth = effects(own_share=0.1)
    truth[:, 4] = truth[:, 3]
    return truth


def test_a_perturbation_that_no_cell_shows_is_told_by_alike_ones_of_the_type():
    truth = effects_of_alike()
    cells = cohort(truth)
    for number in range(NUM_TYPES):
        cells = cells.without(number, 4)

    found = expected_shifts(cells.shifts, apart(), vectors=described())

    for number in range(NUM_TYPES):
        assert np.corrcoef(found[number, 4], truth[number, 4])[0, 1] > 0.9
        for other in (1, 2):
            assert abs(np.corrcoef(found[number, 4], truth[number, other])[0, 1]) < 0.5


def test_unmeasured_perturbations_are_kriged_over_the_measured_ones_of_the_same_type(known_kernel):
    cells = cohort(effects_of_alike())
    for number in range(NUM_TYPES):
        cells = cells.without(number, 4)
    shifts, vectors = cells.without(2, 1).shifts, described()

    found = expected_shifts(shifts, apart(), vectors=vectors)

    distance = 1 - np.corrcoef(vectors[1:])
    for number, known in ((1, [1, 2, 3]), (2, [2, 3])):
        at = [perturbation - 1 for perturbation in known]
        measured = Measured(
            shifts.mean[number, known].astype(np.float64),
            shifts.error[number, known].astype(np.float64),
            distance[np.ix_(at, at)],
        )
        expected = kriging.predict(measured, distance[at, 3], known_kernel)
        np.testing.assert_allclose(found[number, 4], expected, rtol=1e-4, atol=1e-6)
    # What other types do show is told by them, vectors or not.
    np.testing.assert_array_equal(found[:, :4], expected_shifts(shifts, apart())[:, :4])


def test_a_perturbation_of_which_nothing_is_known_is_expected_to_do_nothing():
    cells = cohort(effects())
    for number in range(NUM_TYPES):
        cells = cells.without(number, 4)
    silent = cells
    for perturbation in range(1, 4):
        silent = silent.without(3, perturbation)

    found = expected_shifts(cells.shifts, apart())
    in_silent_type = expected_shifts(silent.shifts, apart(), vectors=described())

    np.testing.assert_array_equal(found[:, 4], 0)
    np.testing.assert_array_equal(in_silent_type[3, 4], 0)
    assert np.abs(in_silent_type[2, 4]).max() > 0


# How far it is to be believed.


def test_noise_is_expected_to_do_next_to_nothing():
    nothing = np.zeros((NUM_TYPES, NUM_PERTURBATIONS, NUM_GENES))
    shifts = [cohort(nothing, seed=seed).shifts for seed in range(6)]

    found = [expected_shifts(some, apart()) for some in shifts]

    measured = np.mean([np.linalg.norm(some.mean[:, 1:], axis=-1).mean() for some in shifts])
    expected = np.mean([np.linalg.norm(some[:, 1:], axis=-1).mean() for some in found])
    assert expected < 0.35 * measured
    assert np.mean([measure_reliability(some)[1:].mean() for some in shifts]) < 0.2


def test_strong_effects_are_expected_nearly_whole_and_weak_ones_in_part():
    shares = []
    for scale in (0.03, 0.1, 1.0):
        truth = effects(scale, own_share=0.0)
        found = expected_shifts(cohort(truth).shifts, apart())
        shares.append(float((found * truth).sum() / (truth**2).sum()))

    assert shares[0] < shares[1] < shares[2]
    assert shares[0] < 0.6
    assert shares[2] == pytest.approx(1, abs=0.06)


def test_types_are_told_by_those_whose_effects_are_like_theirs():
    """A new type's true shift, at one end of a row of types, against kriging and their mean.

    Effects change along the row with a reach of a unit; four types stand within .5 of the new one,
    eleven between 2 and 4 away.
    """
    rng, num_genes = np.random.default_rng(3), 300
    position = np.concatenate([[0.0], rng.uniform(0.1, 0.5, 4), rng.uniform(2, 4, 11)])
    distance = np.abs(np.subtract.outer(position, position))
    truth = np.linalg.cholesky(np.exp(-distance) + 1e-9 * np.eye(16)) @ rng.normal(
        size=(16, 4 * num_genes)
    )
    truth = truth.reshape(16, 4, num_genes).astype(np.float32)
    seen = truth + 0.2 * rng.normal(size=truth.shape).astype(np.float32)
    seen[0], measured = 0, np.ones((16, 4), bool)
    measured[0], measured[:, 0] = False, False
    shifts = Shifts(seen, np.full(seen.shape, 0.04, np.float32), measured)

    found = expected_shifts(shifts, distance)

    for perturbation in range(1, 4):
        kriged, mean = (
            np.corrcoef(shift, truth[0, perturbation])[0, 1]
            for shift in (found[0, perturbation], seen[1:, perturbation].mean(0))
        )
        assert kriged > 0.8
        assert kriged > mean + 0.15


def test_reliability_is_the_share_of_the_squared_mean_shift_that_is_not_error():
    shifts = cohort(effects(0.15)).without(0, 2).shifts

    found = measure_reliability(shifts)

    for perturbation, types in ((1, [0, 1, 2, 3]), (2, [1, 2, 3])):
        mean = shifts.mean[types, perturbation].mean(0)
        error = shifts.error[types, perturbation].sum() / len(types) ** 2
        expected = 1 - error / (mean**2).sum()
        assert 0.3 < expected < 0.95
        assert found[perturbation] == pytest.approx(expected, rel=1e-4)
    assert found[0] == 1


def test_reliability_of_a_perturbation_that_no_cell_shows_is_the_mean_of_the_others():
    cells = cohort(effects(0.15))
    for number in range(NUM_TYPES):
        cells = cells.without(number, 4)

    found = measure_reliability(cells.shifts)

    assert found[4] == pytest.approx(found[1:4].mean(), rel=1e-6)
    nothing = replace(cells.shifts, measured=np.zeros((NUM_TYPES, NUM_PERTURBATIONS), bool))
    np.testing.assert_array_equal(measure_reliability(nothing), 1)


def test_reliability_of_a_combination_that_no_cell_shows_is_that_of_the_sum_of_its_parts():
    cells = cohort(effects(0.15))
    for number in range(NUM_TYPES):
        cells = cells.without(number, 4)
    shifts = cells.shifts

    found = measure_reliability(shifts, {4: (1, 3)})

    mean = shifts.mean[:, [1, 3]].mean(0).sum(0)
    error = shifts.error[:, [1, 3]].sum() / NUM_TYPES**2
    assert found[4] == pytest.approx(1 - error / (mean**2).sum(), rel=1e-4)
    assert abs(found[4] - found[1:4].mean()) > 0.01
    np.testing.assert_array_equal(found[:4], measure_reliability(shifts)[:4])


# Tilts.


@dataclass(frozen=True)
class Counted:
    """Poisson counts of two types, or their log1p; type 1 may lack controls."""

    values: np.ndarray
    depth: np.ndarray
    cell_type: np.ndarray
    is_control: np.ndarray
    tokenizer: Tokenizer
    controls: ControlStatistics

    def law(self, global_share: float) -> ControlLaw:
        return ControlLaw.of(
            self.controls.log_prior(global_share=global_share),
            self.tokenizer,
            depth=self.depth,
            cell_type=np.where(self.is_control, self.cell_type, -1),
        )


def counted(kind: str = "counts", *, lacking: bool = False) -> Counted:
    """150 control and 150 other cells of each of two types, 20 genes, all the same in depth.

    The other cells have four times the counts in every second gene.
    """
    rng = np.random.default_rng(4)
    number = np.repeat(np.arange(4), 150)
    cell_type, is_control = number // 2, number % 2 == 0
    mean = np.exp(rng.uniform(-1, 3, (2, 20)))[cell_type]
    mean[~is_control, ::2] *= 4
    values = rng.poisson(mean)
    depth = np.full(600, 2000.0)
    if kind == "log1p":
        values = np.log1p(values * 1e4 / depth[:, None]).astype(np.float32)
    if lacking:
        kept = (cell_type == 0) | ~is_control
        values, depth, cell_type, is_control = (
            part[kept] for part in (values, depth, cell_type, is_control)
        )
    tokenizer = Tokenizer.fit(values, kind=kind)
    tokens = tokenizer.encode(values)
    controls = control_statistics(
        tokens,
        np.log1p(values.astype(np.float32)),
        cell_type=cell_type,
        is_control=is_control,
        num_types=2,
        num_bins=tokenizer.num_bins,
    )
    return Counted(values, depth, cell_type, is_control, tokenizer, controls)


def mean_under(law: ControlLaw, tilt: np.ndarray) -> np.ndarray:
    """Mean level [types, perturbations, genes] of the tilted law."""
    logits = tilt[..., None].astype(np.float64) * law.direction
    weight = law.probabilities[:, None] * np.exp(logits)
    weight /= weight.sum(-1, keepdims=True)
    return np.einsum("tpgb,tb->tpg", weight, law.level)


@pytest.mark.parametrize("kind", ["counts", "log1p"])
@pytest.mark.parametrize("lacking", [False, True])
@pytest.mark.parametrize("global_share", [0.1, 1.0])
def test_a_tilt_moves_the_mean_of_the_prior_as_far_as_it_should(kind, lacking, global_share):
    """In units of log1p(counts per 10k), also for a type without controls."""
    law = counted(kind, lacking=lacking).law(global_share)
    untilted = mean_under(law, np.zeros((2, 3, 20)))
    share = np.random.default_rng(5).uniform(-0.8, 0.8, (2, 3, 20))
    room = 0.95 * law.level[:, None, None, -1] - untilted
    shift = np.where(share > 0, share * room, share * untilted)

    tilt = law.tilts(shift)

    # There is a largest tilt, so a few of the strongest shifts may be missed.
    reached = np.abs(tilt) < 0.99 * LARGEST
    assert reached.mean() > 0.98
    moved = mean_under(law, tilt) - untilted
    np.testing.assert_allclose(moved[reached], shift[reached], atol=1e-4)


@pytest.mark.parametrize(("size", "end"), [(50.0, 0.95), (-50.0, 0.0)])
def test_a_shift_beyond_the_bins_goes_as_far_as_the_largest_tilt_or_close_to_the_last_bin(
    size, end
):
    law = counted().law(0.1)

    tilt = law.tilts(np.full((2, 1, 20), size))

    reached = mean_under(law, tilt)[:, 0] / law.level[:, -1:]
    arrived = np.abs(reached - end) < 1e-3
    assert (np.sign(tilt) == np.sign(size)).all()
    np.testing.assert_allclose(np.abs(tilt[:, 0][~arrived]), LARGEST, rtol=1e-3)
    assert arrived.mean() > 0.7


def test_where_no_shift_is_expected_nothing_is_tilted():
    law = counted().law(0.3)
    shift = np.zeros((2, 2, 20))
    shift[1, 1, 3] = 1.0

    tilt = law.tilts(shift)

    np.testing.assert_array_equal(tilt[0], 0)
    np.testing.assert_array_equal(tilt[1, 0], 0)
    assert np.flatnonzero(np.abs(tilt[1, 1]) > 1e-4).tolist() == [3]


def test_bins_stand_for_their_counts_at_the_depths_of_the_type():
    """Half the cells of a type twice as deep: the mean of the two log1p, at each bin."""
    world = counted()
    depth = np.where(world.cell_type == 0, 2000.0, np.tile([1000.0, 4000.0], 300))

    law = replace(world, depth=depth).law(0.1)

    centers = world.tokenizer.centers
    np.testing.assert_allclose(law.level[0], np.log1p(5 * centers), rtol=1e-6)
    expected = (np.log1p(10 * centers) + np.log1p(2.5 * centers)) / 2
    np.testing.assert_allclose(law.level[1], expected, rtol=1e-2)
    # Tilts multiply the level at the depths of all cells, those of both types alike, saturating.
    level = (law.level[0] + expected) / 2
    np.testing.assert_allclose(law.direction, level / (1 + level / 3), rtol=1e-2)


def test_distances_of_types_come_from_what_their_controls_show():
    """The way `prepare` joins the parts: types with like controls tell each other more."""
    rng = np.random.default_rng(6)
    controls = rng.normal(size=(2, 200)).repeat(2, 0) + 0.1 * rng.normal(size=(4, 200))
    truth = rng.normal(0, 1, (2, NUM_PERTURBATIONS, NUM_GENES)).repeat(2, 0)
    truth[:, 0] = 0
    cells = cohort(truth)
    for perturbation in range(1, NUM_PERTURBATIONS):
        cells = cells.without(0, perturbation)

    found = expected_shifts(cells.shifts, correlation_distance(controls))

    for perturbation in range(1, NUM_PERTURBATIONS):
        alike, unlike = (
            np.corrcoef(found[0, perturbation], truth[other, perturbation])[0, 1]
            for other in (1, 2)
        )
        assert alike > 0.9
        assert alike > unlike + 0.5
