"""Compares the DistilBERT classifier of this project with transformers: random weights, the same
texts, f32; one table; exits 1 beyond a bound.

The full size is that of michellejieli/inappropriate_text_classifier: 6 layers of width 768, 30,522
tokens. Weights are read as safetensors and as the pickle that is published. Two comparisons each:
logits of texts that transformers tokenized (largest difference over the largest reference value, at
most 1e-5), and what `evaluate filter-prompts` makes of the texts themselves (largest difference of
probabilities, at most 1e-5; every prompt kept or dropped as transformers' probabilities say).
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import DistilBertConfig, DistilBertForSequenceClassification, DistilBertTokenizer
from transformers.utils import logging

HERE = Path(__file__).resolve().parent
BOUND = 1e-5
BATCH = 32
SIZES = {"small": dict(dim=60, n_heads=5, n_layers=2, hidden_dim=100, max_position_embeddings=128), "full": {}}
ODD = [
    "A Photo, of a CAT!", "wow! such a fox!!", "it's John's, don't", "(masterpiece:1.3), [bad hands]",
    "a fox \U0001f98a in the snow \u2744\ufe0f", "\u732b\u5728\u6708\u5149\u4e0b a cat",
    "na\u00efve caf\u00e9 \u201cquoted\u201d",
    "\u0130STANBUL \u1e9e \u212a", "a [SEP] b [MASK] c", "\u200bzero\u200dwidth", "\x1b[31mred", "x" * 101,
]


def vocabulary(size: int) -> list[str]:
    """Special tokens where BERT has them, letters, and words and endings of syllables."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    marks = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~\u201c\u201d\u732b\u6708\U0001f98a"
    tokens = ["[PAD]", *(f"[unused{index}]" for index in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens += [*marks, *letters, *(f"##{letter}" for letter in letters), "a", "the", "photo", "cat", "fox", "##s"]
    syllables = [first + vowel + last for first in "bcdfglmnprst" for vowel in "aeiou" for last in ("", "n", "r")]
    generator = random.Random(5)
    known = dict.fromkeys(tokens)
    while len(known) < size:
        word = "".join(generator.choices(syllables, k=generator.randint(1, 3)))
        known.setdefault(word if generator.random() < 0.7 else f"##{word}")
    return list(known)[:size]


def sentences(tokens: list[str], count: int) -> list[str]:
    """Texts of 1 to 700 words, most of them as long as prompts."""
    generator = random.Random(6)
    words = [token for token in tokens if token.isalpha()]
    lengths = [generator.randint(1, 40) for _ in range(count - 4)] + [300, 509, 600, 700]
    return [" ".join(generator.choices(words, k=length)) for length in lengths]


def build(folder: Path, size: str) -> None:
    """The model twice, as safetensors with a tokenizer of the library's, and as it is published."""
    options = SIZES[size]
    labels = {0: "SFW", 1: "NSFW"}
    config = DistilBertConfig(id2label=labels, label2id={"SFW": 0, "NSFW": 1}, **options)
    torch.manual_seed(7)
    model = DistilBertForSequenceClassification(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 1.2 / parameter.shape[-1] ** 0.5 if parameter.dim() > 1 else 0.1
            parameter.normal_(0, scale)
            if "orm.weight" in name:
                parameter.add_(1)
        # Either class has some of the texts.
        some = model(input_ids=torch.randint(104, config.vocab_size, (64, 16))).logits
        model.classifier.bias.sub_(some.median(0).values)
    pickled = folder / "pytorch_model"
    pickled.mkdir(parents=True)
    (pickled / "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary(config.vocab_size)))
    tokenizer_config = {"do_lower_case": True, "model_max_length": 512, "tokenizer_class": "DistilBertTokenizer"}
    (pickled / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    config.architectures = [type(model).__name__]
    config.save_pretrained(pickled)
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    model.save_pretrained(folder / "safetensors")
    DistilBertTokenizer.from_pretrained(pickled).save_pretrained(folder / "safetensors")


def reference(folder: Path, texts: list[str]) -> tuple[list[list[int]], torch.Tensor, float]:
    """Ids, logits, and the seconds that the network took; texts of like length together."""
    tokenizer = DistilBertTokenizer.from_pretrained(folder)
    model = DistilBertForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    longest = model.config.max_position_embeddings
    ids = tokenizer(texts, truncation=True, max_length=longest).input_ids
    order = sorted(range(len(texts)), key=lambda index: len(ids[index]))
    logits = torch.empty(len(texts), model.config.num_labels)
    start = time.monotonic()
    for first in range(0, len(order), BATCH):
        rows = order[first : first + BATCH]
        batch = tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt")
        with torch.inference_mode():
            logits[rows] = model(**batch).logits
    return ids, logits, time.monotonic() - start


def ours(tool: Path, model: Path, work: Path, ids: list[list[int]]) -> tuple[torch.Tensor, float]:
    (work / "ids.json").write_text(json.dumps(ids))
    output = work / "logits.safetensors"
    command = [tool, model, work / "ids.json", output]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return load_file(output)["logits"], report["seconds"]


def filtered(evaluate: Path, model: Path, work: Path, texts: list[str]) -> tuple[dict, float]:
    """Probability and decision for each text."""
    (work / "prompts.jsonl").write_text("".join(f"{json.dumps({'prompt': text})}\n" for text in texts))
    command = [evaluate, "filter-prompts", "--quiet", "--prompts", work / "prompts.jsonl", "--classifier", model]
    start = time.monotonic()
    subprocess.run([*command, "--out", work / "safe.jsonl", "--device", "cpu"], check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - start
    lines = [line for name in ("safe.jsonl", "safe.dropped.jsonl") for line in (work / name).read_text().splitlines()]
    rows = [json.loads(line) for line in lines]
    return {row["prompt"]: (row["unsafe_probability"], row["kept"]) for row in rows}, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--out", type=Path, required=True, help="kept for the next run")
    parser.add_argument("--tool", type=Path, required=True, help="the built tool")
    parser.add_argument("--evaluate", type=Path, required=True, help="the program")
    parser.add_argument("--texts", type=int, default=200)
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    root = arguments.out / arguments.size
    if not (root / "BUILT").exists():
        shutil.rmtree(root, ignore_errors=True)
        build(root, arguments.size)
        (root / "BUILT").touch()
    tokens = (root / "pytorch_model/vocab.txt").read_text().splitlines()
    texts = list(dict.fromkeys(ODD + sentences(tokens, arguments.texts - len(ODD))))
    failures = 0
    title = f"DistilBERT, {len(texts)} texts"
    print(f"{title:<36} {'largest':>9} {'bound':>7} {'ours s':>8} {'theirs s':>9}")

    def row(name: str, apart: float, own: float, other: float) -> None:
        nonlocal failures
        fits = apart <= BOUND
        failures += not fits
        print(f"{name:<36} {apart:9.1e} {BOUND:7.0e} {own:8.2f} {other:9.2f}{'' if fits else '  FAILED'}", flush=True)

    for layout in ("safetensors", "pytorch_model"):
        model = root / layout
        ids, expected, theirs = reference(model, texts)
        logits, seconds = ours(arguments.tool, model, root, ids)
        row(f"{layout} logits", ((logits - expected).abs().max() / expected.abs().max()).item(), seconds, theirs)
        found, seconds = filtered(arguments.evaluate, model, root, texts)
        probabilities = expected.double().softmax(-1)[:, 1].tolist()
        apart = [abs(found[text][0] - expect) for text, expect in zip(texts, probabilities, strict=True)]
        row(f"{layout} filter-prompts", max(apart), seconds, theirs)
        wrong = [
            text
            for text, expect in zip(texts, probabilities, strict=True)
            if found[text][1] != (expect < 0.5) and abs(expect - 0.5) > BOUND
        ]
        kept = sum(kept for _, kept in found.values())
        print(f"{'':<36} {kept} kept, {len(found) - kept} dropped, {len(wrong)} otherwise than transformers")
        failures += len(wrong)
    print(f"{failures} beyond the bounds" if failures else "all within the bounds")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
