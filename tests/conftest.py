"""Hypothesis profiles: ``quick`` by default and repeatable, ``--hypothesis-profile=thorough`` to search."""

from hypothesis import settings

settings.register_profile("quick", max_examples=25, deadline=None, derandomize=True)
settings.register_profile("thorough", max_examples=500, deadline=None)
settings.load_profile("quick")
