"""Tests of the settings."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from challenge.settings import Settings


def test_defaults_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable of the environment takes the place of a default."""
    for name in ("ENCODER", "MAX_TOKENS", "CATALOGUE", "MODELS", "SEED"):
        monkeypatch.delenv(f"CHALLENGE_{name}", raising=False)
    assert Settings().encoder == "distilbert-base-uncased"
    assert Settings().max_tokens == 512
    assert Settings().catalogue == Path("df_movies.csv")
    monkeypatch.setenv("CHALLENGE_ENCODER", "some/encoder")
    monkeypatch.setenv("CHALLENGE_MAX_TOKENS", "128")
    assert (Settings().encoder, Settings().max_tokens) == ("some/encoder", 128)


@pytest.mark.parametrize("value", ["many", "", "0", "-1", "513", "1.5"])
def test_invalid_number_of_tokens(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """What is no possible number of tokens is refused by the setting's name."""
    monkeypatch.setenv("CHALLENGE_MAX_TOKENS", value)
    with pytest.raises(ValidationError, match="(?i)max_tokens"):
        Settings()
