"""`Text`: captions to embeddings, by the base's tokenizer and text encoder and by words that it is taught.

`PairedText` is that of Stable Diffusion XL, with two encoders.
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
    """Return the token at whose place Stable Diffusion XL's pooled vector is to be read.

    The published settings say 2, and transformers then looks for the largest token: the end, until a word is taught.
    """
    return int(tokenizer.eos_token_id)


class Text:
    """The text side of a model.

    Parameters
    ----------
    encoder, tokenizer
        As in the pipeline's folder.
    resident : Resident
        Of that encoder.
    columns : slice, optional
        Those of a taught word's vectors that are this encoder's, where several encoders share them.

    Attributes
    ----------
    resident : Resident
        Where the encoder is; nobody else moves it.
    live : bool
        Whether something of the text side is being trained, or was taught: then captions are embedded at each
        step instead of once, and taught words are read as their own vectors.
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
        self._taught: dict[str, tuple[int, nn.Parameter]] = {}
        self._columns = columns
        self._pristine: list[tuple[nn.Parameter, Tensor]] = []

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The encoders by the names of their parts in the pipeline's folder."""
        return {"text_encoder": self.encoder}

    @property
    def width(self) -> int:
        """The length of a token's vector."""
        return self._table.embedding_dim

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Embed prompts, with gradient for what `training` switched on; equal prompts are computed once.

        Returns
        -------
        Tensor, shape (n, length, width)
            fp32.
        """
        unique = list(dict.fromkeys(prompts))
        with self._needed():
            rows = self._encoded(unique).float()
        return rows[[unique.index(prompt) for prompt in prompts]]

    @torch.no_grad()
    def condition(self, prompts: Sequence[str]) -> Tensor:
        """Embed prompts one at a time, so that the embedding of one never depends on its neighbours."""
        unique = list(dict.fromkeys(prompts))
        with self._needed():
            rows = torch.cat([self._encoded([prompt]) for prompt in unique]).float()
        return rows[[unique.index(prompt) for prompt in prompts]]

    def apart(self, condition: Tensor) -> tuple[Tensor, Tensor | None]:
        """Take a condition apart as the denoiser reads it.

        Parameters
        ----------
        condition : Tensor, shape (n, length, width)
            From `embed` or `condition`.

        Returns
        -------
        words : Tensor, shape (n, words, width)
            For the cross-attentions.
        pooled : Tensor, shape (n, projection), or None
            One vector for the whole prompt, where the denoiser asks for one.
        """
        return condition, None

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
        parameter = nn.Parameter(rows.to(self.resident.device, torch.float32).clone(), requires_grad=False)
        self._learn(word, parameter)
        return parameter

    def _learn(self, word: str, rows: nn.Parameter) -> None:
        """Add a word to the tokenizer, and its vectors to the table."""
        from transformers import AddedToken

        if not self._taught:
            self._tokenizer = copy.deepcopy(self._plain)
            self.encoder.set_input_embeddings(_Taught(self._table, self._taught, self._columns))
        first = max([self._table.num_embeddings, *(at + len(rows) for at, rows in self._taught.values())])
        names = _names(word, len(rows))
        self._tokenizer.add_tokens([AddedToken(name, normalized=False) for name in names])
        at = self._tokenizer.convert_tokens_to_ids(names)
        if at != list(range(first, first + len(rows))):
            raise ValueError(f"the tokenizer knows {names[0]!r} already")
        self.resident.stay()
        self._taught[word] = (first, rows)
        self.live = True

    def listen(self, on: bool) -> None:
        """Embed captions live, taught words included, or once, as the base does."""
        self.live = on

    def train(self) -> dict[str, nn.Parameter]:
        """Return the encoders' own parameters for training, captions live; `restore` takes it back.

        Returns
        -------
        dict of str to Parameter
            Each name begins with that of its network, as in ``text_encoder.final_layer_norm.weight``.
        """
        self.resident.stay()
        if not self._pristine:
            self._pristine = [(p, p.detach().cpu().clone()) for p in self.encoder.parameters()]
        self.live = True
        return self.parameters()

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the encoders' own parameters under the names of `train`."""
        return {f"{part}.{name}": p for part, net in self.networks.items() for name, p in net.named_parameters()}

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

    @contextmanager
    def _needed(self) -> Iterator[None]:
        """Have what encodes on the device while the block runs."""
        with self.resident.needed():
            yield

    def _encoded(self, prompts: Sequence[str]) -> Tensor:
        """Embed prompts in one pass, in the encoder's dtype."""
        rows: Tensor = self.encoder(self.tokens(prompts))[0]
        return rows

    def _read(self, prompt: str) -> str:
        if not self.live:
            return prompt
        for word, (_, rows) in self._taught.items():
            prompt = re.sub(rf"\b{re.escape(word)}\b", " ".join(_names(word, len(rows))), prompt)
        return prompt


