"""One process that starts solutions, for all tests of this process that run honest ones.

Each runner starts its own, which imports PyTorch: seconds of a processor, for nothing that such a
test shows. Tests of what is killed, left behind or isolated have launchers of their own.
"""

from bundle.sandbox.launcher import Launcher


class KeptLauncher:
    def __init__(self) -> None:
        self._launcher: Launcher | None = None

    def ready(self) -> Launcher:
        """In the place of `CpuRunner._ready_launcher`; the runner does not know it, nor end it."""
        if self._launcher is None or not self._launcher.alive:
            self.end()
            self._launcher = Launcher.start()
        return self._launcher

    def end(self) -> None:
        if self._launcher is not None:
            self._launcher.close()
