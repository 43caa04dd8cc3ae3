"""The loop learns, repeats itself, and does not depend on how many workers share it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from sedd.diffusion.graph import AbsorbingGraph, stratified_mask_counts
from sedd.errors import ConfigError
from sedd.training import Workers, _mix, held_out_nelbo
from tests.tiny_training import TINY_MODEL, tiny_run, tiny_shards

NOTHING_KNOWN = replace(TINY_MODEL, effect_prior=False, output_prior=False)


def weights(module: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def assert_same(first, second) -> None:
    """Bit for bit."""
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def gradients(run) -> list[torch.Tensor]:
    return [p.grad.clone() for p in run.state.denoiser.parameters() if p.grad is not None]


class Recorder(nn.Module):
    """Passes on to the denoiser and remembers what it was asked."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.asked, self.seeds = module, [], []

    def forward(self, tokens, condition, contexts):
        self.asked.append((tokens.clone(), condition))
        self.seeds.append(torch.initial_seed())
        return self.module(tokens, condition, contexts)


def recorded(run, rank=0, world_size=1, num_steps=3) -> Recorder:
    recorders = []

    def parallel(module):
        recorders.append(Recorder(module))
        return recorders[0]

    run.steps(num_steps, Workers(rank, world_size, parallel))
    return recorders[0]


def test_a_model_that_knows_nothing_learns_the_effects():
    run = tiny_run(
        NOTHING_KNOWN, max_steps=60, learning_rate=2e-2, validate_every=60, batch_size=32
    )
    before = held_out_nelbo(run.state.average, run.validation, run.contexts).mean()

    reports = run.steps()

    # The global histogram costs 2.0 nats per gene; knowing type and perturbation, Poisson counts
    # of mean 0.5 to 8 cost 1.6.
    assert reports[-1].validation_nelbo < float(before) - 0.2
    first, last = (np.mean([r.loss for r in part]) for part in (reports[:10], reports[-10:]))
    assert last < first - 0.2


def test_an_untrained_model_costs_what_the_prior_of_the_type_costs():
    run = tiny_run(replace(TINY_MODEL, effect_prior=False))
    shards = tiny_shards()
    prior = shards.reference.controls.log_prior(global_share=0.1)
    tokens = run.validation.tokens.numpy()
    by_gene = -prior[run.validation.condition.cell_type.numpy()][
        np.arange(len(tokens))[:, None], np.arange(tokens.shape[1]), tokens
    ]

    cost = held_out_nelbo(run.state.average, run.validation, run.contexts, num_draws=60)

    # A random half of the genes on average: standard error of a cell's mean over 60 masks.
    error = by_gene.std(1) / math.sqrt(60) * 3
    assert (np.abs(cost.numpy() - by_gene.mean(1)) < 4 * error).all()


def test_the_same_seed_gives_the_same_nelbo_for_any_chunk():
    run = tiny_run()
    state = run.state
    state.average.train()

    costs = [
        held_out_nelbo(state.average, run.validation, run.contexts, seed=1, chunk=chunk)
        for chunk in (128, 7)
    ]

    # The chunk only changes the order of sums in matrix products.
    torch.testing.assert_close(costs[0], costs[1], rtol=1e-5, atol=1e-6)
    other = held_out_nelbo(state.average, run.validation, run.contexts, seed=2)
    assert not torch.equal(costs[0], other)
    assert state.average.training


def test_a_run_that_is_interrupted_and_goes_on_repeats_the_uninterrupted_one():
    model = replace(TINY_MODEL, dropout=0.2, cell_type_label_dropout=0.5)
    straight, halting = tiny_run(model), tiny_run(model)

    expected = straight.steps()
    torch.manual_seed(1234)  # the state of the global generator must not matter
    found = halting.steps(5) + halting.steps()

    assert found == expected
    assert [report.step for report in found] == list(range(1, 13))
    assert_same(weights(halting.state.denoiser), weights(straight.state.denoiser))
    assert_same(weights(halting.state.average), weights(straight.state.average))


def test_another_seed_is_another_run():
    assert tiny_run().steps(2) != tiny_run(seed=1).steps(2)


@pytest.mark.parametrize("world_size", [2, 4])
def test_workers_together_see_the_noise_that_one_worker_sees(world_size):
    model = replace(TINY_MODEL, cell_type_label_dropout=0.5)
    alone = recorded(tiny_run(model, learning_rate=1e-12)).asked
    shares = [
        recorded(tiny_run(model, learning_rate=1e-12), rank, world_size).asked
        for rank in range(world_size)
    ]

    for step, (tokens, condition) in enumerate(alone):
        assert torch.equal(torch.cat([asked[step][0] for asked in shares]), tokens)
        for name in ("perturbation", "cell_type", "label", "log_depth"):
            together = [getattr(asked[step][1], name) for asked in shares]
            assert torch.equal(torch.cat(together), getattr(condition, name))
    labels = torch.cat([condition.label for _, condition in alone])
    hidden = (labels == 3).double().mean()
    # 48 cells, each hidden with probability 1/2: 5 sigma of 0.072.
    assert 0.14 < hidden < 0.86


