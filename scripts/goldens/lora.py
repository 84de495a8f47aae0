"""Goldens of adapters (LoRA): crates/nn/tests/fixtures/lora/.

Run with torch 2.11.0, transformers 5.23.0, diffusers 0.42.1 and peft 0.21.2:

    python scripts/goldens/lora.py

`cases.json` names networks of fixtures/unet with adapters; `INDEX.adapters.safetensors` holds them, and
`INDEX.golden.safetensors` PEFT's output and its gradients of the mean squared error. `steps.safetensors`
holds ten steps of AdamW from new adapters. `sd` and `sdxl` hold adapters of the pipelines of
fixtures/diffusion in the forms that are in use, which diffusers itself loads here, and
`expected.safetensors` the images of diffusers with them.
"""

import json
import pathlib
import shutil
import tempfile

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders.lora_base import _pack_dict_with_prefix
from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)

FIXTURES = pathlib.Path(__file__).resolve().parents[2] / "crates" / "nn" / "tests" / "fixtures"
OUT = FIXTURES / "lora"
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
FEED_FORWARD = ["ff.net.0.proj", "ff.net.2"]
CONVOLUTIONS = ["conv1", "conv_shortcut", "downsamplers.0.conv", "proj_in", "time_emb_proj"]

# Network, targets as this program names them, rank, alpha.
CASES = [
    ("sd15", "attention", 4, 4.0),
    ("sd15", "attention+ff", 3, 6.0),
    ("sd21", "all-linear", 2, 3.0),
    ("sdxl", "attention", 4, 8.0),
    ("sd15", ",".join(CONVOLUTIONS), 2, 1.0),
]

SEEDS = [11, 2**40 + 3]
PROMPTS = ["a red cat", "old mill by the sea"]
STEPS = 10


def modules(unet, targets):
    if targets == "all-linear":
        return [name for name, module in unet.named_modules() if isinstance(module, torch.nn.Linear)]
    return {"attention": ATTENTION, "attention+ff": ATTENTION + FEED_FORWARD}.get(targets, targets.split(","))


def adapted(network, targets, rank, alpha):
    unet = UNet2DConditionModel.from_pretrained(FIXTURES / "unet" / network).eval()
    unet.requires_grad_(False)
    config = LoraConfig(
        r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=modules(unet, targets)
    )
    unet.add_adapter(config)
    return unet


def weights(unet):
    return [(name.replace(".default", ""), value) for name, value in unet.named_parameters() if ".lora_" in name]


def randomize(unet, seed, size):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, value in weights(unet):
            value.copy_(size * torch.randn(value.shape, generator=generator))


def run(unet, golden):
    added = {}
    if "pooled" in golden:
        added = {"text_embeds": golden["pooled"], "time_ids": golden["time_ids"]}
    latents, times, text = golden["latents"], golden["timesteps"], golden["text"]
    output = unet(latents, times, text, added_cond_kwargs=added).sample
    return output, (output - golden["target"]).square().mean()


def networks():
    for index, (network, targets, rank, alpha) in enumerate(CASES):
        unet = adapted(network, targets, rank, alpha)
        randomize(unet, index, 0.3)
        golden = load_file(FIXTURES / "unet" / network / "golden.safetensors")
        output, loss = run(unet, golden)
        loss.backward()
        adapters = {name: value.detach().contiguous() for name, value in weights(unet)}
        expected = {f"gradient.{name}": value.grad.contiguous() for name, value in weights(unet)}
        save_file(adapters, OUT / f"{index}.adapters.safetensors")
        save_file(expected | {"output": output.detach()}, OUT / f"{index}.golden.safetensors")
    names = ["network", "targets", "rank", "alpha"]
    cases = [dict(zip(names, case)) for case in CASES]
    (OUT / "cases.json").write_text(json.dumps(cases, indent=1) + "\n")


