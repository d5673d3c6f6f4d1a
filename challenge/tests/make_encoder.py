"""Make a small but real DistilBERT, with random weights and a WordPiece vocabulary of its own.

Run as ``python -m challenge.tests.make_encoder FOLDER [TEXTS.csv ...]``; without texts it reads the demo's catalogue.
The same texts and seed give the same bytes.
"""

import argparse
import string
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordPieceTrainer
from transformers import BertTokenizer, DistilBertConfig, DistilBertModel

DEMO_CATALOGUE = Path(__file__).parent.parent / "demo" / "df_movies.csv"
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORD_CHARACTERS = string.digits + string.ascii_lowercase
MARKS = string.punctuation + "‘’“”–—…•£€°©®™½¿¡«»"
LONGEST = 512
VOCABULARY_SIZE = 8000


def read_texts(paths: Iterable[Path]) -> list[str]:
    """Read the overviews of some catalogues.

    Parameters
    ----------
    paths : iterable of pathlib.Path
        CSV files with a column ``overview``.

    Returns
    -------
    list of str
        All overviews that are not empty, in order.
    """
    texts: list[str] = []
    for path in paths:
        texts += pd.read_csv(path, usecols=["overview"], dtype="str")["overview"].dropna().tolist()
    return texts


def make_vocabulary(texts: list[str], size: int) -> dict[str, int]:
    """Find the word pieces that cover some texts well.

    Parameters
    ----------
    texts : list of str
        What to cover.
    size : int
        Most pieces in the vocabulary; it has no fewer than the special ones and all characters.

    Returns
    -------
    dict of int
        Number of each piece. All ASCII letters, digits and marks are in it, so that no ordinary word is unknown.
    """
    characters = sorted(MARKS) + sorted(WORD_CHARACTERS)
    # The trainer numbers continuations in no fixed order, which also breaks ties: named up front, they keep theirs.
    fixed = SPECIALS + characters + ["##" + character for character in sorted(WORD_CHARACTERS)]
    trainer = WordPieceTrainer(
        vocab_size=max(size, len(fixed)),
        special_tokens=fixed,
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        show_progress=False,
    )
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.train_from_iterator(texts, trainer)
    found = tokenizer.get_vocab()
    return {piece: number for number, piece in enumerate(sorted(found, key=lambda piece: found[piece]))}


def make_model(vocabulary: dict[str, int], seed: int) -> DistilBertModel:
    """Make a DistilBERT of two layers with random weights.

    Parameters
    ----------
    vocabulary : dict of int
        Number of each word piece.
    seed : int
        Seed of the weights.

    Returns
    -------
    transformers.DistilBertModel
        Its vectors have 128 dimensions.
    """
    config = DistilBertConfig(
        vocab_size=len(vocabulary),
        dim=128,
        n_layers=2,
        n_heads=4,
        hidden_dim=512,
        max_position_embeddings=LONGEST,
        pad_token_id=vocabulary["[PAD]"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DistilBertModel(config)
        # Without training, positions would say as much as words do; damped, a text's mean vector is about its words.
        with torch.no_grad():
            model.embeddings.position_embeddings.weight.mul_(0.1)
    return model


def make_encoder(folder: Path, texts: list[str], seed: int = 0, size: int = VOCABULARY_SIZE) -> None:
    """Write an encoder that ``transformers`` loads by the folder's name.

    Parameters
    ----------
    folder : pathlib.Path
        Made where missing.
    texts : list of str
        What the vocabulary is made from.
    seed : int, default 0
        Seed of the weights.
    size : int, default 8000
        Most word pieces in the vocabulary.
    """
    vocabulary = make_vocabulary(texts, size)
    names = ["input_ids", "attention_mask"]
    tokenizer = BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=LONGEST, model_input_names=names)
    tokenizer.save_pretrained(folder)
    make_model(vocabulary, seed).save_pretrained(folder)


def main() -> None:
    """Write the encoder to the folder named on the command line, and print what is in it."""
    parser = argparse.ArgumentParser(description="Make a small DistilBERT with random weights.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("texts", type=Path, nargs="*", default=[DEMO_CATALOGUE])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    make_encoder(options.folder, read_texts(options.texts), options.seed)
    for path in sorted(options.folder.iterdir()):
        print(f"{path.stat().st_size:>10,} {path.name}")


if __name__ == "__main__":
    main()
