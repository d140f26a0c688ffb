"""`LatentDiffusion`: encode, condition, loss, sample. What every method is written in."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from immunebench.core.types import Numerics, Pictures, StageError, Weights
from immunebench.model import runtime, sampling
from immunebench.model.batch import Batch, Latents
from immunebench.model.loading import read_parts
from immunebench.model.offload import Resident
from immunebench.model.optim import IN_TURN
from immunebench.model.pixels import to_pixels, to_tensor
from immunebench.model.tensors import check, select
from immunebench.model.text import PairedText, Text

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer


class LatentDiffusion:
    """A text-to-image latent diffusion model of Stable Diffusion's shape under a profile's numerics.

    Parameters
    ----------
    unet, vae, text_encoder, tokenizer
        The parts of a diffusers pipeline, each in the dtype it is to run in.
    schedule : dict
        The noise schedule, as in `scheduler_config.json`.
    numerics : Numerics
        Device, dtypes, attention, sampler.
    text_encoder_2, tokenizer_2 : optional
        Those of Stable Diffusion XL; see `immunebench.model.text.PairedText`.

    Notes
    -----
    All weights are frozen on arrival: a method switches on what it trains with `training`.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        schedule: Mapping[str, Any],
        numerics: Numerics,
        text_encoder_2: CLIPTextModelWithProjection | None = None,
        tokenizer_2: CLIPTokenizer | None = None,
    ) -> None:
        from diffusers import DDPMScheduler
        from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

        self.numerics = numerics
        self.device = torch.device(numerics.device)
        self.dtype: torch.dtype = unet.dtype
        self.schedule = dict(schedule)
        self.noising = DDPMScheduler.from_config(self.schedule)
        self.unet = unet.to(self.device).eval().requires_grad_(False)
        self.vae = vae.eval().requires_grad_(False)
        self.autoencoder = Resident(self.vae, self.device, leaves=numerics.offload)
        resident = Resident(text_encoder, self.device, leaves=numerics.offload)
        if text_encoder_2 is None or tokenizer_2 is None:
            self.text = Text(text_encoder, tokenizer, resident)
        else:
            beside = Resident(text_encoder_2, self.device, leaves=numerics.offload)
            self.text = PairedText(text_encoder, tokenizer, resident, text_encoder_2, tokenizer_2, beside)
        processors = {"eager": AttnProcessor, "sdpa": AttnProcessor2_0}
        if numerics.attention not in processors:
            raise StageError("error", f"profile: attention: unknown backend {numerics.attention!r}; eager or sdpa")
        self.unet.set_attn_processor(processors[numerics.attention]())
        if numerics.checkpointing:
            self.unet.enable_gradient_checkpointing()
        self._pristine = {name: t.detach().cpu().clone() for name, t in self.unet.state_dict().items()}

    @classmethod
    def load(cls, folder: Path, numerics: Numerics) -> LatentDiffusion:
        """Read a base from a diffusers pipeline folder.

        Parameters
        ----------
        folder : Path
            Holds `unet`, `vae`, `text_encoder`, `tokenizer` and `scheduler`, and for Stable Diffusion XL
            `text_encoder_2` and `tokenizer_2`; nothing is downloaded or unpickled.
        numerics : Numerics
            Where and how it runs.

        Raises
        ------
        StageError
            If the folder or one of its parts is missing.
        """
        return cls(**read_parts(folder, numerics), numerics=numerics)

    # ---------------------------------------------------------------- pictures and words

    @torch.no_grad()
    def encode(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Encode pictures to scaled latents, the mean of the posterior.

        Parameters
        ----------
        pixels : ndarray of uint8, shape (n, height, width, 3)

        Returns
        -------
        Tensor, shape (n, 4, height / f, width / f)
            fp32 on the model's device.
        """
        with self.autoencoder.needed():
            return torch.cat([self.latents(x) for x in torch.split(self.to_images(pixels), self.numerics.batch)])

    def to_images(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Lay pictures out as the networks see them: fp32 of shape (n, 3, height, width) in [-1, 1]."""
        return to_tensor(pixels).to(self.device)

    def latents(self, images: Tensor) -> Tensor:
        """Encode images in [-1, 1], shape (b, 3, height, width), as `encode` does but with gradient to them."""
        with self.autoencoder.needed():
            mean: Tensor = self.vae.encode(images.to(self.vae.dtype)).latent_dist.mean
        return mean.float() * float(self.vae.config.scaling_factor)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """Decode scaled latents to pixels, rounded to 8 bits.

        Returns
        -------
        ndarray of uint8, shape (n, height, width, 3)
        """
        return to_pixels(self.images(latents))

    def images(self, z: Tensor) -> Tensor:
        """Decode scaled latents as `decode` does, but with gradient to them and neither clipped nor rounded."""
        z = z / float(self.vae.config.scaling_factor)
        with self.autoencoder.needed():
            x: Tensor = self.vae.decode(z.to(self.vae.dtype)).sample
        return x.float()

    def condition(self, prompts: Sequence[str]) -> Tensor:
        """Embed prompts, shape (n, length, width) in fp32 on the model's device; see `Text.condition`."""
        return self.text.condition(prompts)

    def prepare(self, pictures: Pictures) -> Latents:
        """Encode pictures and their captions for training."""
        return Latents(self.encode(pictures.pixels), self.condition(pictures.captions), pictures.captions)

    # ---------------------------------------------------------------- the objective

    def draw(self, data: Latents, indices: Sequence[int] | NDArray[np.int64], generator: torch.Generator) -> Batch:
        """Draw noise and time steps for the pictures named by `indices`.

        Parameters
        ----------
        data : Latents
        indices : sequence of int
        generator : torch.Generator
            On the CPU, so that one seed gives the same noise on every device.
        """
        chosen = np.asarray(indices)
        rows = torch.as_tensor(chosen, device=data.latents.device)
        latents = data.latents[rows]
        noise = torch.randn(latents.shape, generator=generator)
        steps = torch.randint(self.noising.config.num_train_timesteps, (len(rows),), generator=generator)
        captions = tuple(data.captions[row] for row in chosen.tolist()) if data.captions else ()
        return Batch(latents, data.condition[rows], noise.to(self.device), steps.to(self.device), captions)

    def predict(self, noised: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """Run the UNet on noised latents; fp32 in and out, whatever the frozen dtype.

        Parameters
        ----------
        noised : Tensor, shape (b, 4, h, w)
        timesteps : Tensor of int64, shape (b,)
        condition : Tensor, shape (b, length, width)

        Returns
        -------
        Tensor, shape (b, 4, h, w)
        """
        words, pooled = self.text.apart(condition)
        added = {} if pooled is None else {"added_cond_kwargs": self._added(noised, pooled)}
        half = self.dtype is not torch.float32
        # Trained weights are cast at each use. Under checkpointing, kept casts would outlive what needs them: a second
        # copy of the network.
        keep = not self.numerics.checkpointing
        with torch.autocast(self.device.type, self.dtype, enabled=half, cache_enabled=keep):
            prediction: Tensor = self.unet(noised, timesteps, words, return_dict=False, **added)[0]
        return prediction.float()

    def _added(self, noised: Tensor, pooled: Tensor) -> dict[str, Tensor]:
        """Say what Stable Diffusion XL's UNet reads beside the words: the pooled vector and the pictures' sizes.

        Sizes are those of a picture that was neither enlarged nor cropped: original size, corner at 0, 0, target size.
        """
        size = [side * self._factor() for side in noised.shape[-2:]]
        sizes = torch.tensor([*size, 0, 0, *size], dtype=pooled.dtype, device=pooled.device)
        return {"text_embeds": pooled, "time_ids": sizes.expand(len(noised), -1)}

    def loss(self, batch: Batch) -> Tensor:
        """Mean squared error of the denoiser (Ho et al. 2020, eq. 14); of v where the base predicts v.

        Returns
        -------
        Tensor, scalar
            Mean over all elements; with gradient for whatever `training` switched on.
        """
        return nn.functional.mse_loss(*self._denoised(batch))

    def losses(self, batch: Batch) -> Tensor:
        """Mean squared error of each picture, shape (b,), with gradient to its latents; their mean is `loss`."""
        prediction, target = self._denoised(batch)
        return (prediction - target).square().mean(dim=(1, 2, 3))

    def _denoised(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Predict what the denoiser should, and say what that is."""
        noised = self.noising.add_noise(batch.latents, batch.noise, batch.timesteps)
        condition = self.text.embed(batch.captions) if self.text.live else batch.condition
        prediction = self._predict_in_turn(noised, batch.timesteps, condition)
        if self.noising.config.prediction_type == "v_prediction":
            return prediction, self.noising.get_velocity(batch.latents, batch.noise, batch.timesteps)
        return prediction, batch.noise

    def _predict_in_turn(self, noised: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """Predict as `predict` does, with the activations of one micro-batch in memory at once.

        Each micro-batch is computed again when its gradient is: one more forward pass for memory that does not grow
        with the batch. The gradient is the whole batch's, for the loss is taken over all of it.
        """
        size = self.numerics.micro_batch or len(noised)
        if len(noised) <= size or not torch.is_grad_enabled():
            return self.predict(noised, timesteps, condition)
        parts = zip(*(torch.split(x, size) for x in (noised, timesteps, condition)), strict=True)
        # No network draws anything: there is no dropout.
        again: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        prediction = torch.cat([checkpoint(self.predict, *part, **again) for part in parts])
        node: Any = prediction.grad_fn
        if node is not None:
            node.metadata[IN_TURN] = size
        return prediction

    # ---------------------------------------------------------------- sampling

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        steps: int | None = None,
        guidance: float | None = None,
        negative: str = "",
        progress: Callable[[int], None] = lambda done: None,
    ) -> Pictures:
        """Draw one picture for each prompt, from its own seed.

        Parameters
        ----------
        prompts : sequence of str
        seeds : sequence of int
            One a picture: a picture never depends on how many came before it.
        steps, guidance : optional
            Of the sampler; the profile's by default.
        negative : str
            Prompt of the unconditional branch of classifier-free guidance.
        progress : callable
            Told how many pictures are done.

        Returns
        -------
        Pictures
            Captioned with the prompts.
        """
        shape = self._latent_shape()
        noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds])
        scale = self.numerics.guidance if guidance is None else guidance
        count = self.numerics.sampling_steps if steps is None else steps
        return sampling.draw(
            self, prompts, lambda rows: noise[rows], negative=negative, guidance=scale, steps=count, progress=progress
        )

    @torch.no_grad()
    def image_to_image(
        self,
        pictures: Pictures,
        seeds: Sequence[int],
        *,
        strength: float,
        steps: int,
        guidance: float,
        negative: str = "",
        progress: Callable[[int], None] = lambda done: None,
    ) -> Pictures:
        """Noise pictures part of the way and denoise them under their captions (SDEdit, Meng et al. 2022).

        Parameters
        ----------
        pictures : Pictures
            Of any size that the autoencoder takes.
        seeds : sequence of int
            One a picture: a picture never depends on its neighbours.
        strength : float
            Part of the sampler's steps that are taken, 0 to 1; 0 is the autoencoder's round trip, 1 keeps next to
            nothing of the picture.
        steps : int
            Sampler steps of the whole way.
        guidance : float
        negative : str
            Prompt of the unconditional branch of classifier-free guidance.
        progress : callable
            Told how many pictures are done.

        Raises
        ------
        StageError
            If `strength` lies outside 0 to 1.
        """
        if not 0 <= strength <= 1:
            raise StageError("error", f"strength: {strength} lies outside 0 to 1")
        start = steps - int(steps * strength)
        scheduler = sampling.make_sampler(self.numerics.sampler, self.schedule)
        scheduler.set_timesteps(steps)

        def noised(rows: Sequence[int]) -> Tensor:
            z = self.encode(pictures.pixels[rows])
            if start == steps:
                return z
            draws = [torch.randn(z.shape[1:], generator=torch.Generator().manual_seed(seeds[row])) for row in rows]
            when = scheduler.timesteps[start].expand(len(z)).to(self.device)
            z_t: Tensor = self.noising.add_noise(z, torch.stack(draws).to(self.device), when)
            return z_t

        return sampling.draw(
            self, pictures.captions, noised, negative=negative, guidance=guidance, steps=steps, progress=progress,
            start=start,
        )  # fmt: skip

    @torch.no_grad()
    def part_way(
        self, condition: Tensor, left: int, generator: torch.Generator, *, steps: int, guidance: float
    ) -> tuple[Tensor, int]:
        """Denoise from pure noise and stop early.

        Parameters
        ----------
        condition : Tensor, shape (b, length, width)
        left : int
            Sampler steps that are not taken after the one that would come next; from 0 to `steps` - 1.
        generator : torch.Generator
            Of the noise, on the CPU.
        steps : int
            Sampler steps of the whole way.
        guidance : float

        Returns
        -------
        z_t : Tensor, shape (b, 4, h, w)
        t : int
            The time step of the sampler that z_t is at.
        """
        scheduler = sampling.make_sampler(self.numerics.sampler, self.schedule)
        scheduler.set_timesteps(steps)
        noise = torch.randn((len(condition), *self._latent_shape()), generator=generator)
        stop = steps - 1 - left
        z = sampling.denoise(self, noise, condition, self.condition([""]), guidance=guidance, steps=steps, stop=stop)
        return z, int(scheduler.timesteps[stop])

    def _latent_shape(self) -> tuple[int, int, int]:
        side = self.numerics.resolution // self._factor()
        return int(self.unet.config.in_channels), side, side

    def _factor(self) -> int:
        """Return f, the pixels of a picture's side for each of its latents'."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    # ---------------------------------------------------------------- weights

    def unet_tensors(self, which: str = "attention") -> dict[str, nn.Parameter]:
        """Name the UNet's own parameters, adapters excluded.

        Parameters
        ----------
        which : {"attention", "cross-attention", "no-cross-attention", "all"}
            `attention` is every to_q, to_k, to_v and to_out of attn1 and attn2, biases included
            (160 tensors in SD 1.x); `cross-attention` those of attn2; `no-cross-attention` all but attn2, the last
            layers and the embeddings of time and of Stable Diffusion XL's pooled text (the `noxattn` of ESD-u).

        Returns
        -------
        dict of str to Parameter
            Live parameters by their name in the base.

        Raises
        ------
        StageError
            If the selection is unknown.
        """
        return select(self.unet, which)

    def check(self, weights: Weights) -> None:
        """Hold weights against the base.

        Raises
        ------
        StageError
            If a name is unknown to the base, a shape differs or a value is not finite.
        """
        check(self.unet_tensors("all"), weights)

    @torch.no_grad()
    def apply(self, weights: Weights) -> None:
        """Overlay tensors on the UNet; see `check` for what is refused."""
        self.check(weights)
        own = self.unet_tensors("all")
        for name, tensor in weights.tensors.items():
            own[name].copy_(tensor)

    @torch.no_grad()
    def restore(self) -> None:
        """Return UNet and text side to the base, bit by bit, without adapters."""
        self.autoencoder.release()
        self.text.restore()
        if any(".lora_" in name for name, _ in self.unet.named_parameters()):
            self.unet.unload_lora()
        self.unet.requires_grad_(False)
        own = self.unet_tensors("all")
        for name, tensor in self._pristine.items():
            own[name].grad = None
            own[name].data = own[name].data.to(tensor.dtype)
            own[name].copy_(tensor)

    def frozen(self) -> LatentDiffusion:
        """Return a model with a copy of the present UNet, which no later training reaches."""
        other = copy.copy(self)
        other.unet = copy.deepcopy(self.unet).eval().requires_grad_(False)
        return other

    def trainable(self, tensors: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """Raise parameters to the trained dtype in place, so that small updates survive rounding."""
        for parameter in tensors.values():
            parameter.data = parameter.data.to(runtime.dtype(self.numerics.trained_dtype))
        return dict(tensors)