def steps():
    unet = adapted(*CASES[0])
    torch.manual_seed(5)
    for name, value in weights(unet):
        torch.nn.init.zeros_(value) if "lora_B" in name else torch.nn.init.normal_(value, std=1 / CASES[0][2])
    saved = {f"start.{name}": value.detach().clone() for name, value in weights(unet)}
    golden = load_file(FIXTURES / "unet" / CASES[0][0] / "golden.safetensors")
    optimizer = torch.optim.AdamW([value for _, value in weights(unet)], lr=1e-2, weight_decay=1e-2)
    losses = []
    for step in range(STEPS):
        batch = golden | {"latents": golden["latents"] * (1 + 0.1 * step), "target": golden["target"] * 0.5}
        _, loss = run(unet, batch)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    saved |= {f"end.{name}": value.detach().clone() for name, value in weights(unet)}
    saved["losses"] = torch.tensor(losses)
    save_file(saved, OUT / "steps.safetensors")


def load(name):
    kind = StableDiffusionPipeline if name == "sd" else StableDiffusionXLPipeline
    options = dict(safety_checker=None) if name == "sd" else dict(add_watermarker=False)
    pipeline = kind.from_pretrained(FIXTURES / "diffusion" / name, **options)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def images(pipeline):
    sampled = pipeline(
        PROMPTS,
        num_inference_steps=5,
        guidance_scale=7.5,
        height=16,
        width=24,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in SEEDS],
        output_type="np",
    ).images
    return torch.from_numpy((sampled * 255).round().astype("uint8")).contiguous()


def sgm_names(unet):
    """Layers by their names in Stability AI's code, found by asking diffusers for every candidate."""
    count = unet.config.layers_per_block
    names = {}
    for module, layer in unet.named_modules():
        if not isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)) or ".attentions." not in module:
            continue
        rest = module.split(".attentions.")[1].split(".", 1)[1].replace(".", "_")
        # The function leaves the names of the sides to a later one.
        wanted = module.replace(".", "_")
        for own, theirs in {"down_blocks": "input_blocks", "mid_block": "middle_block", "up_blocks": "output_blocks"}.items():
            wanted = wanted.replace(own, theirs)
        for block in [f"input_blocks_{i}_1" for i in range(1, 12)] + ["middle_block_1"] + [
            f"output_blocks_{i}_1" for i in range(12)
        ]:
            key = f"lora_unet_{block}_{rest}.lora_down.weight"
            config = type("Config", (), {"layers_per_block": count})()
            try:
                found = next(iter(_maybe_map_sgm_blocks_to_diffusers({key: torch.zeros(1)}, config)))
            except (ValueError, IndexError):
                continue
            if found == f"lora_unet_{wanted}.lora_down.weight":
                names[module] = f"{block}_{rest}"
                break
        else:
            raise SystemExit(f"no name for {module}")
    return names


