"""What a run needs first: the C helpers, LiteLLM when it is asked for, two processors."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = ROOT / ".cache" / "bench"
LITELLM_VERSION = "1.106.2"


def built(name: str) -> Path:
    """The C helper, compiled when it is missing or older than its source."""
    source, binary = HERE / f"{name}.c", CACHE / name
    if binary.exists() and binary.stat().st_mtime >= source.stat().st_mtime:
        return binary
    compiler = shutil.which(os.environ.get("CC", "gcc")) or shutil.which("cc")
    if compiler is None:
        raise SystemExit("hack/bench: no C compiler found: install gcc, or set CC to one")
    CACHE.mkdir(parents=True, exist_ok=True)
    fresh = CACHE / f"{name}.{os.getpid()}"
    done = subprocess.run([compiler, "-O2", "-o", fresh, source], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"hack/bench: {compiler} can't compile {source.name}:\n{done.stderr}")
    return fresh.replace(binary)


def install_litellm(version: str) -> None:
    """LiteLLM in an environment of its own, made anew when another version is asked for."""
    home = CACHE / "litellm"
    stamp = home / "version"
    if stamp.exists() and stamp.read_text() == version:
        return
    print(f"hack/bench: installing litellm[proxy] {version} into {home.relative_to(ROOT)} ...", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
    pip = [str(home / "bin" / "pip"), "install", "--disable-pip-version-check", "--quiet"]
    done = subprocess.run([*pip, f"litellm[proxy]=={version}"], capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise SystemExit("hack/bench: can't install LiteLLM:\n" + "\n".join(line[:500] for line in errors))
    stamp.write_text(version)


def processors() -> tuple[int, int]:
    """The gateway's processor and everybody else's."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) == 1:
        print("hack/bench: one processor only: the figures are not comparable", file=sys.stderr)
    return usable[0], usable[-1]
