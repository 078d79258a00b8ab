"""Distances and the sweep of an evaluation as lines of text, from the dicts that metrics.json holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unetdiff.text import aligned


def denoiser_lines(metrics: Mapping[str, Any]) -> list[str]:
    """The classifier's accuracy, the distances and the sweep, each after an empty line; [] without them."""
    lines: list[str] = []
    if "samples/classifier_accuracy_on_real" in metrics:
        accuracy, n = (metrics[f"samples/classifier_{name}"] for name in ("accuracy_on_real", "num_real_images"))
        lines += ["", f"Classifier accuracy on {n} real images: {100 * accuracy:.0f} %"]
    if metrics.get("samples/distances"):
        lines += ["", *aligned(distance_rows(metrics["samples/distances"]), "<")]
    if metrics.get("sweep"):
        lines += ["", *sweep_lines(metrics["sweep"])]
    return lines


def distance_rows(distances: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Name, value, and n with the reference dataset."""
    rows = []
    for distance in distances:
        value = f"{distance['value']:.4f}"
        if distance["deviation"] is not None:
            value += f" ± {distance['deviation']:.4f}"
        conditions = f"n = {distance['n']}, reference {distance['reference']} ({distance['reference_n']} images)"
        rows.append([distance["name"], value, f"{conditions}; {distance['note']}" if distance["note"] else conditions])
    return rows


def sweep_lines(sweep: Mapping[str, Any]) -> list[str]:
    """The sweep as an aligned table, followed by a line with n, seed and reference dataset."""
    conditions = f"n = {sweep['n']} each, same noise (seed {sweep['seed']})"
    if sweep["reference"] is not None:
        conditions += f"; reference {sweep['reference']}"
    return [*aligned(sweep_rows(sweep)), conditions]


def sweep_rows(sweep: Mapping[str, Any]) -> list[list[str]]:
    """The sweep's table as text, header first, without empty columns."""
    results = sweep["results"]
    columns: list[tuple[str, str, str]] = [("scheduler", "scheduler", "s"), ("num_inference_steps", "steps", "d")]
    columns += [("guidance_scale", "guidance scale", "g"), ("seconds_per_image", "s / image", ".4f")]
    columns += [("frechet_distance", sweep["distance"] or "", ".3f")]
    columns += [("class_consistency", "class consistency", ".4f")]
    columns = [column for column in columns if any(result[column[0]] is not None for result in results)]
    header = [label for _, label, _ in columns]
    return [header, *([format(result[key], spec) for key, _, spec in columns] for result in results)]
