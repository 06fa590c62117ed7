"""Agents on one network that find each other, agree on a leader and talk."""

__version__ = "0.1.0"
