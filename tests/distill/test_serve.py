"""The teacher's server: what it refuses and why, what does not stop it, and the script that starts it."""

import http.client
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save

from hf_cascade import assets
from hf_cascade.distill.identity import model_sha256
from hf_cascade.distill.remote import RemoteTeacher
from hf_cascade.distill.teacher import LocalTeacher
from hf_cascade.distill.wire import pack_request
from hf_cascade.loading import load_model
from tests.data import tiny
from tests.distill import setting
from tests.distill.served import assert_same, connect, ids_and_counts, serving


@pytest.fixture(scope="module")
def parent():
    return setting.teacher(dtype=torch.float32)


@pytest.fixture
def server(parent):
    with serving(parent) as running:
        yield running


def post(server, body: bytes, path="/hidden", method="POST", headers=None) -> tuple[int, str]:
    connection = http.client.HTTPConnection(*server.server_address, timeout=30)
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    answer = response.status, response.read().decode(errors="replace")
    connection.close()
    return answer


def packed(**changes) -> bytes:
    """A request's body with other tensors in it, whatever the client would say."""
    inputs, counts_BT = ids_and_counts()
    tensors = {**inputs, "counts_BT": counts_BT, **changes}
    return save({name: tensor for name, tensor in tensors.items() if tensor is not None})


BAD = {
    "nothing": (b"", "no safetensors"),
    "pickle": (b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00", "no safetensors"),
    "no ids": (packed(input_ids=None), "input_ids and counts_BT must be"),
    "unknown": (packed(past_key_values=torch.zeros(1)), "past_key_values"),
    "float ids": (packed(input_ids=torch.zeros(2, 12)), "must be \\[B, T\\] int64"),
    "flat ids": (packed(input_ids=torch.zeros(12, dtype=torch.int64)), "must be \\[B, T\\] int64"),
    "no tokens": (packed(input_ids=torch.zeros((2, 0), dtype=torch.int64)), "at least one token"),
    "high ids": (packed(input_ids=torch.full((2, 12), 97)), "holds 97, and the teacher's vocabulary is 97"),
    "negative ids": (packed(input_ids=torch.full((2, 12), -1)), "negative"),
    "other positions": (packed(position_ids=torch.zeros((2, 11), dtype=torch.int64)), "its shape must be \\[2, 12\\]"),
    "number counts": (packed(counts_BT=torch.ones((2, 12), dtype=torch.int64)), "must be bool"),
}


@pytest.mark.parametrize("body, reason", BAD.values(), ids=BAD)
def test_bad_requests_get_a_reason_and_the_server_goes_on(parent, server, body, reason):
    status, text = post(server, body)
    assert status == 400 and re.search(reason, text), text
    assert_same(connect(server).targets(*ids_and_counts()), LocalTeacher(parent).targets(*ids_and_counts()))


def test_other_paths_and_lengths(server):
    assert post(server, b"", "/", "GET")[0] == post(server, b"", "/head")[0] == 404
    assert post(server, b"", method="PUT")[0] == 501
    for length, status in (("x", 411), ("-1", 411), (str(2**40), 413)):
        assert post(server, b"", headers={"Content-Length": length})[0] == status
    assert post(server, b"", "/info", "GET")[0] == 200


def test_a_forward_that_fails_is_an_error_of_the_server(server, monkeypatch):
    monkeypatch.setattr(server._teacher, "targets", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    status, text = post(server, packed())
    assert status == 500 and "out of memory" in text
    monkeypatch.undo()
    assert post(server, packed())[0] == 200


def test_batches_over_the_limit_are_refused_before_they_are_sent(parent):
    inputs, counts_BT = ids_and_counts()
    with serving(parent, max_request_bytes=len(pack_request(inputs, counts_BT)) - 1) as server:
        remote = connect(server)
        with pytest.raises(ValueError, match="reads at most .* make per_device_train_batch_size smaller"):
            remote.targets(inputs, counts_BT)
        with pytest.raises(ValueError, match="labels .* cannot be sent"):
            remote.targets({**inputs, "labels": inputs["input_ids"]}, counts_BT)
        assert server.posts == 0


def test_an_address_that_cannot_be_had(parent, server):
    with pytest.raises(ValueError, match=r"cannot listen on host 127.0.0.1, port \d+"):
        with serving(parent, port=server.server_address[1]):
            pass


# --- the script


def start(*flags: str, **environment) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(assets.find("trainers/serve_teacher.py")), *flags],
        env={**os.environ, "PYTHONPATH": str(assets.root()), "CUDA_VISIBLE_DEVICES": "", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_script_serves_a_folder_and_stops(tmp_path, parent):
    parent.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    process = start(
        "--model_name_or_path", str(tmp_path), "--dtype", "bfloat16", "--port", "0", HF_CASCADE_TEACHER_TOKEN="key"
    )
    try:
        line = process.stdout.readline()
        assert "in bfloat16 on cpu at http://127.0.0.1:" in line, process.communicate()[1]
        remote = RemoteTeacher(line.split()[-1], tiny.tokenizer(), token="key", retries=0)
        inputs, counts_BT = ids_and_counts()
        local = LocalTeacher(load_model(str(tmp_path), "bfloat16"))
        assert_same(remote.targets(inputs, counts_BT), local.targets(inputs, counts_BT))
        assert remote.info.sha256 == model_sha256(local.model) and remote.info.model == str(tmp_path)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0 and "Traceback" not in err and "key" not in line + out + err