def files(name):
    folder = OUT / name
    folder.mkdir(parents=True)
    rank, alpha = 4, 2.0
    pipeline = load(name)
    plain = images(pipeline)
    parts = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    if name == "sdxl":
        parts["text_encoder_2"] = pipeline.text_encoder_2
    configs, states = {}, {}
    for index, (part, network) in enumerate(parts.items()):
        targets = ATTENTION + ["proj_in"] if part == "unet" else ["q_proj", "v_proj", "out_proj"]
        configs[part] = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets)
        network.add_adapter(configs[part])
        randomize(network, 20 + index, 0.6)
        states[part] = {key: value.detach().clone().contiguous() for key, value in
                        get_peft_model_state_dict(network).items()}
    expected = {"1": images(pipeline)}
    pipeline.set_adapters(["default"], [0.5])
    expected["0.5"] = images(pipeline)
    for scale, sampled in expected.items():
        assert (sampled.int() - plain.int()).abs().max() > 20, scale
    save_file(expected, folder / "expected.safetensors")

    # As diffusers writes it now, with the scale in the metadata.
    metadata = {}
    for part, config in configs.items():
        entries = {"r": config.r, "lora_alpha": config.lora_alpha, "target_modules": sorted(config.target_modules)}
        metadata |= _pack_dict_with_prefix(entries, part)
    flat = {f"{part}.{key}": value for part, state in states.items() for key, value in state.items()}
    save_file(flat, folder / "diffusers.safetensors",
              {"format": "pt", "lora_adapter_metadata": json.dumps(metadata, indent=2, sort_keys=True)})

    # Without metadata the scale is one: it goes into lora_B.
    folded = {key: value * (alpha / rank) if ".lora_B." in key else value for key, value in flat.items()}
    trainer = {}
    for part in parts:
        own = {key[len(part) + 1:]: value for key, value in folded.items() if key.startswith(part + ".")}
        if part == "unet":
            # convert_state_dict_to_diffusers renames the layers of attention alone.
            ends = {".lora_A.": ".lora.down.", ".lora_B.": ".lora.up."}
            own = {key.replace(old, new): value for old, new in ends.items() for key, value in own.items() if old in key}
        else:
            own = convert_state_dict_to_diffusers(own)
        trainer |= {f"{part}.{key}": value for key, value in own.items()}
    save_file({key: value.contiguous() for key, value in trainer.items()}, folder / "trainer.safetensors", {"format": "pt"})

    # The form of sd-scripts, with alpha beside each layer.
    sgm = sgm_names(load(name).unet) if name == "sdxl" else {}
    beginnings = {"unet": "lora_unet_", "text_encoder": "lora_te1_" if name == "sdxl" else "lora_te_",
                  "text_encoder_2": "lora_te2_"}
    kohya = {}
    for part, state in states.items():
        for key, value in state.items():
            module, _, end = key.partition(".lora_")
            known = sgm.get(module, module.replace(".", "_")) if part == "unet" else module.replace(".", "_")
            if part != "unet" and not known.startswith("text_model_"):
                known = "text_model_" + known
            known = beginnings[part] + known
            kohya[f"{known}.lora_{'down' if end.startswith('A') else 'up'}.weight"] = value
            kohya[f"{known}.alpha"] = torch.tensor(alpha)
    save_file(kohya, folder / "kohya.safetensors", {"ss_network_alpha": "2.0"})

    # As diffusers wrote it before PEFT.
    if name == "sd":
        old = {}
        for key, value in folded.items():
            end = ".down.weight" if ".lora_A." in key else ".up.weight"
            module = key.partition(".lora_")[0]
            if module.startswith("unet.") and ".proj_in" in module:
                continue
            if module.startswith("unet."):
                before, _, last = module.rpartition(".attn")
                number, _, layer = last.partition(".")
                module = f"{before}.attn{number}.processor.{layer.removesuffix('.0')}_lora"
            else:
                module = f"{module}.lora_linear_layer"
            old[module + end] = value
        save_file({key: value.contiguous() for key, value in old.items()}, folder / "former.safetensors", {"format": "pt"})

    # Diffusers itself loads these files and samples the same.
    for file in ["diffusers", "trainer", "kohya"] + (["former"] if name == "sd" else []):
        again = load(name)
        again.load_lora_weights(folder, weight_name=f"{file}.safetensors", adapter_name="default")
        sampled = images(again)
        if file == "former":
            save_file(expected | {"former": sampled}, folder / "expected.safetensors")
            continue
        distance = (sampled.int() - expected["1"].int()).abs().max().item()
        assert distance <= 1, (name, file, distance)

    # A folder of PEFT for each part.
    for part, config in configs.items():
        again = load(name)
        model = get_peft_model(getattr(again, part), LoraConfig(
            r=rank, lora_alpha=alpha, target_modules=sorted(config.target_modules)))
        with torch.no_grad():
            for key, value in model.named_parameters():
                if ".lora_" in key:
                    value.copy_(states[part][key.replace(".default", "").removeprefix("base_model.model.")])
        with tempfile.TemporaryDirectory() as place:
            model.save_pretrained(place)
            (folder / "peft" / part).mkdir(parents=True)
            for file in ["adapter_config.json", "adapter_model.safetensors"]:
                shutil.copy(pathlib.Path(place) / file, folder / "peft" / part / file)
            config_file = folder / "peft" / part / "adapter_config.json"
            content = json.loads(config_file.read_text())
            # A path of this machine.
            content["base_model_name_or_path"] = None
            config_file.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    networks()
    steps()
    files("sd")
    files("sdxl")


if __name__ == "__main__":
    main()
