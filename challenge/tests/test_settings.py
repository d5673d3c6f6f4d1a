"""Tests of the settings."""

from importlib import import_module
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from challenge.settings import PACKAGE, ChallengeError, Settings


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


def test_empty_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable, which compose files pass on, is as good as none."""
    for name in ("ENCODER", "TEACH", "KEEP"):
        monkeypatch.setenv(f"CHALLENGE_{name}", "")
    assert Settings() == Settings(CHALLENGE_ENCODER="distilbert-base-uncased", CHALLENGE_TEACH=None, CHALLENGE_KEEP=5)


def test_variables_of_other_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has a setting's name without the prefix is not meant."""
    monkeypatch.setenv("SEED", "7")
    monkeypatch.setenv("LOG", "verbose")
    assert Settings().seed == 0


def test_key_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is in no text that a log or an error might show."""
    monkeypatch.setenv("CHALLENGE_API_KEY", "a key")
    assert "a key" not in repr(Settings()) and Settings().api_key.get_secret_value() == "a key"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KEEP", "0"),
        ("MAX_UPLOAD", "much"),
        ("CONCURRENCY", "0"),
        ("CONCURRENCY", "37"),
        ("LOG", "xml"),
        ("SEED", "-1"),
        ("SEED", "4294967296"),
    ],
)
def test_bad_values(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """What makes no sense is refused by the name of its variable."""
    monkeypatch.setenv(f"CHALLENGE_{name}", value)
    with pytest.raises(ValidationError, match=f"(?m)^CHALLENGE_{name}$"):
        Settings()


@pytest.mark.parametrize("value", ["many", "0", "-1", "513", "1.5"])
def test_invalid_number_of_tokens(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """What is no possible number of tokens is refused by the name of its variable."""
    monkeypatch.setenv("CHALLENGE_MAX_TOKENS", value)
    with pytest.raises(ValidationError, match="(?m)^CHALLENGE_MAX_TOKENS$"):
        Settings()


def test_every_error_has_its_kind() -> None:
    """The API's description says of each error what kind of problem it is."""
    # Its errors are there once it is imported.
    import_module("challenge.teaching")
    described = yaml.safe_load((PACKAGE / "openapi.yaml").read_text("utf-8"))
    assert {error.__name__ for error in ChallengeError.__subclasses__()} <= set(described["problems"])
