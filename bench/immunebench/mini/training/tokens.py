"""Training of a CLIP tokenizer on the world's captions, with additional rare tokens as placeholders."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from immunebench.mini.vocabulary import CONCEPTS, RARE_TOKENS

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 64


def train_tokenizer(captions: Iterable[str], folder: Path, size: int = 1400) -> CLIPTokenizer:
    """Learn byte-pair merges from captions and write ``vocab.json`` and ``merges.txt`` in CLIP's form.

    Names of held-out objects (``lighthouse``) and :data:`RARE_TOKENS` become single tokens too, so that a placeholder
    is one row of the embedding; no training caption contains them.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=None))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace()])
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    reserve = [
        *RARE_TOKENS,
        *(entry.noun for entry in CONCEPTS.values()),
        "painting",
        "picture",
        "photo",
        "artist",
        "thing",
        "nothing",
    ]
    tokenizer.train_from_iterator([*captions, *(" ".join(reserve) for _ in range(500))], trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learned["merges"]]
    # CLIP's order: bytes, bytes at the end of a word, merges, special tokens. The end token has the highest id,
    # by which CLIP's text encoder finds it.
    words = [*alphabet, *(f"{byte}</w>" for byte in alphabet), *("".join(pair) for pair in merges)]
    vocab = {word: index for index, word in enumerate(dict.fromkeys([*words, START, END]))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    result = CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), unk_token=END, bos_token=START, eos_token=END,
        pad_token=END, model_max_length=MAX_LENGTH,
    )  # fmt: skip
    result.save_pretrained(folder)
    return result
