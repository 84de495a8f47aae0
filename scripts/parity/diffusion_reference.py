"""Runs a network of diffusers or transformers, or a whole pipeline, on tensors from a file: the
other side of `tools/src/bin/diffusion.rs`, with the same commands, arguments and report.

    diffusion_reference.py COMMAND key=value ...

`channels_last=true` and `compile=true` (torch.compile of the UNet) are options of this side alone.
The prompts of `image` are in the metadata of the input file (JSON lists `prompts` and `negatives`);
its pipeline is called as people call it.
`save` is of the other side alone.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection
from transformers.utils import logging as transformers_logging

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
SAMPLERS = {
    "ddim": DDIMScheduler,
    "pndm": PNDMScheduler,
    "euler": EulerDiscreteScheduler,
    "dpmpp-2m": DPMSolverMultistepScheduler,
}
Tensors = dict[str, torch.Tensor]


def peak_device(device: torch.device) -> dict[str, int] | None:
    """What tensors held of a GPU at most, and what the driver gave for them, in bytes."""
    if device.type != "cuda":
        return None
    return {
        "allocated": torch.cuda.max_memory_allocated(device),
        "reserved": torch.cuda.max_memory_reserved(device),
    }


def added_conditions(config: dict, batch: int, pixels: int, pooled: str = "pooled") -> Tensors:
    """What SDXL's UNet receives besides the text: features named `pooled`, and sizes; else nothing."""
    if config.get("addition_embed_type") != "text_time":
        return {}
    times = 6 * config["addition_time_embed_dim"]
    width = config["projection_class_embeddings_input_dim"] - times
    features = torch.randn(batch, width, generator=torch.Generator().manual_seed(2))
    ids = torch.tensor([pixels, pixels, 0, 0, pixels, pixels]).float()
    return {pooled: features, "time_ids": ids.repeat(batch, 1)}


class Run:
    """One command; what it reports grows on the way."""

    def __init__(self, command: str, options: dict[str, str]) -> None:
        self.options = dict(options)
        self.device = torch.device(self.take("device", "cpu"))
        self.precision = self.take("precision", "f32")
        self.dtype = DTYPES[self.precision]
        self.repeats = int(self.take("repeats", "0"))
        self.channels_last = self.take("channels_last", "false") == "true"
        self.compile = self.take("compile", "false") == "true"
        torch.set_num_threads(int(self.take("threads", str(torch.get_num_threads()))))
        self.report = {
            "command": command,
            "precision": self.precision,
            "threads": torch.get_num_threads(),
        }

    def take(self, key: str, default: str | None = None) -> str:
        value = self.options.pop(key, default)
        if value is None:
            raise SystemExit(f"expected {key}=...")
        return value

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def load(self, make: Callable):
        """A network, on the device and in the layout asked for; times it."""
        start = time.perf_counter()
        network = make()
        network.to(self.device)
        if self.channels_last:
            parts = [network]
            if isinstance(network, DiffusionPipeline):
                parts = [network.unet, network.vae]
            for part in parts:
                part.to(memory_format=torch.channels_last)
        if self.compile:
            if isinstance(network, DiffusionPipeline):
                network.unet = torch.compile(network.unet)
            else:
                network = torch.compile(network)
        self.wait()
        self.report["load_seconds"] = time.perf_counter() - start
        return network

    def time(self, body: Callable):
        """Runs `body` once and `repeats` times more; what the last run gave."""
        seconds = []
        result = None
        for _ in range(1 + self.repeats):
            result = None  # what the run before gave is gone before the next one needs its memory
            start = time.perf_counter()
            result = body()
            self.wait()
            seconds.append(time.perf_counter() - start)
        self.report |= {"first_seconds": seconds[0], "seconds": seconds[1:]}
        return result

    def inputs(self, dtype: torch.dtype | None = None) -> Tensors:
        """The input file; floating point in `dtype` and images in the layout asked for."""
        tensors = load_file(self.take("input"), device=str(self.device))
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and name != "timesteps":
                tensors[name] = tensor.to(dtype or self.dtype)
            if self.channels_last and tensor.dim() == 4:
                tensors[name] = tensors[name].to(memory_format=torch.channels_last)
        return tensors

    def pretrained(self, kind: type, dtype: torch.dtype | None = None):
        folder = Path(self.take("model"))
        # A folder with the half precision variant alone.
        plain = any(".fp16." not in file.name for file in folder.glob("*.safetensors"))
        variant = {} if plain else {"variant": "fp16"}
        return kind.from_pretrained(folder, dtype=dtype or self.dtype, **variant).eval()


def predict(unet: UNet2DConditionModel, inputs: Tensors) -> torch.Tensor:
    added = None
    if "pooled" in inputs:
        added = {"text_embeds": inputs["pooled"], "time_ids": inputs["time_ids"]}
    return unet(
        inputs["latents"], inputs["timesteps"], inputs["text"], added_cond_kwargs=added
    ).sample


