"""The description of the AMQP interface: as a self-contained page, and as a file."""

from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response

_FOLDER = files("service.ingress") / "asyncapi"
_VENDOR = _FOLDER / "vendor"
_PARTS: dict[str, tuple[Traversable, str]] = {
    "page.js": (_FOLDER / "page.js", "text/javascript"),
    "index.js": (_VENDOR / "index.js", "text/javascript"),
    "index.js.LICENSE.txt": (_VENDOR / "index.js.LICENSE.txt", "text/plain"),
    "default.min.css": (_VENDOR / "default.min.css", "text/css"),
}
# The component's parser compiles schemas to code; it must not load from or send to another machine.
_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)


def documents() -> APIRouter:
    """Return the endpoints. Like /docs they are public, and not part of the OpenAPI document."""
    router = APIRouter(include_in_schema=False)

    @router.get("/asyncapi")
    def page() -> HTMLResponse:
        return HTMLResponse((_FOLDER / "index.html").read_bytes(), headers={"Content-Security-Policy": _POLICY})

    @router.get("/asyncapi.yaml")
    def described() -> Response:
        return Response((_FOLDER / "asyncapi.yaml").read_bytes(), media_type="application/yaml")

    @router.get("/asyncapi/{name}")
    def part(name: str) -> Response:
        if name not in _PARTS:
            raise HTTPException(404)
        file, kind = _PARTS[name]
        return Response(file.read_bytes(), media_type=kind)

    return router
