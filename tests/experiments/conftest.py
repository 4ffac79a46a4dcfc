"""Experiments draw their figures here, but into nothing."""

import pytest
from matplotlib.figure import Figure


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_rendered():
    """Rendering takes longer than what is drawn; what comes of it is asked in `tests/evaluation`."""

    def savefig(self: Figure, file, *, format, **options):
        file.write(b"" if format == "png" else "<svg></svg>")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", savefig)
        yield
