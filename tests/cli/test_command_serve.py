"""``dsee serve`` as a user starts and stops it."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys

import pytest

import dsee
from conftest import tiny_tokenizer
from dsee.runtime.serving.server import open_socket

SCRIPT = (
    "import sys, atexit; atexit.register(lambda: print('torch' in sys.modules, 'transformers' in sys.modules))\n"
    "from dsee_command import main; main()"
)


def test_an_onnx_folder_is_served_without_torch_until_ctrl_c(results):
    command = [sys.executable, "-c", SCRIPT, "serve", str(results / "onnx-int8"), "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    try:
        line = process.stderr.readline()
        port = int(re.fullmatch(r"serving .*onnx-int8 on http://127\.0\.0\.1:(\d+)\n", line).group(1))
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        body = json.dumps({"texts": ["a good film", "the plot was dull"]})
        connection.request("POST", "/classify", body, {"Content-Type": "application/json"})
        answers = json.loads(connection.getresponse().read())["answers"]
        connection.close()
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert [answer["label"] for answer in answers] == ["positive", "negative"]
    assert process.returncode == 130
    assert err == "stopped. Everything that was waiting has been answered.\n"
    assert out == "False False\n"


@pytest.fixture
def started(monkeypatch):
    """Let the server end as soon as it has started; notes how it was set up."""
    import uvicorn

    seen = []

    def run(server, sockets):
        seen.append((server, sockets))
        sockets[0].close()

    monkeypatch.setattr(uvicorn.Server, "run", run)
    return seen


def test_by_default_only_this_machine_gets_through(dsee_command, results, started):
    code, out, err = dsee_command("serve", results, "--port", "0")
    assert (code, out) == (0, "")
    assert "serving" in err
    assert "http://127.0.0.1:" in err
    assert "no authentication" not in err
    assert len(started) == 1


def test_a_public_address_is_warned_about(dsee_command, results, started):
    code, _, err = dsee_command("serve", results, "--port", "0", "--host", "0.0.0.0")
    assert code == 0
    assert "there is no authentication" in err


def test_the_limits_arrive(dsee_command, results, started, monkeypatch):
    import dsee.runtime.serving.server as room

    given = []
    real = room.make_server
    monkeypatch.setattr(room, "make_server", lambda *a, **more: given.append((a, more)) or real(*a, **more))
    dsee_command(
        *("serve", results / "onnx-fp32", "--port", "0", "--threads", "2", "--max-batch", "3", "--max-wait", "7"),
        *("--max-queue", "9", "--max-body", "1234"),
    )
    (folder, limits), more = given[0]
    assert (folder.name, more.pop("say") is not None, more) == ("onnx-fp32", True, {"threads": 2, "optimize": False})
    assert vars(limits) == {"max_batch": 3, "max_wait": 0.007, "max_queue": 9, "max_texts": 9, "max_body": 1234}


def test_a_taken_port_exits_with_2(dsee_command, results, started):
    with open_socket("127.0.0.1", 0) as taken:
        code, _, err = dsee_command("serve", results / "onnx-fp32", "--port", taken.getsockname()[1])
    assert code == 2
    assert "Choose another --host or --port" in err
    assert started == []


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["nowhere"], 2, "there is no such folder"),
        (["{tmp}"], 1, "is not a dsee artifact and holds none"),
        (["{results}", "--port", "70000"], 2, "65535"),
        (["{results}", "--max-batch", "0"], 2, "greater than or equal to 1"),
    ],
)
def test_wrong_input_is_one_clear_error(dsee_command, results, tmp_path, arguments, code, expected):
    found, out, err = dsee_command("serve", *(a.format(results=results, tmp=tmp_path) for a in arguments))
    assert (found, out) == (code, "")
    assert expected in err
    assert "Traceback" not in err


def test_a_missing_extra_is_named(dsee_command, results, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    code, _, err = dsee_command("serve", results)
    assert code == 1
    assert "pip install 'dsee[serve]'" in err


def test_predict_writes_with_a_model_that_writes(dsee_command, tmp_path):
    from behaviours.families import ALL

    folder = dsee.save(ALL["gpt2"].base(), tmp_path / "gpt2", tokenizer=tiny_tokenizer())
    code, out, _ = dsee_command("predict", folder, "--json", "--max-new-tokens", "3", "good film", "bad")
    assert code == 0
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["prompt"] for answer in answers] == ["good film", "bad"]
    from dsee.runtime.opened import open_model

    model = open_model(folder)
    assert answers[1]["text"] == model.decode(model.generate(["bad"], 3)[0])
