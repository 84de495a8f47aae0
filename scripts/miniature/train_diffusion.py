"""Train the miniature diffusion pipeline and write data/mini/sd, in the layout of Stable Diffusion 1.5.

The text encoder and its tokenizer are those of the miniature CLIP model, as Stable Diffusion's are
OpenAI CLIP's. This script trains an AutoencoderKL on 32 x 32 images (latents 4 x 8 x 8) and a
UNet2DConditionModel on its latents. (The miniature CLIP distinguishes drawings at 32 pixels as well
as at 64.) About a third of the images are degraded and no caption says so: the model learns to
generate both, so alignment has something to choose from.

Two stages, `vae` and `unet`; each resumes from its files. Both are saved in float16.
"""

import argparse
import math
import pathlib
import time

import composition
import networks
import numpy
import torch
from composition import MINI, ROOT
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch.nn import functional
from transformers import CLIPTextModel

SEED = 23
OUT = MINI / "sd"
PROMPTS = MINI / "prompts.txt"
WORK = ROOT / "data" / "downloads" / "diffusion"
STAGES = ("vae", "unet")

# The captions the pipeline knows: the names of the sample.
NAMES = 160
# Those of them in prompts.txt.
PROMPT_NAMES = 100
# The styles that the pipeline learns; the others differ too much for a network of this size.
STYLES = composition.STYLES
VARIANTS = 24  # composed images per drawing
SIDE = 32  # pixels
DEGRADED_SHARE = 0.33
WHITE_SHARE = 0.7
CAPTIONLESS_SHARE = 0.1

VAE_STEPS = 2_000
VAE_BATCH = 16
VAE_RATE = 1.5e-3
KL_WEIGHT = 1e-6

UNET_STEPS = 5_500
UNET_BATCH = 32
UNET_RATE = 8e-4
EMA_DECAY = 0.999
SNR_GAMMA = 5.0


def known_names() -> list[str]:
    """The names of the pipeline's captions: those of the sample, then others."""
    order = {"sample": 0, "shared": 0, "held_out": 1, "train": 2}
    rank: dict[str, int] = {}
    for drawing in composition.drawings():
        rank[drawing.name] = min(rank.get(drawing.name, 9), order[drawing.split])
    return sorted(rank, key=lambda name: rank[name])[:NAMES]


def prompts(names: list[str]) -> list[str]:
    """A caption of each of the first names, to sample from."""
    return [f"a picture of {composition.article(name)} {name}" for name in names[:PROMPT_NAMES]]


def compose_all() -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Images uint8 [N, 3, 32, 32], the number of each one's name, and the names."""
    generator = numpy.random.default_rng(SEED)
    names = known_names()
    number = {name: index for index, name in enumerate(names)}
    images, labels = [], []
    for drawing in composition.drawings():
        if drawing.name not in number or drawing.style not in STYLES:
            continue
        for _ in range(VARIANTS):
            image = composition.compose(drawing, generator, varied=False)
            while image.background != "white" and generator.random() < (WHITE_SHARE - 0.5) * 2:
                image = composition.compose(drawing, generator, varied=False)
            if generator.random() < DEGRADED_SHARE:
                image = composition.degrade(image, generator)
            images.append(numpy.asarray(image.image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)))
            labels.append(number[drawing.name])
    pixels = torch.from_numpy(numpy.stack(images)).permute(0, 3, 1, 2).contiguous()
    return pixels, torch.tensor(labels), names


def floats(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 to the range -1 to 1."""
    return pixels.float() / 127.5 - 1.0


def rate_at(step: int, steps: int, peak: float) -> float:
    """A short linear warm-up, then a cosine to a hundredth."""
    warm_up = max(1, min(300, steps // 20))
    if step < warm_up:
        return peak * (step + 1) / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def new_vae() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIDE,
    )


def new_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 128),
        layers_per_block=1,
        cross_attention_dim=networks.TEXT["width"],
        attention_head_dim=4,
        norm_num_groups=16,
    )


def scheduler() -> PNDMScheduler:
    """Stable Diffusion 1.5's values, with those that other schedulers made from them need."""
    schedule = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
    )
    schedule.register_to_config(clip_sample=False)
    return schedule


class Average:
    """An exponential moving average of a network's parameters, slower later in training."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.values = [value.detach().clone() for value in network.parameters()]

    @torch.no_grad()
    def update(self, network: torch.nn.Module, step: int, decay: float) -> None:
        decay = min(decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [value.detach() for value in network.parameters()], 1 - decay)

    @torch.no_grad()
    def copy_to(self, network: torch.nn.Module) -> None:
        for value, mean in zip(network.parameters(), self.values, strict=True):
            value.copy_(mean)


def training(network: torch.nn.Module, steps: int, peak: float, decay: float, loss_of, state: pathlib.Path) -> None:
    """Trains in place, saves its state in a file and resumes from it; ends with the average."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    average = Average(network)
    first = 0
    if state.exists():
        saved = torch.load(state)
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        average.values = saved["average"]
        first = saved["step"]
        print(f"resumes at step {first}", flush=True)
    start = time.monotonic()
    total = 0.0
    for step in range(first, steps):
        # Randomness is a function of the step, so a resumed training is the uninterrupted one.
        torch.manual_seed(SEED * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, steps, peak)
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        average.update(network, step, decay)
        total += loss.item()
        if (step + 1) % 100 == 0:
            done = step + 1 - first
            left = (time.monotonic() - start) / done * (steps - step - 1)
            print(f"step {step + 1}/{steps} loss {total / 100:.4f}, {left / 60:.0f} min left", flush=True)
            total = 0.0
        if (step + 1) % 500 == 0:
            state.parent.mkdir(parents=True, exist_ok=True)
            kept = {
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average.values,
                "step": step + 1,
            }
            torch.save(kept, state.with_suffix(".partial"))
            state.with_suffix(".partial").replace(state)
    average.copy_to(network)


