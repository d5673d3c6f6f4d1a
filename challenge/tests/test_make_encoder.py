"""Tests of the small DistilBERT."""

import filecmp
import string
import warnings
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from challenge.tests import make_encoder

CARRIED = Path(make_encoder.__file__).parent.parent / "assets" / "mini-distilbert"
FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
TEXTS = ["A retired pilot crosses the frozen sea.", "Two sisters open a café, and nobody comes.", "The sea, the sea!"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a tiny encoder and return its folder."""
    path = tmp_path_factory.mktemp("encoder")
    make_encoder.make_encoder(path, TEXTS, seed=3, size=300)
    return path


def encode(folder: Path, texts: list[str]) -> torch.Tensor:
    """Return each text's masked mean of the last hidden states, of shape (texts, 128)."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    tokens = tokenizer(texts, truncation=True, padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden: torch.Tensor = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    pooled: torch.Tensor = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
    return pooled


@pytest.mark.parametrize("encoder", ["tiny", "carried"])
def test_loads_and_pools(folder: Path, encoder: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Both encoders load without a warning and give finite vectors that tell texts apart."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vectors = encode(folder if encoder == "tiny" else CARRIED, [*TEXTS, ""])
    assert "warn" not in capfd.readouterr().err.lower()
    assert vectors.shape == (4, 128)
    assert torch.isfinite(vectors).all()
    assert torch.pdist(vectors).min() > 0.1


def test_padding_changes_nothing(folder: Path) -> None:
    """A text has the same vector alone as in a batch with a longer one."""
    torch.testing.assert_close(encode(folder, TEXTS[2:]), encode(folder, [TEXTS[2], TEXTS[1] * 5])[:1])


def test_truncates(folder: Path) -> None:
    """Long texts are truncated to the model's maximum length, which callers need not give."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.is_fast
    assert tokenizer.model_max_length == make_encoder.LONGEST
    assert len(tokenizer("sea " * 2_000, truncation=True)["input_ids"]) == make_encoder.LONGEST
    assert encode(folder, ["sea " * 2_000]).shape == (1, 128)


@pytest.mark.parametrize("encoder", ["tiny", "carried"])
def test_no_ordinary_text_is_unknown(folder: Path, encoder: str) -> None:
    """Words of letters, digits and punctuation are known, in either case, with or without accents."""
    tokenizer = AutoTokenizer.from_pretrained(folder if encoder == "tiny" else CARRIED)
    words = [string.ascii_letters, string.digits, string.punctuation, "Zürich", "naïve", "“It’s 9x7 – qvz…”"]
    assert tokenizer.unk_token not in tokenizer.tokenize(" ".join(words))
    assert tokenizer.tokenize("CAFÉ") == tokenizer.tokenize("cafe")


def test_same_seed_same_files(folder: Path, tmp_path: Path) -> None:
    """The same texts and seed give the same bytes; another seed changes the weights and nothing else."""
    make_encoder.make_encoder(tmp_path / "again", TEXTS, seed=3, size=300)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert filecmp.cmpfiles(folder, tmp_path / "again", FILES, shallow=False) == (FILES, [], [])
    make_encoder.make_encoder(tmp_path / "other", TEXTS, seed=4, size=300)
    assert filecmp.cmpfiles(folder, tmp_path / "other", FILES, shallow=False)[1] == ["model.safetensors"]


def test_carried_encoder_is_small() -> None:
    """The carried encoder has all of its files and no others, in under 8 MB."""
    assert sorted(path.name for path in CARRIED.iterdir()) == FILES
    assert sum(path.stat().st_size for path in CARRIED.iterdir()) < 8_000_000


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The command reads several folders of data, gaps included, and lists the files it wrote."""
    for name, overviews in (("one", [TEXTS[0], None]), ("two", [TEXTS[1]])):
        (tmp_path / name).mkdir()
        movies = pd.DataFrame({"movieId": range(len(overviews)), "overview": overviews})
        movies.to_csv(tmp_path / name / "df_movies.csv", index=False)
        (tmp_path / name / "df_train.csv").write_text("userId,rating,movieId\n1,4,0\n")
    catalogue, ratings = make_encoder.read_data([tmp_path / "one", tmp_path / "two"])
    assert catalogue["overview"].dropna().tolist() == TEXTS[:2]
    assert set(ratings["movieId"]) == {"one/0", "two/0"} < set(catalogue.index)
    command = ["make_encoder", str(tmp_path / "out"), str(tmp_path / "one"), str(tmp_path / "two"), "--random"]
    monkeypatch.setattr("sys.argv", command)
    make_encoder.main()
    assert "model.safetensors" in capsys.readouterr().out
