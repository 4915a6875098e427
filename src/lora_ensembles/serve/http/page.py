"""The page at `/`: a form that asks `/v1/decisions` and shows the members' votes; it loads nothing from
elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from .failures import documented

FILE = Path(__file__).with_name("page.html")


def page_routes() -> APIRouter:
    """The route of the page, which browsers are told to run no other script or style on."""
    html = FILE.read_text(encoding="utf-8")
    hashes = {name: _hashes(html, name) for name in ("script", "style")}
    policy = (
        "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'; "
        f"script-src {hashes['script']}; style-src {hashes['style']}"
    )
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"}
    router = APIRouter(tags=["page"])

    @router.get("/", response_class=HTMLResponse, responses=documented(500))
    async def page() -> HTMLResponse:
        """Give the page."""
        return HTMLResponse(html, headers=headers)

    return router


def _hashes(html: str, element: str) -> str:
    """The sources of a Content-Security-Policy for each inline script or style."""
    found = re.findall(rf"<{element}>(.*?)</{element}>", html, re.S)
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in found)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
