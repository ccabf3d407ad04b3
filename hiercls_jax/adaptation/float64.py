"""`enable_x64`, a context manager in which JAX computes in float64, from wherever JAX has it."""

try:
    from jax import enable_x64
except ImportError:  # before JAX 0.8; newer versions, which the type checker sees, lack the second
    from jax.experimental import enable_x64  # type: ignore[attr-defined,no-redef]

__all__ = ["enable_x64"]
