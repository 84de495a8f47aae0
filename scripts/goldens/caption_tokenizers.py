"""Writes crates/media/tests/fixtures/tokenizers.json.gz: captions with the token ids of open_clip
and transformers, for CLIP's vocabulary and for a small one.

Run once, by hand: python scripts/goldens/caption_tokenizers.py
Needs open_clip_torch==3.3.0 transformers==5.23.0 tokenizers==0.23.3 ftfy==6.3.1 regex==2026.11.15 on
CPython 3.11. This script makes all captions, from a fixed seed.

Layout: {"captions": [...], "cleaned": [...], "standard": {"open_clip": [[...]], "hf": [[...]]}, "small": the
same for every second caption with the first 2000 merges, "tiny": {"hf": with the first 100}}. Ids have
no padding. "cleaned" is open_clip's cleaned text. It also writes the tiny tokenizer, as transformers
saves it:
crates/media/tests/fixtures/tiny/{tokenizer.json,tokenizer_config.json,vocab.json,merges.txt}.
"""

import gzip
import importlib.metadata
import json
import pathlib
import random
import tempfile
import unicodedata

from open_clip.tokenizer import SimpleTokenizer, _clean_lower, default_bpe
from transformers import CLIPTokenizer

FIXTURE = pathlib.Path(__file__).resolve().parents[2] / "crates/media/tests/fixtures/tokenizers.json.gz"
SMALL_MERGES = 2000
TINY_MERGES = 100
CUT = {"truncation": True, "max_length": 77}
VERSIONS = {"open_clip_torch": "3.3.0", "transformers": "5.23.0", "ftfy": "6.3.1", "regex": "2026.11.15"}

SCRIPTS = [
    "Ένας γάτος κοιμάται στον ήλιο ΣΟΦΟΣ", "Большой красный дом у моря", "قطة نائمة تحت الشجرة", "חתול ישן על הספה",
    "一只猫在月光下的屋顶上", "月の光の下で眠る猫、ｶﾀｶﾅ", "달빛 아래 잠자는 고양이", "चाँदनी में सोती बिल्ली", "แมวนอนใต้แสงจันทร์",
    "Đêm trăng sáng, con mèo ngủ", "mačka spí pod měsícem, žluťoučký kůň", "İSTANBUL'da bir kedi, IĞDIR", "Ærø, Ñandú, façade, STRASSE ẞ ß",
    "კატა მთვარის ქვეშ", "կատուն լուսնի տակ", "ድመት በጨረቃ ስር", "பூனை நிலவின் கீழ்", "ꟈ ⱥ ᏸ Ꮿ ꭰ", "𝒜 𝔟𝕠𝕝𝕕 𝟙𝟚 ⓐⓑ ㎏ № ℃",
]
SUBJECTS = "fox;lighthouse;teapot;robot gardener;snow leopard;old bicycle;glass whale;paper dragon;market stall;clock tower".split(";")
STYLES = "in watercolor;as a linocut;at dawn, 35mm f/1.8;low-poly render;ink & gold leaf;8K hdr;(soft light:1.3);by nobody".split(";")
ENTITIES = [
    "&amp;", "&amp;amp;", "&amp;amp;amp;amp;", "&lt;b&gt;", "&copy=1", "&copy", "&notit;", "&not;", "&hellip;", "&EACUTE;", "&Eacute", "&NTILDE;a",
    "&#65;", "&#x41;", "&#X41", "&#0;", "&#128;", "&#x80", "&#150;", "&#xD800;", "&#1114112;", "&#99999999999999999999;", "&#31;", "&#x1c;", "&#xFFFE;",
    "&#59;", "&#;", "&#x;", "&;", "& ", "&unknown;", "&ampersand", "&CounterClockwiseContourIntegral;", "&nbsp;", "&#160;", "&#13;", "&zwj;", "&lt;3",
    "&fjlig;", "&NotEqualTilde;", "&gta", "&l", "&AMP", "&ORDF;", "&#38;lt;", "&amp;#39;", "&szlig;&SZLIG;", "&#x1F600;",
]
SPECIALS = ["<|endoftext|>", "<|startoftext|>", "<start_of_text>", "<end_of_text>", "<END_OF_TEXT>", "<|EndOfText|>", "<\u017ftart_of_text>"]
ODD = [
    "", " ", "\n", "\x00", "\x00\x00a\x00", "\u200b", "\u200d\u200c", "\u202eevil\u202c", "\ufeffbom", "a\u0301\u0301e\u0308", "\u0344 \u0958 \ufb2c",
    "'s 'T 're 'VE 'm 'LL 'd '\u017f 'x", "it's John's don't we'll they'd I'm you've", "''''s", "don\u2019t \u201cquote\u201d \u2018a\u2019 \u201b\u02bc",
    "Ω Å K \u212a \u212b \u2126", "\ufb00\ufb01\ufb03\ufb06 \u0132 \u01c4 \u0149", "\uff21\uff22\uff43 \uff11\uff12 \uffe3 \uffe5 \uff71\uff76\uff9e",
    "\x1b[31mred\x1b[0m", "\x1b[1;\u0661mweird", "\x1b[", "a\x1b[2Kb\x1b]0;t\x07", "tab\tvt\x0bff\x0cnl\r\ncr\rls\u2028ps\u2029nel\x85end",
    "\x1c\x1d\x1e\x1f", "x\x1cy", "\xa0nb\u202fsp\u3000id\u1680og", "x\u0345y \u0345", "\u2167 \u2168x \xbd\xb2", "_under_score__", "-----!!!???...,,,",
    "a" * 300, "ab" * 200, "\u732b" * 120, "\U0001f600" * 60, "1234567890" * 12, "!" * 500, "cat " * 90, "x" * 17 + "</w>", "\ufffd\ufffd", "\ue000\U0010fffd",
    "\ud7ff\ue001", "word</w> \u0120cat", "a<b &amp; c", "a &amp; b\nc < d &amp; e\nf &eacute;", "&EACUTE;<", "&" + "amp;" * 150 + "lt;", "caf\xe9 \xc3 la mode", "voil\xc3 le travail",
    "\xc3 quele \xc3 s \xc3  x", "\xe2\u20ac\u0153 like this \xe2\u20ac\ufffd", "\xe2\u20ac\x9d", "L\xd0\xb0", "\x93smart\x94 \x85 \x80", "caf\x8e", "\xb5m \xb0C",
    "\u0432\u0402\u201csmth\u0432\u0402\u201d", "\u221a\xa9 \u221a\u2202", "\xf0\u0178\u02dc\u20ac grin", "\xed\xa0\xbd\xed\xb8\x80", "\xc0\x80x\xc3\xa9",
    "r\xc3\xa9flexion \u0440\u0443\u0441\u0441\u043a\u0438\u0439 \xc3\xa9t\xc3\xa9", "\xc2\xa0\xc2\xa9 \xc2\xbd", "schÃ¶n für alle", "AÃ‚Â£5", "\x81\x8d\x8f\x90\x9d",
    "\xc3\xa0\x1a\xc3\xa9", "\xd0\u045f\xd1\u20ac", "\u0393\u043e\u0420\u0404", "Ã\xa0 bientÃ´t ? non", "\u00e0\u00b2\u00b9", "\xce\xb1\xce\xb2\xce\xb3 ok",
]
CODECS = ["latin-1", "windows-1252", "windows-1251", "windows-1250", "windows-1253", "windows-1254", "windows-1257", "iso-8859-2", "mac-roman", "cp437"]


