"""The plain Python way: for every pair, each model, one image and one caption at a time, in f32.

This is what the scoring helpers of SalesforceAIResearch/DiffusionDPO do (`utils/*_utils.py`
@ 5233e759): each call preprocesses its image, tokenizes and encodes its caption, and returns one
score; nothing is remembered between calls. Kinder than the helpers in one point: weights are
memory-mapped and every model is loaded once (tower weights that several scorers share, too).
"""

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "parity"))
from measured import Measured, parse_arguments  # noqa: E402
from reference import Scorer, decode, load_all, read_pairs, read_scorers, write_scores  # noqa: E402


@torch.no_grad()
def score(scorer: Scorer, image, caption: str) -> float:
    """One helper call: one image, one caption."""
    image_features = scorer.image_features(scorer.pixels(image)[None])
    text_features = scorer.text_features([caption]) if scorer.needs_text else None
    return scorer.scores(image_features, text_features).item()


def main() -> None:
    arguments = parse_arguments(__doc__, batch_size=False)
    measured = Measured()
    pairs = read_pairs(arguments.pairs)
    scorers = read_scorers(arguments.scorers_dir, arguments.dtype)
    load_all(scorers)
    measured.loaded()
    scores = {scorer.name: np.zeros((len(pairs), 2)) for scorer in scorers}
    for row, pair in enumerate(pairs):
        # Decoded once per pair, as the training script's collate function does.
        images = [decode(data) for data in pair.images]
        for scorer in scorers:
            for side, image in enumerate(images):
                scores[scorer.name][row, side] = score(scorer, image, pair.caption)
    measured.finished()
    write_scores(arguments.out, pairs, scores)
    measured.report(arguments.out, len(pairs))


if __name__ == "__main__":
    main()
