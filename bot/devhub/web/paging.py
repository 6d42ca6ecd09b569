"""Pages of a list, linked as the client follows them: `Link: <…>; rel="next"`."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response

from .call import Call


def page(call: Call, items: list[Any], *, size: int, by_number: bool = False) -> Response:
    """The page that the request asks for, by `p` (a number from 0) or by `cursor` (how many came before)."""
    key = "p" if by_number else "cursor"
    at = call.number(key, 0)
    start = at * size if by_number else at
    headers = {"X-Total-Count": str(len(items))}
    if start + size < len(items):
        others = [(k, v) for k, v in call.query.multi_items() if k != key]
        following = urlencode([*others, (key, str(at + 1 if by_number else start + size))])
        headers["Link"] = f'<{call.origin}{call.path}?{following}>; rel="next"'
    shown = json.dumps(items[start : start + size], default=str)
    return Response(shown, media_type="application/json", headers=headers)
