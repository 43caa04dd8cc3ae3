import os
import subprocess
import sys

import pytest

from pipelines.cluster import Cluster, absolute_path, connect
from sedd.errors import UsageError


def said_by(call: str, after: str = "", **environment: str) -> str:
    """What the UsageError of a call says, in a process of its own."""
    code = (
        "import sys\n"
        "from pipelines.cluster import connect\n"
        "from sedd.errors import UsageError\n"
        "try:\n"
        f"    {call}.__enter__()\n"
        "except UsageError as error:\n"
        "    print(error)\n"
        f"{after}\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | environment,
    )
    return answer.stdout


def test_too_many_workers_are_refused_before_ray_starts():
    cpus = len(os.sched_getaffinity(0))

    said = said_by(
        f"connect(num_workers={cpus + 1}, flag='--num_actors')",
        after="assert 'ray' not in sys.modules",
    )

    assert said == (
        f"--num_actors {cpus + 1} needs a CPU for each worker, {cpus + 1} in all, and this machine "
        f"has {cpus}. Use --num_actors {cpus}, or name a larger cluster with RAY_ADDRESS.\n"
    )


def test_no_worker_at_all_is_refused():
    with pytest.raises(UsageError, match="--num_workers is 0; at least 1"):
        connect(num_workers=0).__enter__()


def test_gpus_that_are_not_there_are_refused_with_the_way_out():
    assert said_by("connect(use_gpu=True)", CUDA_VISIBLE_DEVICES="") == (
        "--num_workers 1 needs a GPU for each worker, 1 in all, and this machine has 0. "
        "Set scaling.use_gpu to false, or name a larger cluster with RAY_ADDRESS.\n"
    )


def test_nobody_at_ray_address_is_a_usage_error():
    said = said_by("connect()", RAY_ADDRESS="127.0.0.1:1")

    assert said.startswith("No Ray cluster answers at RAY_ADDRESS=127.0.0.1:1")
    assert "unset RAY_ADDRESS" in said


def test_workers_import_the_project_from_any_folder(ray_cluster, tmp_path, monkeypatch):
    import ray

    def look():
        import pipelines.cluster
        import sedd

        return sedd.__file__, pipelines.cluster.PROJECT_ROOT, os.environ.get("PYTHONPATH", "")

    monkeypatch.chdir(tmp_path)
    with connect(num_workers=1):
        sedd_file, root, python_path = ray.get(ray.remote(look).remote())

    assert sedd_file.startswith(str(root))
    assert python_path.split(os.pathsep)[0] == str(root)


def test_threads_of_workers_sleep_while_they_wait(ray_cluster):
    import ray

    with connect(num_workers=1):
        policy = ray.get(ray.remote(lambda: os.environ.get("OMP_WAIT_POLICY")).remote())

    assert policy == "PASSIVE"


def test_a_connect_inside_another_uses_its_ray_and_leaves_it_running(ray_cluster):
    import ray

    node = ray.get_runtime_context().get_node_id()
    with connect(num_workers=1):
        assert ray.get_runtime_context().get_node_id() == node

    assert ray.is_initialized()


def test_ray_gets_the_cpus_of_this_process(ray_cluster):
    assert ray_cluster.num_cpus == len(os.sched_getaffinity(0))


def test_a_local_ray_asks_for_a_token_that_no_file_holds(tmp_path):
    code = (
        "import os, ray\n"
        "from pipelines.cluster import connect\n"
        "with connect(log_to_driver=False):\n"
        "    print(os.environ['RAY_AUTH_MODE'], ray.get(ray.remote(lambda: 42).remote()))\n"
    )
    variables = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}

    answer = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**variables, "HOME": str(tmp_path)},
    )

    assert answer.stdout == "token 42\n"
    assert not list(tmp_path.rglob("*token*"))


@pytest.mark.parametrize(("cpus", "workers", "each"), [(8, 2, 4), (8, 3, 2), (2, 2, 1), (1, 1, 1)])
def test_workers_share_the_cpus_evenly(cpus, workers, each):
    cluster = Cluster(address="local", num_cpus=cpus, num_gpus=0, num_workers=workers)

    assert cluster.cpus_per_worker == each


def test_paths_become_absolute_and_addresses_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/anna")

    assert absolute_path("runs/../experiments/a b") == str(tmp_path / "experiments" / "a b")
    assert absolute_path("~/cells") == "/home/anna/cells"
    assert absolute_path("s3://bucket/runs") == "s3://bucket/runs"
