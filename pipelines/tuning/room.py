"""How many trials a cluster has room for, and what each takes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.cluster import Cluster
from pipelines.tuning.search import Search
from sedd.config import ScalingConfig
from sedd.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Room:
    """How many trials run at once, and what each takes."""

    at_once: int
    threads: int
    bundle: dict[str, float]


def room_for(search: Search, scaling: ScalingConfig, there: Cluster) -> Room:
    """The room for trials in a cluster.

    Raises:
        UsageError: Not one trial fits.
    """
    alone = scaling.num_workers == 1
    share = search.gpus_per_trial if alone else 1.0
    cpus = scaling.cpus_per_worker
    slots = [_slots(node, cpus, share if scaling.use_gpu else None) for node in there.nodes]
    fits = sum(slots) // scaling.num_workers
    if fits < 1:
        need = f"{scaling.num_workers} × {cpus:g} CPUs"
        need += f" and {scaling.num_workers} × {share:g} GPUs" if scaling.use_gpu else ""
        has = ", ".join(f"{n.get('CPU', 0):g} CPUs, {n.get('GPU', 0):g} GPUs" for n in there.nodes)
        message = (
            f"A trial needs {need}, each worker on one node; the nodes have: {has}. Ask for fewer "
            "with scaling.num_workers or scaling.cpus_per_worker, or name a larger cluster with "
            "RAY_ADDRESS."
        )
        raise UsageError(message)
    at_once = min(search.num_trials, fits)
    used = [node for node, number in zip(there.nodes, slots, strict=True) if number]
    on_a_node = math.ceil(at_once * scaling.num_workers / len(used))
    smallest = min(node.get("CPU", 0.0) for node in used)
    threads = max(1, math.floor(cpus), math.floor(smallest / on_a_node))
    if not alone:
        # The workers of such a trial take their own places; their manager takes none.
        return Room(at_once=at_once, threads=threads, bundle={"CPU": 0.0, "memory": 1.0})
    bundle = {"CPU": max(cpus, float(threads))} | ({"GPU": share} if scaling.use_gpu else {})
    return Room(at_once=at_once, threads=threads, bundle=bundle)


def _slots(node: Mapping[str, float], cpus: float, gpu_share: float | None) -> int:
    """Workers that a node has room for; those that share a GPU share one, not two halves."""
    by_cpu = math.floor(node.get("CPU", 0.0) / cpus + 1e-9)
    if gpu_share is None:
        return by_cpu
    return min(by_cpu, math.floor(1 / gpu_share + 1e-9) * int(node.get("GPU", 0.0)))
