"""Every setting, with its default."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """What an operator may change, each by an environment variable ``CHALLENGE_<NAME>``."""

    model_config = SettingsConfigDict(env_prefix="CHALLENGE_", frozen=True)

    encoder: str = Field("distilbert-base-uncased", description="hub name or local folder of the DistilBERT")
    max_tokens: int = Field(512, ge=8, le=512, description="tokens of an overview that are read")
    catalogue: Path = Field(Path("df_movies.csv"), description="the movies, a CSV")
    models: Path = Field(Path("models"), description="folder of the trained models and the overview vectors")
    teach: Path | None = Field(None, description="plan by which each training first teaches the encoder, a YAML")
    seed: int = Field(0, ge=0, description="seed of the folds and of every random choice")
