"""`ssd chat`, in a terminal and without one: on a tiny engine, a real server, and a server with a script."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.cases import Refusal, Run
from cli.test_serve import run_without
from ssd import Engine, SamplingParams
from ssd.cli.chat import in_words, strip
from ssd.cli.sources import Piece, Reply
from ssd.cli.tints import inert
from ssd.decoding.stats import Committed

for package in ("fastapi", "openai", "pexpect", "pyte"):
    pytest.importorskip(package)

from cli.terminal import ALT_ENTER, ENTER, UP, Terminal, joined, terminal  # noqa: E402
from server.live import live  # noqa: E402
from server.scripted import Script, rounds_of, scripted  # noqa: E402

WORDS = ["It", *(f" word{index}" for index in range(1, 60))]
PROSE = "".join(WORDS)


@pytest.fixture
def models(target: Path, draft: Path) -> list[object]:
    """The arguments that choose the tests' models."""
    return [target, "--draft", draft, "--mode", "ssd", "--dtype", "float32"]


@pytest.fixture
def slow(models: list[object], tmp_path: Path) -> Iterator[Terminal]:
    """A chat whose answers take half a minute."""
    with terminal("chat", *models, "--pace", "100,10", "-n", 300, "--ignore-eos", home=tmp_path) as one:
        one.wait_for_prompt()
        yield one


def saved(one: Terminal, path: Path) -> list[dict[str, str]]:
    """The conversation, as /save writes it."""
    one.enter(f"/save {path}")
    one.wait_for("the conversation is in")
    messages: list[dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))["messages"]
    return messages


# An engine ------------------------------------------------------------------------------------------------------------------


def test_each_answer_is_what_the_conversation_so_far_decodes_to(run: Run, models: list[object], target: Path) -> None:
    result = run("chat", *models, "-n", 12, "--system", "Be brief.", stdin="one\n\ntwo\n/regenerate\n/mode ar\nthree\n")
    assert result.status == 0, result.err
    messages: list[dict[str, str]] = [{"role": "system", "content": "Be brief."}]
    expected = ""
    with Engine(str(target), None, "ar", dtype="float32") as engine:
        for content in ("one", "two", "three"):
            messages.append({"role": "user", "content": content})
            text = engine.decode([messages], SamplingParams(max_new_tokens=12))[0].text
            messages.append({"role": "assistant", "content": text})
            expected += f"{inert(text)}\n" * (2 if content == "two" else 1)
    assert result.out == expected
    assert result.err.count("cut at the limit") + expected.count("\n") >= 4
    assert "tokens a round" in result.err
    assert "ssd: the mode is ar." in result.err


@pytest.mark.parametrize("mode", ["ar", "sd", "ssd"])
def test_the_figures_are_those_of_the_engine(target: Path, draft: Path, mode: Any) -> None:
    with Engine(str(target), None if mode == "ar" else str(draft), mode, dtype="float32") as engine:
        stream = engine.stream("Tell me.", SamplingParams(max_new_tokens=80, ignore_eos=True))
        assert len("".join(stream)) == sum(characters for _, characters in stream.origins)
        stats = stream.completion.stats  # type: ignore[union-attr]
        answer = Reply()
        for index, round in enumerate(stream._request.stats.committed):
            answer.add(Piece(committed=round), seconds=1.0 + index)
    assert answer.tokens == len(stream.origins) == 80
    assert answer.tokens_per_round == stats.mean_acceptance_length
    assert answer.acceptance_rate == stats.acceptance_rate
    assert answer.hit_rate == stats.hit_rate
    assert answer.tokens_per_s == pytest.approx(79 / stats.rounds)
    assert answer.first_s == 1.0


def test_figures_that_are_not_known_are_left_out() -> None:
    answer = Reply()
    assert in_words(answer) == "0 tokens"
    answer.add(Piece("one"), seconds=0.5)
    answer.add(Piece(" two", finish_reason="stop"), seconds=1.5)
    answer.add(Piece(tokens=3), seconds=1.5)
    assert in_words(answer) == "3 tokens · 2.0 tokens/s"
    assert (answer.text, answer.finish_reason) == ("one two", "stop")


def test_the_strip_of_rounds_tells_hits_from_misses() -> None:
    line = strip([Committed(1, 0, 4, False), Committed(5, 4, 4, True), Committed(1)])
    assert line.plain == "accepted, round by round: (0) 4 0; (n): drafted after a miss"
    assert strip([Committed(3, 2, 4)]).plain == "accepted, round by round: 2"


