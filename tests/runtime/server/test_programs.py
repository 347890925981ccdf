"""Programs that people use with any OpenAI base URL, against the real server: LangChain, `llm`, docling."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from served import CELLS, HEART, QUESTION, asking, data_url, served


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LANGSMITH_TRACING", "false")
        with served() as server:
            yield server.url


TESTS = Path(__file__).parents[2]
DOCLING = "docling-slim[convert-core,format-docx]==2.143.0"


class Cell(BaseModel):
    """What is seen."""

    shape: Literal["star", "heart"]


def test_langchain_asks_streams_and_takes_structured_output(url: str) -> None:
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(base_url=f"{url}/v1", api_key="none", model="any", temperature=0, max_retries=0)  # type: ignore[arg-type]
    messages: Any = [("system", "Answer briefly."), *asking(QUESTION, {"url": data_url(CELLS)})["messages"]]
    answer = chat.invoke(messages)
    assert answer.content == "2675"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] > 0
    assert "".join(str(chunk.content) for chunk in chat.stream(messages)) == "2675"
    parsed = chat.with_structured_output(Cell, method="json_schema").invoke(
        asking("What shape?", {"url": data_url(HEART)})["messages"]
    )
    assert isinstance(parsed, Cell)


def test_llm_asks_with_attachments_and_schemas(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    monkeypatch.setitem(os.environ, "OPENAI_API_KEY", "none")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: aya\n  model_name: any\n  api_base: {url}/v1\n  vision: true\n  supports_schema: true\n"
    )
    import llm

    model = llm.get_model("aya")
    image = llm.Attachment(path=str(CELLS))
    assert model.prompt(QUESTION, attachments=[image], stream=False).text() == "2675"
    assert "".join(model.prompt(QUESTION, attachments=[image])) == "2675"
    shape = model.prompt("What shape?", attachments=[llm.Attachment(path=str(HEART))], schema=Cell)
    assert set(json.loads(shape.text())) == {"shape"}


@pytest.mark.slow
def test_docling_describes_the_pictures_of_a_document(url: str, tmp_path: Path) -> None:
    """In an environment of its own, since it wants an older typer; its torch, which it only imports, is ours."""
    installed = tmp_path / "docling"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--target", installed, DOCLING], check=True
    )
    packages = os.pathsep.join([str(installed), sysconfig.get_path("purelib")])
    script, endpoint = TESTS / "docling_describing.py", f"{url}/v1/chat/completions"
    described = subprocess.run(
        [sys.executable, script, endpoint, tmp_path, "What shape?", HEART, HEART],
        env={**os.environ, "PYTHONPATH": packages, "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(described.stdout) == ["heart", "heart"]
