"""Training: loss, optimiser, loop, checkpoints, evaluation.

Source: ``docs/long-runs.md``; what a step computes in :mod:`ide_ref.training.step`.
"""
