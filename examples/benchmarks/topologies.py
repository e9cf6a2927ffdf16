"""Part `compiled`: the step compiled for TPUs and GPUs that need not be present.

Each topology has a separate process, so that its compiler does not affect the rest of
the benchmark.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable

import tqdm

from examples.benchmarks.results import Entry

TOPOLOGIES = ("v5e:2x4", "v5p:4x4x4", "h100:1x8")
# On a machine without a TPU, libtpu must not query the network for one. If this process
# has loaded it already, it would report two processes on one TPU.
_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def missing(topology: str) -> str | None:
    """Returns the package that must be installed to compile for a topology, or None."""
    module, package = (
        ("jax_cuda13_plugin", "jax-cuda13-plugin and jax-cuda13-pjrt of jax's version")
        if topology.startswith("h100:")
        else ("libtpu", "libtpu")
    )
    if importlib.util.find_spec(module):
        return None
    return f"needs {package}, which is not installed"


def measure(
    topology: str, arguments: list[str], put: Callable[[str, Entry], None]
) -> None:
    """Compiles for one topology.

    Args:
      topology: as in `compiled.mesh_of`.
      arguments: additional arguments of `compiled.main`.
      put: called with the name and entry of each case when it is complete or, if
        nothing can be compiled, with the topology's name and the reason.
    """
    reason = missing(topology)
    if reason:
        put(topology, {"skipped": reason})
        return
    command = [sys.executable, "-m", "examples.benchmarks.compiled"]
    with (
        tempfile.TemporaryFile("w+") as complaints,
        tqdm.tqdm(desc=topology, unit="case") as bar,
        subprocess.Popen(
            [*command, topology, *arguments],
            env={**os.environ, **_ENVIRONMENT},
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        begun = False
        try:
            for line in process.stdout:
                if not line.startswith("{"):
                    continue
                told = json.loads(line)
                begun = True
                if "begun" in told:
                    bar.set_postfix_str(told["begun"])
                    continue
                put(f"{topology}, {told['case']}", told["entry"])
                bar.update()
        except BaseException:  # Including interruptions.
            process.kill()
            raise
        if process.wait():
            complaints.seek(0)
            # Errors of options have a frame around their words.
            lines = re.findall(r"^.*[a-z].*$", complaints.read(), re.MULTILINE)
            last = lines[-1].strip(" │") if lines else "no reason given"
            put(topology, {"skipped": f"the compiling process failed: {last[:300]}"})
        elif not begun:
            put(topology, {"skipped": "no case has such a name"})