def test_ctrl_c_stops_the_answer_and_not_the_chat(slow: Terminal, tmp_path: Path) -> None:
    slow.enter("Tell me.")
    slow.wait_for(lambda: len(slow.text.partition("Tell me.")[2].strip()) > 20)
    slow.interrupt()
    slow.wait_for("ssd: stopped.", seconds=10)
    slow.wait_for_prompt()
    slow.interrupt()
    slow.wait_for("ssd: Ctrl-D ends the chat.", seconds=10)
    question, answer = saved(slow, tmp_path / "one.json")
    assert question == {"role": "user", "content": "Tell me."}
    assert 0 < len(answer["content"]) < 300
    slow.enter("Go on.")  # the engine is as it was
    slow.wait_for(lambda: len(slow.text.partition("Go on.")[2].strip()) > 20)
    slow.interrupt()
    slow.wait_for(lambda: slow.text.count("ssd: stopped.") == 2, seconds=10)
    assert slow.end() == 0


def test_ctrl_c_before_the_first_token_forgets_the_message(tmp_path: Path) -> None:
    script = Script(rounds_of(WORDS), wait=60)
    with scripted(script) as url, terminal("chat", "--url", url, home=tmp_path) as one:
        one.wait_for_prompt()
        one.enter("Tell me.")
        one.wait_for(lambda: bool(script.bodies))
        one.interrupt()
        one.wait_for("ssd: stopped.", seconds=10)
        assert saved(one, tmp_path / "one.json") == []
        assert one.end("/exit\r") == 0


def test_commands(models: list[object], tmp_path: Path) -> None:
    with terminal("chat", *models, "-n", 8, home=tmp_path) as one:
        one.wait_for_prompt()
        for line, said in (
            ("/stats", "there is no answer yet"),
            ("/regenerate", "there is no message to answer again"),
            ("/system", "there is no system prompt."),
            ("/system Be brief.", "the system prompt is 'Be brief.'."),
            ("/help", "/regenerate"),
            ("one", "tokens/s"),
            ("/stats", "s to the first token"),
            ("/mode", "the mode is ssd."),
            ("/mode ar", "the mode is ar."),
            ("/mode fast", "mode is 'fast'; it can be 'ar', 'sd' or 'ssd'."),
            ("/nothing", "there is no command /nothing"),
            ("/save", "give the name of a new file"),
            (f"/save {tmp_path}", "exists already"),
            (f"/save {tmp_path / 'no' / 'folder'}", "cannot be written (No such file or directory)"),
        ):
            one.enter(line)
            one.wait_for(lambda line=line, said=said: said in joined(one.text.rpartition(f"> {line}")[2]))  # type: ignore[misc]
        assert [message["role"] for message in saved(one, tmp_path / "one.json")] == ["system", "user", "assistant"]
        one.enter("/reset")
        one.wait_for("a new conversation.")
        one.enter("/system -")
        one.wait_for("there is no system prompt.")
        one.screen.reset()
        assert saved(one, tmp_path / "two.json") == []
        assert one.end() == 0


# The prompt -----------------------------------------------------------------------------------------------------------------


def test_a_pasted_text_of_200_lines_is_one_message(tmp_path: Path) -> None:
    pasted = "\n".join(f"line {index}: {'x' * (index % 120)}" for index in range(200))
    with scripted(Script(rounds_of(WORDS))) as url, terminal("chat", "--url", url, home=tmp_path) as one:
        one.wait_for_prompt()
        one.paste(pasted)
        one.wait_for("line 199")
        one.send(ALT_ENTER)
        one.enter("and a typed one")
        one.wait_for("word59")
        assert saved(one, tmp_path / "one.json")[0]["content"] == f"{pasted}\nand a typed one"
        assert one.end() == 0


def test_the_next_chat_knows_what_was_typed_in_the_last(tmp_path: Path) -> None:
    with scripted(Script(rounds_of(WORDS))) as url:
        with terminal("chat", "--url", url, home=tmp_path) as one:
            one.wait_for_prompt()
            one.send("first line")
            one.send(ALT_ENTER)
            one.enter("second line")
            one.wait_for("word59")
            assert one.end() == 0
        assert (tmp_path / "ssd" / "chat_history").stat().st_mode & 0o777 == 0o600
        with terminal("chat", "--url", url, home=tmp_path) as one:
            one.wait_for_prompt()
            one.send(UP)
            one.wait_for("second line")
            one.send(ENTER)
            one.wait_for("word59")
            assert saved(one, tmp_path / "one.json")[0]["content"] == "first line\nsecond line"


