"""Writes outputs of transformers for texts: with WordPiece tokenizers
(crates/media/tests/fixtures/wordpiece.json) and with small DistilBERT classifiers of random weights
(crates/nn/tests/fixtures/distilbert and distilbert_bin).

Run once, by hand: python scripts/goldens/distilbert.py
Needs torch==2.11.0 and transformers==5.23.0.

wordpiece.json: {"texts": [...], "folders": {NAME: {"files": {FILE: TEXT}, "context": N, "ids":
[[...]]}}}; the files alone determine the tokenization. A classifier's folder holds its configuration,
weights and tokenizer as transformers and the published repository have them, and expected.json: texts,
their ids, and logits of the whole padded batch.
"""

import importlib.metadata
import json
import pathlib
import shutil
import string
import tempfile

import torch
from transformers import DistilBertConfig, DistilBertForSequenceClassification, DistilBertTokenizer

torch.set_num_threads(1)
torch.set_grad_enabled(False)

ROOT = pathlib.Path(__file__).resolve().parents[2]
MEDIA = ROOT / "crates/media/tests/fixtures/wordpiece.json"
NETWORKS = ROOT / "crates/nn/tests/fixtures"
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

WORDS = """a an the of in on with and photo fox cat dog red blue snow castle knight portrait oil painting river
night city woman man naked blood gun kiss war child horse robot moon tea cup street style old 4k it s don t
##s ##ing ##ed ##er ##ly ##le ##ness light ##house water ##color under ##water""".split()

TEXTS = [
    "", " ", "a photo of a cat", "A Photo, of a CAT!", "wow! such a fox!!", "a lighthouse in watercolor, 4k",
    "  two\tspaces \n and a line\r\n", "it's John's, don't", "(masterpiece:1.3), [bad hands]", "un-der_water/light",
    "a fox \U0001f98a in the snow \u2744\ufe0f", "\u732b\u5728\u6708\u5149\u4e0b a cat", "na\u00efve caf\u00e9 \u201cquoted\u201d \u2013 e\u0301",
    "\u0130STANBUL \u1e9e \u212a \u00df", "&amp; <b>bold</b>", "a [SEP] b [CLS] [MASK] [PAD] [UNK] c", "[sep] [ CLS]",
    "\u200bzero\u200dwidth\u00ad", "\x00\x1b[31mred\x7f", "\ufffdbroken", "1234567890", "red" * 40, "x" * 101, "fox " * 200,
    "\u3053\u3093\u306b\u3061\u306f \ud55c\uad6d\uc5b4", "a\u00a0hard\u3000space", "naked woman, blood and a gun", "a knight with a gun in the night city",
    "the old castle on the river", "portrait of a child with a cup of tea", "...", "a.b.c", "\u0061\u0301\u0328 stacked", "\u05e9\u05dc\u05d5\u05dd",
]


def vocabulary(cased: bool) -> list[str]:
    letters = string.ascii_lowercase + string.digits + ("ABCDEFGHIJKLMNOPQRSTUVWXYZ\u00ef\u00e9" if cased else "")
    others = ".,!?'\"()[]:;-_/&<>|\u201c\u201d\u2013\u732b\u5728\u6708\U0001f98a\u3053\u3093"
    words = [word for word in WORDS if len(word.removeprefix("##")) > 1]
    return SPECIALS + list(letters) + [f"##{letter}" for letter in letters] + list(others) + words


def vocabulary_file(cased: bool = False) -> str:
    return "".join(f"{token}\n" for token in vocabulary(cased))


def encode(folder: pathlib.Path, context: int) -> list[list[int]]:
    tokenizer = DistilBertTokenizer.from_pretrained(folder)
    return tokenizer(TEXTS, truncation=True, max_length=context).input_ids


