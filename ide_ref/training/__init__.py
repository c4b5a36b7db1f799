"""Training: loss, optimiser, loop, checkpoints, evaluation."""