def test_perturbations_are_hidden_at_the_rate_that_was_asked_for():
    model = replace(TINY_MODEL, condition_dropout=0.3)
    run = tiny_run(model, batch_size=200, max_steps=8, learning_rate=1e-12, validate_every=1000)

    asked = recorded(run, num_steps=8).asked

    given = torch.cat([run.batches(step).condition.perturbation for step in range(8)])
    told = torch.cat([condition.perturbation for _, condition in asked])
    hidden = told == 3
    # 1600 cells, control and perturbed alike, each hidden with probability 0.3: 4 sigma.
    assert abs(hidden.double().mean() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 1600)
    assert set(given[hidden].tolist()) == {0, 1, 2}
    assert torch.equal(told[~hidden], given[~hidden])
    assert all((condition.perturbation == 3).any() for _, condition in asked)


def test_hiding_perturbations_changes_no_other_draw():
    model = replace(TINY_MODEL, cell_type_label_dropout=0.5)
    always, often = (
        recorded(tiny_run(replace(model, condition_dropout=rate), learning_rate=1e-12)).asked
        for rate in (0.0, 0.5)
    )

    for step, ((tokens, condition), (others, hidden)) in enumerate(zip(always, often, strict=True)):
        assert torch.equal(others, tokens)
        assert torch.equal(hidden.label, condition.label)
        given = tiny_run(model).batches(step).condition
        assert torch.equal(condition.perturbation, given.perturbation)
        assert not torch.equal(hidden.perturbation, given.perturbation)


def test_what_is_drawn_for_a_batch_is_counts_masks_and_hidden_labels_in_that_order():
    """A model that is always told draws nothing for it: older runs go on as they would have."""
    run = tiny_run(replace(TINY_MODEL, cell_type_label_dropout=0.5), learning_rate=1e-12)
    batch, mask = run.batches(0), run.state.denoiser.sizes.num_bins
    ((tokens, condition), *_) = recorded(run).asked

    generator = torch.Generator().manual_seed(_mix(run.config.seed, 0))
    counts = stratified_mask_counts(16, 40, generator=generator)
    all_of_it = torch.rand(16, generator=generator) < run.config.fully_masked
    counts = torch.where(all_of_it, 40, counts)
    expected = AbsorbingGraph(mask).mask_exactly(batch.tokens.long(), counts, generator=generator)
    hidden = torch.rand(16, generator=generator) < 0.5

    assert torch.equal(tokens, expected)
    assert torch.equal(condition.label, torch.where(hidden, 3, batch.condition.label))


def test_a_model_that_is_not_always_told_learns_what_an_untold_cell_looks_like():
    run = tiny_run(replace(TINY_MODEL, condition_dropout=0.5), max_steps=3)
    assert not run.state.denoiser.perturbation.hidden.any()

    run.steps()

    assert run.state.denoiser.perturbation.hidden.abs().min() > 0


def test_dropout_is_drawn_anew_at_every_step_and_by_every_worker():
    seeds = [
        seed
        for run_seed, rank in ((0, 0), (0, 1), (1, 0))
        for seed in recorded(tiny_run(seed=run_seed), rank, 2).seeds
    ]

    assert len(set(seeds)) == len(seeds) == 9
    assert recorded(tiny_run(), 1, 2).seeds == seeds[3:6]


def test_the_mean_gradient_of_two_workers_is_that_of_the_whole_batch():
    runs = [tiny_run(gradient_clip=1e9) for _ in range(3)]
    for run, workers in zip(runs, (Workers(), Workers(0, 2), Workers(1, 2)), strict=True):
        run.steps(1, workers)

    whole, first, second = (gradients(run) for run in runs)

    for expected, one, other in zip(whole, first, second, strict=True):
        torch.testing.assert_close((one + other) / 2, expected, rtol=1e-4, atol=1e-6)
    assert max(float(gradient.abs().max()) for gradient in whole) > 1e-3


def test_a_tenth_of_the_cells_show_nothing_at_all():
    run = tiny_run(
        fully_masked=0.1, batch_size=200, max_steps=8, learning_rate=1e-12, validate_every=1000
    )

    asked = recorded(run, num_steps=8).asked

    mask = run.state.denoiser.sizes.num_bins
    share = (torch.cat([tokens for tokens, _ in asked]) == mask).double().mean(1)
    # A uniform count is all 40 genes once in 40: 0.1 + 0.9 / 40 = 0.1225 of 1600 cells, 4 sigma.
    assert abs((share == 1).double().mean() - 0.1225) < 4 * math.sqrt(0.1225 * 0.8775 / 1600)
    assert (share > 0).all()


