"""The server's end points: right answers, a clear 4xx for what is wrong, and nothing lost on the way out."""

import json
import sys
import threading

import numpy as np
import pytest
from onnx_tools import exported
from serving_tools import classifier, generator, serving, until

from dsee import ArtifactError, InputError, MissingExtraError
from dsee.runtime.answers import softmax
from dsee.runtime.opened import open_model
from dsee.runtime.serving.engine import Engine, Prompt, Question
from dsee.runtime.serving.server import is_loopback, make_server, open_socket

TEXTS = ["good film", "a quietly moving film", "two hours i will never get back"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return classifier(tmp_path_factory.mktemp("serving") / "model")


@pytest.fixture(scope="module")
def client(folder):
    with serving(folder, max_texts=5, max_body=20_000) as client:
        yield client


def expected(folder, texts, pairs=None):
    return softmax(open_model(folder).logits(texts, pairs))


def scores(answers):
    return np.array([list(answer["scores"].values()) for answer in answers])


def test_texts_get_the_probabilities_of_the_model(client, folder):
    answers = client.classify(*TEXTS)
    wanted = expected(folder, TEXTS)
    np.testing.assert_allclose(scores(answers), wanted, atol=2e-6)
    names = open_model(folder).labels
    assert [answer["label"] for answer in answers] == [names[i] for i in wanted.argmax(axis=1)]
    assert [answer["score"] for answer in answers] == [max(answer["scores"].values()) for answer in answers]


def test_pairs_are_read_as_pairs(client, folder):
    pairs = ["bad", "good good", "a film"]
    answers = client.classify(*TEXTS, pairs=pairs)
    np.testing.assert_allclose(scores(answers), expected(folder, TEXTS, pairs), atol=2e-6)
    assert abs(scores(answers) - expected(folder, TEXTS)).max() > 1e-3


def test_singles_and_pairs_in_one_batch_keep_their_places(folder):
    engine = Engine(open_model(folder))
    items = [Question(TEXTS[0]), Question(TEXTS[1], "bad"), Question(TEXTS[2])]
    found = np.array([list(answer.scores.values()) for answer in engine.classify(items)])
    wanted = [expected(folder, [TEXTS[0]]), expected(folder, [TEXTS[1]], ["bad"]), expected(folder, [TEXTS[2]])]
    np.testing.assert_allclose(found, np.concatenate(wanted), atol=2e-6)


def test_an_onnx_folder_is_served_too():
    export = exported("bert")
    with serving(export.folder) as client:
        found = scores(client.classify(*TEXTS))
        assert client.ask("GET", "/health")[1]["labels"] == ["sad", "plain", "glad"]
    np.testing.assert_allclose(found, expected(export.folder, TEXTS), atol=2e-6)


def test_health_says_what_is_served(client, folder):
    status, found, _ = client.ask("GET", "/health")
    assert (status, found["status"], found["task"]) == (200, "ok", "classify")
    assert (found["model"], found["max_tokens"], found["waiting"]) == ("model", 20, 0)
    assert found["labels"] == open_model(folder).labels


def test_metrics_count_what_happened(folder):
    with serving(folder) as client:
        client.classify(*TEXTS)
        client.ask("POST", "/classify", {"txets": []})
        client.ask("GET", "/some/path/of/a/stranger")
        _, text, headers = client.ask("GET", "/metrics")
        assert headers["content-type"].startswith("text/plain")
        for line in (
            'dsee_requests_total{path="/classify",status="200"} 1',
            'dsee_requests_total{path="/classify",status="422"} 1',
            'dsee_requests_total{path="other",status="404"} 1',
            "dsee_texts_total 3",
            "dsee_queue_length 0",
            'dsee_batch_size_bucket{le="4"} 1',
            'dsee_batch_size_bucket{le="+Inf"} 1',
            "dsee_batch_size_sum 3.0",
            "dsee_request_seconds_count 1",
            "# TYPE dsee_batch_seconds histogram",
        ):
            assert line in text.splitlines()


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "not valid JSON"),
        (b"\xff\xfe", 400, ""),
        (b"[" * 5000, 400, ""),
        (b"", 422, ""),
        (b"[]", 422, "has to be a JSON object"),
        (b'"text"', 422, "has to be a JSON object"),
        (b"{}", 422, "texts: Field required"),
        (b'{"texts": []}', 422, "texts: List should have at least 1 item"),
        (b'{"texts": "good"}', 422, "texts: Input should be a valid list"),
        (b'{"texts": ["good", 3]}', 422, "texts.1: Input should be a valid string"),
        (b'{"texts": [null]}', 422, "texts.0: Input should be a valid string"),
        (b'{"texts": ["\\ud800"]}', 422, "texts.0: Input should be valid Unicode"),
        (b'{"texts": ["good"], "truncat": true}', 422, "truncat: Extra inputs are not permitted"),
        (b'{"texts": ["good"], "truncate": "yes"}', 422, "truncate: Input should be a valid boolean"),
        (b'{"texts": ["good"], "pairs": ["a", "b"]}', 422, "pairs: 2 for 1 texts"),
        (b'{"texts": ["a", "a", "a", "a", "a", "a"]}', 413, "texts: 6 are more than the 5 of one request"),
        (json.dumps({"texts": ["good", "good " * 21]}).encode(), 413, "texts[1] has 21 tokens; this model takes 20"),
        (json.dumps({"texts": ["good " * 12], "pairs": ["bad " * 12]}).encode(), 413, "texts[0] has 25 tokens"),
        (json.dumps({"texts": ["x" * 30_000]}).encode(), 413, "larger than 20000 bytes"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(client, body, status, message):
    found, answer, _ = client.ask("POST", "/classify", encoded=body)
    assert found == status, answer
    assert list(answer) == ["error"]
    assert message in answer["error"]
    assert client.classify("good film")


def test_a_body_without_a_declared_length_is_cut_off_too(client):
    # in one piece: the server hangs up when it has seen enough, and a client that still sends gets a broken pipe
    body = iter([b'{"texts": ["' + b"x" * 20_500 + b'"]}'])
    found, answer, _ = client.ask("POST", "/classify", encoded=body)
    assert (found, "larger than 20000 bytes" in answer["error"]) == (413, True)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/classify", 405), ("POST", "/health", 405), ("GET", "/", 404), ("GET", "/docs", 404)],
)
def test_paths_and_methods_that_are_not_there(client, method, path, status):
    found, answer, _ = client.ask(method, path)
    assert (found, list(answer)) == (status, ["error"])


