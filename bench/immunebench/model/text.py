"""`Text`: embeds captions with the base's tokenizer and text encoder, and with learned tokens (Textual Inversion).

`PairedText` is the variant for Stable Diffusion XL, with two encoders.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from immunebench.core.types import StageError

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    from immunebench.model.offload import Resident


def end_of_text(tokenizer: CLIPTokenizer) -> int:
    """Return the token at whose position Stable Diffusion XL's pooled embedding is read.

    The published config has 2, for which transformers uses the position of the largest token id. That is the end of
    text, but no longer once tokens are added.
    """
    return int(tokenizer.eos_token_id)


class Text:
    """Tokenizer and text encoder of a model.

    Parameters
    ----------
    encoder, tokenizer
        As in the pipeline's folder.
    resident : Resident
        Moves the encoder between device and CPU memory.
    columns : slice, optional
        The columns of a learned token's vectors that belong to this encoder, if several encoders share them.

    Attributes
    ----------
    resident : Resident
        Of the encoder; nothing else moves it.
    live : bool
        Whether the encoder or tokens are trained or were learned: captions are then embedded at each step instead of
        once per stage, and learned words use their own vectors.
    """

    def __init__(
        self,
        encoder: CLIPTextModel | CLIPTextModelWithProjection,
        tokenizer: CLIPTokenizer,
        resident: Resident,
        columns: slice = slice(None),
    ) -> None:
        self.encoder = encoder.eval().requires_grad_(False)
        self.resident = resident
        self.live = False
        self._tokenizer = self._plain = tokenizer
        self._table: nn.Embedding = encoder.get_input_embeddings()
        self._learned: dict[str, tuple[int, Tensor]] = {}
        self._columns = columns
        self._pristine: list[tuple[nn.Parameter, Tensor]] = []

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The encoders by their component names in the pipeline's folder."""
        return {"text_encoder": self.encoder}

    @property
    def width(self) -> int:
        """The dimension of a token's embedding."""
        return self._table.embedding_dim

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Embed prompts, differentiably for parameters that `training` enabled; equal prompts are embedded once.

        Returns
        -------
        Tensor, shape (n, length, width)
            fp32.
        """
        unique = list(dict.fromkeys(prompts))
        with self._loaded():
            rows = self._encode(unique).float()
        return rows[[unique.index(prompt) for prompt in prompts]]

    @torch.no_grad()
    def condition(self, prompts: Sequence[str]) -> Tensor:
        """Embed prompts one at a time, so that an embedding does not depend on the rest of the batch."""
        unique = list(dict.fromkeys(prompts))
        with self._loaded():
            rows = torch.cat([self._encode([prompt]) for prompt in unique]).float()
        return rows[[unique.index(prompt) for prompt in prompts]]

    def split(self, condition: Tensor) -> tuple[Tensor, Tensor | None]:
        """Split a condition into token embeddings and pooled embedding, as the UNet takes them.

        Parameters
        ----------
        condition : Tensor, shape (n, length, width)
            From `embed` or `condition`.

        Returns
        -------
        tokens : Tensor, shape (n, tokens, width)
            For cross-attention.
        pooled : Tensor, shape (n, projection), or None
            One vector for the whole prompt, if the UNet takes one.
        """
        return condition, None

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """Return token ids, shape (n, length), padded and truncated to the encoder's length."""
        length = min(self._tokenizer.model_max_length, self.encoder.config.max_position_embeddings)
        expanded = [self._expand(prompt) for prompt in prompts]
        ids: Tensor = self._tokenizer(
            expanded, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        return ids.to(self.resident.device)

    def vectors(self, word: str) -> Tensor:
        """Return the embeddings of a word's tokens, shape (tokens, width); one row if it is a single token."""
        ids = self._plain(word, add_special_tokens=False).input_ids
        return self._table.weight[ids].detach().float().clone()

    def add_word(self, word: str, rows: Tensor) -> nn.Parameter:
        """Replace a word of the captions by new tokens with their own embeddings (Gal et al. 2023, sec. 3).

        Parameters
        ----------
        word : str
        rows : Tensor, shape (num_vectors, width)

        Returns
        -------
        Parameter, shape (num_vectors, width)
            The embeddings, to be trained; the base's own embeddings do not change.
        """
        parameter = nn.Parameter(rows.to(self.resident.device, torch.float32).clone(), requires_grad=False)
        self._add(word, parameter)
        return parameter

    def _add(self, word: str, rows: nn.Parameter) -> None:
        """Add a word's tokens to the tokenizer, and their embeddings to the table."""
        from transformers import AddedToken

        if not self._learned:
            self._tokenizer = copy.deepcopy(self._plain)
            self.encoder.set_input_embeddings(_ExtendedEmbedding(self._table, self._learned, self._columns))
        first = max([self._table.num_embeddings, *(at + len(rows) for at, rows in self._learned.values())])
        names = _names(word, len(rows))
        self._tokenizer.add_tokens([AddedToken(name, normalized=False) for name in names])
        at = self._tokenizer.convert_tokens_to_ids(names)
        if at != list(range(first, first + len(rows))):
            raise ValueError(f"the tokenizer already has {names[0]!r}")
        self.resident.pin()
        self._learned[word] = (first, rows)
        self.live = True

    def replace(self, word: str, rows: Tensor) -> None:
        """Embed a learned word by other vectors of the same shape, without a copy."""
        self._learned[word] = (self._learned[word][0], rows)

    def use_learned(self, on: bool) -> None:
        """Set `live`: use learned words, or read them as the base's tokenizer does."""
        self.live = on

    def train(self) -> dict[str, nn.Parameter]:
        """Return the encoders' own parameters for training, and set `live`; `restore` undoes both.

        Returns
        -------
        dict of str to Parameter
            Each name begins with that of its network, as in ``text_encoder.final_layer_norm.weight``.
        """
        self.resident.pin()
        if not self._pristine:
            self._pristine = [(p, p.detach().cpu().clone()) for p in self.encoder.parameters()]
        self.live = True
        return self.parameters()

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the encoders' own parameters under the names of `train`."""
        return {f"{part}.{name}": p for part, net in self.networks.items() for name, p in net.named_parameters()}

    @torch.no_grad()
    def restore(self) -> None:
        """Remove learned words and restore the exact weights of the base's encoder."""
        self.encoder.requires_grad_(False)
        self.encoder.set_input_embeddings(self._table)
        self._learned.clear()
        self._tokenizer = self._plain
        self.live = False
        for parameter, value in self._pristine:
            parameter.grad = None
            parameter.data = parameter.data.to(value.dtype)
            parameter.copy_(value)
        self._pristine.clear()
        self.resident.release()

    @contextmanager
    def _loaded(self) -> Iterator[None]:
        """Hold the encoders on the device inside the block."""
        with self.resident.loaded():
            yield

    def _encode(self, prompts: Sequence[str]) -> Tensor:
        """Embed prompts in one pass, in the encoder's dtype."""
        rows: Tensor = self.encoder(self.tokens(prompts))[0]
        return rows

    def _expand(self, prompt: str) -> str:
        """Replace learned words by their tokens."""
        if not self.live:
            return prompt
        for word, (_, rows) in self._learned.items():
            prompt = re.sub(rf"\b{re.escape(word)}\b", " ".join(_names(word, len(rows))), prompt)
        return prompt


class PairedText(Text):
    """The text encoders of Stable Diffusion XL, each with its own tokenizer.

    Parameters
    ----------
    encoder, tokenizer, resident
        The first, of width a.
    encoder_2, tokenizer_2, resident_2
        The second, of width b, with a projection.

    Notes
    -----
    A condition is one tensor of shape (n, length + 1, a + b), so that methods can index, concatenate and expand it by
    rows as with one encoder. Its first `length` rows are the concatenated penultimate hidden states of both encoders
    (Podell et al. 2024, sec. 2.1); the last row is the pooled projection of the second one, zero-padded to a + b.
    `split` separates them.

    The empty prompt is embedded as zeros, tokens and pooled embedding alike, as in the base's training
    (``force_zeros_for_empty_prompt`` in diffusers).

    The vectors of a learned word have a + b columns, a for the first encoder and b for the second. With learned words
    the pooled embedding is still read at the end of the text; see `end_of_text`.
    """

    def __init__(
        self,
        encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        resident: Resident,
        encoder_2: CLIPTextModelWithProjection,
        tokenizer_2: CLIPTokenizer,
        resident_2: Resident,
    ) -> None:
        width = encoder.get_input_embeddings().embedding_dim
        super().__init__(encoder, tokenizer, resident, columns=slice(width))
        self.second = Text(encoder_2, tokenizer_2, resident_2, columns=slice(width, None))
        self._projection = int(encoder_2.config.projection_dim)
        if self._projection > self.width + self.second.width:
            raise StageError("error", f"text_encoder_2: projection_dim {self._projection} is wider than both encoders")
        # Only the inner transformer uses this token id; it copied the config's when it was created.
        encoder_2.text_model.eos_token_id = end_of_text(tokenizer_2)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The encoders by their component names in the pipeline's folder."""
        return {**super().networks, "text_encoder_2": self.second.encoder}

    def split(self, condition: Tensor) -> tuple[Tensor, Tensor | None]:
        """Split off the pooled embedding, the last row of a condition; see `Text.split`."""
        return condition[:, :-1], condition[:, -1, : self._projection]

    def vectors(self, word: str) -> Tensor:
        """Return the concatenated embeddings of a word's tokens in both encoders, shape (tokens, a + b)."""
        return torch.cat([super().vectors(word), self.second.vectors(word)], dim=1)

    def replace(self, word: str, rows: Tensor) -> None:
        """Embed a learned word by other vectors in both encoders."""
        super().replace(word, rows)
        self.second.replace(word, rows)

    def use_learned(self, on: bool) -> None:
        """Set `live`: use learned words, or read them as the base's tokenizers do."""
        super().use_learned(on)
        self.second.use_learned(on)

    def train(self) -> dict[str, nn.Parameter]:
        """Return both encoders' own parameters for training, and set `live`; see `Text.train`."""
        self.second.train()
        return super().train()

    def restore(self) -> None:
        """Remove learned words and restore the exact weights of the base's encoders."""
        self.second.restore()
        super().restore()

    def _add(self, word: str, rows: nn.Parameter) -> None:
        super()._add(word, rows)
        self.second._add(word, rows)

    @contextmanager
    def _loaded(self) -> Iterator[None]:
        with super()._loaded(), self.second._loaded():
            yield

    def _encode(self, prompts: Sequence[str]) -> Tensor:
        first = self.encoder(self.tokens(prompts), output_hidden_states=True)
        second = self.second.encoder(self.second.tokens(prompts), output_hidden_states=True)
        tokens = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=2)
        pooled = nn.functional.pad(second.text_embeds, (0, tokens.shape[2] - self._projection))
        empty = torch.tensor([not prompt for prompt in prompts], device=tokens.device)
        return torch.cat([tokens, pooled[:, None]], dim=1).masked_fill(empty[:, None, None], 0)


class _ExtendedEmbedding(nn.Module):
    """An embedding table with additional rows for learned words, which are separate trainable parameters.

    `columns` selects the part of a word's rows that belongs to this table.
    """

    def __init__(self, table: nn.Embedding, learned: Mapping[str, tuple[int, Tensor]], columns: slice) -> None:
        super().__init__()
        self.table = table
        self.learned = learned
        self.columns = columns
        self.num_embeddings = table.num_embeddings

    @property
    def weight(self) -> Tensor:
        """The base's own embeddings."""
        return self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        known: Tensor = self.table(ids.clamp(max=self.table.num_embeddings - 1))
        for first, rows in self.learned.values():
            at = ids - first
            mine = (at >= 0) & (at < len(rows))
            own = rows[:, self.columns]
            known = torch.where(mine[..., None], own[at.clamp(0, len(rows) - 1)].to(known.dtype), known)
        return known


def _names(word: str, count: int) -> list[str]:
    """Return the names of a word's tokens, as in diffusers for several vectors: ``<sks>``, ``<sks>_1``, ..."""
    return [f"<{word}>", *(f"<{word}>_{i}" for i in range(1, count))]
