"""Makes the small SigLIP checkpoint, the tokenizers and what transformers computes with them:
crates/nn/tests/fixtures/siglip, crates/media/tests/fixtures/siglip, crates/scorers/tests/fixtures/siglip.json.

Run with torch==2.11.0 transformers==5.23.0 tokenizers==0.23.3 sentencepiece==0.2.3 protobuf==7.36.2
safetensors==0.8.0 Pillow==13.0.0:

    python scripts/goldens/siglip.py

The weights are random. No images are stored: `pixels` makes them from whole numbers, and the Rust
test does the same. The tokenizers are trained here on captions of this script, in the published
forms: SentencePiece's unigrams with the rules of its `nmt_nfkc` (SigLIP), byte-pair merges with a
token for each byte (Gemma's, SigLIP 2). `AutoTokenizer` opens them, so the class is the one that
transformers chooses. `tokens.json.gz` has captions, and for each tokenizer the ids of each caption
without padding: padding goes up to 64. `siglip.json` has images as the processor makes them by several
configurations (SHA-256, null where it fails or the shape is another one), and the scores of images and
captions by checkpoint, tokenizer and processor together. The images are files in
crates/media/tests/fixtures/images, and WIDTHxHEIGHT for the formula of images.py.
"""

import gzip
import importlib.metadata
import io
import json
import pathlib
import random
import tempfile
import warnings

import numpy as np
import sentencepiece
import torch
from images import FOLDER, formula, sha
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, SiglipConfig, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

ROOT = pathlib.Path(__file__).resolve().parents[2] / "crates"
VERSIONS = {"torch": "2.11.0", "transformers": "5.23.0", "tokenizers": "0.23.3", "sentencepiece": "0.2.3", "Pillow": "13.0.0"}
IMAGES = 3
SIDE = 22
PIECES = 700
CONTEXT = 64

torch.set_num_threads(1)
torch.set_grad_enabled(False)


def pixels(side):
    """Numbers in [-2, 2) from a multiplicative hash of their position; exact in any language."""
    place = torch.arange(IMAGES * 3 * side * side, dtype=torch.int64)
    bits = (place * 2654435761 % 2**32) // 256
    return (bits.double() / 2**22 - 2).float().reshape(IMAGES, 3, side, side)


