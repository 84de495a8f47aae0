#!/usr/bin/env python3
"""Goldens for crates/media: small images as Pillow, torchvision, transformers and open_clip read and preprocess them.

Writes crates/media/tests/fixtures/images/* and crates/media/tests/fixtures/images.json.
Run with Pillow 13.0.0, torch 2.11.0, torchvision 0.26.0, transformers 5.23.0, open_clip_torch 3.3.0,
on a processor with fused multiply-add (torch's results differ in the last bit without).
"""
import hashlib
import io
import json
import pathlib
import struct
import sys
import warnings
import zlib

import numpy as np
import open_clip
import PIL
import torch
import torchvision
import torchvision.transforms.functional as F
from PIL import Image
from torchvision.transforms import InterpolationMode
from transformers.image_transforms import convert_to_rgb
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

ROOT = pathlib.Path(__file__).resolve().parents[2] / "crates/media/tests/fixtures"
FOLDER = ROOT / "images"
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
FILTERS = {name: Image.Resampling[name.upper()] for name in ("bicubic", "bilinear", "nearest", "box", "hamming", "lanczos")}
SIZES = [(29, 17), (64, 90), (7, 31), (40, 11)]


def sha(data):
    """The first eight bytes of the SHA-256: the fixture stays small."""
    return hashlib.sha256(data).hexdigest()[:16]


def texture(height, width, channels, bits=8):
    """Smooth waves with an edge and some grain; the same on every machine (integers only)."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(channels), indexing="ij")
    wave = ((x * (3 + c) + y * (5 - c)) % 97) * 2 + ((x * y * (c + 1)) % 61)
    grain = (x * 7919 + y * 104729 + c * 1299709 + (x * y) ** 2) % 23
    edge = np.where((x + 2 * y + 11 * c) % 64 < 32, 40, 0)
    value = (wave + grain + edge) % 256
    if bits == 16:
        return (value * 257 + grain * 7).astype(np.uint32) % 65536
    return value.astype(np.uint8)


def formula(height, width):
    """pixel[y,x,c] of the synthetic images that the tests compute."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    return (((x * 7 + y * 13 + c * 29 + ((x * y) % 31) * 5) // (1 + c)) & 255).astype(np.uint8)


# --- files -------------------------------------------------------------------------------------

