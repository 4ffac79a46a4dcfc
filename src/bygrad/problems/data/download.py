"""Data sets from the Hugging Face hub. With `deploy/hub.py`, the only module of the package that uses the network."""

import numpy as np

_IMAGES = ("image", "img")
_LABELS = ("label", "labels")
_REMEDY = (
    "Name a data set with the splits train and test and with columns of images and labels, or save its arrays with"
    " numpy.savez (x_train, y_train, x_test, y_test) and give the path."
)


def download(name: str) -> dict[str, np.ndarray]:
    """Download a data set of labelled images, or read it from the library's own cache.

    **Arguments:**

    - `name`: `owner/name` on the Hugging Face hub, with the splits `train` and `test`, a column `image` (or `img`) of
        images of one size and a column `label` (or `labels`) of integers.

    **Returns:** The arrays `x_train`, `y_train`, `x_test` and `y_test` as the data set holds them.

    **Raises:** `ImportError` without the libraries; `ConnectionError` when the download fails; `ValueError` when
    there is no such data set, split or column.
    """
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            f"hf:{name} needs the Hugging Face library `datasets`, which is not installed ({error}). "
            "Install it with: pip install datasets pillow."
        ) from error
    arrays = {}
    for split in ("train", "test"):
        try:
            table = datasets.load_dataset(name, split=split)
        except (FileNotFoundError, ValueError) as error:
            raise ValueError(f"hf:{name} has no usable split {split!r} ({error}). {_REMEDY}") from error
        except Exception as error:  # the library lets errors of several network stacks through
            raise ConnectionError(
                f"hf:{name} could not be downloaded ({type(error).__name__}: {error}). The first use needs the "
                "network, later ones read the cache. Offline, use the embedded 'mnist' or the path of a local file."
            ) from error
        columns = table.with_format("numpy")[:]
        arrays[f"x_{split}"] = columns[_one_of(_IMAGES, columns, name)]
        arrays[f"y_{split}"] = columns[_one_of(_LABELS, columns, name)]
    return arrays


def _one_of(wanted: tuple[str, ...], columns: dict[str, np.ndarray], name: str) -> str:
    for column in wanted:
        if column in columns:
            return column
    raise ValueError(f"hf:{name} has no column {' or '.join(wanted)}; it has {', '.join(columns)}. {_REMEDY}")
