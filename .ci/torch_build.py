"""Install the build of torch that fits this machine, or check that the installed one does.

A plain ``pip install torch`` on Linux brings gigabytes of CUDA libraries along, with or without a
GPU to use them. So pip is first asked for its plan. If the plan holds CUDA and the machine has no
NVIDIA GPU, torch comes from PyTorch's CPU index.

    python .ci/torch_build.py install --constraint constraints.txt [--index URL]
    python .ci/torch_build.py check
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CUDA_PREFIXES = ("nvidia-", "cuda-", "triton", "pytorch-triton")
PIP = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]


def has_nvidia_gpu() -> bool:
    """Say whether an NVIDIA driver reports at least one GPU."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return Path("/proc/driver/nvidia/version").exists()
    listing = subprocess.run([smi, "-L"], capture_output=True, text=True, check=False)
    return listing.returncode == 0 and "GPU" in listing.stdout


def cuda_packages(names: list[str]) -> list[str]:
    """Return those of the distribution names that belong to CUDA, sorted."""
    return sorted(
        name
        for name in {name.lower().replace("_", "-") for name in names}
        if name.startswith(CUDA_PREFIXES)
    )


def planned(constraint: str) -> list[str]:
    """Return the names of the distributions that pip would install for torch."""
    command = [*PIP, "--dry-run", "--report", "-", "--constraint", constraint, "torch"]
    report = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [item["metadata"]["name"] for item in json.loads(report)["install"]]


def install(constraint: str, index: str) -> None:
    """Install torch.

    From ``index`` if one is given, from the CPU index if there is no use for CUDA, else as pip
    would.
    """
    if not index and cuda_packages(planned(constraint)) and not has_nvidia_gpu():
        index = CPU_INDEX
    # Only torch itself comes from the other index; pip finds what torch needs in the usual place.
    if index:
        print(f"torch: from {index}")
        subprocess.run(
            [*PIP, "--constraint", constraint, "--no-deps", "--index-url", index, "torch"],
            check=True,
        )
    subprocess.run([*PIP, "--constraint", constraint, "torch"], check=True)


def check() -> None:
    """Exit with an error if CUDA was installed on a machine without a GPU."""
    import torch

    found = cuda_packages([distribution.name for distribution in distributions()])
    gpu = has_nvidia_gpu()
    print(
        f"torch {torch.__version__}, NVIDIA GPU: {'yes' if gpu else 'no'}, CUDA packages: "
        f"{len(found)}"
    )
    if torch.version.cuda is not None:
        found.append(f"torch built for CUDA {torch.version.cuda}")
    if found and not gpu:
        sys.exit(f"CUDA was installed on a machine without an NVIDIA GPU: {', '.join(found)}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    installer = commands.add_parser(
        "install", help="install the build of torch that fits this machine"
    )
    installer.add_argument("--constraint", required=True, help="file of pinned versions")
    installer.add_argument(
        "--index", default="", help="take torch from this index, whatever the machine"
    )
    commands.add_parser("check", help="fail if CUDA was installed on a machine without a GPU")
    options = parser.parse_args()
    if options.command == "install":
        install(options.constraint, options.index)
    else:
        check()


if __name__ == "__main__":
    main()
