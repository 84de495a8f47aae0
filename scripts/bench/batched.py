"""Python as fast as we could make it: the same work without its repetitions, in batches.

Each image (by uid) goes through each network once and each caption once per text tower; scorers
with one tower or one preprocessing recipe share features or pixels; decoding and preprocessing run
ahead of the networks on a thread; attention is torch's fused one; inference mode; a batch size
chosen for this kind of machine.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "parity"))
from measured import Measured, parse_arguments  # noqa: E402
from reference import Scorer, decode, load_all, read_pairs, read_scorers, write_scores  # noqa: E402

BATCHES_AHEAD = 2


def prepare(batch: list[bytes], recipes: dict[tuple, Scorer]) -> dict[tuple, torch.Tensor]:
    """Decodes a batch of images once and makes the pixels [B,3,S,S] of every recipe."""
    images = [decode(data) for data in batch]
    return {
        recipe: torch.stack([scorer.pixels(image) for image in images])
        for recipe, scorer in recipes.items()
    }


@torch.inference_mode()
def image_features(
    scorers: list[Scorer], images: dict[str, bytes], batch_size: int
) -> dict[tuple, torch.Tensor]:
    """Features [N,D] of all images for every distinct (tower, recipe)."""
    recipes = {scorer.recipe: scorer for scorer in scorers}
    towers = {(scorer.tower, scorer.recipe): scorer for scorer in scorers}
    data = list(images.values())
    batches = [data[start : start + batch_size] for start in range(0, len(data), batch_size)]
    features: dict[tuple, list[torch.Tensor]] = {key: [] for key in towers}
    with ThreadPoolExecutor(max_workers=1) as ahead:
        futures = [ahead.submit(prepare, batch, recipes) for batch in batches[:BATCHES_AHEAD]]
        for number in range(len(batches)):
            pixels = futures[number].result()
            futures[number] = None
            if number + BATCHES_AHEAD < len(batches):
                futures.append(ahead.submit(prepare, batches[number + BATCHES_AHEAD], recipes))
            for key, scorer in towers.items():
                features[key].append(scorer.image_features(pixels[scorer.recipe]))
    return {key: torch.cat(parts) for key, parts in features.items()}


@torch.inference_mode()
def text_features(
    scorers: list[Scorer], captions: list[str], batch_size: int
) -> dict[tuple, torch.Tensor]:
    """Features [M,D] of all captions for every distinct (tower, tokenizer)."""
    towers = {
        (scorer.tower, scorer.entry.get("tokenizer")): scorer for scorer in scorers if scorer.needs_text
    }
    # Captions of similar length together: Hugging Face pads to the longest of a batch.
    order = sorted(range(len(captions)), key=lambda index: len(captions[index]))
    features = {}
    for key, scorer in towers.items():
        parts = [
            scorer.text_features([captions[index] for index in order[start : start + batch_size]])
            for start in range(0, len(order), batch_size)
        ]
        sorted_features = torch.cat(parts)
        features[key] = torch.empty_like(sorted_features)
        features[key][order] = sorted_features
    return features


@torch.inference_mode()
def main() -> None:
    arguments = parse_arguments(__doc__, batch_size=True)
    # nn.MultiheadAttention in open_clip: scaled_dot_product_attention, ahead of its own fast path.
    torch.backends.mha.set_fastpath_enabled(False)
    measured = Measured()
    pairs = read_pairs(arguments.pairs)
    scorers = read_scorers(arguments.scorers_dir, arguments.dtype)
    load_all(scorers)
    measured.loaded()
    images = {uid: data for pair in pairs for uid, data in zip(pair.uids, pair.images)}
    captions = list(dict.fromkeys(pair.caption for pair in pairs))
    image_of = {uid: number for number, uid in enumerate(images)}
    text_of = {caption: number for number, caption in enumerate(captions)}
    features = image_features(scorers, images, arguments.batch_size)
    texts = text_features(scorers, captions, arguments.batch_size)
    scores = {}
    for scorer in scorers:
        image = features[(scorer.tower, scorer.recipe)]
        text = None
        if scorer.needs_text:
            text = texts[(scorer.tower, scorer.entry.get("tokenizer"))][
                [text_of[pair.caption] for pair in pairs]
            ]
        sides = [
            scorer.scores(image[[image_of[pair.uids[side]] for pair in pairs]], text)
            for side in (0, 1)
        ]
        scores[scorer.name] = np.stack([side.numpy() for side in sides], axis=1)
    measured.finished()
    write_scores(arguments.out, pairs, scores)
    measured.report(arguments.out, len(pairs))


if __name__ == "__main__":
    main()
