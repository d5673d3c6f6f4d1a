"""Tests of the settings."""

from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
import yaml
from pydantic import ValidationError

from challenge.settings import PACKAGE, ChallengeError, Settings


def test_defaults_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment variable overrides the default."""
    for name in ("ENCODER", "MAX_TOKENS", "CATALOGUE", "MODELS", "SEED"):
        monkeypatch.delenv(f"CHALLENGE_{name}", raising=False)
    assert Settings().encoder == "distilbert-base-uncased"
    assert Settings().max_tokens == 512
    assert Settings().catalogue == Path("df_movies.csv")
    monkeypatch.setenv("CHALLENGE_ENCODER", "some/encoder")
    monkeypatch.setenv("CHALLENGE_MAX_TOKENS", "128")
    assert (Settings().encoder, Settings().max_tokens) == ("some/encoder", 128)


def test_empty_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable, as compose files pass on, counts as unset."""
    for name in ("ENCODER", "TEACH", "KEEP"):
        monkeypatch.setenv(f"CHALLENGE_{name}", "")
    assert Settings() == Settings(CHALLENGE_ENCODER="distilbert-base-uncased", CHALLENGE_TEACH=None, CHALLENGE_KEEP=5)


def test_variables_of_other_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the prefix, a variable named like a setting is ignored."""
    monkeypatch.setenv("SEED", "7")
    monkeypatch.setenv("LOG", "verbose")
    assert Settings().seed == 0


def test_key_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The repr that a log or an error may show hides the key."""
    monkeypatch.setenv("CHALLENGE_API_KEY", "a key")
    assert "a key" not in repr(Settings()) and Settings().api_key.get_secret_value() == "a key"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KEEP", "0"),
        ("MAX_UPLOAD", "much"),
        ("MAX_UPLOAD", "0"),
        ("CONCURRENCY", "0"),
        ("CONCURRENCY", "37"),
        ("LOG", "xml"),
        ("SEED", "-1"),
        ("SEED", "4294967296"),
    ],
)
def test_bad_values(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """An invalid value is refused, and the error names the variable."""
    monkeypatch.setenv(f"CHALLENGE_{name}", value)
    with pytest.raises(ValidationError, match=f"(?m)^CHALLENGE_{name}$"):
        Settings()


@pytest.mark.parametrize("value", ["many", "0", "-1", "513", "1.5"])
def test_invalid_number_of_tokens(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """An impossible number of tokens is refused, and the error names the variable."""
    monkeypatch.setenv("CHALLENGE_MAX_TOKENS", value)
    with pytest.raises(ValidationError, match="(?m)^CHALLENGE_MAX_TOKENS$"):
        Settings()


def test_every_error_has_its_kind() -> None:
    """The API's description has a problem type for each error."""
    # Its errors are known only once it is imported.
    import_module("challenge.teaching")
    described = yaml.safe_load((PACKAGE / "openapi.yaml").read_text("utf-8"))
    known = {error.__name__ for error in ChallengeError.__subclasses__()}
    problems = pd.DataFrame(described["problems"]).T
    others = problems.index[problems["type"] == "/problems/storage"]
    assert known == set(problems.index) - {"RequestValidationError", *others}
    types = described["answers"]["components"]["schemas"]["Problem"]["properties"]["type"]["enum"]
    assert set(types) == {"about:blank", *problems["type"]}