class PairedText(Text):
    """The text side of Stable Diffusion XL: two encoders, each with its own tokenizer.

    Parameters
    ----------
    encoder, tokenizer, resident
        The first, of width a.
    encoder_2, tokenizer_2, resident_2
        The second, of width b, with a projection.

    Notes
    -----
    A condition is one tensor of shape (n, length + 1, a + b), so that methods index, join and expand it by rows as they
    do that of one encoder. Its first `length` rows are the penultimate hidden states of both encoders, side by side
    (Podell et al. 2024, sec. 2.1); the last row is the pooled projection of the second one, filled up with zeros to
    a + b. `apart` separates them again.

    The empty prompt is all zeros, words and pooled vector alike: it is what the methods call no prompt, and what the
    base was trained on in its place (``force_zeros_for_empty_prompt`` in diffusers).

    The vectors of a taught word have a + b columns, a for the first encoder's table and b for the second's. A word that
    is taught leaves the pooled vector at the end of the text, where a plain prompt has it; see `end_of_text`.
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
        # Only the transformer within looks for the end of the text, and it took the settings' when it was made.
        encoder_2.text_model.eos_token_id = end_of_text(tokenizer_2)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The encoders by the names of their parts in the pipeline's folder."""
        return {**super().networks, "text_encoder_2": self.second.encoder}

    def apart(self, condition: Tensor) -> tuple[Tensor, Tensor | None]:
        """Take the pooled vector, the last row of a condition, from its words; see `Text.apart`."""
        return condition[:, :-1], condition[:, -1, : self._projection]

    def vectors(self, word: str) -> Tensor:
        """Return the embedding rows of a word's tokens in both tables side by side, shape (tokens, a + b)."""
        return torch.cat([super().vectors(word), self.second.vectors(word)], dim=1)

    def listen(self, on: bool) -> None:
        """Embed captions live, taught words included, or once, as the base does."""
        super().listen(on)
        self.second.listen(on)

    def train(self) -> dict[str, nn.Parameter]:
        """Return both encoders' own parameters for training, captions live; see `Text.train`."""
        self.second.train()
        return super().train()

    def restore(self) -> None:
        """Forget what was taught and return both encoders to the base, bit by bit."""
        self.second.restore()
        super().restore()

    def _learn(self, word: str, rows: nn.Parameter) -> None:
        super()._learn(word, rows)
        self.second._learn(word, rows)

    @contextmanager
    def _needed(self) -> Iterator[None]:
        with super()._needed(), self.second._needed():
            yield

    def _encoded(self, prompts: Sequence[str]) -> Tensor:
        first = self.encoder(self.tokens(prompts), output_hidden_states=True)
        second = self.second.encoder(self.second.tokens(prompts), output_hidden_states=True)
        words = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=2)
        pooled = nn.functional.pad(second.text_embeds, (0, words.shape[2] - self._projection))
        empty = torch.tensor([not prompt for prompt in prompts], device=words.device)
        return torch.cat([words, pooled[:, None]], dim=1).masked_fill(empty[:, None, None], 0)


class _Taught(nn.Module):
    """A table of embeddings with further rows; gradients reach the further rows, each its own parameter.

    Only these columns of a word's rows belong to the table.
    """

    def __init__(self, table: nn.Embedding, taught: Mapping[str, tuple[int, nn.Parameter]], columns: slice) -> None:
        super().__init__()
        self.table = table
        self.taught = taught
        self.columns = columns
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
            own = rows[:, self.columns]
            known = torch.where(mine[..., None], own[at.clamp(0, len(rows) - 1)].to(known.dtype), known)
        return known


def _names(word: str, count: int) -> list[str]:
    """Name a word's tokens as diffusers does for several vectors: ``<sks>``, ``<sks>_1``, ..."""
    return [f"<{word}>", *(f"<{word}>_{i}" for i in range(1, count))]
