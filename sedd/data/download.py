"""Public data sets, fetched once and rewritten with the column names of this project."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from sedd.data.cells import read_cells, write_h5ad
from sedd.data.hdf5 import listing
from sedd.errors import DataError, StorageError

# Kang et al., Nat Biotechnol 36, 89-94 (2018), GEO GSE96583: blood cells of eight lupus patients
# with and without interferon beta, 24,673 cells x 15,706 genes, in the packaging of pertpy's loader
# `kang_2018` (38 MB). figshare has the same bytes (file 34464122) but answers programs with a
# challenge page.
KANG_2018_URL = "https://exampledata.scverse.org/pertpy/kang_2018.h5ad"
KANG_2018_HASH = "sha256:e6a5adac64dcdeb36eaba27db49b63e0c64bb0ed4a64c6705971506b41c39830"

_SOURCE_NAME = "kang_2018.h5ad"
_NAME = "kang_2018_perturbation.h5ad"
_LABELS = {"ctrl": "control", "stim": "IFNb"}
_TIMEOUT_SECONDS = 60


def fetch_kang_2018(
    cache_dir: str | Path, *, url: str = KANG_2018_URL, known_hash: str | None = KANG_2018_HASH
) -> Path:
    """Path of the Kang 2018 cells with `perturbation` (control, IFNb), `cell_type` and raw counts.

    Both files stay in `cache_dir` and are used again; a copy of the original that was put there by
    hand is taken when its hash is right. `StorageError` when it cannot be had.
    """
    folder = Path(cache_dir)
    mapped = folder / _NAME
    if mapped.exists():
        return mapped
    original = _download(folder, url, known_hash)
    cells = read_cells(
        original, perturbation_col="label", cell_type_col="cell_type", control_name="ctrl"
    )
    unknown = sorted(set(cells.perturbation) - set(_LABELS))
    if unknown:
        message = (
            f"{original} has the labels {listing(unknown)} beside 'ctrl' and 'stim', so it is not "
            f"the Kang 2018 file. Delete it and fetch it again from {url}."
        )
        raise DataError(message)
    labels = np.array([_LABELS[label] for label in cells.perturbation], dtype=object)
    write_h5ad(replace(cells, perturbation=labels), mapped)
    return mapped


def _download(folder: Path, url: str, known_hash: str | None) -> Path:
    import pooch
    import requests

    # The host refuses requests that do not name their program.
    downloader = pooch.HTTPDownloader(
        headers={"User-Agent": "sedd (single-cell perturbation model)"}, timeout=_TIMEOUT_SECONDS
    )
    pooch.get_logger().setLevel("WARNING")
    try:
        path = pooch.retrieve(
            url,
            known_hash,
            fname=_SOURCE_NAME,
            path=folder,
            downloader=downloader,  # pyright: ignore[reportArgumentType]
        )
    except requests.HTTPError as error:
        raise _unavailable(folder, url, f"the server answered: {error}") from error
    except requests.RequestException as error:
        reason = f"no connection ({type(error).__name__}): is there a network or a proxy to set?"
        raise _unavailable(folder, url, reason) from error
    except OSError as error:
        message = f"{folder} cannot hold the download ({error}). Choose a folder you may write to."
        raise StorageError(message) from error
    except ValueError as error:
        reason = "what arrived is not the file that was published (its hash differs)"
        raise _unavailable(folder, url, reason) from error
    return Path(path)


def _unavailable(folder: Path, url: str, reason: str) -> StorageError:
    return StorageError(
        f"{url} could not be downloaded: {reason}. Try again, or fetch it where there is a "
        f"network and put it at {folder / _SOURCE_NAME}; the built-in cells need no download."
    )