def test_a_form_is_no_json(client):
    # a page in the user's browser can send forms to this machine, but not JSON
    headers = {"Content-Type": "text/plain"}
    found, answer, _ = client.ask("POST", "/classify", {"texts": ["good"]}, headers=headers)
    assert found == 422
    assert "Content-Type: application/json" in answer["error"]


def test_a_long_text_is_cut_off_on_request(client, folder):
    long = "good bad film " * 20
    found = scores(client.classify(long, truncate=True))
    np.testing.assert_allclose(found, expected(folder, [long]), atol=2e-6)


def test_a_classifier_does_not_generate(client):
    found, answer, _ = client.ask("POST", "/generate", {"prompts": ["good"]})
    assert (found, answer["error"]) == (404, "This model does not generate. Use POST /classify.")


class Blocked:
    """Holds a server's model until let go."""

    def __init__(self, monkeypatch):
        self.go, self.begun = threading.Event(), threading.Event()
        real = Engine.work

        def work(engine, items):
            self.begun.set()
            assert self.go.wait(60)
            return real(engine, items)

        monkeypatch.setattr(Engine, "work", work)


def asking(client, *texts):
    """Ask in a thread; returns the thread and where its answer will be."""
    found = []
    thread = threading.Thread(target=lambda: found.append(client.ask("POST", "/classify", {"texts": list(texts)})))
    thread.start()
    return thread, found


def test_a_full_queue_is_said_and_nothing_waiting_is_lost(folder, monkeypatch):
    blocked = Blocked(monkeypatch)
    with serving(folder, max_queue=4, max_texts=4) as client:
        first = asking(client, TEXTS[0])
        until(blocked.begun.is_set)
        others = [asking(client, *TEXTS[:2]), asking(client, *TEXTS[1:])]
        until(lambda: client.metric("dsee_queue_length") == 4)
        status, answer, headers = client.ask("POST", "/classify", {"texts": ["good"]})
        assert (status, headers["retry-after"]) == (503, "1")
        assert answer["error"] == "The queue is full (4 texts wait). Try again later."
        assert client.ask("GET", "/health")[1]["waiting"] == 4
        blocked.go.set()
        for thread, _ in (first, *others):
            thread.join(60)
    for (_, found), texts in zip((first, *others), (TEXTS[:1], TEXTS[:2], TEXTS[1:]), strict=True):
        np.testing.assert_allclose(scores(found[0][1]["answers"]), expected(folder, texts), atol=2e-6)


def test_stopping_answers_what_was_asked(folder, monkeypatch):
    blocked = Blocked(monkeypatch)
    with serving(folder) as client:
        first = asking(client, TEXTS[0])
        until(blocked.begun.is_set)
        second = asking(client, TEXTS[1])
        until(lambda: client.metric("dsee_queue_length") == 1)
        client.server.should_exit = True
        blocked.go.set()
    for thread, found in (first, second):
        thread.join(60)
        assert found[0][0] == 200


