"""`HFBackend`: a transformers model answers, on one process or accelerate's many; log-likelihood is lm-eval's own."""

import hashlib
import os
from datetime import timedelta

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import logging

from hf_cascade.completions import find_loop
from hf_cascade.evaluate.backends import pictures
from hf_cascade.evaluate.backends.asking import (
    Asking,
    Decoding,
    Response,
    Unsupported,
    check_template,
    cut_at,
    rendered,
    repeats_of,
    seed_of,
    visuals,
)
from hf_cascade.evaluate.backends.decoding import RowEnds, processors, text_of
from hf_cascade.evaluate.backends.windows import ENDLESS, window_of
from hf_cascade.evaluate.harness import quiet
from hf_cascade.evaluate.verbosity import thinking_tokens
from hf_cascade.rewards.answers import opening_tag


class HFBackend(Asking, HFLM):
    """
    A loaded model as lm-eval's `LM`.

    Samples are reproducible: the tokens of one follow from `seed`, its prompt and its number alone, whatever batch it
    is in, but for rounding, which differs between shapes of batches.

    Args:
        model (`PreTrainedModel`): where it should run. Under `accelerate launch` each process has one.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        processor (`ProcessorMixin`, *optional*): of a model that reads images.
        batch_size (`int`, *optional*, defaults to `8`): requests at once. On a GPU generation halves it where memory
            does not suffice.
        identity (`str`, *optional*): stands for the weights in the keys of kept samples; their hash by default.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        processor: ProcessorMixin | None = None,
        batch_size: int = 8,
        identity: str | None = None,
    ):
        with quiet():  # it warns of a model that is loaded, which is what we want
            super().__init__(pretrained=model.eval(), tokenizer=tokenizer, backend="causal", batch_size=batch_size)
        self.processor = processor
        self.MULTIMODAL = processor is not None
        self._identity, self._words = identity, None
        self.cut = set()
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # HFLM leaves this to whoever hands it a model
            patient = InitProcessGroupKwargs(timeout=timedelta(weeks=52))
            self.accelerator = Accelerator(cpu=self.device.type == "cpu", kwargs_handlers=[patient])
            self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes

    @property
    def max_length(self) -> int:
        """Tokens of the model's window; lm-eval takes 2,048 for one that has none."""
        return window_of(self.model.config) or ENDLESS

    @property
    def identity(self) -> str:
        """
        What answers depend on beside the request: weights, their type, the tokenizer with its chat template, and the
        generation config, whose penalties hold for greedy answers too.
        """
        if self._identity is None:
            digest = hashlib.sha256()
            for name, tensor in sorted(self.model.state_dict().items()):
                digest.update(name.encode() + tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
            self._identity = digest.hexdigest()
        if self._words is None:
            backend = getattr(self.tokenizer, "backend_tokenizer", None)
            words = backend.to_str() if backend else str(sorted(self.tokenizer.get_vocab().items()))
            self._words = hashlib.sha256(words.encode()).hexdigest()
        given = getattr(self.model, "generation_config", None)
        generation = given and given.to_json_string(ignore_metadata=True)
        return f"{self._identity} {self.model.dtype} {self._words} {generation} {self._templated().chat_template}"

    def check_chat(self, system_prompt: str | None = None) -> None:
        """
        Raises:
            ValueError: there is no chat template, or it takes no system prompt.
        """
        check_template(self._templated(), self.tokenizer.name_or_path or "the model", system_prompt)

    def render(self, context: str, images: int = 0) -> str:
        """A prompt as the model reads it: through the chat template where [`Asking.chat`] is set."""
        if not self.chat:
            self.check_plain(context)
            return context
        messages = self.messages(context)
        if images:
            messages = [{**turn, "content": pictures.split_marks(turn["content"])} for turn in messages]
        return rendered(self._templated(), messages)

    def tok_encode(self, string, add_special_tokens=None, left_truncate_len=None, **kwargs) -> list[int]:
        """Token ids of a rendered prompt: of a chat without special tokens of the tokenizer's own."""
        if self.chat and add_special_tokens is None:
            add_special_tokens = False  # the template wrote them
        return super().tok_encode(string, add_special_tokens, left_truncate_len, **kwargs)

    def _encode_pair(self, context: str, continuation: str):
        return super()._encode_pair(self.render(context), continuation)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """
        (log-likelihood in nats, is greedy) of each request: lm-eval's own code.

        Raises:
            Unsupported: a request has images, or a continuation longer than the model's window.
        """
        if any(visuals(request) for request in requests):
            raise Unsupported("this back end scores no continuations of images: the task must generate")
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = True, override_bs: int | None = None):
        window = self.max_length + 1  # the last token is scored, not read
        if (longest := max((len(continuation) for _, _, continuation in requests), default=0)) >= window:
            raise Unsupported(
                f"a text to be scored has {longest:,} tokens, and the model {self.max_length:,} positions"
            )
        self.cut |= {asked for asked, context, continuation in requests if len(context) + len(continuation) > window}
        return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[Response]:
        """Responses in the order of requests; each also goes to [`Asking.answered`] when its batch is done."""
        found: list[Response | None] = [None] * len(requests)
        prompts = self._prompts(requests)
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())) + str(bool(visuals(request))), []).append(place)
        repeats = repeats_of(requests)
        level = logging.get_verbosity()
        logging.set_verbosity_error()  # the checkpoint's own sampling settings are not used, which it warns of
        try:
            for places in groups.values():
                places.sort(key=lambda place: (-len(prompts[place].token_ids), prompts[place].text, repeats[place]))
                decoding = Decoding.of(requests[places[0]].args[1])
                for start in range(0, len(places), self.batch_size):
                    batch = places[start : start + self.batch_size]
                    rows = [(prompts[place], requests[place], repeats[place]) for place in batch]
                    for index, (place, response) in enumerate(zip(batch, self._batch(rows, decoding), strict=True), 1):
                        found[place] = response
                        self.answered(requests[place], response, len(batch) - index)
        finally:
            logging.set_verbosity(level)
        return found

    def _prompts(self, requests: list[Instance]) -> list["_Prompt"]:
        """Rendered prompts and their tokens; equal ones once."""
        known: dict[tuple[str, int], _Prompt] = {}
        prompts = []
        for request in requests:
            key = (request.args[0], len(visuals(request)))
            if key not in known:
                if key[1] and self.processor is None:
                    raise Unsupported("the model reads no images")
                text = self.render(*key)
                known[key] = _Prompt(text, self.tok_encode(text) or [self.prefix_token_id], opening_tag(text))
            prompts.append(known[key])
        return prompts

    def _batch(self, rows: list[tuple], decoding: Decoding) -> list[Response]:
        """Responses to one batch, in two halves where it does not fit the memory."""
        try:
            return self._generate(rows, decoding)
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
        torch.cuda.empty_cache()
        middle = len(rows) // 2
        return self._batch(rows[:middle], decoding) + self._batch(rows[middle:], decoding)

    def _generate(self, rows: list[tuple], decoding: Decoding) -> list[Response]:
        window, prompts = self.max_length, [prompt for prompt, _, _ in rows]
        inputs, lengths, cut = self._inputs(rows, window - min(decoding.max_tokens, window // 2))
        limits = [max(1, min(decoding.max_tokens, window - length)) for length in lengths]
        padded = inputs["input_ids"].shape[1]
        ends = RowEnds(self.tokenizer, padded, decoding.until, limits, [prompt.opened for prompt in prompts])
        seeds = [seed_of(self.seed, request.args[0], repeat) for _, request, repeat in rows]
        decoding = Decoding(**{**vars(decoding), "rest": dict(decoding.rest)})
        drawn = processors(decoding, seeds, padded, max(limits))
        output = self.model.generate(
            **inputs,
            do_sample=False,
            use_cache=True,  # a model that was trained may say no
            max_new_tokens=max(limits),
            logits_processor=drawn,
            stopping_criteria=[ends],
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=sorted(self._ends()),
            **decoding.rest,
        )
        responses = []
        for row, token_ids in enumerate(output[:, padded:].tolist()):
            clipped = limits[row] < decoding.max_tokens
            known = {"cut_prompt": cut[row], "clipped": clipped}
            responses.append(self._response(token_ids, ends.lengths[row], limits[row], prompts[row], decoding, known))
        return responses

    def _response(self, token_ids, length, limit, prompt: "_Prompt", decoding: Decoding, known: dict) -> Response:
        ends = self._ends()
        eos = next((place for place, token in enumerate(token_ids) if token in ends), None)
        own = token_ids[: length if eos is None else eos]
        text, stopped = cut_at(prompt.opened + text_of(self.tokenizer, own), decoding.until)
        cut_off = eos is None and not stopped and len(own) >= limit
        return Response(
            text,
            tokens=len(own),
            finish="length" if cut_off else "stop",
            thinking_tokens=thinking_tokens(own, self.tokenizer, prompt.opened)[0],
            looped=cut_off and find_loop(own) is not None,
            **known,
        )

    def _inputs(self, rows: list[tuple], longest: int) -> tuple[dict, list[int], list[bool]]:
        """
        A batch padded on the left, on the model's device; how many tokens each prompt has there; whether it was cut.

        From a prompt longer than the window the left is cut, as lm-eval does, but never for room beyond half of it.
        """
        images, prompts = [visuals(request) for _, request, _ in rows], [prompt for prompt, _, _ in rows]
        if any(images):
            texts, window = [prompt.text for prompt in prompts], (self.max_length, longest)
            batch, lengths, cut = pictures.encode_within(self.processor, texts, images, self.chat, *window)
            return batch.to(self.device, self.model.dtype), lengths, cut
        cut = [len(prompt.token_ids) >= self.max_length for prompt in prompts]
        kept = [
            prompt.token_ids[-longest:] if short else prompt.token_ids
            for prompt, short in zip(prompts, cut, strict=True)
        ]
        lengths, pad = [len(tokens) for tokens in kept], self.tokenizer.pad_token_id
        width = max(lengths)
        ids = torch.tensor([[pad] * (width - len(tokens)) + list(tokens) for tokens in kept])
        mask = torch.tensor([[0] * (width - len(tokens)) + [1] * len(tokens) for tokens in kept])
        return {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}, lengths, cut

    def _ends(self) -> set[int]:
        """Tokens that end a response: the checkpoint's and the tokenizer's."""
        given = getattr(self.model.generation_config, "eos_token_id", None)
        given = [given] if isinstance(given, int) else given or []
        return {*given, self.tokenizer.eos_token_id} - {None}

    def _templated(self) -> PreTrainedTokenizerBase | ProcessorMixin:
        return self.processor if getattr(self.processor, "chat_template", None) else self.tokenizer


class _Prompt:
    """A rendered prompt, its tokens, and the tag of thinking that it opens."""

    def __init__(self, text: str, token_ids: list[int], opened: str):
        self.text, self.token_ids, self.opened = text, token_ids, opened
