"""Hypothesis profiles: ``quick`` by default and repeatable, ``--hypothesis-profile=thorough`` to search."""

import os

from hypothesis import settings

# As the command does: threads of libgomp that wait by spinning starve the working ones on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

settings.register_profile("quick", max_examples=25, deadline=None, derandomize=True)
settings.register_profile("thorough", max_examples=500, deadline=None)
settings.load_profile("quick")
