"""`Text`: captions to embeddings, by the base's tokenizer and text encoder and by words that it is taught."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

    from immunebench.offload import Resident


class Text:
    """The text side of a model.

    Attributes
    ----------
    resident : Resident
        Where the encoder is; nobody else moves it.
    live : bool
        Whether something of the text side is being trained, or was taught: then captions are embedded at each
        step instead of once, and taught words are read as their own vectors.
    """

    def __init__(self, encoder: CLIPTextModel, tokenizer: CLIPTokenizer, resident: Resident) -> None:
        self.encoder = encoder.eval().requires_grad_(False)
        self.resident = resident
        self.live = False
        self._tokenizer = self._plain = tokenizer
        self._table: nn.Embedding = encoder.get_input_embeddings()
        self._taught: dict[str, tuple[int, nn.Parameter]] = {}
        self._pristine: list[tuple[nn.Parameter, Tensor]] = []

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Embed prompts, with gradient for what `training` switched on; equal prompts are computed once.

        Returns
        -------
        Tensor, shape (n, length, width)
            fp32.
        """
        unique = list(dict.fromkeys(prompts))
        with self.resident.needed():
            rows: Tensor = self.encoder(self.tokens(unique))[0].float()
        return rows[[unique.index(prompt) for prompt in prompts]]

    @torch.no_grad()
    def condition(self, prompts: Sequence[str]) -> Tensor:
        """Embed prompts one at a time, so that the embedding of one never depends on its neighbours."""
        unique = list(dict.fromkeys(prompts))
        with self.resident.needed():
            rows = torch.cat([self.encoder(row[None])[0] for row in self.tokens(unique)]).float()
        return rows[[unique.index(prompt) for prompt in prompts]]

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """Return token ids, shape (n, length): padded and cut to the encoder's length."""
        length = min(self._tokenizer.model_max_length, self.encoder.config.max_position_embeddings)
        heard = [self._read(prompt) for prompt in prompts]
        ids: Tensor = self._tokenizer(
            heard, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        return ids.to(self.resident.device)

    def vectors(self, word: str) -> Tensor:
        """Return the embedding rows of a word's tokens, shape (tokens, width): one where the tokenizer knows it."""
        ids = self._plain(word, add_special_tokens=False).input_ids
        return self._table.weight[ids].detach().float().clone()

    def teach(self, word: str, rows: Tensor) -> nn.Parameter:
        """Let `word` mean new vectors from now on.

        Parameters
        ----------
        word : str
        rows : Tensor, shape (num_vectors, width)

        Returns
        -------
        Parameter, shape (num_vectors, width)
            The live vectors; every row of the base's own table stays as it is.
        """
        from transformers import AddedToken

        if not self._taught:
            self._tokenizer = copy.deepcopy(self._plain)
            self.encoder.set_input_embeddings(_Taught(self._table, self._taught))
        first = max([self._table.num_embeddings, *(at + len(rows) for at, rows in self._taught.values())])
        names = _names(word, len(rows))
        self._tokenizer.add_tokens([AddedToken(name, normalized=False) for name in names])
        at = self._tokenizer.convert_tokens_to_ids(names)
        if at != list(range(first, first + len(rows))):
            raise ValueError(f"the tokenizer knows {names[0]!r} already")
        self.resident.stay()
        parameter = nn.Parameter(rows.to(self.resident.device, torch.float32).clone(), requires_grad=False)
        self._taught[word] = (first, parameter)
        self.live = True
        return parameter

    def listen(self, on: bool) -> None:
        """Embed captions live, taught words included, or once, as the base does."""
        self.live = on

    def train(self) -> dict[str, nn.Parameter]:
        """Return the encoder's own parameters for training, captions live; `restore` takes it back."""
        self.resident.stay()
        if not self._pristine:
            self._pristine = [(p, p.detach().cpu().clone()) for p in self.encoder.parameters()]
        self.live = True
        return dict(self.encoder.named_parameters())

    @torch.no_grad()
    def restore(self) -> None:
        """Forget what was taught and return the encoder to the base, bit by bit."""
        self.encoder.requires_grad_(False)
        self.encoder.set_input_embeddings(self._table)
        self._taught.clear()
        self._tokenizer = self._plain
        self.live = False
        for parameter, value in self._pristine:
            parameter.grad = None
            parameter.data = parameter.data.to(value.dtype)
            parameter.copy_(value)
        self._pristine.clear()
        self.resident.release()

    def _read(self, prompt: str) -> str:
        if not self.live:
            return prompt
        for word, (_, rows) in self._taught.items():
            prompt = re.sub(rf"\b{re.escape(word)}\b", " ".join(_names(word, len(rows))), prompt)
        return prompt


class _Taught(nn.Module):
    """A table of embeddings with further rows; gradients reach the further rows, each its own parameter."""

    def __init__(self, table: nn.Embedding, taught: dict[str, tuple[int, nn.Parameter]]) -> None:
        super().__init__()
        self.table = table
        self.taught = taught
        self.num_embeddings = table.num_embeddings

    @property
    def weight(self) -> Tensor:
        """The base's own rows."""
        return self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        known: Tensor = self.table(ids.clamp(max=self.table.num_embeddings - 1))
        for first, rows in self.taught.values():
            at = ids - first
            mine = (at >= 0) & (at < len(rows))
            known = torch.where(mine[..., None], rows[at.clamp(0, len(rows) - 1)].to(known.dtype), known)
        return known


def _names(word: str, count: int) -> list[str]:
    """Name a word's tokens as diffusers does for several vectors: ``<sks>``, ``<sks>_1``, ..."""
    return [f"<{word}>", *(f"<{word}>_{i}" for i in range(1, count))]
