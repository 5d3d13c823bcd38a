"""What this machine is, as reports and traces name it.

PyTorch is imported where it is asked, since what only reads reports and traces does without it.
"""

from __future__ import annotations

import subprocess
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import version

from pydantic import BaseModel, ConfigDict

from .hardware import UNKNOWN
from .paths import ROOT


class Model(BaseModel):
    """Unknown keys are errors; NaN and infinities are stored as strings, as in traces."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


class Provenance(Model):
    """Where, with what, when and how a report was made."""

    hardware: str
    """As in a trace's environment."""
    driver: str | None
    """Version of the GPU's driver; None on a CPU."""
    flashinfer_bench: str
    libs: dict[str, str]
    """torch, triton, cuda: versions."""
    command: str
    started: datetime
    finished: datetime
    """Time of the last row."""

    @property
    def environment(self) -> dict[str, str]:
        """All that must agree between rows that stand in one table."""
        own = {"hardware": self.hardware, "driver": str(self.driver)}
        return own | {"flashinfer-bench": self.flashinfer_bench} | self.libs


def hardware_name() -> str | None:
    """This machine's GPU as a trace names it; None without one."""
    import torch

    from .harness import env_snapshot

    return env_snapshot("cuda:0").hardware if torch.cuda.is_available() else None


def this_hardware() -> str:
    """This machine's GPU, else its CPU, as a trace names it."""
    import torch

    from .harness import env_snapshot

    return env_snapshot("cuda:0" if torch.cuda.is_available() else "cpu").hardware


def now() -> datetime:
    return datetime.now(timezone.utc).replace(microsecond=0)


def provenance(command: str) -> Provenance:
    """This machine, as a report names it."""
    import torch

    from .harness import env_snapshot

    on_gpu = torch.cuda.is_available()
    snapshot = env_snapshot("cuda:0" if on_gpu else "cpu")
    return Provenance(
        hardware=snapshot.hardware,
        driver=driver_version(),
        flashinfer_bench=version("flashinfer-bench"),
        libs=snapshot.libs,
        command=command,
        started=now(),
        finished=now(),
    )


@cache
def driver_version() -> str | None:
    """Of the NVIDIA driver; None without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN  # nvidia-smi is not part of every container


def bundle_version() -> str:
    """The commit, with a + if files were changed; that of a git archive; or unknown."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty=+",
               "--exclude=*"]  # fmt: skip
    try:
        if (ROOT / ".git").exists():
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            return done.stdout.strip()
        archived = (ROOT / ".git_archival.txt").read_text("utf-8").strip()
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN
    return UNKNOWN if archived.startswith("$") else archived
