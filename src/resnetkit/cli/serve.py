"""``resnet serve``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Optional

import typer

from .options import ANY_MODEL, DEVICE


def serve(
    model: ANY_MODEL,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on. Any other than 127.0.0.1 is open to other machines."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 picks a free one.", min=0, max=65535)] = 8000,
    allow_host: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="A name of this server that clients use in URLs.", metavar="NAME"),
    ] = None,
    token_file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="File with a token that clients must send. Or set RESNETKIT_TOKEN.",
            metavar="FILE",
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="auto, eager, compile, openvino or onnx.", metavar="ENGINE")
    ] = "auto",
    device: DEVICE = "auto",
) -> None:
    """Serve a model over HTTP."""
    from ..distribution import install_command
    from ..errors import MissingPackageError
    from ..progress import say

    try:
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        message = f"resnet serve needs {error.name}: {install_command('serve')}"
        raise MissingPackageError(message) from None
    from ..serving.served import open_served
    from ..serving.server import Server, is_loopback
    from ..serving.token import read_token

    token = read_token(token_file)
    served = open_served(model, device=device, engine=engine)

    def show_address(address: str, port: int) -> None:
        name = f"[{address}]" if ":" in address else address
        say(f"Serving {model} at http://{name}:{port} (interface: /docs). Stop with Ctrl-C.")
        if not is_loopback(address):
            say(
                f"{address} is not a loopback address: any machine that can reach it can send "
                "images, unencrypted. "
                + ("Clients need the token." if token else "Without a token, anyone may use it.")
            )

    server = Server(served, host, port, allowed_hosts=allow_host or (), token=token)
    if not server.run(show_address):
        os._exit(0)  # a runtime is stuck in native code