@torch.inference_mode()
def forward(run: Run) -> Tensors:
    unet, inputs = run.load(lambda: run.pretrained(UNet2DConditionModel)), run.inputs()
    return {"output": run.time(lambda: predict(unet, inputs))}


def backward(run: Run) -> Tensors:
    """Weights are f32; in half precision the pass runs under autocast."""
    unet = run.load(lambda: run.pretrained(UNet2DConditionModel, torch.float32))
    inputs = run.inputs(torch.float32)
    wanted = [name for name in run.take("parameters", "").split(",") if name]
    if run.take("checkpointing", "false") == "true":
        unet.train().enable_gradient_checkpointing()
    autocast = torch.autocast(run.device.type, run.dtype, enabled=run.dtype != torch.float32)

    def step() -> torch.Tensor:
        unet.zero_grad(set_to_none=True)
        with autocast:
            output = predict(unet, inputs)
        loss = (output.float() - inputs["target"]).square().mean()
        loss.backward()
        return loss.detach()

    outputs = {"loss": run.time(step)}
    for name in wanted:
        outputs[f"gradient.{name}"] = unet.get_parameter(name).grad
    return outputs


@torch.inference_mode()
def vae_encode(run: Run) -> Tensors:
    vae, inputs = run.load(lambda: run.pretrained(AutoencoderKL)), run.inputs()
    posterior = run.time(lambda: vae.encode(inputs["pixels"]).latent_dist)
    return {"mean": posterior.mean, "log_variance": posterior.logvar}


@torch.inference_mode()
def vae_decode(run: Run) -> Tensors:
    vae, inputs = run.load(lambda: run.pretrained(AutoencoderKL)), run.inputs()
    return {"pixels": run.time(lambda: vae.decode(inputs["latents"]).sample)}


@torch.inference_mode()
def text(run: Run) -> Tensors:
    config = json.loads(Path(run.options["model"], "config.json").read_text())
    projected = "CLIPTextModelWithProjection" in config["architectures"]
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    encoder, inputs = run.load(lambda: run.pretrained(kind)), run.inputs()
    output = run.time(lambda: encoder(inputs["tokens"], output_hidden_states=True))
    outputs = {"last": output.last_hidden_state, "penultimate": output.hidden_states[-2]}
    return outputs | ({"pooled": output.text_embeds} if projected else {})


@torch.inference_mode()
def image(run: Run) -> Tensors:
    def make() -> DiffusionPipeline:
        folder = Path(run.take("model"))
        xl = "StableDiffusionXL" in (folder / "model_index.json").read_text()
        options = {"add_watermarker": False} if xl else {"safety_checker": None}
        if other := run.take("unet", ""):
            options["unet"] = UNet2DConditionModel.from_pretrained(other, dtype=run.dtype)
        return DiffusionPipeline.from_pretrained(folder, dtype=run.dtype, **options)

    pipeline = run.load(make)
    pipeline.set_progress_bar_config(disable=True)
    sampler = SAMPLERS[run.take("sampler", "ddim")]
    pipeline.scheduler = sampler.from_config(pipeline.scheduler.config)
    with safe_open(run.take("input"), "pt") as file:
        texts = {name: json.loads(value) for name, value in file.metadata().items()}
    empty = run.take("empty_negative", "false") == "true"
    seeds = [int(seed) for seed in run.take("seeds").split(",")]
    options = {
        "prompt": texts["prompts"],
        "negative_prompt": None if empty else texts["negatives"],
        "num_inference_steps": int(run.take("steps", "20")),
        "guidance_scale": float(run.take("guidance", "7.5")),
        "height": int(run.take("height", "64")),
        "width": int(run.take("width", "64")),
        "output_type": "np",
    }

    def draw():
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        return pipeline(**options, generator=generators).images

    images = torch.from_numpy(run.time(draw))
    return {"images": (images * 255).round().to(torch.uint8)}


COMMANDS = {
    "forward": forward,
    "backward": backward,
    "vae-encode": vae_encode,
    "vae-decode": vae_decode,
    "text": text,
    "image": image,
}


def run(command: str, options: dict[str, str]) -> dict:
    """Runs a command; its report."""
    transformers_logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    run = Run(command, options)
    outputs = COMMANDS[command](run)
    if output := run.take("output", ""):
        # inference mode's tensors have no memory that could be shared, which saving asks about
        save_file({name: plain(tensor) for name, tensor in outputs.items()}, output)
    if run.options:
        raise SystemExit(f"unknown options {sorted(run.options)}")
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    run.report["peak_rss_bytes"] = int(peak.split()[1]) * 1024
    return run.report | {"peak_device": peak_device(run.device)}


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in rows, and f32 if it is floating point."""
    with torch.inference_mode(False):
        copy = tensor.detach().float() if tensor.is_floating_point() else tensor
        return copy.contiguous().clone()


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], dict(part.split("=", 1) for part in sys.argv[2:]))))
