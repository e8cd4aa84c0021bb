"""What the tests share: the modules one folder up, a small base model, a group, a vLLM engine."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")  # see tiny.py
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import pytest  # noqa: E402


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: whole runs; left out by `bash tests/run.sh --fast`")


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> str:
    """A base model of two seconds, with tied embeddings: knows the format and little arithmetic."""
    import tiny

    settings = tiny.BaseModel(steps=60, batch_size=64)
    folder = tmp_path_factory.mktemp("base") / "model"
    return tiny.make_base_model(str(folder), settings, quiet=True)


@pytest.fixture(scope="session")
def tokenizer(base):
    import transformers

    return transformers.AutoTokenizer.from_pretrained(base)


@pytest.fixture(scope="session")
def group():
    """A process group of this process alone, as remix.py and eval.py make it."""
    import parallel

    return parallel.init_distributed()


@pytest.fixture(scope="session")
def engines(base, group):
    """make("vllm" or "hf") -> the session's engine with the base model; sync it before use."""
    from rollout import make_engine

    made = {}

    def make(kind):
        if kind == "vllm":
            pytest.importorskip("vllm")
        if kind not in made:
            made[kind] = make_engine(kind, base, max_prompt_tokens=64, max_tokens=64)
        return made[kind]

    yield make
    for engine in made.values():
        engine.close()
