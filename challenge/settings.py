"""Every setting, with its default, and what all modules share."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import yaml
from pydantic import ByteSize, Field, FilePath, SecretStr
from pydantic_settings import BaseSettings

VERSION = "1.8.0"
PACKAGE = Path(__file__).parent
# What is data: the model's numbers, what the API says of itself, the form of the log's lines.
DATA = [yaml.safe_load((PACKAGE / f"{name}.yaml").read_text("utf-8")) for name in ("parameters", "openapi", "logging")]
FIXED = SimpleNamespace(**DATA[0], **DATA[1], **DATA[2])
logger = logging.getLogger(__package__)


class ChallengeError(Exception):
    """Something that the caller or the operator can mend; `openapi.yaml` says what kind of problem each subclass is."""


class Settings(
    BaseSettings, alias_generator=lambda name: f"CHALLENGE_{name.upper()}", env_ignore_empty=True, frozen=True
):
    """What an operator may change, each by an environment variable, after which errors name it."""

    encoder: str = Field("distilbert-base-uncased", description="hub name or local folder of the DistilBERT")
    max_tokens: int = Field(512, ge=8, le=512, description="tokens of an overview that are read")
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = Field("auto", description="of DistilBERT's numbers")
    cached_texts: int = Field(1_000_000, ge=1_000, description="overviews whose vectors are kept, the newest")
    catalogue: Path = Field(Path("df_movies.csv"), description="the movies, a CSV")
    models: Path = Field(Path("models"), description="folder of the trained models and the overview vectors")
    teach: FilePath | None = Field(None, description="plan by which each training first teaches the encoder, a YAML")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of the folds and of every random choice")
    keep: int = Field(5, ge=1, description="models that are kept, the newest; the active one always is")
    api_key: SecretStr = Field(SecretStr(""), description="bearer token that requests must carry; none if empty")
    max_upload: ByteSize = Field(ByteSize(2**30), description="the largest request body")
    concurrency: int = Field(32, ge=1, le=36, description="requests that a worker serves at a time")
    log: Literal["text", "json"] = Field("text", description="form of the log's lines")
