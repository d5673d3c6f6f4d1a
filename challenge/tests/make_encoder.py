"""Make a small but real DistilBERT, with a WordPiece vocabulary of its own, and teach it some catalogues.

Run as ``python -m challenge.tests.make_encoder FOLDER [DATA ...]``; without data folders it learns from the demo data.
The same data and seed give the same encoder: random weights bit for bit, learned ones only on the same machine.
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

from challenge.tables import read_catalogue, read_pairs
from challenge.teaching import PLAN, Plan, read_plan, teach

DEMO = Path(__file__).parent.parent / "demo"
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORD_CHARACTERS = string.digits + string.ascii_lowercase
MARKS = string.punctuation + "‘’“”–—…•£€°©®™½¿¡«»"
LONGEST = 512
IDS = ("userId", "movieId")
VOCABULARY_SIZE = 8000
# Random weights need a larger learning rate than pretrained ones, and few texts more regularisation. The task `liked`
# is left out: vectors that have seen the ratings that the rating model learns from look better there than they are.
DROPOUT = 0.2
MASKED = 0.3
TRAINING = {"learning_rate": 5e-4, "num_train_epochs": 8, "weight_decay": 0.1}


def make_vocabulary(texts: list[str], size: int) -> dict[str, int]:
    """Train a WordPiece vocabulary on some texts.

    Parameters
    ----------
    texts : list of str
        To learn from.
    size : int
        Maximum number of pieces, but special tokens and all characters are always included.

    Returns
    -------
    dict of int
        Index of each piece. All ASCII letters, digits and punctuation are included, so no ordinary word is unknown.
    """
    characters = sorted(MARKS) + sorted(WORD_CHARACTERS)
    # The trainer's order of continuations, which also breaks ties, is not fixed: listed up front, they keep theirs.
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
        Index of each word piece.
    seed : int
        Seed of the weights.

    Returns
    -------
    transformers.DistilBertModel
        Its hidden states have 128 dimensions.
    """
    config = DistilBertConfig(
        vocab_size=len(vocabulary),
        dim=128,
        n_layers=2,
        n_heads=4,
        hidden_dim=512,
        max_position_embeddings=LONGEST,
        pad_token_id=vocabulary["[PAD]"],
        dropout=DROPOUT,
        attention_dropout=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DistilBertModel(config)
        # Untrained positions would count as much as words; damped, they leave a text's mean vector to its words.
        with torch.no_grad():
            model.embeddings.position_embeddings.weight.mul_(0.1)
    return model


def make_encoder(folder: Path, texts: list[str], seed: int = 0, size: int = VOCABULARY_SIZE) -> None:
    """Write an encoder that ``transformers`` loads from the folder.

    Parameters
    ----------
    folder : pathlib.Path
        Created if missing.
    texts : list of str
        To learn the vocabulary from.
    seed : int, default 0
        Seed of the weights.
    size : int, default 8000
        Maximum number of word pieces, as of `make_vocabulary`.
    """
    vocabulary = make_vocabulary(texts, size)
    names = ["input_ids", "attention_mask"]
    tokenizer = BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=LONGEST, model_input_names=names)
    tokenizer.save_pretrained(folder)
    make_model(vocabulary, seed).save_pretrained(folder)


def read_data(folders: Iterable[Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read several data sets as one.

    Parameters
    ----------
    folders : iterable of pathlib.Path
        With ``df_movies.csv`` and ``df_train.csv``.

    Returns
    -------
    catalogue : pandas.DataFrame
        All movies, by ids prefixed with the folder's name.
    ratings : pandas.DataFrame
        All training ratings, with ids of users and movies prefixed likewise.
    """
    catalogues, ratings = [], []
    for folder in folders:
        catalogue = read_catalogue(folder / "df_movies.csv")
        catalogues.append(catalogue.set_axis(folder.name + "/" + catalogue.index))
        pairs = read_pairs(folder / "df_train.csv", rated=True)
        ratings.append(pairs.assign(**{name: folder.name + "/" + pairs[name].astype(str) for name in IDS}))
    return pd.concat(catalogues), pd.concat(ratings)


def mini_plan(folder: Path) -> Plan:
    """Return a plan that teaches a small encoder, starting from the random weights in a folder."""
    plan = read_plan(PLAN)
    tasks = [task for task in plan.tasks if task.name != "liked"]
    update = {
        "encoder": str(folder),
        "tasks": tasks,
        "masked": MASKED,
        "layer_decay": 1.0,
        "training": plan.training | TRAINING,
    }
    return plan.model_copy(update=update)


def main() -> None:
    """Write the encoder to the folder named on the command line, and list its files."""
    parser = argparse.ArgumentParser(description="Make a small DistilBERT.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("data", type=Path, nargs="*", default=[DEMO])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--random", action="store_true", help="leave the weights random")
    options = parser.parse_args()
    catalogue, ratings = read_data(options.data)
    make_encoder(options.folder, catalogue["overview"].dropna().tolist(), options.seed)
    if not options.random:
        print(teach(catalogue, ratings, options.folder, mini_plan(options.folder)))
    for path in sorted(options.folder.iterdir()):
        print(f"{path.stat().st_size:>10,} {path.name}")


if __name__ == "__main__":
    main()
