"""A teacher behind a URL gives what it gives in this process, keeps others waiting in order, and survives bad days."""

import dataclasses
import http.client
import http.server
import json
import threading

import pytest
import torch
from safetensors.torch import save

from hf_cascade.distill.identity import tokenizer_sha256
from hf_cascade.distill.remote import RemoteTeacher
from hf_cascade.distill.teacher import LocalTeacher
from hf_cascade.distill.wire import TOKEN_VARIABLE
from tests.data import tiny
from tests.distill import served, setting
from tests.distill.served import assert_same, connect, ids_and_counts, serving
from tests.prune import families


@pytest.fixture(scope="module")
def parent():
    return setting.teacher(dtype=torch.float32)


@pytest.fixture
def server(parent):
    with serving(parent) as running:
        yield running


# --- equal to a local teacher


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "ministral3", "gemma"])
def test_equals_the_local_teacher_bit_for_bit(family, dtype):
    model = families.build(family, dtype=dtype, num_hidden_layers=2)
    local = LocalTeacher(model)
    with serving(model) as server:
        remote = connect(server)
        assert (remote.vocabulary, remote.window, remote.model) == (97, 256, None)
        for rows, tokens in ((2, 12), (1, 1), (3, 7)):
            inputs, counts_BT = ids_and_counts(rows, tokens)
            assert_same(remote.targets(inputs, counts_BT), local.targets(inputs, counts_BT))


def test_packed_documents_do_not_see_each_other(parent, server):
    remote, batch = connect(server), setting.first_batch(4, longest=12)
    inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]}
    counts_BT = batch["labels"] != -100
    whole = remote.targets(inputs, counts_BT)
    assert_same(whole, LocalTeacher(parent).targets(inputs, counts_BT))
    starts = (inputs["position_ids"][-1] == 0).nonzero().flatten().tolist()
    assert len(starts) > 1
    last = slice(starts[-1], None)
    alone = remote.targets({name: value[-1:, last] for name, value in inputs.items()}, counts_BT[-1:, last])
    together = whole.hidden_NE[-len(alone.hidden_NE) :]
    torch.testing.assert_close(together, alone.hidden_NE, rtol=1e-4, atol=1e-5)
    blind = remote.targets({"input_ids": inputs["input_ids"]}, counts_BT).hidden_NE
    assert (blind - whole.hidden_NE).abs().max() > 0.01, "without positions they do"


def test_padding_and_images_travel():
    model = families.build("mistral3", dtype=torch.float32, num_hidden_layers=2)
    ids_BT = families.ids(2, 12)
    ids_BT[:, 1:5] = 3  # the image token: 16 x 16 pixels are 4 patches of 4 x 4 after the 2 x 2 merger
    inputs = {
        "input_ids": ids_BT,
        "attention_mask": (torch.arange(12) < torch.tensor([[12], [9]])).long(),
        "pixel_values": torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)),
        "image_sizes": torch.tensor([[16, 16], [16, 16]]),
        "position_ids": None,
    }
    counts_BT = inputs["attention_mask"].bool()
    local = {name: value for name, value in inputs.items() if value is not None}
    with serving(model) as server:
        remote = connect(server)
        assert_same(remote.targets(inputs, counts_BT), LocalTeacher(model).targets(local, counts_BT))
        ids_BT[0, 1] = 4  # one image token too few
        with pytest.raises(ValueError, match="status 400: the teacher cannot read this batch"):
            remote.targets(inputs, counts_BT)


def test_softcap_and_no_position_at_all(parent):
    parent.config.final_logit_softcapping = 30.0
    try:
        with serving(parent) as server:
            inputs, counts_BT = ids_and_counts()
            targets = connect(server).targets(inputs, torch.zeros_like(counts_BT))
    finally:
        del parent.config.final_logit_softcapping
    assert targets.softcap == 30.0 and targets.hidden_NE.shape == (0, 60)


