"""The paper's figures from a run's own predictions: Figure 3 (curve) and Figure 1 (scatter)."""

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import ArrayLike

from hiercls_jax import metrics
from hiercls_jax.evaluation.evaluate import adapted
from hiercls_jax.evaluation.predictions import Predictions
from hiercls_jax.files import atomic_write
from hiercls_jax.hierarchy import Hierarchy

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402, after the choice of backend
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402

# Colours that colour-blind people can tell apart (Okabe and Ito, 2008), for the levels in turn.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# On top of Matplotlib's own defaults, because a user's settings would change the files.
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "h",  # the same ids in the file each time
    "text.parse_math": False,  # classes may have dollar signs in their names
}
FILES: dict[str, dict[str, Any]] = {  # by suffix, the options of `savefig`
    ".png": {"dpi": 150},
    ".svg": {"metadata": {"Date": None}},
}
CurvesBySize = Mapping[int, Mapping[str, Mapping[str, np.ndarray]]]
"""Errors `[ensembles, A]` in percent, by ensemble size, level name and variant."""


def draw_curve(folder: Path, results: Mapping[str, Any], hierarchy: Hierarchy, title: str) -> None:
    """Draw the errors against alpha as `alpha_curve.png` and `.svg`.

    Args:
      folder: an existing folder.
      results: has `alpha`, `curve` and `test_error` as `evaluate` returns them, and
        `validation_error` if alpha was tuned.
      hierarchy: the levels.
      title: what was run.
    """
    curve = results["curve"]
    errors = {level: curve[f"test_error_{level}"] for level in hierarchy.levels}
    held_out = "validation_error" in results
    tuned = (results["alpha"], results["test_error"]["tuned"]) if held_out else None
    alpha_curve(folder / "alpha_curve", curve["alpha"], errors, tuned, title)


def draw_run(
    folder: Path,
    results: Mapping[str, Any],
    test: Predictions,
    hierarchy: Hierarchy,
    title: str,
) -> None:
    """Draw a run's `alpha_curve` and `scatter`, each as `.png` and `.svg`.

    Args:
      folder: an existing folder.
      results: what `evaluate` returned.
      test: the predictions on the test split.
      hierarchy: the levels.
      title: what was run.
    """
    draw_curve(folder, results, hierarchy, title)

    upper = hierarchy.levels[-2]
    parents = hierarchy.parents[-1]
    before, after = adapted(test, hierarchy, results["alpha"], results.get("rule", "kl"))
    q, adapted_q = (metrics.child_sums(levels[-1], parents) for levels in (before, after))
    # The class on which the two levels disagree most shows most.
    shown = int(np.argmax(np.abs(before[-2] - q).mean(axis=0)))
    scatters(
        folder / "scatter",
        {
            "before": (before[-2][:, shown], q[:, shown]),
            "after adaptation": (after[-2][:, shown], adapted_q[:, shown]),
        },
        test.labels[upper] == shown,
        hierarchy.names[-2][shown],
        upper,
    )


def alpha_curve(
    path: Path,
    alphas: ArrayLike,
    errors: Mapping[str, ArrayLike],
    tuned: tuple[float, Mapping[str, float]] | None,
    title: str,
) -> None:
    """Draw top-1 error against alpha, one panel per level, in the manner of Figure 3.

    Args:
      path: file to write, without a suffix; `.png` and `.svg` are written.
      alphas: `[A]`.
      errors: `[A]` in [0, 1] by level name, on test data.
      tuned: the alpha chosen on validation data and the errors there by level name, to be marked;
        None if no alpha was tuned.
      title: what was run.
    """
    alphas = np.asarray(alphas)
    with plt.style.context(["default", STYLE]):
        width = 4.2 * len(errors)
        figure, axes = plt.subplots(1, len(errors), figsize=(width, 3.2), squeeze=False)
        for ax, (level, error), colour in zip(
            axes[0], errors.items(), cycle(COLOURS), strict=False
        ):
            error = 100 * np.asarray(error)
            ax.plot(alphas, error, color=colour, lw=1.8)
            ax.axvline(1, color="0.75", lw=0.8, zorder=0)
            if tuned is not None:
                alpha, at = tuned[0], 100 * tuned[1][level]
                ax.plot([alpha], [at], "o", color=colour, ms=6, clip_on=False)
                ax.annotate(
                    f"α = {alpha:.2f}, tuned on validation\n{at:.2f} %",
                    (alpha, at),
                    (0.5, 0.93),
                    textcoords="axes fraction",
                    ha="center",
                    va="top",
                    fontsize=9,
                    arrowprops={"arrowstyle": "-", "color": "0.6", "lw": 0.8},
                )
            low, high = error.min(), error.max()
            room = max(high - low, 0.1)
            ax.set(xlabel="α", title=level, xlim=(0, alphas[-1]))
            ax.set_ylim(low - 0.08 * room, high + 0.35 * room)
        axes[0, 0].set_ylabel("test error, top-1 (%)")
        figure.suptitle(title, fontsize=10)
        _save(figure, path)


