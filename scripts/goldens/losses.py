"""Goldens of the losses: train/tests/fixtures/losses.json.

Errors of model and reference model on the images of six pairs, and what each loss makes of them,
written down from the papers in numpy's float64, one pair and one image after the other: losses, and
their gradients by the model's errors, by differences of the sum. Nothing here is shared with the
product.
"""

import json
import pathlib

import numpy as np

OUT = pathlib.Path(__file__).resolve().parents[2] / "train" / "tests" / "fixtures" / "losses.json"
BETA = 200.0
MAPO_SCALE = 1000.0
SMOOTHING = 0.1
ANCHOR = 0.25
STEP = 1e-6


def sigmoid(x: float) -> float:
    return float(1.0 / (1.0 + np.exp(-x)))


def margin(model, reference) -> float:
    """How much more the model has gained on the chosen image than on the other, in errors."""
    (chosen, rejected), (chosen_before, rejected_before) = model, reference
    return (rejected - rejected_before) - (chosen - chosen_before)


def dpo(model, reference) -> float:
    # -log sigma(-beta/2 * (difference of losses)): diffusers' SDXL script.
    return float(-np.log(sigmoid(0.5 * BETA * margin(model, reference))))


def ipo(model, reference) -> float:
    return (margin(model, reference) - 1.0 / (2.0 * BETA)) ** 2


def hinge(model, reference) -> float:
    return max(0.0, 1.0 - BETA * margin(model, reference))


def mapo(model, reference) -> float:
    del reference
    chosen, rejected = model

    def odds(e: float) -> float:
        return 0.5 * e / (np.exp(0.5 * e) - 1.0)

    ratio = np.log(sigmoid(MAPO_SCALE * (odds(chosen) - odds(rejected))))
    return float(chosen - 0.1 * ratio)


def of_pairs(loss, model, reference, labels) -> np.ndarray:
    """A pair with label p counts p times as one whose image 0 is chosen, and 1 - p times the other way."""
    rows = []
    for (m0, m1), (r0, r1), p in zip(model, reference, labels):
        first = loss((m0, m1), (r0, r1))
        second = loss((m1, m0), (r1, r0))
        rows.append(p * first + (1.0 - p) * second)
    return np.array(rows)


def kto(model, reference, labels, point) -> np.ndarray:
    images = []
    for models, references, p in zip(model, reference, labels):
        row = []
        for e, before, desired in zip(models, references, (p, 1.0 - p)):
            reward = 0.5 * BETA * ((before - e) - point)
            row.append(desired * (1.0 - sigmoid(reward)) + (1.0 - desired) * (1.0 - sigmoid(-reward)))
        images.append(row)
    return np.array(images)


def gradient(of, model: np.ndarray) -> np.ndarray:
    """By central differences of the sum of the losses."""
    found = np.zeros_like(model)
    for place in np.ndindex(*model.shape):
        sides = []
        for sign in (1.0, -1.0):
            moved = model.copy()
            moved[place] += sign * STEP
            sides.append(float(np.sum(of(moved))))
        found[place] = (sides[0] - sides[1]) / (2.0 * STEP)
    return found


def main() -> None:
    # Multiples of 2^-10, so that f32 has the very same numbers and their differences.
    def grid(numbers: list) -> np.ndarray:
        return np.array(numbers, dtype=np.float64) / 1024.0

    model = grid([[100, 140], [133, 90], [200, 206], [64, 61], [310, 300], [77, 80]])
    reference = grid([[104, 138], [130, 95], [199, 203], [64, 61], [300, 304], [76, 83]])
    labels = np.array([1.0, 0.0, 0.75, 1.0, 0.5, 0.0])
    smoothed = np.clip(labels, SMOOTHING, 1.0 - SMOOTHING)
    point = max(0.0, float(np.mean(reference - model)))
    # The mean gain above is below zero; another point shows that it counts.
    above = 2.0 / 1024.0
    golden = {
        "beta": BETA,
        "mapo_scale": MAPO_SCALE,
        "label_smoothing": SMOOTHING,
        "winner_anchor": ANCHOR,
        "model": model.tolist(),
        "reference": reference.tolist(),
        "labels": labels.tolist(),
        "reference_point": point,
        "reference_point_above": above,
        "losses": {},
        "gradients": {},
    }

    def add(name, of):
        golden["losses"][name] = of(model).tolist()
        golden["gradients"][name] = gradient(of, model).tolist()

    for loss in (dpo, ipo, hinge, mapo):
        add(loss.__name__, lambda e, loss=loss: of_pairs(loss, e, reference, labels))
        add(f"{loss.__name__}-smoothed", lambda e, loss=loss: of_pairs(loss, e, reference, smoothed))

    def anchor(e: np.ndarray) -> np.ndarray:
        return labels * e[:, 0] + (1.0 - labels) * e[:, 1]

    add("dpo-anchored", lambda e: of_pairs(dpo, e, reference, labels) + ANCHOR * anchor(e))
    add("kto", lambda e: kto(e, reference, labels, point))
    add("kto-above", lambda e: kto(e, reference, labels, above))
    OUT.write_text(json.dumps(golden, indent=1) + "\n")
    print(f"{OUT}: {len(golden['losses'])} losses")


if __name__ == "__main__":
    main()