def test_a_fault_in_the_model_is_a_500_and_the_server_goes_on(folder, monkeypatch, caplog):
    real = Engine.work

    def work(engine, items):
        if any("bad" in item.text for item in items):
            raise ZeroDivisionError("oops")
        return real(engine, items)

    monkeypatch.setattr(Engine, "work", work)
    with serving(folder) as client:
        status, answer, _ = client.ask("POST", "/classify", {"texts": ["bad film"]})
        assert (status, answer["error"]) == (500, "The model failed on this request (ZeroDivisionError).")
        assert client.classify("good film")
        assert client.metric('dsee_requests_total{path="/classify",status="500"}') == 1


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_a_model_that_writes_goes_on_from_prompts(tmp_path, family):
    folder = generator(tmp_path / "model", family)
    prompts = ["good film", "two hours i will never get back", "a"]
    alone = Engine(open_model(folder))
    wanted = [alone.generate([Prompt(text, 7)])[0] for text in prompts]
    with serving(folder) as client:
        status, found, _ = client.ask("POST", "/generate", {"prompts": prompts, "max_new_tokens": 7})
        assert status == 200, found
        assert found["answers"] == [vars(each) for each in wanted]
        assert all(1 <= answer["tokens"] <= 7 for answer in found["answers"])
        for body, status, message in (
            ({"prompts": ["good"], "max_new_tokens": 0}, 422, "max_new_tokens: Input should be greater than"),
            ({"prompts": ["good"], "max_new_tokens": 4000}, 413, "prompts[0] has 4001 tokens with the new ones"),
            ({"prompts": ["good"], "max_new_tokens": 10**9}, 422, "max_new_tokens: Input should be less than"),
        ):
            found, answer, _ = client.ask("POST", "/generate", body)
            assert (found, message in answer["error"]) == (status, True), answer
        assert client.ask("POST", "/classify", {"texts": ["good"]})[0] == 404


def test_a_shorter_limit_gives_the_beginning_of_a_longer_one(tmp_path):
    engine = Engine(open_model(generator(tmp_path / "model")))
    items = [Prompt("good film", 9), Prompt("good film", 2), Prompt("a moving film", 1)]
    long, short, other = engine.generate(items)
    assert long.text.startswith(short.text)
    assert [short.tokens, other.tokens] == [min(2, long.tokens), 1]
    for answer, item in zip((long, short, other), items, strict=True):
        assert engine.generate([item]) == [answer]


def test_a_text_that_ends_says_so(tmp_path):
    engine = Engine(open_model(generator(tmp_path / "model")))
    tokens = engine.model.generate(["good film"], 8)[0]
    endings = {engine.generate([Prompt("good film", n)])[0].finish for n in range(1, 9)}
    engine.model.model.generation_config.eos_token_id = tokens[2]
    ended = engine.generate([Prompt("good film", 8)])[0]
    assert (ended.finish, ended.tokens) == ("stop", tokens.index(tokens[2]) + 1)
    assert endings == {"length"} or tokens[-1] == 9


def test_what_cannot_be_served_is_refused(tmp_path):
    import dsee
    from conftest import tiny_bert

    with pytest.raises(InputError, match="holds no tokenizer"):
        make_server(dsee.save(tiny_bert(), tmp_path / "bare"))
    with pytest.raises(ArtifactError, match="there is no such folder"):
        make_server(tmp_path / "nowhere")


def test_a_model_without_labels_is_refused(tmp_path):
    from onnx_tools import tokenizer
    from transformers import BertConfig, BertForTokenClassification

    import dsee
    from conftest import SIZES

    model = BertForTokenClassification(BertConfig(**SIZES, vocab_size=100))
    with pytest.raises(InputError, match="neither classifies texts nor generates"):
        make_server(dsee.save(model, tmp_path / "tagger", tokenizer=tokenizer()))


def test_a_queue_smaller_than_a_request_is_refused(folder):
    from dsee.runtime.serving.app import Limits

    with pytest.raises(InputError, match="max_queue=2 is smaller than max_texts=3"):
        make_server(folder, Limits(max_queue=2, max_texts=3))


def test_a_taken_port_is_named():
    taken = open_socket("127.0.0.1", 0)
    with taken, pytest.raises(InputError, match=r"Cannot listen on 127\.0\.0\.1:\d+ \(.*in use"):
        open_socket("127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize("name", ["fastapi", "uvicorn"])
def test_a_missing_package_names_what_to_install(folder, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'dsee\[serve\]'"):
        make_server(folder)


def test_only_this_machines_addresses_are_loopback():
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "127.9.9.9")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org")] == [False] * 4


def test_a_model_is_optimized_on_request(tmp_path, monkeypatch):
    from onnx_tools import tokenizer

    import dsee
    from conftest import tiny_bert
    from dsee.kernels import library, on_kernels
    from dsee.runtime import optimize as module

    if library() is None:
        pytest.skip("the kernels are not compiled here")
    monkeypatch.setattr(module, "_race", lambda calls, rounds: {name: 1.0 - 0.5 * (name == "blocks") for name in calls})
    model = tiny_bert()
    dsee.prune(model, dsee.Blocks(0.6, score="weight"))
    folder, said = dsee.save(model, tmp_path / "model", tokenizer=tokenizer()), []
    made = make_server(folder, optimize=True, say=said.append)
    assert "on sparse kernels" in said[0]
    assert not said[0].startswith("0 of")
    del made
    assert not on_kernels(open_model(folder).model)


def test_an_onnx_folder_is_not_optimized(monkeypatch, tmp_path):
    class Exported:
        folder = tmp_path

    monkeypatch.setattr("dsee.runtime.serving.server.open_model", lambda folder, threads: Exported())
    with pytest.raises(InputError, match="leave --optimize out"):
        make_server(tmp_path, optimize=True)
