"""A file is whole or not there."""

import pytest

from hiercls_jax.files import atomic_write


def test_a_file_gets_its_name_when_it_is_whole(tmp_path):
    """Before that the old one is there; after it the new one, and nothing beside it."""
    path = tmp_path / "a.npz"
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent
        assert temporary.suffix == ".npz"  # by which NumPy and matplotlib know what to write
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_fails_leaves_what_was_there(tmp_path, error):
    """Whatever ends it: the old file stays, and no half of the new one."""
    path = tmp_path / "a"
    path.write_text("old")

    def write():
        with atomic_write(path) as temporary:
            temporary.write_text("ne")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
