"""Many clients at once: no answer is lost or swapped, and the queue keeps to its bound."""

import random
import threading

import numpy as np
import pytest
from onnx_tools import exported
from serving_tools import classifier, sentence, serving

from dsee.runtime.answers import softmax
from dsee.runtime.opened import open_model


def load(client, clients, requests, seed):
    """Let clients ask at once; returns each one's texts and answers, and the statuses."""
    asked, statuses, lock = [], [], threading.Lock()
    together = threading.Barrier(clients)

    def talk(number):
        draw = random.Random(f"{seed} {number}")
        together.wait()
        for _ in range(requests):
            texts = [sentence(draw) for _ in range(draw.randint(1, 3))]
            status, found, _ = client.ask("POST", "/classify", {"texts": texts})
            with lock:
                statuses.append(status)
                if status == 200:
                    asked.append((texts, found["answers"]))

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    return asked, statuses


def check(asked, folder):
    """Every text has the probabilities that it has alone, which tell it from other texts."""
    model = open_model(folder)
    alone = {text: softmax(model.logits([text]))[0] for texts, _ in asked for text in texts}
    for texts, answers in asked:
        assert len(answers) == len(texts)
        for text, answer in zip(texts, answers, strict=True):
            np.testing.assert_allclose(list(answer["scores"].values()), alone[text], atol=1e-5)
    rows = np.array(list(alone.values()))
    near = (abs(rows[:, None] - rows[None]).max(axis=2) < 1e-4).sum() - len(rows)
    assert near < 0.02 * len(rows) ** 2, "a swapped answer would not show"


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_every_client_gets_the_answers_to_its_own_texts(tmp_path, kind):
    folder = exported("bert").folder if kind == "onnx" else classifier(tmp_path / "model")
    with serving(folder, max_queue=256) as client:
        asked, statuses = load(client, clients=24, requests=5, seed=kind)
        batches, texts = client.metric("dsee_batch_size_count"), client.metric("dsee_texts_total")
    assert statuses == [200] * 24 * 5
    assert texts == sum(len(each) for each, _ in asked)
    # requests that come together go through the model together
    assert batches < texts / 2
    check(asked, folder)


def test_under_more_than_it_holds_the_server_says_so_and_answers_the_rest(tmp_path):
    folder = classifier(tmp_path / "model")
    with serving(folder, max_queue=3, max_texts=3, max_batch=2) as client:
        asked, statuses = load(client, clients=24, requests=4, seed=1)
        assert client.metric("dsee_queue_length") == 0
        assert client.classify("good film")
    assert set(statuses) == {200, 503}
    assert len(statuses) == 24 * 4
    check(asked, folder)


@pytest.mark.slow
def test_memory_stays_where_it_was_under_a_long_load(tmp_path):
    psutil = pytest.importorskip("psutil", reason="psutil, of the dev extra, is not installed")
    folder = classifier(tmp_path / "model")
    with serving(folder, max_queue=256) as client:
        load(client, clients=32, requests=10, seed=2)
        before = psutil.Process().memory_info().rss
        for seed in range(3, 6):
            asked, statuses = load(client, clients=32, requests=20, seed=seed)
            assert set(statuses) == {200}
            check(asked, folder)
        assert psutil.Process().memory_info().rss - before < 50e6
