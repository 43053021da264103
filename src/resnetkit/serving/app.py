"""The server's routes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from ..data.decode import UNNAMED, has_known_signature, stored_size
from ..errors import ImageError, ModelFileError, RecipeError, did_you_mean, sentences
from ..inference.prediction import NOT_FINITE, Prediction
from ..limits import cores
from ..prefetch import Pool
from . import metrics, openapi
from .body import Body, BodyMemory, Upload, split_images
from .bounds import Bounds
from .engine import Engine
from .guard import refusal_content, refusal_headers
from .queue import Queue, Ticket
from .refusals import DEADLINE_PASSED, ClientGone, Refusal
from .served import Served

PAGE = Path(__file__).parent / "page"

Checked = tuple[Upload, int | Refusal]
"""An image in a body, with its pixel count or its refusal."""
PAGE_BASE = ("resnetkit.export", "page_base")  # shared with the web page that export writes
PARAMETERS = ("top_k", "coverage", "false_alarms", "explain")


@dataclass(frozen=True)
class Options:
    """The options of a prediction request."""

    top_k: int = 5
    coverage: float | None = None
    false_alarms: float | None = None
    explain: bool = False


class Service:
    """Answers HTTP requests for one model.

    Attributes:
        is_stopping: whether the server has been asked to stop; if so, it admits no new images.
        active: the number of requests that are waiting for answers to their images.
    """

    def __init__(
        self, served: Served, engine: Engine, queue: Queue, counted: metrics.Metrics, bounds: Bounds
    ) -> None:
        self._served = served
        self._engine = engine
        self._queue = queue
        self._metrics = counted
        self._bounds = bounds
        self._memory = BodyMemory(bounds)
        # Image headers have their own threads, so that busy decoders do not delay a refusal.
        # They are daemon threads, so they do not hold up the exit of the process.
        self._headers: Pool[Callable[[], list[Checked]], list[Checked]] = Pool(_call, cores())
        self._uncertainty = lru_cache(maxsize=64)(served.resolve_uncertainty)
        self.is_stopping = False
        self.active = 0

    @property
    def ready(self) -> bool:
        """Whether the server accepts images."""
        return self._engine.ready and not self.is_stopping

    def close(self) -> None:
        """Stop the service's threads."""
        self._headers.release()

    def application(self) -> Starlette:
        """Return the routes as an ASGI application."""
        application = Starlette(
            routes=[
                Route("/", self._page),
                Route("/predict", self._predict, methods=["POST"]),
                Route("/classes", self._classes),
                Route("/model", self._model),
                Route("/live", self._live),
                Route("/ready", self._is_ready),
                Route("/metrics", self._show_metrics),
                Route("/openapi.json", self._schema),
                Route("/docs", self._docs),
                Mount("/page", StaticFiles(directory=PAGE, packages=[PAGE_BASE])),
            ],
            exception_handlers={
                Refusal: _refused,
                HTTPException: _refused,
                ClientGone: _gone,
                Exception: _failed,
            },
        )
        # A redirect would contain an absolute http:// URL, even behind a TLS proxy.
        application.router.redirect_slashes = False
        return application

    async def _page(self, request: Request) -> Response:
        return FileResponse(PAGE / "index.html")

    async def _classes(self, request: Request) -> Response:
        return _json({"classes": self._served.classes})

    async def _model(self, request: Request) -> Response:
        return _json({**self._served.describe(), "limits": asdict(self._bounds)})

    async def _live(self, request: Request) -> Response:
        return _json({"live": True})

    async def _is_ready(self, request: Request) -> Response:
        if self.ready:
            return _json({"ready": True})
        return _json({"ready": False, "reason": self._reason()}, 503)

    async def _show_metrics(self, request: Request) -> Response:
        self._metrics.ready.set(self.ready)
        return Response(self._metrics.render(), media_type=metrics.CONTENT_TYPE)

    async def _schema(self, request: Request) -> Response:
        return _json(openapi.schema())

    async def _docs(self, request: Request) -> Response:
        return HTMLResponse(openapi.page())

    def _reason(self) -> str:
        if self.is_stopping:
            return "stopping"
        return "starting" if self._engine.starts <= 1 else "engine_crashed"

    def refusal_before_reading(self, seconds: float | None) -> Refusal | None:
        """Return the refusal that any prediction request would get now, or None.

        Args:
            seconds: the request's deadline in seconds; None for the default.
        """
        seconds = self._bounds.deadline_seconds if seconds is None else seconds
        try:
            self._check_ready()
            self._queue.check_room(1, 0, time.monotonic() + seconds)
        except Refusal as refusal:
            return refusal
        return None

    def _check_ready(self) -> None:
        if not self.ready:
            reason = self._reason()
            raise Refusal(503, reason, f"The server is not ready ({reason})", retry_after=1)

    async def _predict(self, request: Request) -> Response:
        start = time.monotonic()
        options = self._options(request)
        seconds = self._seconds(request)
        deadline = start + (self._bounds.deadline_seconds if seconds is None else seconds)
        self._check_ready()
        self._queue.check_room(1, 0, deadline)
        with self._memory.body() as body:
            await body.read(request)
            received = time.monotonic()
            self._metrics.observe("receive", received - start)
            if seconds is None:  # the default excludes the upload, whose time depends on the client
                deadline = received + self._bounds.deadline_seconds
            kind = request.headers.get("content-type", "")
            reading = self._headers.submit(partial(self._check_images, body, kind))
            checked = await _by_deadline(request, asyncio.wrap_future(reading), deadline)
            request.state.images = len(checked)
            if len(checked) == 1 and isinstance(checked[0][1], Refusal):
                raise checked[0][1]
            self._check_ready()
            answers = await self._compute(request, checked, options, deadline)
        answers = [_refuse_not_finite(answer) for answer in answers]
        if len(answers) == 1 and isinstance(answers[0], Refusal):
            raise answers[0]
        rows = [
            self._row(upload.name, answer, options)
            for (upload, _), answer in zip(checked, answers, strict=True)
        ]
        return _json(rows[0] if len(rows) == 1 else rows)

    def _options(self, request: Request) -> Options:
        """Return the options in a request's query parameters.

        Raises:
            Refusal: 400 if a parameter is unknown, or not valid for this model.
        """
        given = request.query_params
        for name in given:
            if name not in PARAMETERS:
                question = did_you_mean(name[:40], PARAMETERS)
                known = ", ".join(PARAMETERS)
                raise _bad_parameter(
                    sentences("Unknown parameter.", question, f"Known parameters: {known}")
                )
        text = given.get("explain", "false")
        if text not in ("true", "false"):
            raise _bad_parameter("explain must be true or false")
        if text == "true" and not self._served.can_explain:
            raise _bad_parameter("An exported file cannot explain its answers: it has no "
                                 "gradients. Serve the model file")  # fmt: skip
        try:
            top_k = int(given.get("top_k", "5"))
            coverage, false_alarms = (
                float(given[name]) if name in given else None for name in PARAMETERS[1:3]
            )
        except ValueError:
            raise _bad_parameter(
                "top_k must be a whole number; coverage and false_alarms must be numbers"
            ) from None
        if top_k < 1:
            raise _bad_parameter("top_k must be at least 1")
        try:
            self._uncertainty(coverage, false_alarms)
        except (ModelFileError, RecipeError) as error:
            message = str(error).replace("--coverage", "coverage")
            raise _bad_parameter(message.replace("--false-alarms", "false_alarms")) from None
        return Options(top_k, coverage, false_alarms, explain=text == "true")

    def _seconds(self, request: Request) -> float | None:
        """Return the deadline in seconds that a request sets; None if it sets none."""
        text = request.headers.get("x-deadline-ms")
        if text is None:
            return None
        most = round(1000 * self._bounds.most_deadline_seconds)
        if not (text.isdecimal() and text.isascii() and 1 <= int(text[:9]) <= most):
            raise Refusal(400, "bad_deadline", f"X-Deadline-Ms must be between 1 and {most}")
        return int(text[:9]) / 1000

    def _check_images(self, body: Body, content_type: str) -> list[Checked]:
        """Return the images in a body, each with its pixel count or its refusal."""
        contents, body.contents = body.contents, b""
        uploads = split_images(contents, content_type, self._bounds.request_images)
        return [(upload, self._check_image(upload.contents)) for upload in uploads]

    def _check_image(self, contents: bytes) -> int | Refusal:
        try:
            width, height = stored_size(contents)
        except ImageError as error:
            return _image_refusal(error, contents)
        most = self._bounds.image_pixels
        if width * height > most:
            return Refusal(
                422,
                "too_many_pixels",
                f"The image has {width} x {height} pixels; the limit is {most:,}",
            )
        return width * height

    async def _compute(
        self,
        request: Request,
        checked: Sequence[tuple[Upload, int | Refusal]],
        options: Options,
        deadline: float,
    ) -> list[Any]:
        """Return each image's outputs or, if the request has several images, its refusal.

        Raises:
            Refusal: 503 if the queue is full, 504 if the deadline passed, 500 if the engine
                crashed, 422 if the only image is damaged.
            ClientGone: the client closed the connection.
        """
        answers = _Answers(len(checked))
        tickets = []
        for position, (upload, pixels) in enumerate(checked):
            if isinstance(pixels, Refusal):
                answers.settle(position, pixels)
                continue
            tickets.append(
                Ticket(
                    upload.contents,
                    pixels,
                    deadline,
                    deliver=partial(answers.put, position),
                    wants_explanation=options.explain,
                )
            )
        if tickets:
            self._queue.admit(tickets)
        self.active += 1
        try:
            await _by_deadline(request, answers.complete, deadline)
            return [_checked(answer, len(checked) == 1) for answer in answers.found]
        finally:
            self.active -= 1
            self._queue.withdraw(tickets)

    def _row(self, name: str, answer: Any, options: Options) -> dict[str, Any]:
        """Return the JSON object that `resnet predict` prints for an image."""
        if isinstance(answer, Refusal):
            return Prediction(name, (), self._served.digest, error=answer.message).to_dict()
        shares = answer["probabilities"]
        best = np.argsort(-shares, kind="stable")[: options.top_k]
        uncertainty = self._uncertainty(options.coverage, options.false_alarms)
        found: dict[str, Any] = {}
        if uncertainty is not None:
            (found,) = uncertainty.answers(answer["logits"][None], answer["features"][None])
        row = Prediction(
            name,
            tuple((self._served.classes[i], float(shares[i])) for i in best),
            self._served.digest,
            coverage=options.coverage,
            false_alarms=options.false_alarms,
            **found,
        ).to_dict()
        if "explanation" in answer:
            image = base64.b64encode(answer["explanation"]).decode()
            row["explanation"] = f"data:image/png;base64,{image}"
        return row


