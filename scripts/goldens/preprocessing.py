#!/usr/bin/env python3
"""Goldens for crates/scorers: images as transformers and open_clip preprocess them by a model's configuration.

Writes crates/scorers/tests/fixtures/preprocessing.json: {"images": [NAME], "hf": [{"name", "config", "tensors"}],
"open_clip": [...]}. "config" replaces keys in the file of data/mini/clip or the `preprocess_cfg` of data/mini/hps.
"tensors" has the SHA-256 of the (3, 64, 64) tensor of each image, null if the library fails or returns another shape.
The images are files in crates/media/tests/fixtures/images, and WIDTHxHEIGHT for the formula of images.py.
Run with Pillow 13.0.0, torchvision 0.26.0, transformers 5.23.0, open_clip_torch 3.3.0.
"""
import io
import json
import pathlib
import tempfile
import warnings

import numpy as np
from images import FOLDER, formula, sha
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIXTURE = ROOT / "crates/scorers/tests/fixtures/preprocessing.json"
SIDE = 64
IMAGES = [
    "jpeg-420.jpg", "jpeg-grey.jpg", "jpeg-cmyk.jpg", "png-rgba-8.png", "png-palette-8-alpha.png", "png-grey-16.png",
    "png-grey-1.png", "png-grey-alpha-8.png", "png-rgb-8-transparent.png", "160x90", "90x160", "64x64", "65x64", "3x200", "31x29",
]
SQUARE = {"height": SIDE, "width": SIDE}

HF = {
    "as it is": {},
    "size.shortest_edge 72": {"size": {"shortest_edge": 72}},
    "size.shortest_edge 40": {"size": {"shortest_edge": 40}},
    "size 72": {"size": 72},
    "size 72, default_to_square": {"size": 72, "default_to_square": True},
    "size list": {"size": [70, 90]},
    "size height and width": {"size": {"height": 80, "width": 50}},
    "size shortest and longest": {"size": {"shortest_edge": 64, "longest_edge": 80}},
    "size shortest and a far longest": {"size": {"shortest_edge": 66, "longest_edge": 8000}},
    "size max_height and max_width": {"size": {"max_height": 64, "max_width": 90}},
    "squashed": {"do_center_crop": False, "size": SQUARE},
    "squashed, lanczos": {"do_center_crop": False, "size": SQUARE, "resample": 1},
    "squashed by a number": {"do_center_crop": False, "size": SIDE, "default_to_square": True},
    **{f"resample {number}": {"resample": number} for number in range(6)},
    "do_resize false": {"do_resize": False},
    "do_rescale false": {"do_rescale": False},
    "rescale_factor": {"rescale_factor": 1 / 127.5},
    "do_normalize false": {"do_normalize": False},
    "neither rescaled nor normalized": {"do_rescale": False, "do_normalize": False},
    "do_convert_rgb false": {"do_convert_rgb": False},
    "image_mean and image_std": {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.5]},
    "image_mean and image_std as numbers": {"image_mean": 0.5, "image_std": 0.25},
    "crop_size as a number": {"crop_size": SIDE},
    "crop_size as a list": {"crop_size": [SIDE, SIDE]},
    "nulls": dict.fromkeys(("resample", "do_resize", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "do_convert_rgb")),
    "no effect": {"feature_extractor_type": "CLIPFeatureExtractor", "processor_class": "CLIPProcessor", "data_format": "channels_last",
                  "return_tensors": "np", "do_pad": False, "pad_size": 99, "crop_pct": 0.5, "disable_grouping": True},
    "use_square_size": {"use_square_size": True},
    "size absent": {"size": None},
}
OPEN_CLIP = {
    "shortest": {"resize_mode": "shortest"},
    "squash": {"resize_mode": "squash"},
    "longest": {"resize_mode": "longest"},
    "longest, filled": {"resize_mode": "longest", "fill_color": 200},
    "longest, bilinear, filled with one": {"resize_mode": "longest", "fill_color": 1, "interpolation": "bilinear"},
    "shortest, bilinear": {"resize_mode": "shortest", "interpolation": "bilinear"},
    "squash, bilinear": {"resize_mode": "squash", "interpolation": "bilinear"},
    "random": {"resize_mode": "shortest", "interpolation": "random"},
    "nulls": {"resize_mode": None, "interpolation": None, "mean": None, "std": None, "fill_color": None},
    "mean and std as numbers": {"resize_mode": "squash", "mean": 0.5, "std": 0.25},
    "mean and std of one": {"resize_mode": "squash", "mean": [0.5], "std": [0.25]},
    "mean of zero": {"resize_mode": "squash", "mean": 0, "std": [0.5, 0.4, 0.3]},
    "no effect": {"resize_mode": "squash", "size": 99, "mode": "RGB", "num_classes": 3},
}


def opened(name):
    if name.startswith(("jpeg", "png", "webp")):
        return Image.open(io.BytesIO((FOLDER / name).read_bytes()))
    width, height = map(int, name.split("x"))
    return Image.fromarray(formula(height, width))


def hf(config):
    mini = json.loads((ROOT / "data/mini/clip/preprocessor_config.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "preprocessor_config.json").write_text(json.dumps(mini | config))
        processor = CLIPImageProcessorPil.from_pretrained(folder)
    return lambda image: np.asarray(processor(images=image, return_tensors="np")["pixel_values"][0])


def open_clip(config):
    mini = json.loads((ROOT / "data/mini/hps/open_clip_config.json").read_text())["preprocess_cfg"]
    merged = merge_preprocess_dict(PreprocessCfg(), mini | config) | {"size": SIDE}
    transform = image_transform_v2(PreprocessCfg(**merged), is_train=False)
    return lambda image: transform(image).numpy()


def tensor(transform, name):
    try:
        array = np.ascontiguousarray(transform(opened(name)), dtype="<f4")
    except Exception as error:  # whatever the libraries raise
        print(f"{name}: {type(error).__name__} {error}")
        return None
    return sha(array.tobytes()) if array.shape == (3, SIDE, SIDE) else None


def main():
    warnings.simplefilter("ignore")
    golden = {"images": IMAGES}
    for library, make, configs in (("hf", hf, HF), ("open_clip", open_clip, OPEN_CLIP)):
        golden[library] = []
        for name, config in configs.items():
            print(f"{library}: {name}")
            transform = make(config)
            golden[library].append({"name": name, "config": config, "tensors": [tensor(transform, image) for image in IMAGES]})
    FIXTURE.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(golden)
    FIXTURE.write_text(text.replace('{"name"', '\n{"name"') + "\n")
    print(f"{FIXTURE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
