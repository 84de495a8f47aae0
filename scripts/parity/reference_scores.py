"""Scores every pair with transformers and open_clip in f32, one image or caption at a time.

Images and captions that recur are computed once and one network is in memory at a time; nothing
else is clever here. The output is what
compare.py holds the product's labels against.
"""

import argparse
import gc
import time
from pathlib import Path

import numpy as np
import torch
from reference import decode, read_pairs, read_scorers, write_scores


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--scorers-dir", type=Path, required=True, help="folder with scorers.toml")
    parser.add_argument("--out", type=Path, required=True, help="Parquet file of scores")
    parser.add_argument("--limit", type=int, help="only the first pairs")
    parser.add_argument(
        "--dtype",
        choices=("f32", "f64"),
        default="f32",
        help="f64 tells how far f32 itself is from exact (default f32)",
    )
    arguments = parser.parse_args()

    pairs = read_pairs(arguments.pairs)[: arguments.limit]
    images = {uid: data for pair in pairs for uid, data in zip(pair.uids, pair.images)}
    captions = sorted({pair.caption for pair in pairs})
    scores = {}
    dtype = {"f32": torch.float32, "f64": torch.float64}[arguments.dtype]
    for scorer in read_scorers(arguments.scorers_dir, dtype):
        start = time.perf_counter()
        scorer.load()
        image = {
            uid: scorer.image_features(scorer.pixels(decode(data))[None])
            for uid, data in images.items()
        }
        text = (
            {caption: scorer.text_features([caption]) for caption in captions}
            if scorer.needs_text
            else {}
        )
        scores[scorer.name] = np.array(
            [
                [scorer.scores(image[uid], text.get(pair.caption)).item() for uid in pair.uids]
                for pair in pairs
            ]
        )
        seconds = time.perf_counter() - start
        print(
            f"{scorer.name}: {len(image)} images, {len(text)} captions, {seconds:.1f} s",
            flush=True,
        )
        del scorer.network, image, text
        gc.collect()
    write_scores(arguments.out, pairs, scores)


if __name__ == "__main__":
    main()
