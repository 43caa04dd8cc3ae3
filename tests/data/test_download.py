"""The public file is fetched once, checked by its hash and given our column names."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy import sparse

from sedd.data.cells import read_cells
from sedd.data.download import KANG_2018_HASH, fetch_kang_2018
from sedd.errors import DataError, StorageError

COUNTS = np.random.default_rng(0).poisson(1.5, size=(30, 8)) + 1


def write_like_pertpy(path: Path, labels=(b"ctrl", b"stim")) -> Path:
    """The layout of the public file: record tables, categories in uns, CSC, no version."""
    fields = [("index", "S12"), ("nCount_RNA", "f4"), ("label", "i1"), ("cell_type", "i1")]
    obs = np.zeros(30, dtype=fields)
    obs["index"] = [f"AAAC{row:04d}-1".encode() for row in range(30)]
    obs["label"], obs["cell_type"] = np.arange(30) % len(labels), np.arange(30) % 3
    matrix = sparse.csc_matrix(COUNTS.astype(np.float32))
    with h5py.File(path, "w") as file:
        file["obs"] = obs
        file["var"] = np.array([(f"G{gene}".encode(),) for gene in range(8)], [("index", "S4")])
        file["uns/label_categories"] = list(labels)
        file["uns/cell_type_categories"] = [b"B cells", b"CD14+ Monocytes", b"NK cells"]
        group = file.create_group("X")
        group.attrs["h5sparse_format"], group.attrs["h5sparse_shape"] = b"csc", matrix.shape
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(matrix, name)
    return path


@dataclass
class Server:
    folder: Path
    port: int
    agents: list[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/kang_2018.h5ad"

    @property
    def known_hash(self) -> str:
        content = (self.folder / "kang_2018.h5ad").read_bytes()
        return f"sha256:{hashlib.sha256(content).hexdigest()}"


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    folder = tmp_path / "public"
    folder.mkdir()
    agents: list[str] = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **options):
            super().__init__(*args, directory=str(folder), **options)

        def do_GET(self):
            agents.append(self.headers["User-Agent"])
            super().do_GET()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield Server(folder, listening.server_address[1], agents)
        listening.shutdown()
        thread.join()


def test_the_public_file_arrives_with_our_labels_and_its_counts(server, tmp_path):
    write_like_pertpy(server.folder / "kang_2018.h5ad")

    path = fetch_kang_2018(tmp_path / "cache", url=server.url, known_hash=server.known_hash)

    cells = read_cells(
        path, perturbation_col="perturbation", cell_type_col="cell_type", control_name="control"
    )
    assert cells.kind == "counts"
    assert cells.expression.toarray().tolist() == COUNTS.tolist()
    assert cells.perturbation.tolist() == ["control", "IFNb"] * 15
    assert cells.cell_type.tolist() == ["B cells", "CD14+ Monocytes", "NK cells"] * 10
    assert cells.names[0] == "AAAC0000-1"


def test_a_second_fetch_needs_no_network(server, tmp_path):
    write_like_pertpy(server.folder / "kang_2018.h5ad")
    known_hash = server.known_hash

    first = fetch_kang_2018(tmp_path / "cache", url=server.url, known_hash=known_hash)
    (tmp_path / "cache" / "kang_2018.h5ad").unlink()
    second = fetch_kang_2018(tmp_path / "cache", url=server.url, known_hash=known_hash)

    assert first == second
    assert len(server.agents) == 1
    # The real host refuses the agent of the requests library.
    assert server.agents[0].startswith("sedd")


def test_a_copy_put_into_the_cache_by_hand_is_used(server, tmp_path):
    write_like_pertpy(server.folder / "kang_2018.h5ad")
    cache = tmp_path / "cache"
    cache.mkdir()
    known_hash = server.known_hash
    (server.folder / "kang_2018.h5ad").rename(cache / "kang_2018.h5ad")

    fetch_kang_2018(cache, url=server.url, known_hash=known_hash)

    assert server.agents == []


def test_no_network_is_one_message_with_the_way_around(tmp_path):
    cache = tmp_path / "cache"

    with pytest.raises(StorageError) as caught:
        fetch_kang_2018(cache, url="http://127.0.0.1:1/kang_2018.h5ad")

    assert "no connection (ConnectionError): is there a network" in str(caught.value)
    assert f"put it at {cache / 'kang_2018.h5ad'}" in str(caught.value)
    assert list(cache.glob("*")) == []


def test_an_answer_of_the_server_that_is_no_file_is_told(server, tmp_path):
    with pytest.raises(StorageError, match=r"could not be downloaded: the server answered: 404"):
        fetch_kang_2018(tmp_path / "cache", url=server.url)


def test_another_file_than_the_published_one_is_not_kept(server, tmp_path):
    write_like_pertpy(server.folder / "kang_2018.h5ad")

    with pytest.raises(StorageError, match=r"not the file that was published \(its hash differs\)"):
        fetch_kang_2018(tmp_path / "cache", url=server.url, known_hash=KANG_2018_HASH)

    assert list((tmp_path / "cache").glob("*")) == []


def test_unknown_labels_are_not_given_a_meaning(server, tmp_path):
    write_like_pertpy(server.folder / "kang_2018.h5ad", labels=(b"ctrl", b"stim", b"LPS"))

    with pytest.raises(DataError, match=r"labels 'LPS' beside 'ctrl' and 'stim'"):
        fetch_kang_2018(tmp_path / "cache", url=server.url, known_hash=server.known_hash)


def test_a_cache_that_is_a_file_is_a_storage_error(server, tmp_path):
    write_like_pertpy(server.folder / "kang_2018.h5ad")
    (tmp_path / "cache").touch()

    with pytest.raises(StorageError, match=r"cannot hold the download"):
        fetch_kang_2018(tmp_path / "cache", url=server.url, known_hash=server.known_hash)
