"""The paper's figures from a run's own predictions: Figure 3 (curve) and Figure 1 (scatter)."""

from itertools import cycle
from pathlib import Path

import matplotlib
import numpy as np

from hiercls_jax import metrics
from hiercls_jax.evaluation.evaluate import adapted
from hiercls_jax.evaluation.predictions import Predictions
from hiercls_jax.files import atomic_write
from hiercls_jax.hierarchy import Hierarchy

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402, after the choice of backend

# Colour-blind safe (Okabe and Ito, 2008), for the levels in turn.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# On top of Matplotlib's own defaults: what a user has set would be in the files.
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "h",  # ids in the file that are the same each time
    "text.parse_math": False,  # classes may have dollar signs in their names
}


def alpha_curve(
    path: Path, alphas, errors: dict, tuned: tuple[float, dict] | None, title: str
) -> None:
    """Draw top-1 error against alpha, one panel per level, in the manner of Figure 3.

    Args:
      path: file to write, without a suffix; `.png` and `.svg` are written.
      alphas: `[A]`.
      errors: `[A]` in [0, 1] by level name, on test data.
      tuned: the alpha chosen on validation data and the errors there by level name, marked; None
        where none was chosen.
      title: what was run.
    """
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
    path: Path, alphas, errors: dict, title: str, adapted_first: dict | None = None
) -> None:
    """Draw top-1 error against alpha, one panel per level and ensemble size, as in Figure 3.

    A line for each variant, the mean over ensembles, with one standard deviation shaded; dashed,
    where ensembles have more than one member, the mean of those that are adapted before averaging.

    Args:
      path: file to write, without a suffix; `.png` and `.svg` are written.
      alphas: `[A]`.
      errors: by ensemble size, by level name, by variant, `[ensembles, A]` in percent.
      title: what was trained.
      adapted_first: like `errors`.
    """
    sizes, levels = list(errors), list(next(iter(errors.values())))
    # A variant has its colour in every panel, also where others have too few instances for it.
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
            handles.append(plt.Line2D([], [], color="0.4", lw=1, ls="--"))
            labels.append("adapted, then averaged")
        figure.legend(
            handles, labels, loc="outside lower center", ncols=len(handles), frameon=False
        )
        figure.suptitle(title, fontsize=10)
        _save(figure, path)


def scatters(path: Path, panels: dict, member, name: str, level: str) -> None:
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


def _save(figure, path: Path) -> None:
    """Write both files."""
    try:
        for suffix, options in ((".png", {"dpi": 150}), (".svg", {"metadata": {"Date": None}})):
            with atomic_write(path.with_suffix(suffix)) as temporary:
                figure.savefig(temporary, **options)
    finally:
        plt.close(figure)


def draw_run(
    folder: Path, results: dict, test: Predictions, hierarchy: Hierarchy, title: str
) -> None:
    """Write `alpha_curve` and `scatter` as `.png` and `.svg` into `folder`."""
    curve = results["curve"]
    errors = {level: curve[f"test_error_{level}"] for level in hierarchy.levels}
    held_out = "validation_error" in results
    tuned = (results["alpha"], results["test_error"]["tuned"]) if held_out else None
    alpha_curve(folder / "alpha_curve", np.array(curve["alpha"]), errors, tuned, title)

    upper, lower = hierarchy.levels[-2:]
    parents = hierarchy.parents[-1]
    before, after = adapted(test, hierarchy, results["alpha"])
    q, adapted_q = (metrics.child_sums(levels[-1], parents) for levels in (before, after))
    # The class whose two answers differ most: where there is most to see.
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