def tokenizers() -> dict:
    list_alone, cased = {"vocab.txt": vocabulary_file()}, {"vocab.txt": vocabulary_file(cased=True)}

    def config(**options) -> dict:
        return {"tokenizer_config.json": json.dumps({"tokenizer_class": "DistilBertTokenizer"} | options)}

    named = {name: {"__type": "AddedToken", "content": f"<{name}>"} for name in ("cls_token", "sep_token")}
    renamed = vocabulary_file().replace("[CLS]", "<cls_token>").replace("[SEP]", "<sep_token>").replace("[UNK]", "<?>")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "vocab.txt").write_text(vocabulary_file())
        DistilBertTokenizer.from_pretrained(folder).save_pretrained(folder / "saved")
        whole = {"tokenizer.json": (folder / "saved/tokenizer.json").read_text()}
    folders = {
        "list": (list_alone, 64),
        "short": (list_alone, 8),
        "cased": (cased | config(do_lower_case=False), 64),
        "accents": (cased | config(do_lower_case=True, strip_accents=False, tokenize_chinese_chars=False), 64),
        "stripped": (cased | config(do_lower_case=False, strip_accents=True), 64),
        "renamed": ({"vocab.txt": renamed} | config(unk_token="<?>", **named), 64),
        "windows": ({"vocab.txt": vocabulary_file().replace("\n", "\r\n")}, 64),
        "whole": (whole, 64),
    }
    found = {}
    for name, (files, context) in folders.items():
        with tempfile.TemporaryDirectory() as folder:
            for file, text in files.items():
                (pathlib.Path(folder) / file).write_bytes(text.encode())
            found[name] = {"files": files, "context": context, "ids": encode(pathlib.Path(folder), context)}
        print(name, found[name]["ids"][9])
    return {"texts": TEXTS, "folders": found}


def randomize(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Weights large enough that every part of the network shows in the logits."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "orm.weight" in name:
            parameter.copy_(1 + 0.2 * noise)
        elif parameter.dim() >= 2:
            parameter.copy_(noise * 1.2 / parameter.shape[-1] ** 0.5)
        else:
            parameter.copy_(0.2 * noise)
    return model.eval()


def network(folder: pathlib.Path, seed: int, pickled: bool, **options) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "vocab.txt").write_text(vocabulary_file())
    tokenizer = DistilBertTokenizer.from_pretrained(folder)
    config = DistilBertConfig(vocab_size=len(tokenizer), **options)
    model = randomize(DistilBertForSequenceClassification(config), seed)
    context = config.max_position_embeddings
    batch = tokenizer(TEXTS, truncation=True, max_length=context, padding=True, return_tensors="pt")

    def logits() -> torch.Tensor:
        return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits

    # Every class has some of the texts.
    model.classifier.bias -= logits().median(0).values
    model.save_pretrained(folder)
    if pickled:
        # As the published classifier: no tokenizer.json, a pickle, and the position numbers that
        # older releases saved.
        (folder / "model.safetensors").unlink()
        state = model.state_dict()
        positions = torch.arange(config.max_position_embeddings).expand(1, -1)
        state["distilbert.embeddings.position_ids"] = positions
        torch.save(state, folder / "pytorch_model.bin")
    else:
        (folder / "vocab.txt").unlink()
        tokenizer.save_pretrained(folder)
    found = logits()
    expected = {"texts": TEXTS, "ids": encode(folder, context), "logits": found.double().tolist()}
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")
    classes = found.argmax(-1).bincount(minlength=found.shape[-1]).tolist()
    print(folder.name, config.id2label, "texts of each class:", classes, "spread", found.std(0))


def main() -> None:
    assert importlib.metadata.version("transformers") == "5.23.0"
    MEDIA.write_text(json.dumps(tokenizers(), ensure_ascii=True, separators=(",", ":")) + "\n")
    labels = {0: "SFW", 1: "NSFW"}
    small = dict(dim=24, n_heads=4, n_layers=2, hidden_dim=40, max_position_embeddings=64)
    network(NETWORKS / "distilbert", 1, False, id2label=labels, label2id={"SFW": 0, "NSFW": 1}, **small)
    odd = dict(dim=15, n_heads=5, n_layers=3, hidden_dim=22, max_position_embeddings=48)
    network(NETWORKS / "distilbert_bin", 2, True, num_labels=3, **odd)
    for path in [MEDIA, *NETWORKS.glob("distilbert*/*")]:
        print(f"{path.stat().st_size:8} {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
