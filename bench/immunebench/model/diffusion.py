"""`LatentDiffusion`: encoding, conditioning, loss and sampling, the interface for all defenses and attacks."""

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
from immunebench.model.graphs import graphs
from immunebench.model.halves import Halves, recomputed
from immunebench.model.loading import read_parts
from immunebench.model.offload import Resident
from immunebench.model.optim import MICRO_BATCHES
from immunebench.model.pixels import to_pixels, to_tensor
from immunebench.model.tensors import check, select
from immunebench.model.text import PairedText, Text

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer


class LatentDiffusion:
    """A text-to-image latent diffusion model with Stable Diffusion's architecture, run with a profile's numerics.

    Parameters
    ----------
    unet, vae, text_encoder, tokenizer
        The components of a diffusers pipeline, each in the dtype in which it runs.
    schedule : dict
        The noise schedule, as in `scheduler_config.json`.
    numerics : Numerics
        Device, dtypes, attention, sampler.
    text_encoder_2, tokenizer_2 : optional
        Those of Stable Diffusion XL; see `immunebench.model.text.PairedText`.

    Attributes
    ----------
    frozen : frozenset of str
        UNet tensors that the publisher's fine-tuning interface keeps as they are; empty where there is no mask.
        Adapters leave them out; `restore` forgets them.

    Notes
    -----
    All weights are frozen at first; methods enable gradients for what they train with `training`.
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
        self.noise_scheduler = DDPMScheduler.from_config(self.schedule)
        self.unet = unet.to(self.device).eval().requires_grad_(False)
        self.vae = vae.eval().requires_grad_(False)
        self.autoencoder = Resident(self.vae, self.device, offload=numerics.offload)
        resident = Resident(text_encoder, self.device, offload=numerics.offload)
        if text_encoder_2 is None or tokenizer_2 is None:
            self.text = Text(text_encoder, tokenizer, resident)
        else:
            second = Resident(text_encoder_2, self.device, offload=numerics.offload)
            self.text = PairedText(text_encoder, tokenizer, resident, text_encoder_2, tokenizer_2, second)
        processors = {"eager": AttnProcessor, "sdpa": AttnProcessor2_0}
        if numerics.attention not in processors:
            raise StageError("error", f"profile: attention: unknown backend {numerics.attention!r}; eager or sdpa")
        self.unet.set_attn_processor(processors[numerics.attention]())
        if numerics.checkpointing:
            self.unet.enable_gradient_checkpointing(recomputed)
        self._halves: Halves | None = None
        self.frozen: frozenset[str] = frozenset()
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
            Device, precision and sampler.

        Raises
        ------
        StageError
            If the folder or one of its components is missing.
        """
        return cls(**read_parts(folder, numerics), numerics=numerics)

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
        with self.autoencoder.loaded():
            return torch.cat([self.latents(x) for x in torch.split(self.to_images(pixels), self.numerics.batch)])

    def to_images(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Convert pictures to network input: fp32 of shape (n, 3, height, width) in [-1, 1]."""
        return to_tensor(pixels).to(self.device)

    def latents(self, images: Tensor) -> Tensor:
        """Encode images in [-1, 1], shape (b, 3, height, width), as `encode` but differentiable."""
        with self.autoencoder.loaded():
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
        """Decode scaled latents as `decode`, but differentiable and neither clipped nor rounded."""
        z = z / float(self.vae.config.scaling_factor)
        with self.autoencoder.loaded():
            x: Tensor = self.vae.decode(z.to(self.vae.dtype)).sample
        return x.float()

    def condition(self, prompts: Sequence[str]) -> Tensor:
        """Embed prompts, shape (n, length, width) in fp32 on the model's device; see `Text.condition`."""
        return self.text.condition(prompts)

    def prepare(self, pictures: Pictures) -> Latents:
        """Encode pictures and their captions for training."""
        return Latents(self.encode(pictures.pixels), self.condition(pictures.captions), pictures.captions)

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
        rows = self._sent(torch.as_tensor(chosen))
        latents = data.latents[rows]
        noise = torch.randn(latents.shape, generator=generator)
        steps = torch.randint(self.noise_scheduler.config.num_train_timesteps, (len(rows),), generator=generator)
        captions = tuple(data.captions[row] for row in chosen.tolist()) if data.captions else ()
        return Batch(latents, data.condition[rows], self._sent(noise), self._sent(steps), captions)

    def _sent(self, drawn: Tensor) -> Tensor:
        """Copy what was drawn on the CPU to the device, without waiting for a GPU."""
        if self.device.type != "cuda":
            return drawn.to(self.device)
        return drawn.pin_memory().to(self.device, non_blocking=True)

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
        tokens, pooled = self.text.split(condition)
        added = {} if pooled is None else {"added_cond_kwargs": self._added_conditions(noised, pooled)}
        half = self.dtype is not torch.float32
        if half and self.numerics.masters:
            return self._half_network()(noised, timesteps, tokens, added.get("added_cond_kwargs", {}))
        # Trained weights are cast at each use. With gradient checkpointing, autocast's cache of casts would amount to
        # a second copy of the network in memory.
        cache = not self.numerics.checkpointing
        with torch.autocast(self.device.type, self.dtype, enabled=half, cache_enabled=cache):
            prediction: Tensor = self.unet(noised, timesteps, tokens, return_dict=False, **added)[0]
        return prediction.float()

    def _half_network(self) -> Halves:
        """Return what runs the UNet with half-precision copies of its fp32 weights."""
        if self._halves is None or self._halves.dtype is not self.dtype:
            self._halves = Halves(self.unet, self.dtype, graphs(self.device))
        return self._halves

    def _weights_changed(self) -> None:
        """Note that modules, or the dtype or memory of weights changed."""
        if self._halves is not None:
            self._halves.reset()

    def _added_conditions(self, noised: Tensor, pooled: Tensor) -> dict[str, Tensor]:
        """Return the additional conditions of Stable Diffusion XL's UNet: pooled text embedding and picture sizes.

        The sizes (original size, crop corner, target size) are those of a picture neither resized nor cropped.
        """
        size = [side * self._factor() for side in noised.shape[-2:]]
        sizes = torch.tensor([*size, 0, 0, *size], dtype=pooled.dtype, device=pooled.device)
        return {"text_embeds": pooled, "time_ids": sizes.expand(len(noised), -1)}

    def loss(self, batch: Batch) -> Tensor:
        """Return the denoising loss: mean squared error of epsilon (Ho et al. 2020, eq. 14), or of v for v-prediction.

        Returns
        -------
        Tensor, scalar
            Mean over all elements, differentiable with respect to the parameters that `training` enabled.
        """
        return nn.functional.mse_loss(*self._prediction_and_target(batch))

    def losses(self, batch: Batch) -> Tensor:
        """Return the denoising loss of each picture, shape (b,), differentiable; their mean is `loss`."""
        prediction, target = self._prediction_and_target(batch)
        return (prediction - target).square().mean(dim=(1, 2, 3))

    def errors(self, batch: Batch) -> Tensor:
        """Return the squared error of the denoiser in each element, shape (b, 4, h, w), differentiable."""
        prediction, target = self._prediction_and_target(batch)
        return (prediction - target).square()

    def noised(self, batch: Batch) -> Tensor:
        """Return z_t, the batch's latents with its noise at its time steps; shape (b, 4, h, w)."""
        z_t: Tensor = self.noise_scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
        return z_t

    def _prediction_and_target(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the denoiser's prediction and its target, epsilon or v."""
        noised = self.noise_scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
        condition = self.text.embed(batch.captions) if self.text.live else batch.condition
        prediction = self._predict_in_micro_batches(noised, batch.timesteps, condition)
        if self.noise_scheduler.config.prediction_type == "v_prediction":
            return prediction, self.noise_scheduler.get_velocity(batch.latents, batch.noise, batch.timesteps)
        return prediction, batch.noise

    def _predict_in_micro_batches(self, noised: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """Predict as `predict`, with the activations of only one micro-batch in memory at once.

        Each micro-batch is recomputed in the backward pass (activation checkpointing), so memory does not grow with the
        batch. The gradient is that of the whole batch, as the loss is taken over all of it.
        """
        size = self.numerics.micro_batch or len(noised)
        if len(noised) <= size or not torch.is_grad_enabled():
            return self.predict(noised, timesteps, condition)
        parts = zip(*(torch.split(x, size) for x in (noised, timesteps, condition)), strict=True)
        # The networks use no random numbers (there is no dropout), so the RNG state need not be preserved.
        again: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        prediction = torch.cat([checkpoint(self.predict, *part, **again) for part in parts])
        node: Any = prediction.grad_fn
        if node is not None:
            node.metadata[MICRO_BATCHES] = size
        return prediction

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
        """Sample one picture per prompt, each from its own seed.

        Parameters
        ----------
        prompts : sequence of str
        seeds : sequence of int
            One per picture, so that a picture does not depend on the others.
        steps, guidance : optional
            Sampling steps and guidance scale; the profile's by default.
        negative : str
            Prompt of the unconditional branch of classifier-free guidance.
        progress : callable
            Called with the number of finished pictures.

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
        """Add noise to pictures and denoise them conditioned on their captions (SDEdit, Meng et al. 2022).

        Parameters
        ----------
        pictures : Pictures
            Of any size that the autoencoder supports.
        seeds : sequence of int
            One per picture, so that a picture does not depend on the others.
        strength : float
            Fraction of the sampling steps that are taken, 0 to 1; 0 only encodes and decodes, 1 retains almost nothing
            of the picture.
        steps : int
            Sampling steps at strength 1.
        guidance : float
        negative : str
            Prompt of the unconditional branch of classifier-free guidance.
        progress : callable
            Called with the number of finished pictures.

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
            z_t: Tensor = self.noise_scheduler.add_noise(z, torch.stack(draws).to(self.device), when)
            return z_t

        return sampling.draw(
            self, pictures.captions, noised, negative=negative, guidance=guidance, steps=steps, progress=progress,
            start=start,
        )  # fmt: skip

    @torch.no_grad()
    def sample_partially(
        self, condition: Tensor, left: int, generator: torch.Generator, *, steps: int, guidance: float
    ) -> tuple[Tensor, int]:
        """Denoise from pure noise and stop early, as ESD does for its training latents.

        Parameters
        ----------
        condition : Tensor, shape (b, length, width)
        left : int
            Sampling steps that remain after the one at t; from 0 to `steps` - 1.
        generator : torch.Generator
            For the noise, on the CPU.
        steps : int
            Sampling steps of a complete sample.
        guidance : float

        Returns
        -------
        z_t : Tensor, shape (b, 4, h, w)
        t : int
            The time step of z_t.
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
        """Return the autoencoder's downsampling factor f."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def unet_tensors(self, which: str = "attention") -> dict[str, nn.Parameter]:
        """Return the UNet's parameters by name, without adapters.

        Parameters
        ----------
        which : {"attention", "cross-attention", "no-cross-attention", "all"}
            `attention` is every to_q, to_k, to_v and to_out of attn1 and attn2, biases included
            (160 tensors in SD 1.x); `cross-attention` those of attn2; `no-cross-attention` all but attn2, the last
            layers and the embeddings of time and of Stable Diffusion XL's pooled text (the `noxattn` of ESD-u).

        Returns
        -------
        dict of str to Parameter
            The parameters themselves (no copies), by their name in the base.

        Raises
        ------
        StageError
            If the selection is unknown.
        """
        return select(self.unet, which)

    def open_tensors(self) -> dict[str, nn.Parameter]:
        """Return the UNet's parameters by name, without those in `frozen`: what full fine-tuning trains."""
        return {name: p for name, p in self.unet_tensors("all").items() if name not in self.frozen}

    def check(self, weights: Weights) -> None:
        """Check that weights fit the base.

        Raises
        ------
        StageError
            If a name is unknown to the base, a shape differs or a value is not finite.
        """
        check(self.unet_tensors("all"), weights)

    @torch.no_grad()
    def apply(self, weights: Weights) -> None:
        """Copy tensors into the UNet; see `check` for errors."""
        self.check(weights)
        own = self.unet_tensors("all")
        for name, tensor in weights.tensors.items():
            own[name].copy_(tensor)

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the exact weights of the base in UNet and text encoders, and remove adapters and learned tokens."""
        self.frozen = frozenset()
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
        self._weights_changed()

    def frozen_copy(self) -> LatentDiffusion:
        """Return a model with a frozen copy of the current UNet; the other networks are shared."""
        other = copy.copy(self)
        other._halves = None
        other.unet = copy.deepcopy(self.unet).eval().requires_grad_(False)
        return other

    def trainable(self, tensors: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """Cast parameters in place to the dtype for training, so that small updates are not lost to rounding."""
        for parameter in tensors.values():
            parameter.data = parameter.data.to(runtime.dtype(self.numerics.trained_dtype))
        self._weights_changed()
        return dict(tensors)