def train_vae(pixels: torch.Tensor, steps: int) -> AutoencoderKL:
    torch.manual_seed(SEED)
    vae = new_vae()
    with torch.no_grad():
        # The noise on the latents starts small: at the default of one it hides the colours.
        vae.quant_conv.bias[4:] = -6.0
        vae.quant_conv.weight[4:] *= 0.1

    def loss_of(step: int) -> torch.Tensor:
        images = floats(pixels[torch.randint(len(pixels), (VAE_BATCH,))])
        posterior = vae.encode(images).latent_dist
        result = vae.decode(posterior.sample()).sample
        difference = result - images
        # Edges count: without the second term thin lines blur.
        edges = [difference.diff(dim=axis).abs().mean() for axis in (2, 3)]
        # So do colours: without the third term outlines fill the latents first and stay there.
        colours = [functional.avg_pool2d(difference, side).square().mean() for side in (4, 8)]
        plain = difference.square().mean() + 0.2 * difference.abs().mean()
        reconstruction = plain + 0.2 * sum(edges) + 2 * sum(colours)
        return reconstruction + KL_WEIGHT * posterior.kl().mean()

    training(vae, steps, VAE_RATE, 0.998, loss_of, WORK / "vae.pt")
    return vae.eval()


@torch.no_grad()
def encode_all(vae: AutoencoderKL, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and std of every image's latents, [N, 4, 8, 8] each."""
    means, stds = [], []
    for batch in pixels.split(64):
        posterior = vae.encode(floats(batch)).latent_dist
        means.append(posterior.mean)
        stds.append(posterior.std)
    return torch.cat(means), torch.cat(stds)


@torch.no_grad()
def encode_texts(texts: list[str]) -> torch.Tensor:
    """Prompt embeddings [N, 77, W], as the pipeline encodes a prompt."""
    tokens = networks.hf_tokenizer()(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    return text_encoder()(tokens["input_ids"]).last_hidden_state


def text_encoder() -> CLIPTextModel:
    return CLIPTextModel.from_pretrained(MINI / "clip").eval()


def caption_set(names: list[str]) -> list[list[str]]:
    """The texts of every name: the plain name and two templates."""
    templates = ("{name}", "{name}", "a picture of {article} {name}", "a drawing of {article} {name}")
    return [[form.format(name=name, article=composition.article(name)) for form in templates] for name in names]


def train_unet(vae: AutoencoderKL, pixels: torch.Tensor, labels: torch.Tensor, names: list[str], steps: int):
    means, stds = encode_all(vae, pixels)
    factor = vae.config.scaling_factor
    texts = caption_set(names)
    forms = len(texts[0])
    hidden = encode_texts([text for group in texts for text in group] + [""])
    torch.manual_seed(SEED + 1)
    unet = new_unet()
    cumulative = scheduler().alphas_cumprod

    def loss_of(step: int) -> torch.Tensor:
        chosen = torch.randint(len(means), (UNET_BATCH,))
        latents = (means[chosen] + stds[chosen] * torch.randn(UNET_BATCH, *means.shape[1:])) * factor
        rows = labels[chosen] * forms + torch.randint(forms, (UNET_BATCH,))
        rows = torch.where(torch.rand(UNET_BATCH) < CAPTIONLESS_SHARE, len(hidden) - 1, rows)
        noise = torch.randn_like(latents)
        timesteps = torch.randint(1000, (UNET_BATCH,))
        alpha = cumulative[timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        prediction = unet(noisy, timesteps, hidden[rows]).sample
        error = (prediction - noise).square().mean(dim=(1, 2, 3))
        ratio = (alpha / (1 - alpha)).flatten()
        return (error * ratio.clamp(max=SNR_GAMMA) / ratio).mean()

    training(unet, steps, UNET_RATE, EMA_DECAY, loss_of, WORK / "unet.pt")
    return unet.eval()


def save(vae: AutoencoderKL, unet: UNet2DConditionModel) -> None:
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder(),
        tokenizer=networks.hf_tokenizer(),
        unet=unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    # transformers loads in the file's dtype, diffusers in float32: the text encoder stays in float32.
    vae.half()
    unet.half()
    pipeline.save_pretrained(OUT, safe_serialization=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--vae-steps", type=int, default=VAE_STEPS)
    parser.add_argument("--unet-steps", type=int, default=UNET_STEPS)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pixels, labels, names = compose_all()
    print(f"{len(pixels)} images of {len(names)} names", flush=True)
    if "vae" in arguments.stages:
        vae = train_vae(pixels, arguments.vae_steps)
        with torch.no_grad():
            means, _ = encode_all(vae, pixels[:: max(1, len(pixels) // 2048)])
        vae.register_to_config(scaling_factor=round(1.0 / means.std().item(), 5))
        WORK.mkdir(parents=True, exist_ok=True)
        vae.save_pretrained(WORK / "vae")
    if "unet" in arguments.stages:
        vae = AutoencoderKL.from_pretrained(WORK / "vae").eval()
        unet = train_unet(vae, pixels, labels, names, arguments.unet_steps)
        save(vae, unet)
        PROMPTS.write_text("".join(f"{caption}\n" for caption in prompts(names)), encoding="utf-8")
        print(f"wrote {OUT} and {PROMPTS}", flush=True)


if __name__ == "__main__":
    main()
