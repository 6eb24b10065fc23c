"""Memories against each other: the same prompts and the same noise, measured, with what can be said of differences.

``longtake compare`` and ``docs/compare.md``. :mod:`definition` says what is compared, :mod:`result` what was found of one
video, :mod:`summary` puts results together with :mod:`statistics`, and :mod:`html` and :mod:`markdown` write it down.
"""
