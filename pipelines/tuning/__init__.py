"""Sweeps: what is searched, in which order, on which budget, and what came of it.

Everything a sweep knows is in its folder: `sweep.json` says what is searched, `trials/trial_000/`
is an experiment directory with its `trial.json`. Ray Tune places trials and stops the hopeless
ones early; no state of its own is needed to go on after a crash.
"""
