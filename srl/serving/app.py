"""An OpenAI-compatible endpoint that answers with the corrected answer and the turns that led to it."""

import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
from fastapi import FastAPI, HTTPException
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, field_validator

from srl.config import Config, ConfigError
from srl.protocols.chat import Chat
from srl.protocols.protocol import build_protocol
from srl.serving.backend import complete
from srl.serving.conversation import Piece, converse, turns_of
from srl.trajectory import Trajectory


class Message(BaseModel):
    """Of a user, an assistant or the system; several text parts are one text."""

    role: str
    content: str

    @field_validator("content", mode="before")
    @classmethod
    def _joined(cls, content: Any) -> Any:
        if isinstance(content, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            return "".join(part["text"] for part in content)
        return content


class Request(BaseModel):
    """What is used of OpenAI's chat completion request; the rest is accepted and ignored."""

    model_config = ConfigDict(extra="ignore")
    messages: list[Message] = Field(min_length=1)
    model: str = "srl"
    temperature: float = Field(0.0, ge=0)
    seed: int | None = None
    stream: bool = False
    n: int = Field(1, ge=1, le=1)


def create_app(url: str, chat: Chat, config: Config, protocol: str) -> FastAPI:
    """Endpoints in front of the vLLM server at `url`: /v1/chat/completions, /v1/models, /health."""
    app = FastAPI(title="srl")
    client = httpx.AsyncClient(base_url=url, timeout=httpx.Timeout(config.rollout.timeout_s))

    @app.post("/v1/chat/completions", response_model=None)
    async def chat_completions(request: Request) -> Response:
        trajectory = opened(request, chat, config)
        pieces = answer(trajectory, request, client, chat, config, protocol)
        if request.stream:
            return StreamingResponse(events(trajectory, pieces), media_type="text/event-stream")
        async for _ in pieces:
            pass
        return JSONResponse(completion(trajectory))

    @app.get("/v1/models")
    async def models() -> Response:
        return await passed_on("/v1/models")

    @app.get("/health")
    async def health() -> Response:
        return await passed_on("/health")

    async def passed_on(path: str) -> Response:
        found = await client.get(path)
        return Response(found.content, found.status_code, media_type=found.headers.get("content-type"))

    return app


def opened(request: Request, chat: Chat, config: Config) -> Trajectory:
    """The problem is the last user message; what came before it is not part of the problem. 400 for what cannot be asked."""
    asked = [message.content for message in request.messages if message.role == "user"]
    if not asked:
        raise HTTPException(400, "messages has no user message")
    try:
        ids = chat.opening(asked[-1])
    except ConfigError as error:
        raise HTTPException(400, str(error)) from None
    if len(ids) >= config.model.max_length:
        raise HTTPException(400, f"the problem has {len(ids)} tokens, model.max_length={config.model.max_length} leaves no room")
    name = f"chatcmpl-{uuid.uuid4().hex}"
    return Trajectory(name, name, asked[-1], "", ids, seed=request.seed or 0)


def answer(
    trajectory: Trajectory, request: Request, client: httpx.AsyncClient, chat: Chat, config: Config, protocol: str
) -> AsyncIterator[Piece]:
    def generate(token_ids: list[int], max_tokens: int):
        return complete(client, token_ids, max_tokens, request.temperature, request.seed, chat.stop_ids)

    rules = build_protocol(protocol, config, chat)
    return converse(trajectory, rules, chat, generate, grammar=config.protocol.grammar, max_length=config.model.max_length)


def completion(trajectory: Trajectory) -> dict[str, Any]:
    """The content is the text of the answer that counts; `turns`, `final_answer` and `stop_reason` are ours."""
    final = trajectory.final()
    message = {"role": "assistant", "content": final.text.strip() if final else "", **extras(trajectory)}
    prompt, sampled = len(trajectory.prompt_token_ids), trajectory.sampled_tokens()
    return {
        "id": trajectory.id, "object": "chat.completion", "created": int(time.time()), "model": "srl",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason(trajectory)}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": sampled, "total_tokens": prompt + sampled},
    }  # fmt: skip


def extras(trajectory: Trajectory) -> dict[str, Any]:
    final = trajectory.final()
    return {
        "turns": turns_of(trajectory), "final_answer": final.answer if final else None, "stop_reason": trajectory.stop_reason
    }  # fmt: skip


def finish_reason(trajectory: Trajectory) -> str:
    return "length" if trajectory.stop_reason == "length" else "stop"


async def events(trajectory: Trajectory, pieces: AsyncIterator[Piece]) -> AsyncIterator[str]:
    """Server-sent chunks: text with the kind of turn it belongs to, then one with turns and final answer."""

    def chunk(delta: dict[str, Any], finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        content = {
            "id": trajectory.id,
            "object": "chat.completion.chunk",
            "created": created,
            "model": "srl",
            "choices": [choice],
        }
        return f"data: {json.dumps(content)}\n\n"

    created = int(time.time())
    yield chunk({"role": "assistant", "content": ""})
    async for piece in pieces:
        yield chunk({"content": piece.text, "kind": piece.kind.value})
    yield chunk(extras(trajectory), finish_reason(trajectory))
    yield "data: [DONE]\n\n"
