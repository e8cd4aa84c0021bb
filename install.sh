#!/usr/bin/env bash
# Makes .venv with everything pinned; does nothing when it is there already. Called by train.sh and tests/run.sh.
# Needs Python 3.11 or newer with venv and pip, 3 GB of disk, and a package index. PYTHON=python3.12 picks another one,
# REMIX_KIND=gpu installs for GPUs where there is none, as on a login node; without it what this machine has decides.
set -euo pipefail
cd "$(dirname "$0")"
kind=${REMIX_KIND:-cpu}
if [ -z "${REMIX_KIND:-}" ] && command -v nvidia-smi > /dev/null && nvidia-smi > /dev/null 2>&1; then kind=gpu; fi
[ "$kind" = cpu ] || [ "$kind" = gpu ] || { echo "install.sh: REMIX_KIND=$kind: is neither cpu nor gpu" >&2; exit 2; }
version=$(cat requirements.txt requirements-?pu.txt install.sh | cksum | cut -d' ' -f1)
stamp=.venv/installed-$kind-$version
# What a GPU node has installed is left alone by a login node without one, not the other way round
installed() { [ -e "$stamp" ] || [ -e ".venv/installed-gpu-$version" ]; }
installed && exit 0
if command -v flock > /dev/null; then # several nodes may share this folder: one installs, the others wait
  exec 9> .install.lock
  flock 9
  installed && exit 0
fi
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
  { echo "install.sh: Python 3.11 or newer is needed, $python is $("$python" --version 2>&1); set PYTHON=..." >&2; exit 2; }
echo "Installing into .venv, for $kind (once; 2 to 4 GB, some minutes) ..."
rm -rf .venv
"$python" -m venv .venv
.venv/bin/pip install -q --disable-pip-version-check uv==0.13.8

# torchvision and the others are no use for text models, and their CUDA builds break `import transformers` next to a
# CPU torch; triton has no use on a CPU.
overrides=$(mktemp)
trap 'rm -f "$overrides"' EXIT
for name in torchvision torchaudio torchcodec opencv-python-headless; do
  echo "$name; sys_platform == \"never\"" >> "$overrides"
done
uv() { .venv/bin/uv pip install -q --python .venv/bin/python "$@"; }

if [ "$kind" = gpu ]; then
  uv -r requirements-gpu.txt --override "$overrides"
else
  echo "triton; sys_platform == \"never\"" >> "$overrides"
  # The CPU build of torch: from an index or folder that pip is configured with, else from PyTorch's own (uv knows it)
  .venv/bin/pip install -q --disable-pip-version-check torch==2.13.0+cpu 2> /dev/null ||
    uv torch==2.13.0 --torch-backend cpu
  uv -r requirements-cpu.txt --override "$overrides" ||
    { echo "vLLM for CPU cannot be installed here; sampling will use transformers (--engine hf)."
      uv -r requirements.txt --override "$overrides"; }
fi
touch "$stamp"