def test_a_folder_that_cannot_be_written_costs_the_history_only(tmp_path: Path) -> None:
    (tmp_path / "ssd").write_text("a file", encoding="utf-8")
    with scripted(Script(rounds_of(WORDS))) as url, terminal("chat", "--url", url, home=tmp_path) as one:
        one.wait_for("the history of this chat is not kept")
        one.wait_for_prompt()
        one.enter("Tell me.")
        one.wait_for("word59")
        assert one.end() == 0


def test_a_resize_in_the_answer_and_at_the_prompt_loses_nothing(tmp_path: Path) -> None:
    with scripted(Script(rounds_of(WORDS), wait=0.1)) as url, terminal("chat", "--url", url, home=tmp_path) as one:
        one.wait_for_prompt()
        one.enter("Tell me.")
        one.wait_for("word8")
        one.resize(20, 40)
        one.wait_for("word30")
        one.resize(30, 70)
        one.wait_for("word59")
        one.wait_for("tokens/s")
        one.send("a question that is longer than forty columns are")
        one.wait_for("columns are")
        one.resize(24, 40)
        one.wait_for(lambda: "> a question that is longer than forty c\n  olumns are" in one.text)
        one.send("?\r")
        one.wait_for(lambda: one.written.count("word59") == 2)
        question, answer, other = saved(one, tmp_path / "one.json")[:3]
        assert (question["content"], answer["content"]) == ("Tell me.", PROSE)
        assert other["content"] == "a question that is longer than forty columns are?"


# The answer -----------------------------------------------------------------------------------------------------------------


def test_each_token_has_the_tint_that_the_server_gives_it(tmp_path: Path) -> None:
    rounds = rounds_of(WORDS[:20])
    with scripted(Script(rounds)) as url, terminal("chat", "--url", url, home=tmp_path, columns=300) as one:
        one.wait_for_prompt()
        one.enter("Tell me.")
        one.wait_for("tokens/s")
        row = next(index for index, line in enumerate(one.screen.display) if line.startswith("It word1"))
        looks = {"target": ("default", False, False), "draft": ("brown", True, False), "cache": ("green", False, True)}
        expected = [
            looks[token["origin"]] for _, round in rounds for token in round["tokens"] for _ in range(token["characters"])
        ]  # type: ignore[index]
        cells = [one.screen.buffer[row][column] for column in range(len(expected))]
        assert "".join(cell.data for cell in cells) == "".join(WORDS[:20])
        assert [(cell.fg, cell.italics, cell.underscore) for cell in cells] == expected
        assert {*expected} == {*looks.values()}
        assert "the target's own · drafted · prepared in the speculation cache" in one.text


def test_a_terminal_without_colours_gets_none(tmp_path: Path) -> None:
    with (
        scripted(Script(rounds_of(WORDS))) as url,
        terminal("chat", "--url", url, home=tmp_path, columns=300, NO_COLOR="1") as one,
    ):
        one.wait_for_prompt()
        one.enter("Tell me.")
        one.wait_for("tokens/s")
        row = next(index for index, line in enumerate(one.screen.display) if line.startswith("It word1"))
        cells = [one.screen.buffer[row][column] for column in range(200)]
        assert {cell.fg for cell in cells} == {"default"}
        assert {cell.underscore for cell in cells} == {True, False}


def test_the_terminal_does_not_obey_the_model(tmp_path: Path) -> None:
    hostile = "before \x1b[2J\x1b]0;title\x07\x1b[31m\x9b31m\rafter [bold]markup[/bold]\tend"
    rounds = rounds_of([hostile])
    with scripted(Script(rounds)) as url, terminal("chat", "--url", url, home=tmp_path) as one:
        one.wait_for_prompt()
        one.enter("Tell me.")
        one.wait_for("1 tokens")
        assert "before �[2J�]0;title��[31m�31m�after [bold]markup[/bold]" in one.text
        assert "\x1b]0" not in one.written
        assert "\x1b[2J" not in one.written
        assert saved(one, tmp_path / "one.json")[1]["content"] == hostile


# A server -------------------------------------------------------------------------------------------------------------------


