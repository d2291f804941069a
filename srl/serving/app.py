"""An OpenAI-compatible endpoint that answers with the corrected answer and the turns that led to it."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Literal

import httpx
from fastapi import FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from jinja2 import TemplateError
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.requests import Request as Call

from srl.config import Config, ConfigError
from srl.protocols.chat import Chat
from srl.protocols.protocol import build_protocol
from srl.rollout.loop import limits, turn_seed
from srl.serving.backend import Sample, ServerError, Silence, complete, connect
from srl.serving.conversation import Piece, converse, turns_of
from srl.trajectory import StopReason, Trajectory

ANSWER_S = 5.0  # longest wait for what vLLM's server tells of itself, without its engine
CLIENT_LEFT = 499  # what proxies call it; nobody reads it


class Message(BaseModel):
    """Several text parts are one text; of an assistant there may be none."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str = ""

    @field_validator("content", mode="before")
    @classmethod
    def _joined(cls, content: Any) -> Any:
        if isinstance(content, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            return "".join(part["text"] for part in content)
        return "" if content is None else content


class StreamOptions(BaseModel):
    include_usage: bool = False


class Request(BaseModel):
    """What is used of OpenAI's chat completion request; the rest is accepted and ignored, and null is as good as absent."""

    model_config = ConfigDict(extra="ignore")
    messages: list[Message] = Field(min_length=1)
    model: str = "srl"
    temperature: float = Field(0.0, ge=0, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    seed: int | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    n: int = Field(1, ge=1, le=1)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        return {name: value for name, value in data.items() if value is not None} if isinstance(data, dict) else data


def create_app(url: str, chat: Chat, config: Config, protocol: str) -> FastAPI:
    """Endpoints in front of the vLLM server at `url`: /v1/chat/completions, /v1/models, /health.

    vLLM calls an engine that hangs healthy; here /health is 503 when generations wait and no token comes for rollout.hang_s.
    """
    app = FastAPI(title="srl")
    client, silence = connect(url, config), Silence()

    def sample(*wanted: Any) -> AsyncIterator[Sample]:
        return silence.heard(complete(client, *wanted))

    @app.post("/v1/chat/completions", response_model=None)
    async def chat_completions(request: Request, call: Call) -> Response:
        trajectory = opened(request, chat, config)
        pieces = answer(trajectory, request, sample, chat, config, protocol)
        if request.stream:
            chunks = events(trajectory, pieces, request.stream_options.include_usage)
            return StreamingResponse(chunks, media_type="text/event-stream")
        if not await ended(pieces, call):
            return Response(status_code=CLIENT_LEFT)
        return JSONResponse(completion(trajectory))

    @app.get("/v1/models")
    async def models() -> Response:
        return await passed_on("/v1/models", 504)

    @app.get("/health")
    async def health() -> Response:
        limit, seconds = config.rollout.hang_s, silence.seconds()
        if seconds > limit:
            waiting = f"no token has come for {seconds:.1f} s, generations that wait for one: {silence.waiting}"
            raise ServerError(503, f"rollout.hang_s={limit:g}: {waiting}")
        return await passed_on("/health", 503)

    async def passed_on(path: str, late: int) -> Response:
        """Raises ServerError, with the status `late` when nothing is said for ANSWER_S."""
        try:
            found = await client.get(path, timeout=ANSWER_S)
        except httpx.TimeoutException:
            raise ServerError(late, f"vLLM's server has not answered {path} for {ANSWER_S:g} s") from None
        except httpx.TransportError as error:
            raise ServerError(503, f"vLLM's server cannot be reached: {error or type(error).__name__}") from None
        return Response(found.content, found.status_code, media_type=found.headers.get("content-type"))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Call, error: RequestValidationError) -> Response:
        wrong = [f"{'.'.join(map(str, item['loc'][1:])) or 'body'}: {item['msg']}" for item in error.errors()]
        return JSONResponse(failure(400, "; ".join(wrong)), 400)

    @app.exception_handler(AnyHTTPException)
    async def refused(_: Call, error: AnyHTTPException) -> Response:
        return JSONResponse(failure(error.status_code, error.detail), error.status_code, error.headers)

    @app.exception_handler(ServerError)
    async def failed(_: Call, error: ServerError) -> Response:
        return JSONResponse(failure(error.status, str(error)), error.status)

    return app


def failure(status: int, message: str) -> dict[str, Any]:
    """As OpenAI's clients read it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


def opened(request: Request, chat: Chat, config: Config) -> Trajectory:
    """The problem is the last message; those of user and assistant before it are the conversation so far. 400 for what cannot be
    asked. The system's words are those of the run (prompts.system), which the model was trained with."""
    told = [message for message in request.messages if message.role in ("user", "assistant")]
    if not told or told[-1].role != "user":
        raise HTTPException(400, "messages: the last one must be the user's")
    question = told[-1].content
    try:
        ids = chat.opening(question, [message.model_dump() for message in told[:-1]])
    except (ConfigError, TemplateError, UnicodeError, TypeError) as error:  # half a character is no text for a tokenizer
        raise HTTPException(400, f"messages: {error}".encode(errors="replace").decode()) from None
    if len(ids) >= config.model.max_length:
        raise HTTPException(400, f"messages have {len(ids)} tokens, model.max_length={config.model.max_length} leaves no room")
    name = f"chatcmpl-{uuid.uuid4().hex}"
    return Trajectory(name, name, question, "", ids, seed=request.seed or 0)


def answer(
    trajectory: Trajectory,
    request: Request,
    sample: Callable[..., AsyncIterator[Sample]],
    chat: Chat,
    config: Config,
    protocol: str,
) -> AsyncIterator[Piece]:
    """Under the limits of a rollout, or narrower ones of the request. `sample` is `complete` of a client."""
    asked = [most for most in (request.max_completion_tokens, request.max_tokens, config.protocol.max_tokens) if most]
    bounds = replace(limits(config), max_tokens=min(asked, default=0), top_p=request.top_p or config.rollout.top_p)

    def generate(token_ids: list[int], max_tokens: int):
        # Another one for each turn: with the same, a revision falls into the errors of the attempt.
        seed = None if request.seed is None else turn_seed(replace(trajectory, id=""))
        return sample(token_ids, max_tokens, request.temperature, seed, chat.stop_ids, bounds.top_p)

    rules = build_protocol(protocol, config, chat)
    return converse(trajectory, rules, chat, generate, grammar=config.protocol.grammar, limits=bounds)


async def ended(pieces: AsyncIterator[Piece], call: Call) -> bool:
    """Run to the end. False when the client leaves before it: nothing more is sampled then."""

    async def run() -> None:
        async with aclosing(pieces):
            async for _ in pieces:
                pass

    async def left() -> None:
        while (await call.receive())["type"] != "http.disconnect":
            pass

    running, leaving = asyncio.ensure_future(run()), asyncio.ensure_future(left())
    try:
        await asyncio.wait((running, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            return False
        await running
        return True
    finally:
        running.cancel()
        leaving.cancel()


def completion(trajectory: Trajectory) -> dict[str, Any]:
    """The content is the text of the answer that counts; `turns`, `final_answer` and `stop_reason` are ours."""
    final = trajectory.final()
    message = {"role": "assistant", "content": final.text.strip() if final else "", **extras(trajectory)}
    return {
        "id": trajectory.id, "object": "chat.completion", "created": int(time.time()), "model": "srl",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason(trajectory)}],
        "usage": usage(trajectory),
    }  # fmt: skip


def usage(trajectory: Trajectory) -> dict[str, int]:
    """What is said between the turns counts as prompt: together it is all that the model has seen."""
    total, sampled = len(trajectory.token_ids()), trajectory.sampled_tokens()
    return {"prompt_tokens": total - sampled, "completion_tokens": sampled, "total_tokens": total}


def extras(trajectory: Trajectory) -> dict[str, Any]:
    final = trajectory.final()
    return {
        "turns": turns_of(trajectory), "final_answer": final.answer if final else None, "stop_reason": trajectory.stop_reason
    }  # fmt: skip


def finish_reason(trajectory: Trajectory) -> str:
    return "length" if trajectory.truncated or trajectory.stop_reason is StopReason.TIME else "stop"


async def events(trajectory: Trajectory, pieces: AsyncIterator[Piece], with_usage: bool) -> AsyncIterator[str]:
    """Server-sent chunks: text with the kind of turn it belongs to, then one with turns and final answer, then the usage if that
    is wanted. What fails on the way is told in a last one."""
    created = int(time.time())

    def chunk(choices: list[dict[str, Any]], **more: Any) -> str:
        head = {"id": trajectory.id, "object": "chat.completion.chunk", "created": created, "model": "srl"}
        return f"data: {json.dumps({**head, 'choices': choices, **more})}\n\n"

    def choice(delta: dict[str, Any], finish: str | None = None) -> list[dict[str, Any]]:
        return [{"index": 0, "delta": delta, "finish_reason": finish}]

    yield chunk(choice({"role": "assistant", "content": ""}))
    try:
        async with aclosing(pieces):
            async for piece in pieces:
                yield chunk(choice({"content": piece.text, "kind": piece.kind.value}))
    except ServerError as error:
        yield f"data: {json.dumps(failure(error.status, str(error)))}\n\n"
    else:
        yield chunk(choice(extras(trajectory), finish_reason(trajectory)))
        if with_usage:
            yield chunk([], usage=usage(trajectory))
    yield "data: [DONE]\n\n"