def randomize(model, seed):
    """Weights large enough that every part of the network shows in the features."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            parameter.copy_(1 + 0.2 * noise)
        elif name == "logit_scale":
            parameter.fill_(1.5)
        elif name == "logit_bias":
            parameter.fill_(-0.7)
        elif parameter.dim() >= 2:
            parameter.copy_(noise * 1.2 / parameter.shape[-1] ** 0.5)
        else:
            parameter.copy_(0.2 * noise)
    return model.eval()


def towers(folder):
    """Odd sizes, among them a patch size that does not divide the image."""
    sizes = dict(intermediate_size=14, num_hidden_layers=2, num_attention_heads=5, hidden_size=10)
    config = SiglipConfig(
        text_config=dict(sizes, vocab_size=PIECES, max_position_embeddings=CONTEXT, bos_token_id=2, eos_token_id=1),
        vision_config=dict(sizes, image_size=SIDE, patch_size=7),
    )
    model = randomize(SiglipModel(config), 1)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config.to_json_string())
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors", {"format": "pt"})
    tokens = [[(71 * row + 3 * column) % PIECES for column in range(CONTEXT)] for row in range(4)]
    lengths = [CONTEXT, 1, 35, 2]
    ids, images = torch.tensor(tokens), pixels(SIDE)
    mask = (torch.arange(CONTEXT)[None] < torch.tensor(lengths)[:, None]).long()
    output = model(input_ids=ids, pixel_values=images)
    masked = model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
    head = v2_5_head(folder / "head.pth")
    unit = torch.nn.functional.normalize(output.vision_model_output.pooler_output, dim=-1)
    expected = {
        "tokens": tokens,
        "lengths": lengths,
        "image_features": output.vision_model_output.pooler_output.double().tolist(),
        "text_features": output.text_model_output.pooler_output.double().tolist(),
        "masked_text_features": masked.double().tolist(),
        "scores": torch.sigmoid(output.logits_per_image).double().tolist(),
        "aesthetic_scores": head(unit)[:, 0].double().tolist(),
    }
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")
    return model


def v2_5_head(path):
    """The head of aesthetic-predictor-v2-5: linear layers and dropout, no activations."""
    widths = [10, 9, 7, 5, 4, 1]
    layers = []
    for before, after in zip(widths, widths[1:]):
        layers += [torch.nn.Linear(before, after), torch.nn.Dropout(0.5)]
    head = torch.nn.Module()
    head.scoring_head = torch.nn.Sequential(*layers[:-1])
    randomize(head, 6)
    torch.save(head.state_dict(), path)
    return head.scoring_head


SUBJECTS = "fox;lighthouse;teapot;robot gardener;snow leopard;old bicycle;glass whale;paper dragon;market stall;clock tower".split(";")
STYLES = "in watercolor;as a linocut;at dawn, 35mm f/1.8;low-poly render;ink & gold leaf;8K hdr;(soft light:1.3);by nobody".split(";")
PLACES = "in the Snow;on a WOODEN table;under the full moon;beside a river;in a crowded street at night;above the clouds".split(";")
SCRIPTS = [
    "Ένας γάτος ΣΟΦΟΣ στον ήλιο", "Большой красный дом", "قطة نائمة", "一只猫在月光下的屋顶上", "月の光の下で眠る猫、ｶﾀｶﾅ", "달빛 아래 고양이",
    "चाँदनी में बिल्ली", "แมวนอน", "İSTANBUL'da bir kedi", "Ærø, Ñandú, façade, STRASSE ẞ ß", "𝒜 𝔟𝕠𝕝𝕕 𝟙𝟚 ⓐⓑ ㎏ № ℃ ½", "ﬁne ﬀ ﬆ Å Ω",
]
ODD = [
    "", " ", "\n\t ", "\x00a\x00", "\u200b", "\ufeffbom", "a\u0301\u0301e\u0308", "  two  spaces  ", "tab\tand\x0bvt\x1cfs\x85nel\xa0nb\u3000id", "!!!", "...", "it's John's, don't",
    "a" * 300, "ab" * 90, "z" * 7, "na" * 33, "the" * 40, "🦊" * 5, "fox 🦊🦊 fox 🦊", "\U0001f469\u200d\U0001f680", "▁", "▁fox▁▁fox", "fox ▁ fox▁", "</s>", "a fox </s> in the snow", "</s>fox</s>", "fox</s>",
    "<unk>", "a <unk> fox", "<pad> fox", "<eos> fox <eos>", "<bos>fox", "<mask> FOX", "<EOS> fox", "fox  <eos>", "<unk>fox</s>the", "１２３ ＡＢＣ", "\x1b[31mred\x1b[0m", "&amp; &lt;b&gt;",
    "\ufffd", "\ue000", "日本", "fox " * 80, "A FOX. " * 30, "-_-_-", "100% — “quoted” ‘x’ …",
]


def captions():
    rng = random.Random(20250220)
    made = ODD + SCRIPTS
    made += [f"a {rng.choice(SUBJECTS)} {rng.choice(PLACES)}, {rng.choice(STYLES)}" for _ in range(80)]
    made += [f"{rng.choice(SCRIPTS)} {rng.choice(SUBJECTS).upper()} {rng.choice(SCRIPTS)}" for _ in range(30)]
    pools = ["abcdefghij ", "aeiou", "ab ", "ABC abc.,!?'-", "".join(map(chr, range(0x20, 0x250))), "fox</s>unk<> ", "漢字かなカナ가나 ", "ⅷ½㎏ﬁ\u0301\u0308 \xa0", "▁ a</s>"]
    made += ["".join(rng.choices(pool, k=rng.randint(1, 60))) for pool in pools for _ in range(30)]
    # Python 3.11 and Rust may know other letters of later versions of Unicode.
    return list(dict.fromkeys(made))


def spiece(texts):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 3), model_writer=model, vocab_size=PIECES, model_type="unigram", character_coverage=0.98,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, normalization_rule_name="nmt_nfkc", num_threads=1, minloglevel=2,
    )
    return model.getvalue()


def gemma(texts):
    """Byte-pair merges as Gemma has them, and the frame of its published file."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    letters = trainers.BpeTrainer(vocab_size=900, special_tokens=specials + [f"<0x{byte:02X}>" for byte in range(256)], limit_alphabet=120)
    tokenizer.train_from_iterator([text.lower().replace(" ", "▁") for text in texts * 3], letters)
    file = json.loads(tokenizer.to_str())
    file["added_tokens"] = [token for token in file["added_tokens"] if token["content"] in specials]
    file["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    eos = {"SpecialToken": {"id": "<eos>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    ids = {"<eos>": {"id": "<eos>", "ids": [1], "tokens": ["<eos>"]}}
    file["post_processor"] = {"type": "TemplateProcessing", "single": [text, eos], "pair": [text, eos, text, eos], "special_tokens": ids}
    return json.dumps(file, ensure_ascii=False, separators=(",", ":")).encode()


def described(content, **more):
    flags = dict(content=content, lstrip=True, rstrip=True, normalized=False, single_word=False, special=True)
    return flags | more


SIGLIP = {
    "added_tokens_decoder": {"1": described("</s>"), "2": described("<unk>")},
    "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>", "do_lower_case": True, "model_input_names": ["input_ids"],
    "model_max_length": 64, "sp_model_kwargs": {}, "tokenizer_class": "SiglipTokenizer",
}
PLAIN = dict(lstrip=False, rstrip=False)
GEMMA = {
    "added_tokens_decoder": {str(id): described(name, **PLAIN) for id, name in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"])},
    "add_bos_token": False, "add_eos_token": True, "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>",
    "model_input_names": ["input_ids"], "padding_side": "right", "tokenizer_class": "GemmaTokenizer",
}
TOKENIZERS = {
    "siglip": (SIGLIP, "spiece.model"),
    "siglip_cased": (SIGLIP | {"do_lower_case": False, "model_input_names": ["input_ids", "attention_mask"]}, "spiece.model"),
    "gemma": (GEMMA, "tokenizer.json"),
    "siglip2": (GEMMA | {"tokenizer_class": "Siglip2Tokenizer"}, "tokenizer.json"),
    "gemma_with_start": (GEMMA | {"add_bos_token": True, "add_eos_token": False}, "tokenizer.json"),
    "as_it_is": (GEMMA | {"tokenizer_class": "PreTrainedTokenizerFast"}, "tokenizer.json"),
}


def tokens(folder):
    folder.mkdir(parents=True, exist_ok=True)
    texts = captions()
    files = {"spiece.model": spiece(texts), "tokenizer.json": gemma(texts)}
    for name, content in files.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content, 9, mtime=0))
    goldens = {"captions": texts, "tokenizers": {}}
    for name, (config, file) in TOKENIZERS.items():
        with tempfile.TemporaryDirectory() as opened:
            opened = pathlib.Path(opened)
            (opened / "config.json").write_text(json.dumps({"model_type": "siglip"}))
            (opened / "tokenizer_config.json").write_text(json.dumps(config))
            (opened / file).write_bytes(files[file])
            tokenizer = AutoTokenizer.from_pretrained(opened)
            rows = [tokenizer(text, padding="max_length", truncation=True, max_length=CONTEXT, return_attention_mask=True) for text in texts]
        assert all(len(row["input_ids"]) == CONTEXT for row in rows)
        lengths = [sum(row["attention_mask"]) for row in rows]
        ids = [row["input_ids"][:length] for row, length in zip(rows, lengths)]
        padding = tokenizer.pad_token_id
        assert all(row["input_ids"][length:] == [padding] * (CONTEXT - length) for row, length in zip(rows, lengths))
        masked = "attention_mask" in tokenizer.model_input_names
        goldens["tokenizers"][name] = {"config": config, "file": file, "class": type(tokenizer).__name__, "padding": padding, "masked": masked, "ids": ids}
        print(name, type(tokenizer).__name__, len(tokenizer))
    packed = gzip.compress(json.dumps(goldens, separators=(",", ":")).encode(), 9, mtime=0)
    (folder / "tokens.json.gz").write_bytes(packed)
    print(f"{len(texts)} captions; " + ", ".join(f"{path.name} {path.stat().st_size}" for path in sorted(folder.iterdir())))


