"""The public interface: `Engine` loads a target and its draft once and decodes prompts; `decode` keeps one engine for you.

An Engine is a client of its core (ssd/serving/core.py): it adds requests, waits until they have grown, and hands out their
text.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import lru_cache, partial
from typing import Any, Unpack, overload

from ssd.fields import check_known, options_of
from ssd.models.pair import Draft, OnProgress, Target
from ssd.models.prompts import Prompt, PromptForm, is_single
from ssd.models.tokenizer import Tokenizer
from ssd.models.transformer import Transformer
from ssd.options import EngineOptions, ModeName, SamplingParams, engine_signature, lists_options
from ssd.requests import Completion, InputProcessor, Params, Request, Stream
from ssd.runtime.executor import Executor
from ssd.runtime.placement import Placement, make_executor, place
from ssd.runtime.trace import Trace
from ssd.serving.assembly import Assembly
from ssd.serving.footprint import Footprint
from ssd.serving.loading import LoadedModels, load_models


@lists_options
class Engine:
    """A target, its draft, and everything their rounds need.

    progress: called with the fraction done, of loading the target and, on a GPU, of recording rounds. The other arguments are
    options. Raises SsdError for bad arguments, and CheckpointError for a model that cannot be used.
    """

    def __init__(
        self,
        target: str,
        draft: str | None = EngineOptions.draft,
        mode: ModeName = EngineOptions.mode,
        *,
        progress: OnProgress | None = None,
        **options: Any,
    ) -> None:
        self.options = EngineOptions.of(target, draft=draft, mode=mode, **options)
        progress = progress or (lambda fraction: None)
        placement = place(self.options)
        executor = make_executor(Trace(), self.options, placement)
        loading = 0.8 if executor.prepared else 1.0  # loading's share of the progress; the rest is recording
        models = load_models(self.options, placement, lambda fraction: progress(loading * fraction))
        self._open(models, placement, executor)
        self.core.warm_up(lambda fraction: progress(loading + (1 - loading) * fraction))

    @classmethod
    def of(cls, target: Target, draft: Draft | None, options: EngineOptions, executor: Executor | None = None) -> Engine:
        """An engine from models that are loaded already, for benchmarks and tests.

        Rotary positions must reach 2·(lookahead + 1) beyond the context. options.target and options.draft only name the models,
        except that draft="ngram" means n-gram speculation. executor: by default, the one that the options ask for.
        """
        engine = cls.__new__(cls)
        engine.options = options
        placement = place(options)
        models = LoadedModels.of(target, draft, options)
        engine._open(models, placement, executor or make_executor(Trace(), options, placement))
        engine.core.warm_up(lambda fraction: None)
        return engine

    def _open(self, models: LoadedModels, placement: Placement, executor: Executor) -> None:
        self.target, self.draft = models.target, models.draft
        self._assembly = Assembly(self.options, models, placement, executor)
        self.core = self._assembly.core()
        self.trace = executor.trace
        self.core.warn()
        self._inputs = InputProcessor(models.target, self._assembly.max_context, self.options.seed)

    # Public -----------------------------------------------------------------------------------------------------------------

    @property
    def mode(self) -> str:
        """The mode in use: "ar", "sd" or "ssd"."""
        return self.core.loop.mode

    @property
    def threads(self) -> int:
        """Intra-op threads of the target: all cores, except those of SSD's draft. One in a forked child."""
        return self.core.threads

    @property
    def max_context(self) -> int:
        """Longest sequence in tokens, prompt and output."""
        return self._assembly.max_context

    @property
    def footprint(self) -> Footprint:
        """The memory that this engine takes, and how it runs."""
        return self._assembly.footprint(self.core)

    @property
    def target_model(self) -> Transformer:
        return self.target.model

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The target's tokenizer; None if its checkpoint has none."""
        return self.target.tokenizer

    @overload
    def decode(self, prompts: Prompt, params: Params = None, **form: Unpack[PromptForm]) -> Completion: ...  # type: ignore[overload-overlap]
    @overload
    def decode(self, prompts: Sequence[Prompt], params: Params = None, **form: Unpack[PromptForm]) -> list[Completion]: ...
    def decode(
        self, prompts: Prompt | Sequence[Prompt], params: Params = None, **form: Unpack[PromptForm]
    ) -> Completion | list[Completion]:
        """Decode one prompt, or several prompts together.

        prompts: one prompt or a list of prompts. A prompt is a str (one user message for the model's chat template, or plain
        text with raw=True), a list of {"role", "content"} messages, or a list of token ids. A last message of the assistant is
        continued. params: one for all prompts, or a list with one for each. form: raw, tools, chat_template_kwargs, for all
        prompts; see `PromptForm` (ssd/models/prompts.py). Any number of threads may call it; their requests share the running
        batch. Returns a `Completion`, or a list of them in order. Raises SsdError before anything runs.
        """
        single = is_single(prompts)
        requests = self.requests([prompts] if single else list(prompts), params, form)  # type: ignore[list-item, arg-type]
        try:
            for request in requests:
                self.core.add(request)
            self.core.wait(lambda: all(request.finished for request in requests))
        finally:
            for request in requests:
                self.core.abort(request)  # does nothing for a finished one; after an error or Ctrl-C, the others end here
        completions = [request.completion(self.mode) for request in requests]
        return completions[0] if single else completions

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, **form: Unpack[PromptForm]) -> Stream:
        """Decode one prompt and yield pieces of its text as they become certain. form: as in `decode`.

        The request joins the batch at once, and advances whenever any client waits. Raises SsdError before anything runs.
        """
        (request,) = self.requests([prompt], params, form)

        def pieces() -> Generator[str | Completion]:
            shown = 0
            try:
                while True:
                    finished = request.finished  # before the text: that of a finished request is whole
                    text = request.certain_text()
                    if len(text) > shown:
                        yield text[shown:]
                        shown = len(text)
                    elif finished:
                        break
                    else:
                        self.core.wait(partial(request.grown_beyond, len(request.token_ids)))
            finally:
                self.core.abort(request)
            yield request.completion(self.mode)

        stream = Stream(request, pieces(), lambda: self.core.abort(request))
        self.core.add(request)
        return stream

    def requests(self, prompts: Sequence[Prompt], params: Params, form: PromptForm) -> list[Request]:
        """One request for each prompt, checked, for `core.add`. Raises SsdError."""
        return self._inputs.requests(prompts, params, form, self.core.scheduler.check)

    def close(self) -> None:
        """Release the engine's threads and graphs. The engine cannot be used afterwards."""
        self.core.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@overload
def decode(prompts: Prompt, target: str = ..., **options: Any) -> Completion: ...
@overload
def decode(prompts: Sequence[Prompt], target: str = ..., **options: Any) -> list[Completion]: ...
def decode(
    prompts: Prompt | Sequence[Prompt], target: str = EngineOptions.target, **options: Any
) -> Completion | list[Completion]:
    """Decode with an engine that is loaded at the first call and kept for later calls with the same options.

    options: `SamplingParams` fields, `Engine` arguments, and raw, tools and chat_template_kwargs of `Engine.decode`; `seed` is
    the request's. Returns the same as `Engine.decode`.
    """
    known, forms = options_of(SamplingParams), PromptForm.__annotations__
    check_known(options, [*known, *list(engine_signature().parameters)[1:], *forms])
    sampling, form = ({k: v for k, v in options.items() if k in names} for names in (known, forms))
    rest = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items() if k not in sampling and k not in form}
    return _cached_engine(target, tuple(sorted(rest.items()))).decode(prompts, SamplingParams(**sampling), **form)


@lru_cache(maxsize=1)
def _cached_engine(target: str, options: tuple[tuple[str, Any], ...]) -> Engine:
    return Engine(target, **dict(options))
