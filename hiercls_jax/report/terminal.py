"""What a run prints when it is finished: a table of errors."""

from hiercls_jax.hierarchy import Hierarchy


def error_table(results: dict, hierarchy: Hierarchy) -> str:
    """Return test errors by level at each setting of alpha as an aligned table, in percent."""
    errors = results["test_error"]
    names = {name: name.replace("=", " = ") for name in errors}
    chosen = "tuned" if "validation_error" in results else "chosen"
    names["tuned"] = f"{chosen}, alpha = {results['alpha']:.2f}"
    width = max(map(len, names.values()))
    columns = [max(9, len(level)) for level in hierarchy.levels]
    head = "  ".join(f"{v:>{w}}" for v, w in zip(hierarchy.levels, columns, strict=True))
    lines = [f"{'test error, top-1':<{width}}  {head}"]
    for key, name in names.items():
        cells = (
            f"{100 * errors[key][level]:>{w - 2}.2f} %"
            for level, w in zip(hierarchy.levels, columns, strict=True)
        )
        lines.append(f"{name:<{width}}  {'  '.join(cells)}")
    return "\n".join(lines)