def saved(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def pack_row(samples, bits):
    """One row of samples (any shape) as PNG bytes."""
    samples = np.asarray(samples).reshape(-1)
    if bits == 16:
        return samples.astype(">u2").tobytes()
    if bits == 8:
        return samples.astype(np.uint8).tobytes()
    digits = ((samples[:, None] >> np.arange(bits - 1, -1, -1)) & 1).reshape(-1)
    return np.packbits(digits.astype(np.uint8)).tobytes()


ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def png(samples, color_type, bits, interlaced=False, palette=None, transparency=None):
    """A PNG file of a kind that Pillow does not write. Filters 0 to 4 take turns."""
    height, width, channels = samples.shape
    step = max(1, bits * channels // 8)

    def filtered(rows):
        previous, out = None, b""
        for number, row in enumerate(rows):
            kind = number % 5
            before = previous or bytes(len(row))
            coded = bytearray()
            for i, value in enumerate(row):
                a = row[i - step] if i >= step else 0
                b, c = before[i], (before[i - step] if i >= step else 0)
                p = a + b - c
                nearest = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
                coded.append((value - [0, a, b, (a + b) // 2, nearest][kind]) & 255)
            out += bytes([kind]) + bytes(coded)
            previous = row
        return out

    passes = ADAM7 if interlaced else [(0, 0, 1, 1)]
    data = b""
    for left, top, dx, dy in passes:
        part = samples[top::dy, left::dx]
        if part.size:
            data += filtered([pack_row(row, bits) for row in part])

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    file = b"\x89PNG\r\n\x1a\n"
    file += chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, interlaced))
    if palette is not None:
        file += chunk(b"PLTE", palette)
    if transparency is not None:
        file += chunk(b"tRNS", transparency)
    data = zlib.compress(data)
    for start in range(0, len(data), 700):  # several chunks, as large files have
        file += chunk(b"IDAT", data[start:start + 700])
    return file + chunk(b"IEND", b"")


def files():
    rgb = Image.fromarray(texture(45, 61, 3))
    grey = Image.fromarray(texture(45, 61, 1)[:, :, 0])
    cmyk = Image.frombytes("CMYK", (61, 45), texture(45, 61, 4).tobytes())
    rgba = Image.frombytes("RGBA", (61, 45), texture(45, 61, 4).tobytes())
    exif = Image.Exif()
    exif[0x0112] = 6
    out = {
        "jpeg-444.jpg": saved(rgb, format="JPEG", quality=90, subsampling=0),
        "jpeg-422.jpg": saved(rgb, format="JPEG", quality=85, subsampling=1),
        "jpeg-420.jpg": saved(rgb, format="JPEG", quality=75, subsampling=2),
        "jpeg-progressive.jpg": saved(rgb, format="JPEG", quality=80, progressive=True),
        "jpeg-progressive-444.jpg": saved(rgb, format="JPEG", quality=95, subsampling=0, progressive=True),
        "jpeg-grey.jpg": saved(grey, format="JPEG", quality=80),
        "jpeg-grey-progressive.jpg": saved(grey, format="JPEG", quality=80, progressive=True),
        "jpeg-rgb-colours.jpg": saved(rgb, format="JPEG", quality=85, keep_rgb=True),
        "jpeg-cmyk.jpg": saved(cmyk, format="JPEG", quality=90),
        "jpeg-restarts.jpg": saved(rgb, format="JPEG", quality=70, restart_marker_rows=1),
        "jpeg-exif-rotated.jpg": saved(rgb, format="JPEG", quality=75, exif=exif),
        "jpeg-low-quality.jpg": saved(rgb, format="JPEG", quality=4, optimize=True),
        "jpeg-one-pixel.jpg": saved(rgb.crop((0, 0, 1, 1)), format="JPEG"),
        "jpeg-column.jpg": saved(rgb.crop((0, 0, 1, 45)), format="JPEG"),
        "webp-lossy.webp": saved(rgb, format="WEBP", quality=70),
        "webp-lossy-alpha.webp": saved(rgba, format="WEBP", quality=60),
        "webp-lossless.webp": saved(rgb.crop((0, 0, 23, 19)), format="WEBP", lossless=True),
        "webp-lossless-alpha.webp": saved(rgba.crop((0, 0, 23, 19)), format="WEBP", lossless=True, exact=True),
        "webp-animated.webp": saved(
            rgb.crop((0, 0, 23, 19)), format="WEBP", save_all=True, duration=50, quality=50,
            append_images=[rgb.crop((9, 9, 32, 28)), rgb.crop((5, 0, 28, 19))]),
        "webp-animated-alpha.webp": saved(
            rgba.crop((0, 0, 23, 19)), format="WEBP", save_all=True, duration=50, lossless=True,
            append_images=[rgba.crop((9, 9, 32, 28))]),
    }
    # The Adobe marker's last byte says how four components are coded: 0 CMYK, 2 YCCK.
    ycck = bytearray(out["jpeg-cmyk.jpg"])
    ycck[ycck.index(b"Adobe") + 11] = 2
    out["jpeg-ycck.jpg"] = bytes(ycck)

    small = texture(19, 23, 4)
    wide = texture(19, 23, 4, bits=16)
    palette = bytes((i * 37 + 11 * c) % 256 for i in range(200) for c in range(3))
    for bits in (1, 2, 4, 8):
        samples = small[:, :, :1] >> (8 - bits)
        out[f"png-grey-{bits}.png"] = png(samples, 0, bits)
        # fewer colours than indices: the rest is black
        entries = max(1, (1 << bits) * 3 // 4) if bits < 8 else 200
        out[f"png-palette-{bits}.png"] = png(samples, 3, bits, palette=palette[:3 * entries])
    out |= {
        "png-grey-2-interlaced.png": png(small[:, :, :1] >> 6, 0, 2, interlaced=True),
        "png-palette-4-interlaced.png": png(small[:, :, :1] >> 4, 3, 4, interlaced=True, palette=palette[:48]),
        "png-palette-8-alpha.png": png(small[:, :, :1], 3, 8, palette=palette, transparency=bytes(range(9, 130))),
        "png-palette-8-one-transparent.png": png(small[:, :, :1], 3, 8, palette=palette, transparency=b"\xff\xff\x00"),
        "png-grey-16.png": png(wide[:, :, :1], 0, 16),
        "png-grey-16-dark.png": png(wide[:, :, :1] // 150, 0, 16),
        "png-grey-8-transparent.png": png(small[:, :, :1], 0, 8, transparency=b"\0\x40"),
        "png-grey-alpha-8.png": png(small[:, :, :2], 4, 8),
        "png-grey-alpha-16.png": png(wide[:, :, :2], 4, 16),
        "png-rgb-8.png": png(small[:, :, :3], 2, 8),
        "png-rgb-8-interlaced.png": png(small[:, :, :3], 2, 8, interlaced=True),
        "png-rgb-8-transparent.png": png(small[:, :, :3], 2, 8, transparency=b"\0\x10\0\x20\0\x30"),
        "png-rgb-16.png": png(wide[:, :, :3], 2, 16),
        "png-rgb-16-interlaced.png": png(wide[:, :, :3], 2, 16, interlaced=True),
        "png-rgba-8.png": png(small, 6, 8),
        "png-rgba-8-interlaced.png": png(small, 6, 8, interlaced=True),
        "png-rgba-16.png": png(wide, 6, 16),
        "png-one-pixel.png": png(small[:1, :1, :3], 2, 8),
        "png-row.png": png(small[:1, :, :3], 2, 8, interlaced=True),
    }
    return out


# --- results of the libraries -----------------------------------------------------------------

def native(image):
    """Pixels as crates/media stores them: mode 1 has a byte per pixel."""
    return image.convert("L").tobytes() if image.mode == "1" else image.tobytes()


def hps(image, antialias, size=224):
    """ResizeMaxSize and MaskAwareNormalize of HPSv2; padding also if the long side already fits."""
    tensor = F.to_tensor(image.convert("RGB"))
    height, width = tensor.shape[1:]
    scale = size / float(max(height, width))
    if scale != 1.0:
        new = tuple(max(1, round(side * scale)) for side in (height, width))
        if antialias and new[1] == 1:
            # torch 2.11 fills a column of width 1 with its first value; two equal columns are right.
            tensor = F.resize(tensor, (height, 1), InterpolationMode.BICUBIC, antialias=True)
            tensor = F.resize(tensor.repeat(1, 1, 2), (new[0], 2), InterpolationMode.BICUBIC, antialias=True)[:, :, :1]
        else:
            tensor = F.resize(tensor, new, InterpolationMode.BICUBIC, antialias=antialias)
    height, width = tensor.shape[1:]
    down, right = size - height, size - width
    tensor = F.pad(tensor, [right // 2, down // 2, right - right // 2, down - down // 2], fill=0)
    return F.normalize(tensor, MEAN, STD)


HF = CLIPImageProcessorPil(
    do_resize=True, size={"shortest_edge": 224}, resample=3, do_center_crop=True,
    crop_size={"height": 224, "width": 224}, do_rescale=True, rescale_factor=1 / 255,
    do_normalize=True, image_mean=list(MEAN), image_std=list(STD), do_convert_rgb=True)
OPEN_CLIP = open_clip.image_transform(224, is_train=False, mean=MEAN, std=STD)


def processed(image):
    return torch.from_numpy(np.asarray(HF(images=image, return_tensors="np")["pixel_values"][0]))


def tensors(image):
    results = {
        "hf": processed(image),
        "hf-drop": processed(Image.fromarray(np.asarray(image.convert("RGB")))),
        "open_clip": OPEN_CLIP(image),
        "hps-legacy": hps(image, False),
        "hps-antialias": hps(image, True),
    }
    out = {}
    for name, tensor in results.items():
        array = np.ascontiguousarray(tensor.numpy(), dtype="<f4")
        assert array.shape == (3, 224, 224), (name, array.shape)
        out[name] = sha(array.tobytes())
    return out


def resizes(image, sizes):
    return {f"{name} {width}x{height}": sha(native(image.resize((width, height), value)))
            for name, value in FILTERS.items() for width, height in sizes}


def opens(data):
    """Whether Pillow decodes the data, and the pixels if it does."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return native(image)
    except Exception:  # Pillow raises SyntaxError, OSError, ValueError, EOFError, struct.error ...
        return None


def flips(data):
    """200 copies with one bit changed; the test computes the same ones."""
    state = 1
    for _ in range(200):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        bit = (state >> 33) % (len(data) * 8)
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << (bit % 8)
        yield bytes(changed)


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    cases = {}
    for name, data in files().items():
        (FOLDER / name).write_bytes(data)
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            case = {
                "mode": image.mode, "width": image.width, "height": image.height,
                "pixels": sha(native(image)), "rgb": sha(image.convert("RGB").tobytes()), "white": sha(convert_to_rgb(image, return_numpy=True).tobytes()),
                "resized": resizes(image, SIZES), "tensors": tensors(image),
            }
        cut = [opens(data[:len(data) * part // 64]) for part in range(64)]
        case["truncated"] = "".join("0" if pixels is None else "1" for pixels in cut)
        if name.endswith((".jpg", ".png")):
            flipped = [opens(changed) for changed in flips(data)]
            case["flipped"] = "".join("0" if pixels is None else "1" for pixels in flipped)
            case["flipped_pixels"] = sha(b"".join(p for p in flipped if p is not None))
        cases[name] = case

    synthetic = {}
    extreme = [(1, 600), (600, 1), (3, 700), (700, 3), (1, 1), (224, 100), (100, 224), (224, 224), (225, 447),
               (512, 512), (331, 229), (227, 448)]
    for width, height in extreme:
        image = Image.fromarray(formula(height, width))
        sizes = SIZES + [(width, 9), (9, height), (width, height), (224, 224)]
        synthetic[f"{width}x{height}"] = {"resized": resizes(image, sizes), "tensors": tensors(image)}

    # every value before white at every alpha
    y, x = np.meshgrid(np.arange(256), np.arange(256), indexing="ij")
    every = Image.fromarray(np.stack([x, 255 - x, x, y], axis=-1).astype(np.uint8), "RGBA")

    golden = {
        "on_white": sha(convert_to_rgb(every, return_numpy=True).tobytes()),
        "pillow": PIL.__version__, "torch": torch.__version__.split("+")[0],
        "torchvision": torchvision.__version__.split("+")[0], "python": sys.version.split()[0],
        "files": cases, "synthetic": synthetic,
    }
    (ROOT / "images.json").write_text(json.dumps(golden, indent=1) + "\n")
    total = sum(path.stat().st_size for path in FOLDER.iterdir()) + (ROOT / "images.json").stat().st_size
    print(f"{len(cases)} files, {total} bytes")


if __name__ == "__main__":
    main()