def misread(text: str, codec: str, lossy: str) -> str:
    """The text after reading its UTF-8 in another encoding."""
    return text.encode().decode("latin-1" if codec == "latin-1" else codec, lossy)


def random_text(rng: random.Random, pools: list[list[str]], length: int) -> str:
    return "".join(rng.choice(rng.choice(pools)) for _ in range(length))


def captions() -> list[str]:
    rng = random.Random(20240613)
    made = list(ODD) + list(SCRIPTS)
    made += [f"a {rng.choice(SUBJECTS)} {rng.choice(STYLES)}, {rng.choice(SUBJECTS)}s #{i}" for i in range(40)]
    made += [f"{rng.choice(SUBJECTS)} {entity} {rng.choice(ENTITIES)}{rng.choice(ENTITIES)}" for entity in ENTITIES]
    made += [f"x{special} {rng.choice(SUBJECTS)}{rng.choice(SPECIALS)}" for special in SPECIALS for _ in range(2)]
    emoji = [chr(c) for c in range(0x1F300, 0x1F650)]
    for _ in range(30):
        symbol = rng.choice(emoji)
        made.append(f"{symbol} {unicodedata.name(symbol, 'x').title()} {rng.choice(emoji)}\u200d{rng.choice(emoji)}\ufe0f")
    sources = SCRIPTS + ["“café” – naïve… it’s", "à la carte à propos", "Größe über Ärger", "El Niño año", "😀 grin 👩‍🚀", "½ ¾ €5 ©", "ŽŠĐ"]
    for source in sources:
        for codec in rng.sample(CODECS, 5):
            made.append(misread(source, codec, rng.choice(["replace", "ignore"])))
        once = misread(source, rng.choice(["latin-1", "cp437"]), "replace")
        made.append(misread(once, "latin-1", "replace"))
        made.append(misread(source, "latin-1", "replace").replace("\xa0", " "))
        made.append(f"plain words {misread(source, 'windows-1252', 'replace')} русский {rng.choice(SCRIPTS)}")
    # the pools hold characters of Unicode 14, on which all libraries agree
    known = [chr(c) for c in range(0x20, 0x30000) if not 0xD800 <= c < 0xE000 and unicodedata.category(chr(c)) != "Cn"]
    latin = [chr(c) for c in range(0x80, 0x250)]
    ascii_pool = [chr(c) for c in range(0x20, 0x7F)]
    marks = [c for c in known if unicodedata.category(c) == "Mn"]
    spaces = list(" \t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u2003\u2028\u3000\u200b")
    mojibake = list("ÃÂâ€œ™šžŸ‚„…†‡ˆ‰‹›•–—˜¡¢£¤¥¦§¨©ª«¬®¯°±²³´µ¶·¸¹º»¼½¾¿ðñàáâãäåæçèéêëìíîï \x1a\ufffdÐÑØÙвЂ√Σ╬")
    entity_parts = list("&#;xXaltgmpquoc0123456789ABCDEF <=")
    for pools, count, longest in [
        ([known], 40, 25), ([latin, ascii_pool], 50, 40), ([ascii_pool], 40, 120), ([marks, ascii_pool, latin], 30, 30),
        ([spaces, ascii_pool], 30, 40), ([mojibake], 60, 25), ([mojibake, ascii_pool], 60, 30), ([entity_parts], 60, 40), ([emoji, ascii_pool], 15, 40),
    ]:
        made += [random_text(rng, pools, rng.randint(1, longest)) for _ in range(count)]
    made.append(". ".join(f"a {a} {b}" for a in SUBJECTS for b in STYLES))
    return list(dict.fromkeys(made))


