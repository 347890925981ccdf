"""An MCP server over stdin and stdout, for agents on this computer. https://modelcontextprotocol.io

Needs the extra `mcp`. stdout is the protocol's alone: whatever else this process prints goes to stderr meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress

from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp_types import (
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)

from ayaedge import __version__
from ayaedge.server.agent_tools import Toolbox
from ayaedge.server.holder import Holder
from ayaedge.server.refusals import refusal_of

_Context = ServerRequestContext
_KILLED = 128
"""Exit code of a process that a signal ended, less the signal's number."""
_HARMLESS = ToolAnnotations(read_only_hint=True, open_world_hint=False)


def make_server(toolbox: Toolbox) -> Server:
    """A server with the tools of a box."""

    async def list_tools(_context: _Context, _given: PaginatedRequestParams | None) -> ListToolsResult:
        listed = [
            Tool(name=one.name, description=one.words, input_schema=one.arguments, annotations=_HARMLESS)
            for one in toolbox.tools
        ]
        return ListToolsResult(tools=listed)

    async def call_tool(context: _Context, given: CallToolRequestParams) -> CallToolResult:
        told = 0

        async def tell(what: str) -> None:
            nonlocal told
            told += 1
            await context.session.report_progress(told, None, what)

        try:
            text, data = await toolbox.call(given.name, given.arguments or {}, tell)
        except Exception as error:  # noqa: BLE001 - whatever it is, the agent is told
            return CallToolResult(content=[TextContent(text=str(refusal_of(error)))], is_error=True)
        structured = data if isinstance(data, dict) else None  # earlier clients take nothing but objects
        return CallToolResult(content=[TextContent(text=text)], structured_content=structured)

    return Server("ayaedge", version=__version__, on_list_tools=list_tools, on_call_tool=call_tool)


def serve(holder: Holder, toolbox: Toolbox, *, sleep_after: float | None = None) -> None:
    """Answer one client until it closes stdin; the model is loaded meanwhile, and freed at the end.

    For the main thread of a process of its own, which a signal ends at once.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # the thread that waits for stdin would keep the process
        signal.signal(number, lambda given, _: os._exit(_KILLED + given))
    asyncio.run(_serve(holder, make_server(toolbox), sleep_after))


async def _serve(holder: Holder, server: Server, sleep_after: float | None) -> None:
    tasks = [asyncio.ensure_future(_load(holder))]
    if sleep_after is not None:
        tasks.append(asyncio.ensure_future(holder.sleep_when_idle(sleep_after)))
    try:
        async with stdio_server() as (reading, writing):
            await server.run(reading, writing, server.create_initialization_options())
    finally:
        for task in tasks:
            task.cancel()
        await holder.close()


async def _load(holder: Holder) -> None:
    with suppress(Exception):  # the first call tries again, and tells
        await holder.model()