def test_the_learning_rate_climbs_then_falls_along_half_a_cosine():
    reports = tiny_run(learning_rate=1e-3, max_steps=20, warmup_steps=4, validate_every=99).steps()

    found = [report.learning_rate for report in reports]

    cosine = [5e-4 * (1 + math.cos(math.pi * step / 20)) for step in range(20)]
    expected = [rate * min(1, (step + 1) / 4) for step, rate in enumerate(cosine)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert found[0] == pytest.approx(1e-3 / 4)
    assert found[-1] < 1e-3 * 0.01
    assert max(found) == found[3]


def test_matrices_are_decayed_and_biases_are_not():
    run = tiny_run(weight_decay=0.5)
    run.steps(1)

    groups = {
        id(parameter): group
        for group in run.state.optimizer.param_groups
        for parameter in group["params"]
    }

    assert len(groups) == len(list(run.state.denoiser.parameters()))
    named = {name: groups[id(p)] for name, p in run.state.denoiser.named_parameters()}
    matrix, bias = named["token_map"], named["final_modulation.bias"]
    assert (matrix["weight_decay"], bias["weight_decay"]) == (0.5, 0)
    assert bias["lr"] == matrix["lr"]


@pytest.mark.parametrize("ema_decay", [0.999, 0.4])
def test_the_average_follows_its_warm_up_formula(ema_decay):
    run = tiny_run(ema_decay=ema_decay)
    expected = weights(run.state.denoiser)

    for step in range(1, 7):
        run.steps(step)
        decay = min(ema_decay, (1 + step) / (10 + step))
        now = weights(run.state.denoiser)
        expected = [decay * a + (1 - decay) * b for a, b in zip(expected, now, strict=True)]

    torch.testing.assert_close(weights(run.state.average), expected, rtol=1e-5, atol=1e-7)


def test_training_stops_when_patience_ends_and_does_not_start_again():
    # With steps too small to move a float32 weight no validation betters the first.
    run = tiny_run(learning_rate=1e-30, patience=2, validate_every=3, max_steps=50)

    reports = run.steps()

    assert [report.step for report in reports if report.validation_nelbo is not None] == [3, 6, 9]
    assert [report.is_best for report in reports[2::3]] == [True, False, False]
    assert len(reports) == 9
    assert run.steps() == []


def test_a_run_without_patience_or_validation_goes_to_its_end():
    run = replace(tiny_run(learning_rate=1e-30), validation=None)

    reports = run.steps()

    assert len(reports) == 12
    assert {report.validation_nelbo for report in reports} == {None}
    assert reports[-1].cells_seen == 12 * 16


def test_the_best_report_has_the_lowest_nelbo():
    run = tiny_run(NOTHING_KNOWN, max_steps=24, learning_rate=5e-2)

    measured = [report for report in run.steps() if report.validation_nelbo is not None]

    lowest = math.inf
    for report in measured:
        assert report.is_best == (report.validation_nelbo < lowest)
        lowest = min(lowest, report.validation_nelbo)
    assert run.state.best_nelbo == lowest


def test_a_gradient_is_clipped_to_its_largest_norm():
    run = tiny_run(gradient_clip=1e-3)

    (report,) = run.steps(1)

    norm = torch.stack([g.square().sum() for g in gradients(run)]).sum().sqrt()
    assert report.grad_norm > 1e-2
    torch.testing.assert_close(norm, torch.tensor(1e-3), rtol=1e-3, atol=0)


def test_a_loss_that_is_no_number_stops_training_and_spoils_no_weight():
    run = tiny_run()
    run.steps(3)
    with torch.no_grad():
        run.state.denoiser.head_bias[0, 0] = math.nan
    before, average = weights(run.state.denoiser), weights(run.state.average)

    with pytest.raises(ConfigError, match=r"diverged at step 4: loss nan.*--resume auto"):
        run.steps()

    assert run.state.step == 3
    assert_same(weights(run.state.average), average)
    after = weights(run.state.denoiser)
    assert_same([w.nan_to_num() for w in after], [w.nan_to_num() for w in before])


def test_a_learning_rate_that_blows_up_is_named():
    run = tiny_run(learning_rate=1e30, warmup_steps=0)

    with pytest.raises(ConfigError, match=r"Lower training\.learning_rate \(now 1e\+30\)"):
        run.steps()

    assert all(weight.isfinite().all() for weight in weights(run.state.average))


def test_bfloat16_gives_the_loss_of_float32_to_its_precision():
    exact, rough = (tiny_run(precision=p).steps(3) for p in ("float32", "bfloat16"))

    for one, other in zip(exact, rough, strict=True):
        # bfloat16 has 8 bits: 0.4 % of logits of order one.
        assert one.loss == pytest.approx(other.loss, abs=0.02)
        assert one.loss != other.loss
