"""Arrays of other libraries: in without a copy if possible, and back as the same kind.

PyTorch and pandas are never imported here: whoever passes a tensor or a DataFrame has done it.
"""

import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from hiercls_jax.errors import UserError

Back = Callable[[jax.Array], Any]
"""Turns a result of the given array's shape into the given kind."""


class Given(NamedTuple):
    """A level's probabilities as they were given.

    Args:
      array: NumPy's or JAX's, `[..., K]`.
      columns: the names of the columns; None if they have none.
      index: the index of a DataFrame; None for an array.
      back: returns a result, whose columns are those of `array`, as what was given.
    """

    array: np.ndarray | jax.Array
    columns: tuple[str, ...] | None
    index: Any
    back: Back


def take(value: Any) -> Given:
    """Return what a user gave as an array that JAX takes.

    Args:
      value: a NumPy, JAX or PyTorch array, a pandas DataFrame, or nested lists.

    Raises:
      UserError: for a data frame of another library, and for values that are no real numbers.
    """
    if hasattr(value, "columns"):
        return _take_frame(value)
    if isinstance(value, jax.Array):
        return Given(value, None, None, lambda result: result)
    if type(value).__module__.partition(".")[0] == "torch":
        return Given(_of_torch(value), None, None, lambda result: _to_torch(result, value))
    return Given(_real(np.asarray(value), "an array"), None, None, _to_numpy)


def is_concrete(array: np.ndarray | jax.Array) -> bool:
    """Return whether an array has values, which a traced one has not."""
    return not isinstance(array, jax.core.Tracer)


def is_double(array: np.ndarray | jax.Array) -> bool:
    """Return whether an array is float64, which JAX keeps only if it is asked to."""
    return array.dtype == np.float64


def _take_frame(frame: Any) -> Given:
    if not hasattr(frame, "index") or not hasattr(frame, "to_numpy"):
        raise UserError(
            f"{type(frame).__name__}: allowed are NumPy, JAX and PyTorch arrays and pandas "
            "DataFrames; convert it by to_pandas()"
        )

    def back(result: jax.Array) -> Any:
        return type(frame)(_to_numpy(result), index=frame.index, columns=frame.columns)

    labels = tuple(str(label) for label in frame.columns)
    unnamed = labels == tuple(str(i) for i in range(len(labels)))  # pandas names them so itself
    array = frame.to_numpy()
    if array.dtype == object:
        raise UserError(
            "a DataFrame with columns that are no numbers; make the column that identifies the "
            "rows its index: frame.set_index(...)"
        )
    array = _real(array, "a DataFrame")
    return Given(array, None if unnamed else labels, frame.index, back)


def _real(array: np.ndarray, what: str) -> np.ndarray:
    # bfloat16 and its like, which NumPy itself lacks, have a kind of their own.
    if array.dtype.kind in "fiub" or "float" in array.dtype.name:
        return array
    raise UserError(f"{what} of {array.dtype}: allowed are real numbers")


def _to_numpy(result: jax.Array) -> np.ndarray:
    return np.array(result)  # a copy, which may be written to


def _of_torch(tensor: Any) -> jax.Array:
    tensor = tensor.detach().contiguous()
    with contextlib.suppress(RuntimeError, ValueError, TypeError, BufferError):
        return jax.dlpack.from_dlpack(tensor)
    return jax.dlpack.from_dlpack(tensor.cpu())  # its device is none of JAX's


def _to_torch(result: jax.Array, like: Any) -> Any:
    # PyTorch may write into its tensor, so it must not share JAX's memory.
    return sys.modules["torch"].from_dlpack(result).clone().to(like.device)


def same_index(givens: Sequence[Given]) -> bool:
    """Return whether all DataFrames among the levels have the same index."""
    indices = [given.index for given in givens if given.index is not None]
    return all(list(index) == list(indices[0]) for index in indices[1:])