PROCESSOR = {
    "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5, 0.5, 0.5], "image_processor_type": "SiglipImageProcessor",
    "image_std": [0.5, 0.5, 0.5], "processor_class": "SiglipProcessor", "resample": 3, "rescale_factor": 0.00392156862745098,
    "size": {"height": SIDE, "width": SIDE},
}
CHANGES = {
    "as it is": {},
    **{f"resample {number}": {"resample": number} for number in range(6)},
    "cropped": {"do_center_crop": True, "crop_size": SIDE, "size": {"height": 30, "width": 41}},
    "shortest edge, cropped": {"do_center_crop": True, "crop_size": {"height": SIDE, "width": SIDE}, "size": {"shortest_edge": 25}},
    "do_rescale false": {"do_rescale": False},
    "do_normalize false": {"do_normalize": False},
    "image_mean and image_std": {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]},
    "nothing but a size": {key: "absent" for key in PROCESSOR if key != "size"},
    "do_convert_rgb false": {"do_convert_rgb": False},
}
NAMES = ["jpeg-420.jpg", "jpeg-grey.jpg", "jpeg-cmyk.jpg", "png-rgba-8.png", "png-palette-8-alpha.png", "png-grey-16.png", "160x90", "90x160", "22x22", "3x200"]
TEXTS = ["a fox in the Snow", "", "A glass whale, in watercolor!", "一只猫 🦊"]


