"""`VLLMBackend`: vLLM answers; the difference from lm-eval's is what each response says of itself, chat, and seeds."""

from lm_eval.api.instance import Instance

try:
    from lm_eval.models.vllm_causallms import VLLM, SamplingParams
except ImportError as error:
    raise ImportError(
        f"backend vllm needs vLLM ({error}): pip install vllm, or serve the model and give --backend openai"
    ) from error

from hf_cascade.completions import find_loop
from hf_cascade.evaluate.backends.asking import (
    Asking,
    Decoding,
    Response,
    Unsupported,
    check_template,
    cut_at,
    repeats_of,
    seed_of,
)
from hf_cascade.evaluate.verbosity import thinking_tokens
from hf_cascade.rewards.answers import opening_tag

AT_ONCE = 512  # requests between two times that responses are kept; vLLM batches them itself; ours


class VLLMBackend(Asking, VLLM):
    """
    lm-eval's `VLLM` of text.

    Args:
        pretrained (`str`): folder or Hub id.
        identity (`str`): stands for the weights in the keys of kept samples.
        kwargs: of lm-eval's `VLLM`: `tensor_parallel_size`, `max_model_len`, `gpu_memory_utilization`, ...
    """

    def __init__(self, pretrained: str, identity: str, **kwargs):
        super().__init__(pretrained=pretrained, **kwargs)
        self.identity = f"vllm {identity} {self.tokenizer.chat_template}"

    def check_chat(self, system_prompt: str | None = None) -> None:
        """
        Raises:
            ValueError: there is no chat template, or it takes no system prompt, which lm-eval would leave out.
        """
        check_template(self.tokenizer, self.tokenizer.name_or_path, system_prompt)

    def render(self, context: str) -> str:
        """A prompt as the model reads it: through the chat template where [`Asking.chat`] is set."""
        if self.chat:
            return self.apply_chat_template(self.messages(context))
        self.check_plain(context)
        return context

    def tok_encode(self, string, add_special_tokens=None, **kwargs):
        """Token ids of a rendered prompt: of a chat without special tokens of the tokenizer's own."""
        if self.chat and add_special_tokens is None:
            add_special_tokens = False  # the template wrote them
        return super().tok_encode(string, add_special_tokens=add_special_tokens, **kwargs)

    def _encode_pair(self, context: str, continuation: str):
        return super()._encode_pair(self.render(context), continuation)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[Response]:
        """Responses in the order of requests; those to `AT_ONCE` of them go to [`Asking.answered`] together."""
        found, repeats = [], repeats_of(requests)
        for start in range(0, len(requests), AT_ONCE):
            some = requests[start : start + AT_ONCE]
            asked = [self._ask(*pair) for pair in zip(some, repeats[start:], strict=False)]
            tokens, settings = [ask[0] for ask in asked], [ask[1] for ask in asked]
            outputs = self._model_generate(requests=tokens, generate=True, sampling_params=settings)
            for request, (_, _, opened, decoding, known), output in zip(some, asked, outputs, strict=True):
                response = self._response(output.outputs[0], opened, decoding, known)
                found.append(response)
                self.answered(request, response, start + len(some) - len(found))
        return found

    def _ask(self, request: Instance, repeat: int) -> tuple:
        """Tokens, sampling settings, and what is known about one request."""
        if len(request.args) > 2:
            raise Unsupported("backend vllm is asked about text only: serve the model and give --backend openai")
        decoding, text = Decoding.of(request.args[1]), self.render(request.args[0])
        token_ids, window = list(self.tok_encode(text)), self.max_length
        kept = token_ids if len(token_ids) < window else token_ids[-(window - min(decoding.max_tokens, window // 2)) :]
        limit = min(decoding.max_tokens, window - len(kept))
        settings = SamplingParams(
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            max_tokens=limit,
            # a stop string within thinking must not end it, so that chats end by themselves
            stop=[] if self.chat else list(decoding.until),
            seed=seed_of(self.seed, request.args[0], repeat),
            skip_special_tokens=False,  # the tags of thinking are such
            spaces_between_special_tokens=False,
            **decoding.rest,
        )
        known = {"cut_prompt": kept is not token_ids, "clipped": limit < decoding.max_tokens}
        return kept, settings, opening_tag(text), decoding, known

    def _response(self, output, opened: str, decoding: Decoding, known: dict) -> Response:
        own = [token for token in output.token_ids if token != self.eot_token_id]
        whole = output.text.removesuffix(self.tokenizer.eos_token or "\0")
        text, stopped = cut_at(opened + whole, decoding.until)
        cut_off = output.finish_reason == "length" and not stopped
        return Response(
            text,
            tokens=len(own),
            finish="length" if cut_off else "stop",
            thinking_tokens=thinking_tokens(own, self.tokenizer, opened)[0],
            looped=cut_off and find_loop(own) is not None,
            **known,
        )
