"""`OpenAIBackend`: a server that speaks OpenAI's protocol answers; responses by chat or completion, log-likelihood by
`echo` and `logprobs` where it has them (vLLM, SGLang and llama.cpp do, OpenAI's own chat models do not)."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Lock

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from hf_cascade.completions import THINKING_KEYS, THINKING_TAGS, find_loop
from hf_cascade.evaluate.backends import pictures
from hf_cascade.evaluate.backends.asking import Asking, Decoding, Response, Unsupported, cut_at, repeats_of, visuals
from hf_cascade.rewards.endpoint import KEY_VARIABLE, ChatEndpoint, UnusableAnswer, choices_of

MOST_STOPS = 4  # that OpenAI's protocol allows; all of them are applied to what comes back
CHAT, PLAIN = "/chat/completions", "/completions"


class OpenAIBackend(Asking, LM):
    """
    A model at an OpenAI-compatible server. An answer that does not come is missing (`None`), never an empty text.

    The seed of a sample is the run's and the sample's number, so that a server that honours it gives k samples, not one
    sample k times.

    Args:
        url (`str`): the server's base, which ends in `/v1`.
        model (`str`): the model's name at the server.
        api_key_variable (`str`, *optional*, defaults to `"OPENAI_API_KEY"`): environment variable that holds the key.
        concurrency (`int`, *optional*, defaults to `16`): requests at once.
        timeout_seconds (`float`, *optional*, defaults to `3600.0`): for one answer; long thinking takes long (ours).
        retries (`int`, *optional*, defaults to `4`): of one request.

    Attributes:
        failure (`str`, *optional*): why answers to the last requests did not come; `None`: all did.
    """

    MULTIMODAL = True
    chat = True

    def __init__(
        self,
        url: str,
        model: str,
        api_key_variable: str = KEY_VARIABLE,
        concurrency: int = 16,
        timeout_seconds: float = 3600.0,
        retries: int = 4,
        backoff_seconds: float = 1.0,
    ):
        super().__init__()
        settings = (model, api_key_variable, concurrency, timeout_seconds, retries, backoff_seconds)
        self._chat, self._plain = ChatEndpoint(url, *settings), ChatEndpoint(url, *settings)
        self._plain.url = self._chat.url.removesuffix(CHAT) + PLAIN
        self.identity = f"openai {self._chat.url.removesuffix(CHAT)} {model}"
        self._scores: bool | None = None  # whether the server gives log-likelihoods; not tried yet
        self.failure: str | None = None

    def check_server(self) -> None:
        """
        Ask for one token.

        Raises:
            ConnectionError: no answer came.
        """
        messages = [{"role": "user", "content": "?"}]
        body, endpoint = ({"messages": messages}, self._chat) if self.chat else ({"prompt": "?"}, self._plain)
        try:
            endpoint.ask([{**body, "max_tokens": 1}], choices_of if self.chat else _plain_choice)
        except ConnectionError as error:
            raise ConnectionError(f"{self._chat.model} at {endpoint.url} does not answer: {_reason(error)}") from error

    def check_chat(self, system_prompt: str | None = None) -> None:
        """Chat is what the server is for."""

    @property
    def tokenizer_name(self) -> str:
        """Stands for the server's tokenizer, which is not known here, in lm-eval's caches."""
        return self._chat.model.replace("/", "__")

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[Response | None]:
        """Responses in the order of requests; each also goes to [`Asking.answered`] when it comes."""
        bodies = [self._body(request, repeat) for request, repeat in zip(requests, repeats_of(requests), strict=True)]
        endpoint = self._chat if self.chat else self._plain

        def read(place: int, answer: dict) -> Response:
            decoding = Decoding.of(requests[place].args[1])
            return _chat_response(answer, decoding) if self.chat else _plain_response(answer, decoding)

        return self._ask(endpoint, bodies, read, lambda place, found: self.answered(requests[place], found))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool] | None]:
        """(log-likelihood, is greedy) of each request."""
        if self.chat:
            raise Unsupported("a server does not score continuations of a chat: run this task without chat")
        if any(visuals(request) for request in requests):
            raise Unsupported("a server does not score continuations of images")
        bodies = [
            {"prompt": context + continuation, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
            for context, continuation in (request.args for request in requests)
        ]

        def kept(place: int, found: tuple[float, bool] | None) -> None:
            if found is not None:
                self.cache_hook.add_partial("loglikelihood", requests[place].args, found)

        def read(place: int, answer: dict) -> tuple[float, bool]:
            return _scored(answer, requests[place].args[1])

        if self._scores is None and requests:
            self._try(bodies[0], lambda answer: read(0, answer))
        return self._ask(self._plain, bodies, read, kept)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True):
        """
        Raises:
            Unsupported: always.
        """
        raise Unsupported("a server does not score whole texts: the first token has no probability")

    def _try(self, body: dict, read: Callable) -> None:
        """One request tells a server that cannot do it from one that is in trouble now and then."""
        try:
            self._plain.ask([body], read)
        except ConnectionError as error:
            raise Unsupported(
                f"{self._plain.url} gives no log-likelihoods ({_reason(error)}). They need /completions with echo and "
                "logprobs, as vLLM has them"
            ) from error
        self._scores = True

    def _ask(self, endpoint: ChatEndpoint, bodies: list[dict], read: Callable, kept: Callable) -> list:
        """What `read` makes of each answer, kept as it comes; `None` for one that did not come."""
        found, dead = [None] * len(bodies), _Dead(endpoint.concurrency)

        def one(place: int):
            if dead.is_so():
                return None
            try:
                answer = endpoint.ask([bodies[place]], lambda answer: read(place, answer))[0]
            except ConnectionError as error:
                dead.failed(error)
                return None
            dead.answered()
            return answer

        pool = ThreadPoolExecutor(endpoint.concurrency, thread_name_prefix="openai")
        try:
            futures = {pool.submit(one, place): place for place in range(len(bodies))}
            for future in as_completed(futures):
                place = futures[future]
                found[place] = future.result()
                kept(place, found[place])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # a run that is stopped does not wait for what was sent
        self.failure = None if dead.error is None else _reason(dead.error)
        if bodies and all(answer is None for answer in found):
            raise ConnectionError(f"none of {len(bodies)} requests was answered: {self.failure}")
        return found

    def _body(self, request: Instance, repeat: int) -> dict:
        context, decoding, images = request.args[0], Decoding.of(request.args[1]), visuals(request)
        body = {"max_tokens": decoding.max_tokens, "temperature": decoding.temperature, **decoding.rest}
        body["seed"] = self.seed + repeat
        if decoding.top_p < 1:
            body["top_p"] = decoding.top_p
        if self.chat:  # without stop strings: they would end the thinking
            return {"messages": pictures.as_messages(self.messages(context), images), **body}
        self.check_plain(context)
        if images:
            raise Unsupported("a server takes images in chats alone, and this suite asks without the chat template")
        if decoding.until:
            body["stop"] = list(decoding.until[:MOST_STOPS])
        return {"prompt": context, **body}


class _Dead:
    """Whether as many requests in a row failed as are sent at once: then the server is not asked further."""

    def __init__(self, patience: int):
        self.patience, self.error, self._failures, self._lock = patience, None, 0, Lock()

    def failed(self, error: Exception) -> None:
        """One more failure in a row."""
        with self._lock:
            self._failures += 1
            self.error = error

    def answered(self) -> None:
        """The server lives: the row of failures ends."""
        with self._lock:
            self._failures = 0

    def is_so(self) -> bool:
        """Whether to give up."""
        with self._lock:
            return self._failures >= self.patience


def _chat_response(answer: dict, decoding: Decoding) -> Response:
    choice = choices_of(answer)[0]
    message = choice["message"]
    thinking = next((message[key] for key in THINKING_KEYS if isinstance(message.get(key), str) and message[key]), None)
    content, finish = message.get("content"), choice.get("finish_reason")
    if content is None and thinking is None:
        raise UnusableAnswer(f"an answer without content (finish_reason {finish!r})")
    begin, end = THINKING_TAGS[0]
    text = content or ""
    if thinking is not None:
        closed = bool(text) or finish != "length"
        text = f"{begin}{thinking}{end if closed else ''}{text}"
    return _response(text, finish, answer, decoding)


def _plain_response(answer: dict, decoding: Decoding) -> Response:
    choice = _plain_choice(answer)
    return _response(choice["text"], choice.get("finish_reason"), answer, decoding)


def _response(text: str, finish: str | None, answer: dict, decoding: Decoding) -> Response:
    text, stopped = cut_at(text, decoding.until)
    usage = answer.get("usage") or {}
    cut_off = finish == "length" and not stopped
    return Response(
        text,
        tokens=usage.get("completion_tokens"),
        finish="length" if cut_off else "stop",
        thinking_tokens=(usage.get("completion_tokens_details") or {}).get("reasoning_tokens"),
        looped=cut_off and find_loop(text.split()) is not None,  # of words: a server does not say the tokens
    )


def _plain_choice(answer: dict) -> dict:
    try:
        choice = answer["choices"][0]
        if isinstance(choice["text"], str):
            return choice
    except (LookupError, TypeError):
        pass
    raise UnusableAnswer(f"no completion: {json.dumps(answer)[:200]}")


def _scored(answer: dict, continuation: str) -> tuple[float, bool]:
    """Log-likelihood of the tokens that spell a continuation, the last ones before the one that was generated."""
    logprobs = _plain_choice(answer).get("logprobs") or {}
    tokens, values, tops = (logprobs.get(name) for name in ("tokens", "token_logprobs", "top_logprobs"))
    if not tokens or not values or len(tokens) < 2:
        raise UnusableAnswer("an answer without log-probabilities of its prompt")
    made = (answer.get("usage") or {}).get("completion_tokens", 1)
    tokens, values = tokens[: len(tokens) - made], values[: len(tokens) - made]
    spelt, first = "", len(tokens)
    while first > 0 and len(spelt) < len(continuation):
        first -= 1
        spelt = tokens[first] + spelt
    if not spelt.endswith(continuation) or None in values[first:]:
        raise UnusableAnswer(f"the last tokens spell {spelt!r}, not the continuation {continuation!r}")
    greedy = bool(tops) and all(
        top and value >= max(top.values()) for top, value in zip(tops[first : len(tokens)], values[first:], strict=True)
    )
    return sum(values[first:]), greedy


def _reason(error: Exception | None) -> str:
    """What the endpoint saw last, without its advice on training."""
    return str(error).split("the last error: ")[-1].split(". See whether its server")[0]
