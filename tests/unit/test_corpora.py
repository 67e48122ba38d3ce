"""Corpora: what the standard library gives, its identity, the split, and texts of the user's own."""

import ast
import json
import platform
from pathlib import Path

import numpy as np
import pytest

from circuits.data.corpora import Corpus, hf_dataset, stdlib_code, stdlib_prose, text_file, without_docstrings
from circuits.data.tokenizer import encode_stream, token_strings, train_bpe
from circuits.files import read_tokenizer


def test_docstrings_leave_code_and_comments_stay():
    source = (
        '"""Module."""\nimport os  # kept\n\n\n'
        'def f():\n    """One\n    two."""\n    return "a string"\n\n\nclass C:\n    \'\'\'Doc.\'\'\'\n'
    )
    code = without_docstrings(source, ast.parse(source))
    assert code == 'import os  # kept\n\n\ndef f():\n    return "a string"\n\n\nclass C:\n'


@pytest.mark.slow
def test_the_standard_library_gives_code_and_prose_as_two_kinds():
    code, prose = stdlib_code(), stdlib_prose()
    assert code.kind == "code" and prose.kind == "prose"
    dataclasses = code.documents[code.names.index("dataclasses.py")]
    assert "def _process_class(" in dataclasses and '"""Add dunder methods based on the fields' not in dataclasses
    assert any(name.startswith("topics/") for name in prose.names)
    assert not any("test" in name.split("/") for name in code.names)
    assert code.identity["origin"].endswith(platform.python_version())
    assert code.identity == stdlib_code().identity


def corpus(count: int = 200) -> Corpus:
    return Corpus("text", tuple(f"doc{i}" for i in range(count)), tuple(f"text {i}" for i in range(count)), "here")


def test_the_split_is_by_name_deterministic_and_whole():
    train, held_out = corpus().split("train"), corpus().split("held_out")
    assert set(train.names) | set(held_out.names) == set(corpus().names) and not set(train.names) & set(held_out.names)
    assert 5 <= len(held_out.names) <= 40
    grown = corpus(300).split("held_out").names
    assert set(held_out.names) <= set(grown)  # new documents move no old one across


def test_identity_changes_with_text_and_with_names():
    same = corpus().identity
    assert corpus().identity == same
    texts = list(corpus().documents)
    texts[3] += "."
    assert Corpus("text", corpus().names, tuple(texts), "here").identity["sha256"] != same["sha256"]
    names = ("other", *corpus().names[1:])
    assert Corpus("text", names, corpus().documents, "here").identity["sha256"] != same["sha256"]


def test_a_text_file_becomes_documents(tmp_path: Path):
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(f"Paragraph {i}. " * 30 for i in range(10)), encoding="utf-8")
    found = text_file(path)
    assert len(found.documents) > 3 and "".join(found.documents).startswith("Paragraph 0.")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"cannot read .*book\.txt as UTF-8 text"):
        text_file(path)


def test_an_empty_file_is_refused(tmp_path: Path):
    (tmp_path / "empty.txt").write_text("  \n")
    with pytest.raises(ValueError, match="holds no text; check the path or column"):
        text_file(tmp_path / "empty.txt")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # whatever the datasets package warns of while it reads a folder
def test_a_local_hugging_face_data_set(tmp_path: Path):
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{"text": f"row {i}", "other": i} for i in range(5)]
    (folder / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    found = hf_dataset(str(folder), limit=3)
    assert found.documents == ("row 0", "row 1", "row 2")
    with pytest.raises(ValueError, match="has no column 'body', only text, other: pass column="):
        hf_dataset(str(folder), column="body")


def test_byte_level_bpe_is_lossless_and_saved(tmp_path: Path):
    texts = ["def f(x):\n    return x\n" * 5, "Grüße, 世界! \x00\x7f"]
    tokenizer = train_bpe(texts, vocab_size=280)
    assert tokenizer.get_vocab_size() == 280 and tokenizer.token_to_id("<|bos|>") == 0
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    again = read_tokenizer(tmp_path / "tokenizer.json")
    assert again.encode(texts[0]).ids == tokenizer.encode(texts[0]).ids
    stream = encode_stream(tokenizer, texts)
    assert stream.dtype == np.uint16 and tokenizer.decode(stream.tolist()) == "".join(texts)
    assert token_strings(None, [3, 5]) == ["3", "5"]
    with pytest.raises(ValueError, match="needs at least 257"):
        train_bpe(texts, vocab_size=100)
    with pytest.raises(ValueError, match="cannot read the tokenizer"):
        read_tokenizer(tmp_path / "none.json")