# --- prefetch and many clients


def test_prefetch_asks_once_and_does_not_wait(parent, server):
    remote, local = connect(server), LocalTeacher(parent)
    inputs, counts_BT = ids_and_counts()
    with server._lock:  # the teacher is busy
        remote.prefetch(inputs, counts_BT)
    assert_same(remote.targets(inputs, counts_BT), local.targets(inputs, counts_BT))
    assert server.posts == 1


@pytest.mark.parametrize("change", ["another batch", "other counts", "in place"])
def test_prefetch_of_something_else_is_not_used(parent, server, change):
    remote = connect(server)
    inputs, counts_BT = ids_and_counts()
    remote.prefetch(inputs, counts_BT)
    if change == "another batch":
        inputs, counts_BT = ids_and_counts(seed=4)
    elif change == "other counts":
        counts_BT = ~counts_BT
    else:
        inputs["input_ids"][0, 0] += 1
    assert_same(remote.targets(inputs, counts_BT), LocalTeacher(parent).targets(inputs, counts_BT))
    assert server.posts == 2


def test_clients_at_once_get_their_own(parent, server):
    local, wrong = LocalTeacher(parent), []
    batches = [ids_and_counts(rows=1 + seed % 3, seed=seed) for seed in range(20)]
    expected = [local.targets(*batch) for batch in batches]

    def work(mine: slice):
        remote = connect(server)
        for batch, other in zip(batches[mine], expected[mine], strict=True):
            remote.prefetch(*batch)
            if not torch.equal(remote.targets(*batch).hidden_NE, other.hidden_NE):
                wrong.append(batch)

    threads = [threading.Thread(target=work, args=(slice(start, None, 4),)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and server.posts == 20


# --- bad days


@pytest.mark.parametrize("fault", [served.drop, served.cut, served.chatter, served.fail])
@pytest.mark.parametrize("ahead", [False, True], ids=["", "prefetch"])
def test_a_lost_answer_is_asked_for_again(parent, server, fault, ahead, caplog):
    remote = connect(server)
    server.faults = [None, fault, fault, None]
    for seed in (1, 2):
        inputs, counts_BT = ids_and_counts(seed=seed)
        if ahead:
            remote.prefetch(inputs, counts_BT)
        assert_same(remote.targets(inputs, counts_BT), LocalTeacher(parent).targets(inputs, counts_BT))
    said = [record.message for record in caplog.records if record.name == "hf_cascade.distill.remote"]
    assert server.posts == 4 and len(said) == 2 and "try 2 of 3" in said[1]


@pytest.mark.parametrize("fault", [served.drop, served.fail])
def test_lost_answers_end_in_one_error(server, fault):
    remote = connect(server)
    server.faults = [fault] * 4
    with pytest.raises(ConnectionError, match=r"did not answer 4 times.*same training command goes on"):
        remote.targets(*ids_and_counts())
    assert server.posts == 4
    remote.targets(*ids_and_counts())  # and it can go on afterwards


def test_a_server_that_stops(parent):
    with serving(parent) as server:
        remote = connect(server)
        server.closed = True
        with pytest.raises(ConnectionError, match="status 503: this teacher's server is stopping"):
            remote.targets(*ids_and_counts())
    with pytest.raises(ConnectionError, match="refused"):
        remote.targets(*ids_and_counts())


def test_a_teacher_that_changes_stops_the_run(server):
    remote = connect(server)
    remote.targets(*ids_and_counts())
    server.info = dataclasses.replace(server.info, sha256="f" * 64)
    with pytest.raises(ValueError, match="another teacher answers at http://127.0.0.1"):
        remote.targets(*ids_and_counts(seed=5))
    assert server.posts == 2, "not asked again"


@pytest.mark.parametrize(
    "body, message",
    [
        (b"garbage", "7 bytes are no safetensors"),
        (save({"hidden_NE": torch.zeros(3, 60)}), r"\[3, 60\] torch.float32 instead of \[\d+, 60\]"),
        (save({"hidden_NE": torch.zeros(12, 60, dtype=torch.bfloat16)}), "bfloat16 instead of"),
        (save({"hidden_NE": torch.full((12, 60), float("nan"))}), "NaN or infinity"),
        (save({"other": torch.zeros(12, 60)}), r"\['other'\] came back instead of hidden_NE"),
    ],
)
def test_wrong_answers_stop_the_run(server, body, message):
    remote = connect(server)
    server.faults = [served.answer(body)]
    inputs, counts_BT = ids_and_counts()
    counts_BT = torch.zeros_like(counts_BT).index_fill_(0, torch.tensor([0]), True)
    with pytest.raises(ValueError, match=message):
        remote.targets(inputs, counts_BT)


def test_a_teacher_of_another_vocabulary(server):
    server.info = dataclasses.replace(server.info, vocabulary=96)
    with pytest.raises(ValueError, match=r"head_VE came back as \[97, 60\].* instead of \[96, 60\]"):
        connect(server)


# --- at the start


def test_tokenizers_are_compared(server):
    for same in (tiny.tokenizer(), tokenizer_sha256(tiny.tokenizer())):
        connect(server, tokenizer=same)
    for other in (tiny.tokenizer("bacdefghijklmnopqrstuvwxyz .\n"), "0" * 64):
        with pytest.raises(ValueError, match="another tokenizer than the student"):
            connect(server, tokenizer=other)


@pytest.mark.parametrize(
    "url",
    ["https://host:1", "host:8000", "ftp://host", "http://", "http://host:x", "http://host:1/path", "file:///etc"],
)
def test_other_urls_are_refused(url):
    with pytest.raises(ValueError, match="allowed is http://host:port"):
        RemoteTeacher(url)


def test_a_password_in_the_url_is_not_shown():
    with pytest.raises(ValueError) as error:
        RemoteTeacher("http://me:secret@host:1")
    assert "secret" not in str(error.value) and TOKEN_VARIABLE in str(error.value)


def test_no_server(server):
    port = http.server.HTTPServer(("127.0.0.1", 0), None)
    port.server_close()
    with pytest.raises(ValueError, match=r"no teacher is served at http://127.0.0.1:\d+: start one with `python train"):
        RemoteTeacher(f"http://127.0.0.1:{port.server_address[1]}")


@pytest.mark.parametrize("body", [b"hello", b"[]", b'{"service": "hf-cascade teacher", "protocol": 2}'])
def test_another_server(server, body):
    server.describe = lambda: body
    with pytest.raises(ValueError, match="not 'hf-cascade teacher' of 1: start one of this version"):
        connect(server)


@pytest.mark.parametrize("change", [{"dtype": "complex64"}, {"more": 1}])
def test_a_server_that_describes_itself_wrongly(server, change):
    entries = {**json.loads(server.describe()), **change}
    server.describe = lambda: json.dumps(entries).encode()
    with pytest.raises(ValueError, match="allowed are float64|describes itself wrongly"):
        connect(server)


def test_tokens(parent, caplog, monkeypatch):
    with serving(parent, token="key-of-mine") as server:
        for wrong in (None, "key-of-yours", "key-of-mine2"):
            with pytest.raises(ValueError, match=f"refuses the token: set {TOKEN_VARIABLE}"):
                connect(server, token=wrong)
        connect(server, token="key-of-mine").targets(*ids_and_counts())
        monkeypatch.setenv(TOKEN_VARIABLE, "key-of-mine\n")
        remote = connect(server)
        server.faults = [served.drop]
        remote.targets(*ids_and_counts())
    assert caplog.records and "key-of" not in caplog.text
    with pytest.raises(ValueError, match="printable ASCII") as error:
        connect(server, token="key\nof")
    assert "key" not in str(error.value).replace("the token", "")
