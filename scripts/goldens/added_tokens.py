"""Writes crates/media/tests/fixtures/added_tokens.json: texts with transformers' token ids, for tokenizer
folders with added tokens, in all files and forms that transformers reads.

Run once, by hand: python scripts/goldens/added_tokens.py
Needs transformers==5.23.0. The vocabulary is that of data/mini/clip.

Layout: {"texts": [...], "folders": {NAME: {"vocabulary": [files of data/mini/clip], "files": {FILE: JSON}, "patches":
{FILE: {KEY: JSON}}, "ids": [[...]], "size": LENGTH}}}. Patches replace keys of a copied file.
"""

import importlib.metadata
import json
import pathlib
import shutil
import tempfile

from transformers import CLIPTokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
VOCABULARY = ROOT / "data/mini/clip"
FIXTURE = ROOT / "crates/media/tests/fixtures/added_tokens.json"
START, END = "<|startoftext|>", "<|endoftext|>"
PARTS, WHOLE = ["vocab.json", "merges.txt"], ["tokenizer.json"]
TEXTS = [
    "", "a fox", "A Fox! <my-concept>", "a<my-concept>b", "<My-Concept> x", "<two words> and <Two Words>", "<extra> x <EXTRA>",
    "x <image> <boi>", "x <pad> <unk> <s> </s>", "! no! <far> <near>", "x<|endoftext|>y <|startoftext|>", "fox " * 40, "  <my-concept>  ,",
]


def added(content: str, **flags) -> dict:
    return {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False} | flags


def config(**keys) -> dict:
    names = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END, "model_max_length": 20}
    return {"tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer"} | names | keys}


def folders() -> dict:
    two = {"<my-concept>": 2514, "<Two Words>": 2515}
    table = {"2514": added("<my-concept>", lstrip=True), "2515": added("<Two Words>", normalized=True), "2513": added(END, special=True),
             "2512": added(START, special=True)}
    whole_table = [{"id": int(number)} | {"special": False} | token for number, token in table.items()]
    return {
        "added_tokens.json": (PARTS, config() | {"added_tokens.json": two}, {}),
        "added_tokens.json alone": (PARTS, {"added_tokens.json": two}, {}),
        "ids that are not the next": (PARTS, config() | {"added_tokens.json": {"<far>": 3000, "<near>": 2999}}, {}),
        "a special token in added_tokens.json": (PARTS, config(additional_special_tokens=["<extra>"]) | {"added_tokens.json": {"<extra>": 2514, "<my-concept>": 2515}}, {}),
        "additional_special_tokens of the map": (PARTS, config() | {"special_tokens_map.json": {"additional_special_tokens": ["<extra>", "<my-concept>"], "pad_token": "!"}}, {}),
        "extra_special_tokens in both": (PARTS, config(extra_special_tokens=["<extra>"]) | {"special_tokens_map.json": {"extra_special_tokens": ["<extra>", added("<my-concept>", rstrip=True)]}}, {}),
        "extra_special_tokens with names": (PARTS, config(extra_special_tokens={"image_token": "<image>"}, boi_token="<boi>"), {}),
        "added_tokens_decoder": (PARTS, config(added_tokens_decoder=table) | {"added_tokens.json": {"<far>": 2516}}, {}),
        "added_tokens_decoder and tokenizer.json": (WHOLE, config(added_tokens_decoder=table), {"tokenizer.json": {"added_tokens": [{"id": 2514, "special": False} | added("<far>")]}}),
        "added_tokens of tokenizer.json": (WHOLE, config(), {"tokenizer.json": {"added_tokens": whole_table}}),
        "added_tokens of tokenizer.json and the file": (WHOLE, config() | {"added_tokens.json": {"<far>": 2516}}, {"tokenizer.json": {"added_tokens": whole_table}}),
        "a pipeline of its own": (WHOLE, config(), {"tokenizer.json": {"normalizer": None, "pre_tokenizer": {"type": "Whitespace"}}}),
        "a padding token of its own": (PARTS, config(pad_token="<pad>"), {}),
        "start and end of their own": (PARTS, config(bos_token="<s>", eos_token={"__type": "AddedToken"} | added("</s>")), {}),
        "an unknown token of its own": (PARTS, config(unk_token="<unk>", mask_token="<extra>"), {}),
        "no effect": (PARTS, config(add_bos_token=False, add_eos_token=False, add_prefix_space=True, do_lower_case=False, errors="strict", clean_up_tokenization_spaces=True,
                                    padding_side="right", truncation_side="right", use_fast=False, name_or_path="x", model_input_names=["input_ids"], split_special_tokens=False), {}),
        "max_len": (PARTS, {"tokenizer_config.json": {"max_len": 12}}, {}),
    }


def main() -> None:
    assert importlib.metadata.version("transformers") == "5.23.0"
    golden = {"texts": TEXTS, "folders": {}}
    for name, (vocabulary, files, patches) in folders().items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = pathlib.Path(temporary)
            for file in vocabulary:
                shutil.copy(VOCABULARY / file, folder / file)
            for file, keys in patches.items():
                (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | keys))
            for file, content in files.items():
                (folder / file).write_text(json.dumps(content))
            tokenizer = CLIPTokenizer.from_pretrained(folder)
        length = min(tokenizer.model_max_length, 77)
        ids = tokenizer(TEXTS, padding="max_length", max_length=length, truncation=True).input_ids
        golden["folders"][name] = {"vocabulary": vocabulary, "files": files, "patches": patches, "ids": ids, "size": len(tokenizer)}
        print(name, len(tokenizer), ids[2][:12])
    text = json.dumps(golden, ensure_ascii=False)
    FIXTURE.write_text(text.replace('"vocabulary"', '\n"vocabulary"') + "\n")
    print(f"{FIXTURE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
