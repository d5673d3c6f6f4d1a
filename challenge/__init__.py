"""Predict what a user will rate a movie that nobody has rated yet."""

from challenge.api import app

__all__ = ["app"]