def strip(ids: list[int], end: int) -> list[int]:
    """The ids without open_clip's padding: up to the last end token, inclusive."""
    return ids[: len(ids) - ids[::-1].index(end)]


def transformers_parts(simple: SimpleTokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary of an open_clip tokenizer, with the special tokens under transformers' names."""
    names = {simple.sot_token_id: "<|startoftext|>", simple.eot_token_id: "<|endoftext|>"}
    vocab = {names.get(i, token): i for token, i in simple.encoder.items()}
    return vocab, sorted(simple.bpe_ranks, key=simple.bpe_ranks.get)


def truncated_merges(folder: pathlib.Path, count: int) -> pathlib.Path:
    path = folder / f"bpe_simple_vocab_{count}.txt.gz"
    lines = gzip.decompress(pathlib.Path(default_bpe()).read_bytes()).decode().split("\n")[: count + 1]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


def both(texts: list[str], merges: pathlib.Path) -> dict[str, list[list[int]]]:
    simple = SimpleTokenizer(bpe_path=str(merges))
    vocab, pairs = transformers_parts(simple)
    hf = CLIPTokenizer(vocab=vocab, merges=pairs)
    return {
        "open_clip": [strip(simple(text)[0].tolist(), simple.eot_token_id) for text in texts],
        "hf": [hf(text, **CUT)["input_ids"] for text in texts],
    }


def save_tiny(merges: pathlib.Path, folder: pathlib.Path) -> None:
    vocab, pairs = transformers_parts(SimpleTokenizer(bpe_path=str(merges)))
    CLIPTokenizer(vocab=vocab, merges=pairs, pad_token="!", model_max_length=77).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    lines = ["#version: 0.2"] + [" ".join(pair) for pair in pairs]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")


def main() -> None:
    for package, version in VERSIONS.items():
        assert importlib.metadata.version(package) == version, package
    texts = captions()
    with tempfile.TemporaryDirectory() as folder:
        small = truncated_merges(pathlib.Path(folder), SMALL_MERGES)
        save_tiny(truncated_merges(pathlib.Path(folder), TINY_MERGES), FIXTURE.parent / "tiny")
        goldens = {
            "captions": texts,
            "cleaned": [_clean_lower(text) for text in texts],
            "standard": both(texts, pathlib.Path(default_bpe())),
            "small": both(texts[::2], small),
        }
    tiny = FIXTURE.parent / "tiny"
    goldens["tiny"] = {"hf": [CLIPTokenizer.from_pretrained(tiny)(text, **CUT)["input_ids"] for text in texts]}
    packed = gzip.compress(json.dumps(goldens, separators=(",", ":")).encode(), 9, mtime=0)
    FIXTURE.write_bytes(packed)
    print(f"{len(texts)} captions, {len(packed)} bytes")


if __name__ == "__main__":
    main()