def variant_curves(
    path: Path,
    alphas: np.ndarray,
    errors: CurvesBySize,
    title: str,
    adapted_first: CurvesBySize | None = None,
) -> None:
    """Draw top-1 error against alpha, one panel per level and ensemble size, as in Figure 3.

    Each variant has a line, the mean over ensembles, and a shade of one standard deviation. In the
    panels of ensembles with several members, a dashed line is the mean of those ensembles whose
    members are adapted before they are averaged.

    Args:
      path: file to write, without a suffix; `.png` and `.svg` are written.
      alphas: `[A]`.
      errors: errors in percent.
      title: what was trained.
      adapted_first: like `errors`.
    """
    sizes, levels = list(errors), list(next(iter(errors.values())))
    # A variant keeps its colour in every panel, even if others have too few runs for that panel.
    variants = dict.fromkeys(
        v for by_level in errors.values() for of in by_level.values() for v in of
    )
    colours = dict(zip(variants, cycle(COLOURS), strict=False))
    with plt.style.context(["default", STYLE]):
        figure, axes = plt.subplots(
            len(levels), len(sizes), figsize=(3.4 * len(sizes), 3.1 * len(levels)),
            squeeze=False, sharex=True, sharey="row",
        )  # fmt: skip
        for row, level in enumerate(levels):
            for column, size in enumerate(sizes):
                ax = axes[row, column]
                ax.axvline(1, color="0.75", lw=0.8, zorder=0)
                for variant, of in errors[size][level].items():
                    colour = colours[variant]
                    mean, deviation = of.mean(axis=0), of.std(axis=0, ddof=min(1, len(of) - 1))
                    ax.plot(alphas, mean, color=colour, lw=1.5, label=variant)
                    ax.fill_between(
                        alphas, mean - deviation, mean + deviation, color=colour, alpha=0.15, lw=0
                    )
                    if adapted_first is not None and size > 1:
                        mean = adapted_first[size][level][variant].mean(axis=0)
                        ax.plot(alphas, mean, color=colour, lw=1, ls="--")
                if not row:
                    ax.set_title(f"ensemble-{size}")
            axes[row, 0].set_ylabel(f"{level}: test error, top-1 (%)")
            axes[row, 0].set_xlim(0, alphas[-1])
        for ax in axes[-1]:
            ax.set_xlabel("α")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        if adapted_first is not None and len(sizes) > 1:
            handles.append(Line2D([], [], color="0.4", lw=1, ls="--"))
            labels.append("adapted, then averaged")
        figure.legend(
            handles, labels, loc="outside lower center", ncols=len(handles), frameon=False
        )
        figure.suptitle(title, fontsize=10)
        _save(figure, path)


def scatters(
    path: Path,
    panels: Mapping[str, tuple[ArrayLike, ArrayLike]],
    member: np.ndarray,
    name: str,
    level: str,
) -> None:
    """Draw P against Q for one coarse class, a panel each, as in Figure 1.

    Args:
      path: file to write, without a suffix; `.png` and `.svg` are written.
      panels: by title, (P, Q) `[N]` each: probability of the class at its own level, and summed
        over its children.
      member: bool `[N]`, whether a sample belongs to the class.
      name: the class.
      level: the class's level.
    """
    with plt.style.context(["default", STYLE]):
        size = 3.6 * len(panels), 4.6
        figure, axes = plt.subplots(
            1, len(panels), figsize=size, sharex=True, sharey=True, squeeze=False
        )
        for ax, (title, (x, y)) in zip(axes[0], panels.items(), strict=True):
            ax.plot([0, 1], [0, 1], color="0.75", lw=0.8, zorder=0)
            others, own = f"samples of other {level} classes", f"samples of {name}"
            for mask, colour, label in ((~member, "0.55", others), (member, "#009E73", own)):
                ax.scatter(
                    np.asarray(x)[mask], np.asarray(y)[mask], s=7, alpha=0.55, color=colour,
                    label=label, linewidths=0, rasterized=True,
                )  # fmt: skip
            ax.set(title=title, xlabel=f"P({name})", aspect="equal")
            ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes[0, 0].set_ylabel(f"Q: sum over the classes below {name}")
        handles = axes[0, 0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=2, frameon=False, markerscale=2)
        _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    """Write the figure as `.png` and `.svg`, and close it."""
    try:
        for suffix, options in FILES.items():
            with atomic_write(path.with_suffix(suffix)) as temporary:
                figure.savefig(temporary, **options)
    finally:
        plt.close(figure)
