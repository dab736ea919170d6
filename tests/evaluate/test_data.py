"""Rows of a benchmark: the layouts that users have, what is recorded of them, and what is said where there are none."""

import ast
import gzip
import io
import json
import re
import socket
import time

import datasets
import pytest
import yaml
from datasets import Dataset, DatasetDict, Image
from datasets.exceptions import DatasetNotFoundError
from PIL import Image as Picture

from hf_cascade import assets
from hf_cascade.evaluate.benchmarks import data
from hf_cascade.evaluate.benchmarks.data import MissingData, UnusableData, need, read, rows_sha256, used
from tests.growth import check_growth

REPO = "org/name"
ROWS = [{"question": f"Frage {at}: äöü 漢字?", "choices": ["2011-03-04", "b"], "answer": at % 2} for at in range(6)]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FRONT = """---
license: mit
configs:
- config_name: other
  data_files: [{split: test, path: "odd/other.jsonl"}]
- config_name: DE_DE
  data_files:
  - split: test
    path: odd/part-*.jsonl
---
# Card
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HFC_EVAL_DATA", str(tmp_path))
    used.clear()
    (tmp_path / REPO).mkdir(parents=True)
    return tmp_path / REPO


def lines(path, rows=ROWS):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def parquet(path, rows=ROWS):
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows).to_parquet(path)


def zipped(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode()))


def readme(folder):
    (folder / "README.md").write_text(FRONT, encoding="utf-8")
    lines(folder / "odd/part-0.jsonl", ROWS[:4])
    lines(folder / "odd/part-1.jsonl", ROWS[4:])
    lines(folder / "odd/other.jsonl", ROWS[:1])


def halves(place):
    parquet(place / "test-00000-of-00002.parquet", ROWS[:3])
    parquet(place / "test-00001-of-00002.parquet", ROWS[3:])


LAYOUTS = {
    "lines": lambda at: lines(at / "test.jsonl"),
    "lines of the config": lambda at: (lines(at / "DE_DE/test.jsonl"), lines(at / "test.jsonl", ROWS[:1])),
    "zipped": lambda at: zipped(at / "DE_DE/test.jsonl.gz"),
    "array": lambda at: (at / "test.json").write_text(json.dumps(ROWS)),
    "parquet": lambda at: parquet(at / "test.parquet"),
    "shards in data": lambda at: halves(at / "data"),
    "shards of the config": lambda at: (
        halves(at / "DE_DE"),
        parquet(at / "FR_FR/test-00000-of-00001.parquet", ROWS[:1]),
    ),
    "shards in data of the config": lambda at: halves(at / "data/DE_DE"),
    "shard with a hash": lambda at: parquet(at / "data/test-00000-of-00001-a09b74b3ef9c3b56.parquet"),
    "other splits": lambda at: (parquet(at / "data/test-00000-of-00001.parquet"), lines(at / "train.jsonl", ROWS[:2])),
    "converted": lambda at: parquet(at / "DE_DE/test/0000.parquet"),
    "config in the name": lambda at: (
        lines(at / "test/mmlu_DE-DE.jsonl"),
        lines(at / "test/mmlu_FR-FR.jsonl", ROWS[:1]),
    ),
    "readme": readme,
    "readme of other files": lambda at: ((at / "README.md").write_text(FRONT), lines(at / "test.jsonl")),
    "saved": lambda at: Dataset.from_list(ROWS).save_to_disk(at / "DE_DE"),
    "saved splits": lambda at: DatasetDict({"test": Dataset.from_list(ROWS)}).save_to_disk(at / "DE_DE"),
    "saved whole": lambda at: DatasetDict({"test": Dataset.from_list(ROWS)}).save_to_disk(at),
    "saved here": lambda at: Dataset.from_list(ROWS).save_to_disk(at),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_gives_the_rows_and_their_hash(folder, layout):
    LAYOUTS[layout](folder)
    rows = read(REPO, "test", "DE_DE")
    assert rows.to_list() == ROWS
    record = used[f"{REPO}/DE_DE/test"]
    assert record["rows"] == 6 and record["revision"] is None and record["path"].startswith(str(folder))
    assert record["sha256"] == rows_sha256(ROWS)


def test_a_folder_may_be_relative_or_one_of_the_projects(folder, monkeypatch):
    lines(folder / "test.jsonl")
    monkeypatch.chdir(folder.parents[1])
    monkeypatch.setenv("HFC_EVAL_DATA", ".")
    assert len(read(REPO, "test")) == 6
    monkeypatch.setenv("HFC_EVAL_DATA", "evals/rows")
    assert len(read("cais/mmlu", "dev", "all")) == 10
    assert used["cais/mmlu/all/dev"]["full_rows"] == 285


def test_what_is_missing_is_said_with_what_is_there(folder, monkeypatch):
    lines(folder / "FR_FR/validation.jsonl")
    with pytest.raises(
        MissingData, match=r"no split 'test' of config 'DE_DE'; the files there are FR_FR/validation.jsonl"
    ):
        read(REPO, "test", "DE_DE")
    with pytest.raises(MissingData, match="no folder .*org/none"):
        read("org/none", "test")
    monkeypatch.setenv("HFC_EVAL_DATA", "no/such/folder")
    with pytest.raises(MissingData, match="HFC_EVAL_DATA=no/such/folder"):
        read(REPO, "test")


def test_a_config_is_a_word_of_a_files_name(folder):
    lines(folder / "test/french.jsonl")
    with pytest.raises(MissingData):
        read(REPO, "test", "en")
    lines(folder / "test/rows-en.jsonl", ROWS[:2])
    assert len(read(REPO, "test", "en")) == 2


def test_files_that_hold_no_rows(folder):
    parquet(folder / "data/a-00000-of-00003.parquet")
    with pytest.raises(MissingData, match="has 1 of 3 shards"):
        read(REPO, "a")
    parquet(folder / "data/h-00000-of-00001.parquet")
    for second in ("h-00000-of-00001-a09b74b3ef9c3b56.parquet", "h-00000-of-00002.parquet"):
        parquet(folder / "data" / second)
        with pytest.raises(MissingData, match="data has shards of h from more than one download: keep those of one"):
            read(REPO, "h")
        (folder / "data" / second).unlink()
    assert len(read(REPO, "h")) == len(ROWS)
    used.clear()
    (folder / "b.jsonl").write_text("\n")
    with pytest.raises(MissingData, match="b.jsonl has no rows"):
        read(REPO, "b")
    (folder / "c.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(MissingData, match="Git LFS pointer"):
        read(REPO, "c")
    for name, text in (
        ("d.jsonl", '{"a": 1}\n{"a"'),
        ("e.jsonl", "1\n2\n"),
        ("f.parquet", "no parquet"),
        ("g.json", "["),
    ):
        (folder / name).write_text(text)
        with pytest.raises(ValueError, match=f"cannot read .*{name}"):
            read(REPO, name[0])
    assert not used


def test_text_stays_text(folder):
    rows = [{"a": "2011-03-04", "b": None}, {"a": "2011-03-05", "b": "x", "c": "a\u2028b"}]
    lines(folder / "test.jsonl", rows)
    assert read(REPO, "test").to_list() == [{**rows[0], "c": None}, rows[1]]


def test_csv_options_may_be_called_none(tmp_path, monkeypatch):
    monkeypatch.setenv("HFC_EVAL_DATA", str(tmp_path))
    path = tmp_path / "openai/MMMLU/test/mmlu_DE-DE.csv"
    path.parent.mkdir(parents=True)
    path.write_text(',Question,A,B,C,D,Answer,Subject\n0,"Was, bitte?",None,N/A,NaN,1,A,anatomy\n', encoding="utf-8")
    row = read("openai/MMMLU", "test", "DE_DE")[0]
    assert [row[letter] for letter in "ABC"] == ["None", "N/A", "NaN"]


def test_the_commit_of_a_download(folder):
    parquet(folder / "data/test-00000-of-00001.parquet")
    note = folder / ".cache/huggingface/download/data/test-00000-of-00001.parquet.metadata"
    note.parent.mkdir(parents=True)
    note.write_text(f"{COMMIT}\nabc\n{time.time()}\n")
    read(REPO, "test")
    assert used[f"{REPO}/test"]["revision"] == COMMIT
    note.write_text(f"{COMMIT}\nabc\n{time.time() - 1000}\n")  # the file was changed since
    read(REPO, "test")
    assert used[f"{REPO}/test"]["revision"] is None


def test_the_hash_is_of_what_the_rows_say(folder):
    swapped = [dict(reversed(row.items())) for row in ROWS]
    assert rows_sha256(swapped) == rows_sha256(Dataset.from_list(ROWS)) == rows_sha256(ROWS)
    assert rows_sha256(ROWS[::-1]) != rows_sha256(ROWS)
    picture = io.BytesIO()
    Picture.new("RGB", (3, 2), "red").save(picture, "PNG")
    hashes = set()
    for path in ("a.png", "there/b.png"):
        stored = Dataset.from_list([{"image": {"bytes": picture.getvalue(), "path": path}}])
        hashes.add(rows_sha256(stored.cast_column("image", Image())))
    assert len(hashes) == 1


def test_many_rows_are_hashed_in_one_pass():
    rows = [{**ROWS[0], "question": "q" * 400 + str(at)} for at in range(14_000)]
    check_growth(rows_sha256, lambda count: Dataset.from_list(rows[:count]), 1_750)


def test_missing_columns_are_one_error():
    need(Dataset.from_list(ROWS), REPO, ("question", "answer"))
    for rows in (Dataset.from_list(ROWS), ROWS):
        with pytest.raises(
            ValueError, match="org/name: no column subject, level; the columns are question, choices, answer"
        ):
            need(rows, REPO, ("question", "subject", "level"))


def test_other_ways_to_fetch_a_dataset(folder, tmp_path, monkeypatch):
    parquet(folder / "default/test/0000.parquet")  # of the Hub's branch refs/convert/parquet
    assert read(REPO, "test").to_list() == ROWS
    (folder / "other.tsv").write_text("question\tanswer\nWas, bitte?\t1\n", encoding="utf-8")
    assert read(REPO, "other").to_list() == [{"question": "Was, bitte?", "answer": 1}]
    monkeypatch.setenv("HFC_EVAL_DATA", str(tmp_path / "my [data]/.cache"))
    parquet(tmp_path / "my [data]/.cache/Org/NAME/data/test-00000-of-00001.parquet")
    assert read(REPO, "test").to_list() == ROWS


def test_the_hubs_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HFC_EVAL_DATA", str(tmp_path))
    cached, blob = tmp_path / "datasets--cais--mmlu", tmp_path / "datasets--cais--mmlu/blobs/1"
    wanted, newest = data.pinned("cais/mmlu"), COMMIT
    parquet(blob)
    for commit in (newest, wanted):
        place = cached / "snapshots" / commit / "all"
        place.mkdir(parents=True)
        (place / "test-00000-of-00001.parquet").symlink_to(blob)
        (cached / "refs").mkdir(exist_ok=True)
        (cached / "refs/main").write_text(newest)
        assert read("cais/mmlu", "test", "all").to_list() == ROWS
        assert used["cais/mmlu/all/test"]["revision"] == commit  # the one that is written down, where it is there
    blob.unlink()
    with pytest.raises(MissingData, match="parquet cannot be opened"):
        read("cais/mmlu", "test", "all")


def test_a_saved_split_or_config_is_no_other(folder):
    for note, key, other in (("state.json", "_split", "train"), ("dataset_info.json", "config_name", "FR_FR")):
        Dataset.from_list(ROWS).save_to_disk(folder)
        said = json.loads((folder / note).read_text())
        (folder / note).write_text(json.dumps(said | {key: other}))
        with pytest.raises(MissingData, match="the files there are data-00000-of-00001.arrow"):
            read(REPO, "test", "DE_DE")


def test_what_to_do_is_said(folder, tmp_path, monkeypatch):
    with pytest.raises(MissingData, match=f"hf download --repo-type dataset org/none --local-dir {tmp_path}/org/none"):
        read("org/none", "test")
    (folder / "test.zip").write_bytes(b"PK")
    (tmp_path / "my data").mkdir()
    with monkeypatch.context() as context, pytest.raises(MissingData, match="--local-dir '.*/my data/org/name'` where"):
        context.setenv("HFC_EVAL_DATA", str(tmp_path / "my data"))
        read(REPO, "test")
    with pytest.raises(
        MissingData, match="the files there are test.zip. Unpack test.zip, or put the rows in test.jsonl"
    ):
        read(REPO, "test")


def test_what_is_wrong_with_a_file_is_said(folder):
    for name, content, match in (
        ("a.jsonl", b'{"a": 1}\n\n{"a": \n', r'a.jsonl: line 3 is no JSON \(.*\): {"a": '),
        ("b.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99)[:-9], "b.jsonl.gz: it is no whole gzip file"),
        ("c.jsonl.gz", b'{"a": 1}\n', "c.jsonl.gz: it is no whole gzip file"),
        ("d.jsonl", b'{"a": 1, "b": 1}\n{"a": 2, "b": "x"}\n', "d.jsonl: the values of 'b' are not all of one type"),
    ):
        (folder / name).write_bytes(content)
        with pytest.raises(UnusableData, match=match):
            read(REPO, name[0])
    (folder / "e.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n')  # a byte order mark
    assert read(REPO, "e").to_list() == [{"a": 1}]


def test_a_row_without_a_value_is_named():
    rows = [*ROWS[:2], {**ROWS[2], "question": None}]
    for given in (rows, Dataset.from_list(rows)):
        need(given, REPO, ("question", "answer"), filled=("answer",))
        with pytest.raises(ValueError, match=r"org/name: row 2 has no question"):
            need(given, REPO, ("question", "answer"), filled=("answer", "question"))
        need(given, REPO, ("question",), unique="question")
        with pytest.raises(
            UnusableData, match=r"org/name: rows 0 and 2 have the same answer, 0: leave one of them out"
        ):
            need(given, REPO, ("answer",), unique="answer")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """No `HFC_EVAL_DATA`, a Hub that cannot be reached, and an empty cache of `datasets`."""
    monkeypatch.delenv("HFC_EVAL_DATA", raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(data, "_reaches_hub", lambda: False)
    used.clear()
    return tmp_path / "cache"


def test_offline_without_rows_no_connection_is_tried(hub, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was tried"))
    with pytest.raises(MissingData, match="HFC_EVAL_DATA") as error:
        read(REPO, "test", "all")
    assert "cannot be reached" in str(error.value)
    assert datasets.config.HF_HUB_OFFLINE is False  # it was so before
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(data, "_reaches_hub", lambda: pytest.fail("asked although offline"))
    with pytest.raises(MissingData, match="HFC_EVAL_DATA"):
        read(REPO, "test", "all")


def test_offline_the_cache_is_read_with_its_commit(hub):
    made = datasets.load_dataset("json", data_files={"test": [_file(hub / "test.jsonl")]}, cache_dir=hub / "made")
    source = made["test"].cache_files[0]["filename"]
    place = hub / "org___name/all/0.0.0" / COMMIT
    place.mkdir(parents=True)
    info = json.loads((hub / source).parent.joinpath("dataset_info.json").read_text())
    info |= {"dataset_name": "name", "config_name": "all", "builder_name": "parquet"}
    (place / "dataset_info.json").write_text(json.dumps(info))
    (place / "name-test.arrow").write_bytes((hub / source).read_bytes())
    assert read(REPO, "test", "all").to_list() == ROWS
    assert used[f"{REPO}/all/test"]["revision"] == COMMIT and used[f"{REPO}/all/test"]["path"] is None


@pytest.mark.parametrize("wanted", (None, COMMIT, "f" * 40))
def test_offline_a_download_in_the_hubs_cache_is_read(hub, monkeypatch, caplog, wanted):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(data, "described", lambda repo: {"revision": wanted})
    parquet(hub / f"datasets--org--name/snapshots/{COMMIT}/data/test-00000-of-00001.parquet")
    assert read(REPO, "test").to_list() == ROWS and used[f"{REPO}/test"]["revision"] == COMMIT
    assert (f"org/name: read at the commit {COMMIT}, as {wanted}" in caplog.text) == (wanted == "f" * 40)


def _file(path) -> str:
    lines(path)
    return str(path)


def test_a_gated_dataset_is_called_so(hub, monkeypatch):
    def load_dataset(*args, **kwargs):
        raise DatasetNotFoundError("Dataset 'org/name' is a gated dataset on the Hub.")

    monkeypatch.setattr(data, "_reaches_hub", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(MissingData, match="gated dataset.*hf auth login.*https://huggingface.co/datasets/org/name"):
        read(REPO, "test")


def repos_of_tasks() -> set[str]:
    """Datasets that task YAMLs name, or that the benchmarks' code passes to `read` or keeps for it as a constant."""
    found = set()
    for path in assets.find("evals/tasks/cascade").rglob("*yaml"):
        found |= set(re.findall(r"\b(?:repo|dataset_path): *[\"']?([\w.-]+/[\w.-]+)", path.read_text(encoding="utf-8")))
    for path in (assets.root() / "hf_cascade/evaluate/benchmarks").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named = {
            node.targets[0].id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("read", "_rows") and node.args:
                first = node.args[0]
                value = named.get(first.id) if isinstance(first, ast.Name) else getattr(first, "value", None)
                found |= {value} if isinstance(value, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", value) else set()
    return found


def test_every_dataset_that_a_task_reads_is_described():
    described = yaml.safe_load(assets.find(data.DATASETS).read_text(encoding="utf-8"))
    repos = repos_of_tasks()
    assert {"cais/mmlu", "openai/MMMLU", "ehovy/race"} <= repos <= set(described), repos - set(described)
    for repo, entry in described.items():
        needed = {"revision", "licence", "splits"}
        assert needed <= set(entry) <= needed | {"configs", "reader"}, repo
        assert entry["revision"] is None or re.fullmatch(r"[0-9a-f]{40}", entry["revision"]), repo
        assert entry["splits"] and all(isinstance(rows, int) and rows > 0 for rows in entry["splits"].values()), repo
