"""Learning curves of a run, as a figure."""

import io

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def curves(history: list[dict[str, float]]) -> dict[str, bytes]:
    """{"validation": PNG} of the validations in order ({"step", name: value}), one panel per metric; {}
    without validations."""
    if not history:
        return {}
    names = [n for n in history[-1] if n != "step"]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.6 * columns, 2.3 * rows), squeeze=False, layout="constrained", sharex=True
    )
    for axis, name in zip(axes.flat, names, strict=False):
        points = [(h["step"], h[name]) for h in history if name in h]
        axis.plot(*zip(*points, strict=True), marker=".", color="#1f6f8b", linewidth=1.4)
        axis.set_title(name.replace("/", ": ").replace("_", " "), fontsize=9, loc="left")
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    figure.supxlabel("optimizer step, held-out subjects", fontsize=9)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120)
    plt.close(figure)
    return {"validation": png.getvalue()}
