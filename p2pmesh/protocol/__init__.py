"""The mesh as pure code: no clock, no socket, no randomness of its own.

The one door is :mod:`p2pmesh.protocol.mesh`; nothing outside this package
imports any other module of it except the values in ``types``, the table in
``timing`` and the maxima in ``limits``.
"""