def _refuse_not_finite(answer: Any) -> Any:
    if isinstance(answer, Refusal) or np.isfinite(answer["probabilities"]).all():
        return answer
    return Refusal(500, "not_finite", NOT_FINITE)


class _Answers:
    """Collects the answers to one request's images, which other threads deliver."""

    def __init__(self, count: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._left = count
        self.found: list[Any] = [None] * count
        self.complete: asyncio.Future[None] = self._loop.create_future()

    def put(self, position: int, answer: Any) -> None:
        """Deliver an answer from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self.settle, position, answer)

    def settle(self, position: int, answer: Any) -> None:
        """Deliver an answer from the event loop's thread."""
        self.found[position] = answer
        self._left -= 1
        if self._left == 0 and not self.complete.cancelled():
            self.complete.set_result(None)


async def _by_deadline(request: Request, future: asyncio.Future[Any], deadline: float) -> Any:
    """Return a future's result, or cancel the future and raise.

    Raises:
        Refusal: 504 if the deadline passed.
        ClientGone: the client closed the connection.
    """
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        left = max(0.0, deadline - time.monotonic())
        await asyncio.wait({gone, future}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if future.done():
            return future.result()
        if gone.done():
            raise ClientGone
        raise Refusal(504, "deadline", DEADLINE_PASSED)
    finally:
        gone.cancel()
        future.cancel()


async def _disconnected(request: Request) -> None:
    """Wait until the client closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _checked(answer: Any, is_only: bool) -> Any:
    """Return the outputs for an image, or its refusal; raise errors that fail the whole request."""
    if isinstance(answer, ImageError):
        answer = _image_refusal(answer, None)
    elif isinstance(answer, MemoryError):
        answer = Refusal(503, "memory", "There is not enough memory", retry_after=1)
    elif isinstance(answer, BaseException) and not isinstance(answer, Refusal):
        raise Refusal(500, "engine_crashed", "The engine crashed while processing this request")
    if isinstance(answer, Refusal) and is_only:
        raise answer
    return answer


def _image_refusal(error: ImageError, contents: bytes | None) -> Refusal:
    """Return the refusal for an image that cannot be read.

    Args:
        error: the decoder's error.
        contents: the bytes of the file; None if they are already known to be an image.
    """
    message = str(error).removeprefix(f"{UNNAMED}: ").removeprefix(f"{UNNAMED} ")
    if isinstance(error.__cause__, MemoryError):
        return Refusal(503, "memory", message, retry_after=1)
    if contents is not None and (not has_known_signature(contents) or error.passing):
        return Refusal(415, "not_an_image", f"Not an image: {message}")
    return Refusal(422, "broken_image", f"The image is damaged: {message}")


def _bad_parameter(message: str) -> Refusal:
    return Refusal(400, "bad_parameter", message)


async def _refused(request: Request, error: Exception) -> Response:
    """Return the response to a refusal, ours or Starlette's (unknown path or method)."""
    headers: dict[str, str] = {}
    if isinstance(error, HTTPException):
        reason = {404: "not_found", 405: "bad_method"}.get(error.status_code, "bad_request")
        headers |= error.headers or {}
        error = Refusal(error.status_code, reason, f"{error.detail}. See /docs")
    assert isinstance(error, Refusal)
    request.state.reason = error.reason
    content = refusal_content(error, request.state.id)
    headers |= refusal_headers(error)
    return Response(content, error.status, headers, media_type="application/json")


async def _failed(request: Request, error: Exception) -> Response:
    """Report a failure in our own code; Starlette re-raises the error, so that it is logged."""
    return await _refused(request, Refusal(500, "internal_error", "The server failed; see its log"))


async def _gone(request: Request, error: Exception) -> Response:
    """Return a response that nobody reads: the client is gone. The status is for the log."""
    is_damaged = getattr(request.state, "is_damaged", False)  # already answered with 400
    request.state.reason = "bad_http" if is_damaged else "client_gone"
    return Response(status_code=400 if is_damaged else 499)


def _json(content: Any, status: int = 200) -> Response:
    # Class names may contain lone surrogates, which JSON can carry only as escapes.
    text = json.dumps(content, ensure_ascii=False).encode("utf-8", "backslashreplace")
    return Response(text + b"\n", status, media_type="application/json")


def _call(function: Callable[[], list[Checked]]) -> list[Checked]:
    return function()
