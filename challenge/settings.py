"""Every setting, with its default, and what all modules share."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import yaml
from pydantic import ByteSize, Field, FilePath, SecretStr
from pydantic_settings import BaseSettings

VERSION = "1.17.0"
PACKAGE = Path(__file__).parent
# What is data, not code: the model's constants, the API's description, the format of the logs.
DATA = [yaml.safe_load((PACKAGE / f"{name}.yaml").read_text("utf-8")) for name in ("parameters", "openapi", "logging")]
FIXED = SimpleNamespace(**DATA[0], **DATA[1], **DATA[2])
logger = logging.getLogger(__package__)


class ChallengeError(Exception):
    """An error that the caller or the operator can fix; `openapi.yaml` has the problem type of each subclass."""


# Variables are aliases, as errors would leave out an `env_prefix`.
class Settings(
    BaseSettings, alias_generator=lambda name: f"CHALLENGE_{name.upper()}", env_ignore_empty=True, frozen=True
):
    """What an operator may set, each by an environment variable; error messages name the variable."""

    encoder: str = Field("distilbert-base-uncased", description="hub name or local folder of the DistilBERT")
    max_tokens: int = Field(512, ge=8, le=512, description="tokens of an overview that are read; the rest is cut off")
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = Field("auto", description="DistilBERT's number format")
    cached_texts: int = Field(1_000_000, ge=1_000, description="maximum number of overviews whose vectors are cached")
    catalogue: Path = Field(Path("df_movies.csv"), description="the movies, a CSV")
    models: Path = Field(Path("models"), description="folder of the trained models and the overview vectors")
    teach: FilePath | None = Field(None, description="YAML plan by which each training first fine-tunes the encoder")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of every random choice but those of teaching")
    keep: int = Field(5, ge=1, description="number of newest models to keep; the active one is always kept")
    api_key: SecretStr = Field(SecretStr(""), description="bearer token that requests must carry, unless it is empty")
    max_upload: ByteSize = Field(ByteSize(2**30), gt=0, description="the largest request body")
    concurrency: int = Field(32, ge=1, le=36, description="requests that a worker serves at a time")
    log: Literal["text", "json"] = Field("text", description="format of the log")
