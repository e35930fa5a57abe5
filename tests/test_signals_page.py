"""docs/signals.md: the reader on the page reads real stores without this project, and the page names all they hold."""

import os
import re
import subprocess

import pytest
import torch
from conftest import ROOT, make_store, small_profile, stored
from safetensors import safe_open

from primekd.capture.jobs import open_signals, training_job
from primekd.capture.run import capture
from primekd.models.logits import LogitTransform
from primekd.signals.codecs import HiddenCodec

PAGE = (ROOT / "docs" / "signals.md").read_text(encoding="utf-8")
READER, _ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def tokenizer_folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder


def read(store, tokenizer_folder, python: str) -> list[tuple[str, list[tuple[str, float]]]]:
    """What the page's program prints: each response token and its five (token, probability)."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [python, "-c", READER, str(store), str(tokenizer_folder)]
    text = subprocess.run(command, env=env, capture_output=True, text=True, check=True, cwd=store).stdout
    printed = []
    for line in text.splitlines():
        token, _, rest = line.partition(" <- ")
        parts = re.findall(r"(.+?) (\d\.\d{4})(?:, |$)", rest)
        printed.append((token, [(name, float(chance)) for name, chance in parts]))
    return printed


def expected(reader, tokenizer) -> list[tuple[str, list[tuple[str, float]]]]:
    """The same of the first item from the project's own reader."""
    item = reader.item(reader.item_ids[0])
    rows = reader.rows(item.item_id, item.response_ids)
    if hasattr(rows, "to_logits"):
        chances, ids = rows.to_logits().softmax(-1).topk(5)
    else:
        chances, ids = rows.log_probs[:, :5].exp(), rows.ids[:, :5]

    def name(token) -> str:
        return repr(tokenizer.decode([int(token)]))

    names = [[name(i) for i in row] for row in ids]
    lines = [list(zip(*both, strict=True)) for both in zip(names, chances.tolist(), strict=True)]
    return list(zip(map(name, item.response_ids), lines, strict=True))


def assert_same(printed, wanted):
    assert len(wanted) > 1 and [token for token, _ in printed] == [token for token, _ in wanted]
    for (_, five), (_, others) in zip(printed, wanted, strict=True):
        assert [name for name, _ in five] == [name for name, _ in others]
        assert [chance for _, chance in five] == pytest.approx([chance for _, chance in others], abs=1e-4)


def test_the_reader_takes_nothing_from_this_project():
    assert "primekd" not in READER


def store_of(codec: str, output, lively):
    """A job whose two items are captured with a codec."""
    loss = {"temperature": 1.0, "alpha": 1.0 if codec == "text" else 0.5}
    signals, data = {"codec": codec, "items_per_shard": 2}, {"train_items": 2, "test_items": 2}
    job = training_job(
        small_profile(output, teacher={"model": lively}, data=data, signals=signals, loss=loss), "teacher-KD"
    )
    assert capture(job) == job.folder
    return job


@pytest.mark.parametrize("codec", ["full", "hidden", "topk"])
def test_the_reader_prints_what_the_projects_own_reads(codec, output, lively, tokenizer, tokenizer_folder, warm_python):
    job = store_of(codec, output, lively)
    assert_same(read(job.folder, tokenizer_folder, warm_python), expected(open_signals(job), tokenizer))


@pytest.mark.parametrize("transform", [LogitTransform(0.5), LogitTransform(2.0, 30.0)])
def test_the_reader_follows_a_scale_and_a_soft_cap(transform, output, tokenizer, tokenizer_folder, warm_python):
    generator = torch.Generator().manual_seed(0)
    head, states = (torch.randn(n, 16, generator=generator) for n in (len(tokenizer), 4))
    reader = make_store(output / "s" / "arm", HiddenCodec(), [[(stored("a", [5, 6, 9, 2]), states)]], head, transform)
    wanted = expected(reader, tokenizer)
    assert_same(read(reader.folder, tokenizer_folder, warm_python), wanted)
    plain = (states @ head.T).softmax(-1).amax(-1)
    assert wanted[0][1][0][1] != pytest.approx(float(plain[0]), abs=1e-3)


@pytest.mark.parametrize("codec", ["full", "hidden", "topk", "sampled", "text"])
def test_the_page_names_every_tensor_with_its_type(codec, output, lively):
    folder = store_of(codec, output, lively).folder
    described = [line for line in PAGE.splitlines() if line.startswith("|")]
    with safe_open(folder / "shard-00000.safetensors", "pt") as shard:
        found = {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118 - no mapping
        assert set(shard.metadata()) == {"primekd"}
    for name, tensor in found.items():
        [line] = [line for line in described if f"`{name}`" in line]
        kind = str(tensor.dtype).removeprefix("torch.")
        assert kind in line or name == "row.hidden"
        assert line.count(",)") == (tensor.ndim == 1)
