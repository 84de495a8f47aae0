"""Writes crates/media/tests/fixtures/diffusion_tokenizers.json: prompts with transformers' token ids
for the text encoders of diffusion pipelines, with the padding of each published model.

Run once, by hand: python scripts/goldens/diffusion_tokenizers.py
Needs transformers==5.23.0. The vocabulary is that of data/mini/clip; the other files of a tokenizer folder are
as in the published models, with ids of the small vocabulary.

Layout: {"prompts": [...], "folders": {NAME: {"vocabulary": [files of data/mini/clip], "files": {FILE: JSON},
"ids": [[...]], "removed": [...]}}}. `ids` have the model's full length. `removed` is the text that diffusers
reports as truncated, if it does.
"""

import importlib.metadata
import json
import pathlib
import shutil
import tempfile

from transformers import CLIPTokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
VOCABULARY = ROOT / "data/mini/clip"
FIXTURE = ROOT / "crates/media/tests/fixtures/diffusion_tokenizers.json"
START, END = "<|startoftext|>", "<|endoftext|>"

PROMPTS = [
    "", " ", "a photo of a cat", "A Photo, of a CAT!", "wow! such a fox!!", "!", "! !!", "a!b", "cat! ", "no way?!",
    "an astronaut riding a horse, 4k, trending on artstation", "  two\tspaces \n and a line ", "it's John's, don't",
    "(masterpiece:1.3), [bad hands]", "a fox \U0001f98a in the snow \u2744\ufe0f", "\u732b\u5728\u6708\u5149\u4e0b",
    "na\u00efve caf\u00e9 \u201cquoted\u201d \u2013 e\u0301", "\u0130STANBUL \u1e9e \u212a", "&amp; <b>bold</b>",
    "x<|endoftext|>y", "x<|ENDOFTEXT|>y", "<|startoftext|> twice", " <|endoftext|> ! ", "\u200bzero\u200dwidth",
    "\x00\x1b[31mred", "1234567890", "a" * 200, "fox " * 74, "fox " * 75, "fox " * 76, "fox " * 100, "!" * 100,
    "a lighthouse at dawn, " * 20 + "and then it rained", "\U0001f98a" * 40, "<|endoftext|> " * 80,
]


def added(content: str, normalized: bool) -> dict:
    return {"content": content, "lstrip": False, "normalized": normalized, "rstrip": False, "single_word": False}


def typed(content: str) -> dict:
    return {"__type": "AddedToken", **added(content, True)}


def legacy(config_pad: str, map_pad: str) -> dict:
    """The files of Stable Diffusion 1.5 and 2.1."""
    names = {"bos_token": START, "eos_token": END, "unk_token": END}
    config = {name: typed(token) for name, token in names.items()}
    config |= {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": 77}
    config |= {"pad_token": config_pad, "tokenizer_class": "CLIPTokenizer"}
    specials = {name: added(token, True) for name, token in names.items()} | {"pad_token": map_pad}
    return {"tokenizer_config.json": config, "special_tokens_map.json": specials}


def decoder(pad: str, ids: dict[str, int], map_pad: str) -> dict:
    """The files of SDXL."""
    tokens = {pad: False, START: False, END: True}
    table = {str(ids[token]): added(token, normalized) | {"special": True} for token, normalized in tokens.items()}
    config = {"add_prefix_space": False, "added_tokens_decoder": table, "bos_token": START, "eos_token": END}
    config |= {"clean_up_tokenization_spaces": True, "do_lower_case": True, "errors": "replace", "model_max_length": 77}
    config |= {"pad_token": pad, "tokenizer_class": "CLIPTokenizer", "unk_token": END}
    specials = {"bos_token": added(START, True), "eos_token": added(END, True), "unk_token": added(END, True)}
    return {"tokenizer_config.json": config, "special_tokens_map.json": specials | {"pad_token": map_pad}}


def folders() -> dict:
    ids = json.loads((VOCABULARY / "vocab.json").read_text())
    parts, whole = ["vocab.json", "merges.txt"], ["tokenizer.json"]
    saved = {"backend": "tokenizers", "bos_token": START, "eos_token": END, "model_max_length": 77}
    saved |= {"pad_token": "!", "tokenizer_class": "CLIPTokenizer", "unk_token": END}
    short = {"tokenizer_config.json": saved | {"model_max_length": 16, "pad_token": END}}
    return {
        "stable-diffusion-1": (parts, legacy(END, END)),
        "stable-diffusion-2": (parts, legacy(END, "!")),
        "sdxl-first": (parts, decoder(END, ids, END)),
        # transformers does not read the map if there is a table of added tokens
        "sdxl-second": (parts, decoder("!", ids, END)),
        "saved-again": (whole, {"tokenizer_config.json": saved}),
        "short": (parts, short),
    }


def removed(tokenizer: CLIPTokenizer, prompt: str) -> str | None:
    """As encode_prompt of StableDiffusionPipeline in diffusers 0.42.1."""
    length = tokenizer.model_max_length
    cut = tokenizer(prompt, padding="max_length", max_length=length, truncation=True).input_ids
    whole = tokenizer(prompt, padding="longest").input_ids
    return tokenizer.decode(whole[length - 1 : -1]) if len(whole) >= length and cut != whole else None


def main() -> None:
    assert importlib.metadata.version("transformers") == "5.23.0"
    golden = {"prompts": PROMPTS, "folders": {}}
    for name, (vocabulary, files) in folders().items():
        with tempfile.TemporaryDirectory() as folder:
            for file in vocabulary:
                shutil.copy(VOCABULARY / file, folder)
            for file, content in files.items():
                (pathlib.Path(folder) / file).write_text(json.dumps(content))
            tokenizer = CLIPTokenizer.from_pretrained(folder)
            length = tokenizer.model_max_length
            encoded = tokenizer(PROMPTS, padding="max_length", max_length=length, truncation=True).input_ids
            golden["folders"][name] = {
                "vocabulary": vocabulary,
                "files": files,
                "ids": encoded,
                "removed": [removed(tokenizer, prompt) for prompt in PROMPTS],
            }
            print(name, length, tokenizer.pad_token, tokenizer.pad_token_id, encoded[4][:16])
    FIXTURE.write_text(json.dumps(golden, ensure_ascii=True, separators=(",", ":")) + "\n")
    print(f"{len(PROMPTS)} prompts, {FIXTURE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
