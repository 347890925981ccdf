"""llama-cpp-python's own class `Llama`, for probes: without the extra buffers that end the process on some processors.

`Llama` has no option for them, so its default is changed, in the child alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ayaedge import llama


def chat(path: str, text: str) -> dict[str, Any]:
    """Answer a message with the file's own template; the number of tokens, and what the file says of itself."""
    stock = _open(path)
    reply = stock.create_chat_completion([{"role": "user", "content": text}], max_tokens=4, temperature=0.0)
    return {"tokens": reply["usage"]["completion_tokens"], "metadata": stock.metadata}


def continued(path: str, prompt: Sequence[int], count: int) -> list[int]:
    """The likeliest tokens behind a prompt."""
    stock, ids = _open(path), []
    stock.eval(list(prompt))
    for _ in range(count):
        ids.append(int(stock.sample(temp=0.0, top_k=1)))
        stock.eval(ids[-1:])
    return ids


def _open(path: str) -> Any:
    llama.library()
    from llama_cpp import Llama
    from llama_cpp import llama_cpp as bindings

    defaults = bindings.llama_model_default_params

    def without_extra_buffers() -> Any:
        parameters = defaults()
        parameters.use_extra_bufts = False
        return parameters

    bindings.llama_model_default_params = without_extra_buffers
    return Llama(path, n_ctx=256, verbose=False)
