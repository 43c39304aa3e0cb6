"""The chat page's files, and the field `mode` that its comparison sends."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("fastapi")

from server.conftest import MakeEngine
from server.live import Live, live


def test_the_page_loads_nothing_but_its_own_files(served: Live) -> None:
    page = served.http.get("/").raise_for_status()
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    files = re.findall(r'(?:src|href)="([^"#][^"]*)"', page.text)
    assert len(files) == 3 and not re.search(r"<script[^>]*>[^<]|style=|\son\w+=", page.text)
    for name in files:
        file = served.http.get(f"/{name}").raise_for_status()
        assert file.headers["content-security-policy"] == policy
        for other in re.findall(r'from "\./([^"]+)"', file.text):
            served.http.get(f"/page/{other}").raise_for_status()


@pytest.mark.parametrize("name", ["absent.js", "..%2Fstatic.py", "%2e%2e", ".."])
def test_no_other_file_is_served(served: Live, name: str) -> None:
    answer = served.http.get(f"/page/{name}")
    assert answer.status_code in (200, 404)  # a client may normalise ".." to the page itself
    assert "import" not in answer.text


def test_the_page_needs_no_key(engine: MakeEngine) -> None:
    with live(engine(), api_key="secret") as one:
        assert one.http.get("/").status_code == one.http.get("/page/chat.js").status_code == 200
        assert one.http.get("/v1/models").status_code == 401


def test_mode_ar_decodes_token_by_token(engine: MakeEngine) -> None:
    with live(engine()) as one:
        before = one.figures()["ssd:spec_decode_num_drafts_total"]
        plain = one.complete("one", max_tokens=40, mode="ar").raise_for_status().json()
        assert one.figures()["ssd:spec_decode_num_drafts_total"] == before
        assert one.figures()["ssd:generation_tokens_total"] == plain["usage"]["completion_tokens"]
        speculative = one.complete("one", max_tokens=40).raise_for_status().json()
        assert plain["choices"] == speculative["choices"]
        assert one.figures()["ssd:spec_decode_num_drafts_total"] > before
        refused = one.complete("one", mode="sd")
        assert refused.status_code == 400 and "mode" in refused.json()["error"]["message"]
