"""Judges behind an endpoint: what they get, what their verdicts become, and where nothing is sent."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ayaedge import BackendError, BatchError, InvalidOptionError
from ayaedge.batch.journal import BatchRow
from ayaedge.benchmark.answering import Answered
from ayaedge.benchmark.data_set import DataSet
from ayaedge.benchmark.endpoint import KEY_VARIABLE, JudgeEndpoint
from ayaedge.benchmark.judging import judge_all, preference
from ayaedge.benchmark.questions import Question
from command_line import ayaedge
from served import served

NAMES = ("arb_Arab", "deu_Latn", "jpn_Jpan")
Said = tuple[int, str, dict[str, str]]
"""Status, text of the answer or the whole body, headers."""


@dataclass
class Judge:
    """A server that answers chat completions as it is told, and keeps what it got."""

    say: Callable[[str, str], str]
    """What is preferred of answers A and B."""
    failures: list[Said] = field(default_factory=list)
    got: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""

    def respond(self, body: dict[str, Any]) -> Said:
        self.got.append(body)
        if self.failures:
            return self.failures.pop(0)
        text = body["messages"][-1]["content"][-1]["text"]
        first, _, second = text.partition("Answer A:\n")[2].partition("\n\nAnswer B:\n")
        answer = json.dumps({"better": self.say(first, second)})
        choice = {"message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
        return 200, json.dumps({"choices": [choice]}), {}


@contextmanager
def judging(judge: Judge) -> Iterator[Judge]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            judge.headers.append({name.lower(): value for name, value in self.headers.items()})
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status, text, headers = judge.respond({**body, "path": self.path})
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(text.encode()))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    judge.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield judge
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def longer(first: str, second: str) -> str:
    return "tie" if len(first) == len(second) else "A" if len(first) > len(second) else "B"


def answers(data: DataSet, say: Callable[[Question, int], str | None]) -> Answered:
    """Answers of a model that is not there."""
    found = list(data.questions())
    rows = {
        one.key: BatchRow(None, None, one.key, "0", "0", None, answer=say(one, number))
        for number, one in enumerate(found)
    }
    return Answered(found, rows)


@pytest.fixture
def few(data: Path) -> DataSet:
    """Four questions, one of which is about two pictures."""
    return DataSet("aya-vision-bench", data / "AyaVisionBench-older" / "deu_Latn", limit=6)


def judged(judge: Judge, few: DataSet, journal: Path | None = None, **other: Any) -> dict[str, str | None]:
    endpoint = JudgeEndpoint(judge.url, "big", wait=lambda seconds: None, **other)
    ours = answers(
        few, lambda one, number: ["long answer", "b", "same", "x" * 9, None, "longer still"][number]
    )
    theirs = answers(few, lambda one, number: ["short", "bb", "same", "y" * 9, "z", "c"][number])
    found = judge_all(endpoint, few, ours, theirs, journal, lambda number, row: None)
    return {key.rpartition("/")[2]: verdict for key, verdict in found.items()}


def test_both_orders_make_a_verdict_and_equal_answers_are_not_sent(few: DataSet, tmp_path: Path) -> None:
    with judging(Judge(longer)) as judge:
        found = judged(judge, few, tmp_path / "j.jsonl")
        assert found == {"0": "win", "1": "loss", "2": "tie", "3": "tie", "5": "win"}
        assert len(judge.got) == 2 * 4  # the third are equal, the fifth has no answer
        assert judged(judge, few, tmp_path / "j.jsonl") == found
        assert len(judge.got) == 2 * 4
    texts = [body["messages"][-1]["content"][-1]["text"] for body in judge.got[:2]]
    assert ["Answer A:\nlong answer" in text for text in texts] == [True, False]
    assert {body["path"] for body in judge.got} == {"/v1/chat/completions"}
    assert {(body["model"], body["temperature"]) for body in judge.got} == {("big", 0)}


def test_a_judge_that_likes_a_place_decides_nothing(few: DataSet) -> None:
    with judging(Judge(lambda first, second: "A")) as judge:
        assert set(judged(judge, few).values()) == {"tie"}


def test_a_judge_gets_all_pictures_of_a_row(few: DataSet) -> None:
    with judging(Judge(longer)) as judge:
        judged(judge, few)
    (two,) = [one for one in few.questions() if len(one.images) == 2]
    parts = judge.got[-1]["messages"][-1]["content"]
    urls = [part["image_url"]["url"] for part in parts[:-1]]
    assert urls == [f"data:image/png;base64,{base64.b64encode(data).decode()}" for data in two.images]
    assert two.text in parts[-1]["text"]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_may_pass_is_tried_again_after_the_wait_that_was_asked_for(status: int, few: DataSet) -> None:
    waits: list[float] = []
    with judging(Judge(longer, [(status, "busy", {"Retry-After": "7"}), (status, "busy", {})])) as judge:
        endpoint = JudgeEndpoint(judge.url, "big", wait=waits.append)
        ours, theirs = (answers(few, lambda one, number, add=add: "x" * (number + add)) for add in (1, 2))
        found = judge_all(endpoint, few, ours, theirs, None, lambda number, row: None)
    assert set(found.values()) == {"loss"}
    assert waits == [7, 1]


def test_a_judge_that_refuses_every_request_stops_the_run_and_is_quoted(few: DataSet) -> None:
    few = DataSet("aya-vision-bench", few.directory)
    with judging(Judge(longer, [(400, "no such model\x1b[31m", {})] * 20)) as judge:
        ours, theirs = (answers(few, lambda one, number, add=add: "x" * (number + add)) for add in (1, 2))
        with pytest.raises(BatchError, match=r"the judge at 127\.0\.0\.1 answered 400 .*no such model\\x1b"):
            judge_all(JudgeEndpoint(judge.url, "big"), few, ours, theirs, None, lambda number, row: None)
    assert len(judge.got) < 20


@pytest.mark.parametrize("body", ["", "{}", '{"choices": []}', '{"choices": [{"message": 1}]}', "[1]"])
def test_an_answer_that_is_no_completion_is_an_error(body: str) -> None:
    refused = pytest.raises(BackendError, match="did not answer with a chat completion")
    with judging(Judge(longer, [(200, body, {})])) as judge, refused:
        JudgeEndpoint(judge.url, "big").complete({"messages": []})


def test_a_judge_that_is_not_there_is_an_error() -> None:
    with pytest.raises(BackendError, match=r"the judge at 127\.0\.0\.1 cannot be reached"):
        JudgeEndpoint("http://127.0.0.1:9/v1", "big").complete({})


def test_no_redirection_leads_the_pictures_elsewhere() -> None:
    with judging(Judge(longer)) as other:
        for status in (301, 302, 303, 307, 308):
            moved = [(status, "", {"Location": f"{other.url}/chat/completions"})]
            refused = pytest.raises(InvalidOptionError, match=f"answered {status}")
            with judging(Judge(longer, moved)) as judge, refused:
                JudgeEndpoint(judge.url, "big").complete({"messages": []})
        assert other.got == []


def test_what_is_for_this_machine_passes_no_proxy(few: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    with judging(Judge(longer)) as proxy, judging(Judge(longer)) as judge:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
        monkeypatch.delenv("no_proxy", raising=False)
        judged(judge, few)
    assert (len(judge.got), len(proxy.got)) == (8, 0)


def test_a_key_is_sent_as_a_bearer_and_stands_nowhere_else(few: DataSet, tmp_path: Path) -> None:
    with judging(Judge(longer)) as judge:
        judged(judge, few, tmp_path / "j.jsonl", key="secret-key")
    assert {headers["authorization"] for headers in judge.headers} == {"Bearer secret-key"}
    assert "secret-key" not in (tmp_path / "j.jsonl").read_text("utf-8")
    assert "secret-key" not in repr(JudgeEndpoint(judge.url, "big", key="secret-key"))


@pytest.mark.parametrize(
    "url", ["", "judge", "ftp://host/v1", "http://", "http://host:99999/v1", "file:///etc/passwd"]
)
def test_a_url_of_no_judge_is_refused(url: str) -> None:
    with pytest.raises(InvalidOptionError, match="a judge's URL is like"):
        JudgeEndpoint(url, "big")


def test_a_key_goes_nowhere_unencrypted() -> None:
    with pytest.raises(
        InvalidOptionError, match=f"host.example would get the key in {KEY_VARIABLE} unencrypted"
    ):
        JudgeEndpoint("http://host.example/v1", "big", key="k")
    with pytest.raises(InvalidOptionError, match="characters that no header may have"):
        JudgeEndpoint("https://host.example/v1", "big", key="k\r\nx: y")
    assert JudgeEndpoint("https://host.example/v1", "big", key="k").host == "host.example"


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://localhost:1/v1", True), ("http://127.0.0.2/v1", True), ("http://[::1]:8080/v1", True),
        ("http://192.168.0.4/v1", False), ("http://127.0.0.1.example/v1", False), ("https://localhost.example", False),
        ("http://[::]/v1", False),
    ],
)  # fmt: skip
def test_this_machine_is_known_by_its_loopback_address(url: str, local: bool) -> None:
    assert JudgeEndpoint(url, "big").is_local == local


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ('{"better": "A"}', "A"), ('Since B is wrong:\n{"better": "tie"}', "tie"), ('{"better": "C"}', None),
        ("A", None), ("", None), ('{"better": ["A"]}', None), ('{"better"', None), ("[]", None),
    ],
)  # fmt: skip
def test_a_preference_is_read_from_json_alone(answer: str, found: str | None) -> None:
    assert preference(BatchRow(None, None, "x", "0", "0", None, answer=answer)) == found


def command(data: Path, output: Path, *more: str) -> Any:
    return ayaedge(
        "benchmark", "m-wildvision", "--data", data / "m-WildVision", "--languages", "de,ja", "--limit", "2",
        "-t", "1", "-n", "24", "-o", output, "--no-kl", *more,
    )  # fmt: skip


def test_a_judge_that_is_elsewhere_is_named_before_anything_is_sent_and_none_is_asked_unasked(
    data: Path, exact_bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(JudgeEndpoint, "complete", lambda self, request: opened.append(self.host) or {})
    compared = ["--against", str(exact_bundle.directory)]
    without = command(data, tmp_path / "out.json", *compared)
    assert (without.returncode, opened, "The judge" in without.stderr) == (0, [], False)
    asked = command(
        data, tmp_path / "out.json", *compared, "--judge", "https://judge.example/v1", "--judge-model", "big"
    )
    notice = " ".join(asked.stderr.partition("written")[0].split())
    assert "judge.example: the pictures, questions and both answers of each pair leave this machine" in notice


@pytest.mark.parametrize("given", [["--judge", "http://127.0.0.1/v1"], ["--judge-model", "big"]])
def test_half_of_a_judge_is_refused(given: list[str], data: Path, tmp_path: Path) -> None:
    finished = command(data, tmp_path / "out.json", *given)
    assert finished.returncode == 1
    assert "a judge needs --judge, --judge-model and --against" in " ".join(finished.stderr.split())


def test_our_own_server_judges_over_loopback(data: Path, exact_bundle: Any, tmp_path: Path) -> None:
    """Two-picture rows are what the small model cannot answer; its verdicts mean nothing, but they are verdicts."""
    with served() as server:
        url = f"{server.url}/v1"
        finished = ayaedge(
            "benchmark", "aya-vision-bench", "--data", data / "AyaVisionBench-older", "--languages", "de", "-t", "1",
            "-n", "24", "-o", tmp_path / "out.json", "--no-kl", "--against", exact_bundle.directory,
            "--max-tiles", "1", "--judge", url, "--judge-model", "demo",
        )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert "The judge at 127.0.0.1 is on this machine" in finished.stderr
    found = json.loads((tmp_path / "out.json").read_text("utf-8"))
    figures = found["models"][0]["all"]
    assert (figures["judged"], figures["no_verdict"]) == (6, 0)
    assert figures["win"] + figures["tie"] + figures["loss"] == pytest.approx(1)
    assert found["settings"]["judge"] == {"url": url, "model": "demo"}
    rows = [json.loads(line) for line in (tmp_path / "out.answers.jsonl").read_text("utf-8").splitlines()]
    asked = [row for row in rows if row["custom_id"].endswith("-first")]
    differing = round(6 * (1 - figures["equal"]))
    assert len(asked) == 2 * differing
    assert all(row["answer"] in ('{"better": "A"}', '{"better": "B"}', '{"better": "tie"}') for row in asked)
