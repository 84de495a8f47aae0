#!/usr/bin/env python3
"""Goldens for crates/media: PNG files that violate the standard, and how Pillow reads them.

Writes crates/media/tests/fixtures/damaged_pngs.json: {"pillow": VERSION, "files": {NAME: {"hex": FILE, "mode": MODE,
"pixels": SHA, "rgb": SHA, "white": SHA}}}, without the hashes if Pillow rejects the file. "white" is the image after
transformers' convert_to_rgb.
Run with Pillow 13.0.0 and transformers 5.23.0.
"""
import io
import json
import struct
import warnings
import zlib

import PIL
from images import ROOT, native, png, sha, texture
from PIL import Image
from transformers.image_transforms import convert_to_rgb

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(name, body, crc=None):
    crc = zlib.crc32(name + body) if crc is None else crc
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", crc & 0xFFFFFFFF)


def split(file):
    """The chunks of a valid file."""
    chunks, at = [], 8
    while at < len(file):
        length = struct.unpack(">I", file[at:at + 4])[0]
        chunks.append((file[at + 4:at + 8], file[at + 8:at + 8 + length]))
        at += 12 + length
    return chunks


def join(chunks):
    return SIGNATURE + b"".join(chunk(*parts) for parts in chunks)


def files():
    small = texture(11, 13, 4)
    rgb = png(small[:, :, :3], 2, 8)
    (_, header), (_, data), _ = split(rgb)
    raw = zlib.decompress(data)
    row = 13 * 3 + 1
    bad = zlib.crc32(b"IDAT" + data) ^ 1
    end = (b"IEND", b"")
    interlaced = png(small[:, :, :3], 2, 8, interlaced=True)
    (_, laced_header), (_, laced), _ = split(interlaced)
    laced_raw = zlib.decompress(laced)
    palette = bytes(i * 7 % 256 for i in range(48))
    indexed = png(small[:, :, :1] >> 4, 3, 4, palette=palette)
    out = {
        "sound": rgb,
        "data checksum wrong": SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", data, bad) + chunk(*end),
        "end missing": rgb[:-12],
        "end cut": rgb[:-5],
        "data chunk's checksum missing": rgb[:-16],
        "adler missing": rgb[:-20],
        "adler wrong": join([(b"IHDR", header), (b"IDAT", data[:-1] + bytes([data[-1] ^ 1])), end]),
        "last byte of data missing": rgb[:-21],
        "half of data missing": join([(b"IHDR", header), (b"IDAT", data[:len(data) // 2]), end]),
        "trailing rubbish": rgb + b"rubbish" * 50,
        "trailing second file": rgb + rgb,
        "bytes after the data in its chunk": join([(b"IHDR", header), (b"IDAT", data + b"abc"), end]),
        "more rows than stated": join([(b"IHDR", header), (b"IDAT", zlib.compress(raw + raw)), end]),
        "fewer rows than stated": join([(b"IHDR", header), (b"IDAT", zlib.compress(raw[:row * 4])), end]),
        "rows end within a row": join([(b"IHDR", header), (b"IDAT", zlib.compress(raw[:row * 4 + 7])), end]),
        "interlaced, fewer rows": join([(b"IHDR", laced_header), (b"IDAT", zlib.compress(laced_raw[:7 * 3])), end]),
        "empty data chunks": join([(b"IHDR", header), (b"IDAT", b""), (b"IDAT", data[:9]), (b"IDAT", b""), (b"IDAT", data[9:]), end]),
        "text within the data": join([(b"IHDR", header), (b"IDAT", data[:50]), (b"tEXt", b"a\0b"), (b"IDAT", data[50:]), end]),
        "text after the data, checksum wrong": SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"tEXt", b"a\0b", 1) + chunk(*end),
        "text after the data, cut": (join([(b"IHDR", header), (b"IDAT", data), (b"tEXt", b"a\0" + b"b" * 90)]))[:-30],
        "bad name after the data": SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"\0\1 a", b"x") + chunk(*end),
        "data after the data, cut": (join([(b"IHDR", header), (b"IDAT", data), (b"IDAT", b"b" * 90)]))[:-30],
        "profile damaged": join([(b"IHDR", header), (b"iCCP", b"icc\0\0not zlib at all"), (b"IDAT", data), end]),
        "profile of too few bytes": join([(b"IHDR", header), (b"iCCP", b"icc\0\0" + zlib.compress(b"x" * 300)[:20]), (b"IDAT", data), end]),
        "big text": join([(b"IHDR", header), (b"zTXt", b"big\0\0" + zlib.compress(b"a" * 900_000, 9)), (b"IDAT", data), end]),
        "text that is too big": join([(b"IHDR", header), (b"zTXt", b"big\0\0" + zlib.compress(b"a" * 1_100_000, 9)), (b"IDAT", data), end]),
        "text without a key": join([(b"IHDR", header), (b"tEXt", b"no separator"), (b"iTXt", b"\xff\xfe"), (b"IDAT", data), end]),
        "text before the data, checksum wrong": SIGNATURE + chunk(b"IHDR", header) + chunk(b"tEXt", b"a\0b", 1) + chunk(b"IDAT", data) + chunk(*end),
        "header's checksum wrong": SIGNATURE + chunk(b"IHDR", header, 1) + chunk(b"IDAT", data) + chunk(*end),
        "palette's checksum wrong": SIGNATURE + chunk(*split(indexed)[0]) + chunk(b"PLTE", palette, 1) + b"".join(chunk(*c) for c in split(indexed)[2:]),
        "no palette": join([split(indexed)[0], *split(indexed)[2:]]),
        "palette of odd length": join([split(indexed)[0], (b"PLTE", palette[:-1]), *split(indexed)[2:]]),
        "transparency longer than the palette": join([split(indexed)[0], (b"PLTE", palette), (b"tRNS", bytes(range(0, 240, 8))), *split(indexed)[2:]]),
        "transparency before the palette": join([split(indexed)[0], (b"tRNS", b"\x80" * 9), (b"PLTE", palette), *split(indexed)[2:]]),
        "transparency of RGBA": join([split(png(small, 6, 8))[0], (b"tRNS", b"\0\1\0\2\0\3"), *split(png(small, 6, 8))[1:]]),
        "method of compression unknown": join([(b"IHDR", header[:10] + b"\7" + header[11:]), (b"IDAT", data), end]),
        "filter method unknown": join([(b"IHDR", header[:11] + b"\7" + header[12:]), (b"IDAT", data), end]),
        "interlaced by another number": join([(b"IHDR", laced_header[:12] + b"\2"), (b"IDAT", laced), end]),
        "filter of a row unknown": join([(b"IHDR", header), (b"IDAT", zlib.compress(raw[:row] + b"\7" + raw[row + 1:])), end]),
        "animation without frames": join([(b"IHDR", header), (b"acTL", struct.pack(">II", 0, 0)), (b"IDAT", data), end]),
        "short gamma": join([(b"IHDR", header), (b"gAMA", b"\0"), (b"IDAT", data), end]),
        "private chunk": join([(b"IHDR", header), (b"prVt", b"anything"), (b"IDAT", data), end]),
        "two headers": join([(b"IHDR", header), (b"IHDR", header), (b"IDAT", data), end]),
        "header is not first": join([(b"tEXt", b"a\0b"), (b"IHDR", header), (b"IDAT", data), end]),
        "longer header": join([(b"IHDR", header + b"more"), (b"IDAT", data), end]),
        "no data": join([(b"IHDR", header), end]),
    }
    for name in ("end missing", "data checksum wrong"):
        both = {"end missing": lambda f: f[:-12], "data checksum wrong": lambda f: SIGNATURE + b"".join(
            chunk(n, b, 1) if n == b"IDAT" else chunk(n, b) for n, b in split(f))}
        for kind, sample in {
            "grey 16": png(texture(11, 13, 1, bits=16), 0, 16, transparency=b"\0\x40"),
            "grey 1 interlaced": png(small[:, :, :1] >> 7, 0, 1, interlaced=True, transparency=b"\0\1"),
            "grey 2": png(small[:, :, :1] >> 6, 0, 2, transparency=b"\0\2"),
            "palette": png(small[:, :, :1] >> 4, 3, 4, palette=palette, transparency=bytes(range(0, 240, 20))),
            "rgb 16": png(texture(11, 13, 3, bits=16), 2, 16),
            "rgba interlaced": png(small, 6, 8, interlaced=True),
            "grey alpha 16": png(texture(11, 13, 2, bits=16), 4, 16),
            "one pixel interlaced": png(small[:1, :1, :3], 2, 8, interlaced=True),
        }.items():
            out[f"{name}, {kind}"] = both[name](sample)
    return out


def main():
    warnings.simplefilter("ignore")
    cases = {}
    for name, data in files().items():
        case = {"hex": data.hex()}
        try:
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                case |= {"mode": image.mode, "pixels": sha(native(image)), "rgb": sha(image.convert("RGB").tobytes()),
                         "white": sha(convert_to_rgb(image, return_numpy=True).tobytes())}
        except Exception as error:  # Pillow raises SyntaxError, OSError, ValueError, EOFError, struct.error ...
            print(f"{name}: {type(error).__name__} {error}")
        cases[name] = case
    path = ROOT / "damaged_pngs.json"
    path.write_text(json.dumps({"pillow": PIL.__version__, "files": cases}, indent=1) + "\n")
    print(f"{len(cases)} files, {sum('pixels' in case for case in cases.values())} of them read, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