def opened(name):
    if name.startswith(("jpeg", "png")):
        return Image.open(io.BytesIO((FOLDER / name).read_bytes()))
    width, height = map(int, name.split("x"))
    return Image.fromarray(formula(height, width))


def processor(change):
    config = {key: value for key, value in (PROCESSOR | change).items() if value != "absent"}
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "preprocessor_config.json").write_text(json.dumps(config))
        return config, SiglipImageProcessorPil.from_pretrained(folder)


def tensor(made, name):
    try:
        array = np.ascontiguousarray(made(images=opened(name), return_tensors="np")["pixel_values"][0], dtype="<f4")
    except Exception as error:  # whatever the library raises
        print(f"{name}: {type(error).__name__} {error}")
        return None
    return array if array.shape == (3, SIDE, SIDE) else None


def scores(path, model, tokens_folder):
    """Images and captions through processor, tokenizer and network."""
    warnings.simplefilter("ignore")
    golden = {"images": NAMES, "captions": TEXTS, "processors": []}
    for name, change in CHANGES.items():
        config, made = processor(change)
        tensors = [tensor(made, image) for image in NAMES]
        hashes = [None if array is None else sha(array.tobytes()) for array in tensors]
        golden["processors"].append({"name": name, "config": config, "tensors": hashes})
        if not change:
            images = torch.from_numpy(np.stack(tensors))
    for name in ("siglip", "siglip_cased"):
        config, file = TOKENIZERS[name]
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            (folder / "config.json").write_text(json.dumps({"model_type": "siglip"}))
            (folder / "tokenizer_config.json").write_text(json.dumps(config))
            (folder / file).write_bytes(gzip.decompress((tokens_folder / f"{file}.gz").read_bytes()))
            tokenizer = AutoTokenizer.from_pretrained(folder)
            inputs = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt")
        output = model(pixel_values=images, **inputs)
        golden[f"{name}_config"] = config
        golden[f"{name}_scores"] = torch.sigmoid(output.logits_per_image).double().tolist()
    path.write_text(json.dumps(golden).replace('{"name"', '\n{"name"') + "\n")
    print(f"{path.name} {path.stat().st_size}")


def main():
    for package, version in VERSIONS.items():
        assert importlib.metadata.version(package).split("+")[0] == version, package
    model = towers(ROOT / "nn/tests/fixtures/siglip")
    tokens(ROOT / "media/tests/fixtures/siglip")
    scores(ROOT / "scorers/tests/fixtures/siglip.json", model, ROOT / "media/tests/fixtures/siglip")


if __name__ == "__main__":
    main()
