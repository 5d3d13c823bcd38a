"""GPUs of many machines, by Ray: an actor for each GPU, kept for the whole run.

An actor rather than a task for each workload: processes of GPU tasks are not used again, and every
workload would compile all kernels anew.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections import Counter
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from ..paths import ROOT, BadInput
from .evaluator import Evaluator
from .worker import WorkerLost

TYPE = "accelerator_type:"
"""Ray's resource of nodes with GPUs of a type, such as accelerator_type:H100."""


class RayWorker:
    """A Worker on a node of the cluster."""

    def __init__(self, name: str, actor: Any) -> None:
        self.name = name
        self._actor = actor

    def ask(self, method: str, *arguments: Any) -> Future:
        asked = getattr(self._actor, method).remote(*arguments).future()
        answer: Future = Future()
        asked.add_done_callback(lambda done: _pass_on(done, answer))
        return answer

    def close(self) -> None:
        import ray

        ray.kill(self._actor)


def _pass_on(done: Future, answer: Future) -> None:
    """What the actor has raised as it is, and WorkerLost for what Ray says of a lost one."""
    from ray.exceptions import RayError, RayTaskError

    error = done.exception()
    if error is None:
        answer.set_result(done.result())
    elif isinstance(error, RayTaskError):
        answer.set_exception(error.cause)
    elif isinstance(error, RayError):
        said = str(error).strip().splitlines() or [type(error).__name__]
        answer.set_exception(WorkerLost(said[0]))
    else:
        answer.set_exception(error)


def connect(address: str) -> None:
    """Raises BadInput without Ray, or without a cluster at the address."""
    if importlib.util.find_spec("ray") is None:
        raise BadInput('--ray: needs Ray: pip install ".[ray]", here and on all nodes')
    import ray

    path = [str(ROOT / "scripts"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(path)}}
    try:
        ray.init(address=address, runtime_env=environment, logging_level=logging.WARNING)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise BadInput(f"--ray {address}: expected a Ray cluster there: {said[0]}") from error


def ray_workers(gpu_type: str | None, root: Path, emulated: str | None) -> list[RayWorker]:
    """A worker for each GPU of one type, or for each node with CPUs of a cluster without GPUs.

    gpu_type: as Ray names it, such as H100; None: the cluster's only one. Raises BadInput for a
    type that the cluster does not have, and where there are several to choose from.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    chosen = usable_nodes(gpu_type)
    with_gpus = "GPU" in chosen[0]["Resources"]
    actor = ray.remote(Evaluator)
    hosts = Counter(node["NodeManagerHostname"] for node in chosen)
    numbers: Counter[str] = Counter()
    workers = []
    for node in chosen:
        host = node["NodeManagerHostname"]
        on_node = int(node["Resources"]["GPU"]) if with_gpus else 1
        for _ in range(on_node):
            alone = hosts[host] == on_node == 1
            name = host if alone else f"{host} #{numbers[host]}"
            numbers[host] += 1
            there = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
            options = {
                "num_gpus": int(with_gpus), "num_cpus": 1, "max_restarts": 0,
                "scheduling_strategy": there,
            }  # fmt: skip
            if with_gpus and gpu_type:
                options["accelerator_type"] = gpu_type
            workers.append(RayWorker(name, actor.options(**options).remote(root, emulated, name)))
    return workers


def usable_nodes(gpu_type: str | None = None) -> list[dict]:
    """Ray's nodes with GPUs of the type; without any GPU in the cluster, those with CPUs."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    with_gpus = [node for node in nodes if node["Resources"].get("GPU", 0) >= 1]
    if with_gpus:
        return of_type(with_gpus, gpu_type)
    if gpu_type is not None:
        raise BadInput(f"--gpu-type {gpu_type}: the cluster has no GPUs")
    with_cpus = [node for node in nodes if node["Resources"].get("CPU", 0) >= 1]
    if not with_cpus:
        raise BadInput("--ray: expected a cluster with GPUs or CPUs, it has neither")
    return with_cpus


def of_type(nodes: list[dict], gpu_type: str | None) -> list[dict]:
    """The nodes whose GPUs are of that type."""

    def type_of(node: dict) -> str:
        named = (name for name in node["Resources"] if name.startswith(TYPE))
        return next(named, TYPE + "of no name").removeprefix(TYPE)

    types = sorted({type_of(node) for node in nodes})
    if gpu_type is None and len(types) > 1:
        raise BadInput(f"--ray: expected one type of GPU, or --gpu-type; got {', '.join(types)}")
    if gpu_type is not None and gpu_type not in types:
        raise BadInput(f"--gpu-type: expected one of {', '.join(types)}; got {gpu_type}")
    return [node for node in nodes if gpu_type in (None, type_of(node))]


def disconnect() -> None:
    import ray

    ray.shutdown()
