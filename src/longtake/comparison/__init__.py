"""Memories against each other: the same prompts and the same noise, measured, and what can be said of differences.

See ``docs/compare.md``. :mod:`definition` says what is compared, :mod:`result` what was found of one video;
:mod:`summary` puts results together with :mod:`statistics`, and :mod:`report` writes it down.
"""