def test_a_server_that_goes_away_is_told_and_what_came_is_kept(tmp_path: Path) -> None:
    with (
        scripted(Script(rounds_of(WORDS[:20]), dies=True)) as url,
        terminal("chat", "--url", url, home=tmp_path, columns=300) as one,
    ):
        one.wait_for_prompt()
        one.enter("Tell me.")
        one.wait_for("was lost before the answer was complete.")
        assert [each["content"] for each in saved(one, tmp_path / "one.json")] == ["Tell me.", "".join(WORDS[:20])]
        one.enter("/reset")
        one.wait_for("a new conversation")
    with scripted(Script(rounds_of(WORDS))) as url:
        stays = terminal("chat", "--url", url, home=tmp_path)
        one = stays.__enter__()
        one.wait_for_prompt()
    try:
        one.enter("Are you there?")
        one.wait_for("start it, and send again.")
        assert saved(one, tmp_path / "two.json") == []
        assert one.end() == 0
    finally:
        stays.__exit__(None, None, None)


def test_a_real_server_answers_as_its_engine_does(run: Run, target: Path, draft: Path) -> None:
    options: dict[str, Any] = {"dtype": "float32", "max_batch": 2}
    with live(Engine(str(target), str(draft), "ssd", **options)) as served:
        expected = served.engine.engine.decode("one", SamplingParams(max_new_tokens=40, ignore_eos=True)).text
        result = run("chat", "--url", served.url, "-n", 40, "--ignore-eos", stdin="one\n/reset\n/mode ar\none\n/mode sd\n")
    assert result.status == 0, result.err
    assert result.out == f"{inert(expected)}\n" * 2
    assert result.err.count("tokens a round") == 2
    assert "1.00 tokens a round" in result.err
    assert "ssd: mode is 'sd'; it can be 'ar' or 'auto'." in result.err


def test_any_server_of_the_openai_interface_will_do(run: Run) -> None:
    script = Script([(word, None) for word in WORDS], owner="someone")
    with scripted(script) as url:
        result = run("chat", "other", "--url", f"{url}/v1/", "--top-k", 5, "-t", 0.5, "--stop", "END", stdin="one\n/mode ar\n")
    assert result.out == f"{PROSE}\n"
    assert "which is not one of ssd's" in result.err
    (body,) = script.bodies
    assert body == {
        "model": "other",
        "messages": [{"role": "user", "content": "one"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "top_p": 1.0,
        "top_k": 5,
        "stop": ["END"],
    }


def test_the_key_is_read_from_the_environment(run: Run, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSD_API_KEY", "secret")
    with live(Engine(str(target), None, "ar", dtype="float32"), api_key="secret") as served:
        assert run("chat", "--url", served.url, "-n", 4, stdin="one\n").status == 0
        monkeypatch.setenv("SSD_API_KEY", "other")
        refused = run("chat", "--url", served.url, stdin="one\n")
    assert refused.status == 1
    assert "key" in refused.err
    assert refused.err.count("\n") == 1


# Refusals -------------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_is_refused_in_one_sentence(refusal: Refusal) -> None:
    assert refusal("chat", "one", "--target", "other", status=2) == "give TARGET or --target, one of the two."
    assert refusal("chat", "--url", "http://127.0.0.1:9", "--mode", "sd", status=2).startswith(
        "--url takes no option of an engine"
    )
    assert refusal("chat", "--url", "localhost").startswith("url is 'localhost'; it must be an address such as")
    assert refusal("chat", "--url", "http://127.0.0.1:9").endswith("start it, and send again.")


def test_without_the_extra_it_says_what_to_install() -> None:
    done = run_without("openai", "chat", "--url", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert done.stderr == "ssd: `ssd chat --url` needs openai, which is not installed; pip install 'ssd-decode[chat]'.\n"


# The demo -------------------------------------------------------------------------------------------------------------------


def test_the_demo_has_the_same_tints(target: Path, draft: Path, tmp_path: Path) -> None:
    chosen = ["--target", target, "--draft", draft, "--dtype", "float32", "-n", 60, "--budget", 40, "--threads", 1]
    with terminal("demo", "Name a bird.", *chosen, home=tmp_path, rows=60, columns=200) as one:
        one.wait_for("identical")
        begins = [index for index, line in enumerate(one.screen.display) if " · " in line][1:]  # after the legend
        looks = [
            {cell.fg for row in range(first + 1, last) for cell in one.screen.buffer[row].values()}
            for first, last in itertools.pairwise([*begins, begins[-1] + 3])
        ]
    assert looks == [{"default"}, {"default", "brown"}, {"default", "green"}]
