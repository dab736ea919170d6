"""Back ends: generation equals a plain computation, samples depend on nothing beside them, servers fail in the open."""

import json
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import ModuleType, SimpleNamespace

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import TopPLogitsWarper

from hf_cascade import manifest
from hf_cascade.evaluate.backends import decoding
from hf_cascade.evaluate.backends.asking import Decoding, Response, Unsupported, cut_at, repeats_of, seed_of
from hf_cascade.evaluate.backends.decoding import Draw
from hf_cascade.evaluate.backends.hf import HFBackend
from hf_cascade.evaluate.backends.opening import open_backend
from hf_cascade.evaluate.benchmarks.conversations import text_of

from ..data import tiny
from ..prune import families
from .conftest import tiny_model

PROMPTS = ["the old man", "a", "one two three four five six", "the sea was", "it is said that all"]
CHAT = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[it]{% endif %}"


def ask(context: str, images=None, kind="generate_until", **kwargs) -> Instance:
    given = (context, {"max_gen_toks": 12, "until": [], **kwargs}) + (() if images is None else ({"visual": images},))
    return Instance(kind, {}, given, 0, ("t", 0, 1))


def score(context: str, continuation: str) -> Instance:
    return Instance("loglikelihood", {}, (context, continuation), 0, ("t", 0, 1))


@pytest.fixture(scope="module")
def model():
    return tiny_model(5)


@pytest.fixture
def kit(tokenizer):
    tokenizer.chat_template = None
    yield tokenizer
    tokenizer.chat_template = None


def backend(model, kit, batch_size=3, **state) -> HFBackend:
    lm = HFBackend(model, kit, batch_size=batch_size)
    for name, value in state.items():
        setattr(lm, name, value)
    return lm


def test_greedy_generation_equals_a_loop_without_padding_or_cache(model, kit):
    responses = backend(model, kit).generate_until([ask(prompt) for prompt in PROMPTS])
    for prompt, response in zip(PROMPTS, responses, strict=True):
        ids = kit(prompt)["input_ids"]
        given = len(ids)
        assert ids.count(kit.bos_token_id) == 1
        while len(ids) - given < 12:
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == kit.eos_token_id:
                break
        ended = ids[-1] == kit.eos_token_id
        own = ids[given : len(ids) - ended]
        assert response == kit.decode(own, skip_special_tokens=True)
        assert (response.tokens, response.finish) == (len(own), "stop" if ended else "length")


def test_log_likelihood_is_lm_evals(model, kit):
    requests = [score(prompt, f" {word}") for prompt in PROMPTS for word in ("man", "house of")]
    stock = HFLM(pretrained=model, tokenizer=kit, backend="causal", batch_size=3)
    assert backend(model, kit).loglikelihood(requests) == stock.loglikelihood(requests, disable_tqdm=True)


def test_a_sample_depends_on_neither_its_batch_nor_its_place(model, kit):
    """Another batch size, order, or the samples that are left after a stop: the same texts; all samples differ."""
    requests = []
    for prompt in PROMPTS:
        for repeat in range(4):
            request = ask(prompt, temperature=1.0, do_sample=True, top_p=0.95)
            request.repeat = repeat
            requests.append(request)
    whole = backend(model, kit, 7).generate_until(requests)
    assert backend(model, kit, 1).generate_until(requests) == whole
    assert backend(model, kit, 3).generate_until(requests[::-1]) == whole[::-1]
    assert backend(model, kit, 5).generate_until(requests[11:]) == whole[11:]
    assert all(len(set(whole[start : start + 4])) == 4 for start in range(0, 20, 4))
    assert backend(model, kit, 7, seed=1).generate_until(requests) != whole


def test_a_few_sorted_tokens_draw_as_all_of_them(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(400, 900, generator=generator)
    draw = partial(Draw, list(range(400)), 1, 1, 0.9)
    ids = torch.zeros(400, 1, dtype=torch.long)
    first = draw()
    few = first(ids, logits).argmax(-1)
    assert first.few == decoding.FEW < 900
    flat = draw()
    flat(ids, logits / 100)
    assert flat.few == 900
    monkeypatch.setattr(decoding, "FEW", 900)
    assert torch.equal(few, draw()(ids, logits).argmax(-1))


def test_lm_evals_own_repeats_differ_too(model, kit):
    request = ask("the old man", temperature=1.0, do_sample=True)
    assert repeats_of([request] * 3) == [0, 1, 2]
    assert len(set(backend(model, kit).generate_until([request] * 5))) == 5


@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.8, 0.3, 1e-6])
def test_drawn_tokens_have_the_models_probabilities(top_p):
    rows, logits = 4000, torch.tensor([1.0, 0.0, -torch.inf, 2.0, -1.0])
    draw = Draw([seed_of(0, "x", row) for row in range(rows)], prompt_tokens=1, steps=1, top_p=top_p)
    drawn = draw(torch.zeros(rows, 1, dtype=torch.long), logits.repeat(rows, 1)).argmax(-1)
    found = torch.bincount(drawn, minlength=5) / rows
    kept = logits if top_p == 1 else TopPLogitsWarper(top_p)(None, logits[None])[0]
    expected = kept.softmax(-1)
    assert (found - expected).abs().max() < 4 * (0.25 / rows) ** 0.5 and (found[expected == 0] == 0).all()


def test_stop_strings_end_a_response_and_are_left_out(model, kit):
    whole = backend(model, kit).generate_until([ask(prompt) for prompt in PROMPTS])
    for prompt, response in zip(PROMPTS, whole, strict=True):
        stop = str(response)[3:5]
        (cut,) = backend(model, kit).generate_until([ask(prompt, until=[stop])])
        assert cut == str(response)[: str(response).index(stop)] and cut.finish == "stop"
        assert cut.tokens <= response.tokens
    mixed = [ask(prompt, until=[str(whole[0])[3:5]]) for prompt in PROMPTS]
    alone = [backend(model, kit).generate_until([request])[0] for request in mixed]
    assert backend(model, kit).generate_until(mixed) == alone


def test_stop_strings_do_not_end_thinking():
    assert cut_at("[THINK]a\n\nb[/THINK]c\n\nd", ["\n\n"]) == ("[THINK]a\n\nb[/THINK]c", True)
    assert cut_at("[THINK]a\n\nb", ["\n\n"]) == ("[THINK]a\n\nb", False)
    assert cut_at("a Q: b\n\n", ["\n\n", "Q:"]) == ("a ", True)


def test_a_long_prompt_is_cut_at_its_left_and_a_long_answer_clipped(kit):
    small = tiny_model(6, max_position_embeddings=32)
    prompts = [" ".join(["word"] * 60), " ".join(["sea"] * 8), "a"]
    long, middle, short = backend(small, kit).generate_until([ask(prompt, max_gen_toks=20) for prompt in prompts])
    assert (long.cut_prompt, middle.cut_prompt, short.cut_prompt) == (True, False, False)
    assert len(kit(prompts[1])["input_ids"]) + 20 > 32 and middle.clipped and not short.clipped
    assert middle.tokens <= 32 - len(kit(prompts[1])["input_ids"])
    (empty,) = backend(small, kit).generate_until([ask("")])
    assert empty.tokens is not None


def test_chat_renders_turns_once_and_keeps_an_opened_thought(model, kit):
    seen = []

    class Spy(HFBackend):
        def tok_encode(self, string, add_special_tokens=None, **kwargs):
            found = super().tok_encode(string, add_special_tokens, **kwargs)
            seen.append((string, found))
            return found

    kit.chat_template = "{{ bos_token }}" + CHAT
    lm = Spy(model, kit, batch_size=2)
    lm.chat, lm.system_prompt = True, "be brief"
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    turns += [{"role": "user", "content": "so"}]
    lm.generate_until([ask("hi"), ask(text_of(turns))])
    assert [text for text, _ in seen] == [
        "<s>[system]be brief[user]hi[it]",
        "<s>[system]be brief[user]hi[assistant]yes[user]so[it]",
    ]
    assert all(ids.count(kit.bos_token_id) == 1 for _, ids in seen)
    kit.chat_template = CHAT.replace("[it]", "[it]<think>\n")
    (response,) = lm.generate_until([ask("hi")])
    assert response.startswith("<think>") and response.thinking_tokens == response.tokens
    assert kit.bos_token_id not in seen[-1][1]  # the template has none
    lm.chat = False
    with pytest.raises(Unsupported, match="conversation of several turns"):
        lm.generate_until([ask(text_of(turns))])
    kit.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        lm.check_chat()


def test_chat_scores_a_continuation_after_the_rendered_prompt(model, kit):
    kit.chat_template = CHAT
    (chat,) = backend(model, kit, chat=True).loglikelihood([score("hi", " yes")])
    plain = HFLM(pretrained=model, tokenizer=kit, backend="causal", batch_size=1, add_bos_token=False)
    assert chat == plain.loglikelihood([score("[user]hi[it]", " yes")], disable_tqdm=True)[0]


def test_images_reach_the_model():
    model, processor = families.build("mistral3", dtype=torch.float32), tiny.processor()
    lm = HFBackend(model, processor.tokenizer, processor, batch_size=2)
    pictures = [tiny.image(16, 16, seed) for seed in range(3)]
    requests = [ask("what is <image> this", [pictures[seed]], max_gen_toks=6) for seed in range(3)]
    requests += [ask("and <image> or <image>", pictures[:2], max_gen_toks=6), ask("no image", max_gen_toks=6)]
    together = lm.generate_until(requests)
    assert together == [lm.generate_until([request])[0] for request in requests]
    with torch.no_grad():
        encoded = processor(text="what is [IMG] this", images=[[pictures[1]]], return_tensors="pt")
        ids = model.generate(**encoded, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=2)
    new = [token for token in ids[0, encoded["input_ids"].shape[1] :].tolist() if token > 6]
    assert together[1] == processor.tokenizer.decode(new)
    lm.chat = True
    assert lm.generate_until(requests[:1])[0] is not None
    with pytest.raises(Unsupported, match="reads no images"):
        HFBackend(model, processor.tokenizer).generate_until(requests[:1])


def test_opening_a_folder_gives_what_was_saved(model, kit, tmp_path, caplog):
    model.save_pretrained(tmp_path / "text")
    kit.save_pretrained(tmp_path / "text")
    opened = open_backend(str(tmp_path / "text"), batch_size=2)
    requests = [ask(prompt) for prompt in PROMPTS]
    assert opened.generate_until(requests) == backend(model, kit).generate_until(requests)
    assert manifest.weights_sha256(tmp_path / "text") in opened.identity and not opened.MULTIMODAL
    processor = tiny.processor()
    families.build("mistral3", dtype=torch.float32).save_pretrained(tmp_path / "images")
    processor.tokenizer.save_pretrained(tmp_path / "images")
    assert not open_backend(str(tmp_path / "images")).MULTIMODAL and "image" in caplog.text
    processor.save_pretrained(tmp_path / "images")
    seeing = open_backend(str(tmp_path / "images"))
    assert seeing.MULTIMODAL and seeing.generate_until([ask("a <image>", [tiny.image(16, 16)])])[0].tokens


def test_decoding_follows_lm_evals_rules():
    assert Decoding.of({"until": "\n", "max_new_tokens": 3}) == Decoding(0.0, 1.0, 3, ("\n",))
    assert Decoding.of({"do_sample": True, "top_p": 0.9}).temperature == 1.0
    assert Decoding.of({"do_sample": False, "temperature": 0.7}).temperature == 0.0
    assert Decoding.of({"temperature": 0.7, "top_k": 5}) == Decoding(0.7, 1.0, 256, (), {"top_k": 5})


# --- a server that speaks OpenAI's protocol


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body))
        status, answer = self.server.answer(self.path, body)
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    served = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    served.asked, served.url = [], f"http://127.0.0.1:{served.server_port}/v1"
    thread = threading.Thread(target=served.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield served
    served.shutdown()
    served.server_close()


def remote(server, **state):
    lm = open_backend("m", "openai", url=server.url, retries=1, backoff_seconds=0.0, concurrency=4)
    for name, value in state.items():
        setattr(lm, name, value)
    return lm


def message(finish="stop", **fields) -> tuple[int, dict]:
    usage = {"completion_tokens": 7, "completion_tokens_details": {"reasoning_tokens": 3}}
    return 200, {"choices": [{"message": fields, "finish_reason": finish}], "usage": usage}


def test_a_servers_answers(server):
    def answer(path, body):
        said = body["messages"][-1]["content"]
        if said == "cut":
            return message("length", content=None, reasoning_content="hmm")
        if said == "broken":
            return 400, {"error": "no"}
        if said == "empty":
            return message(content="")
        return message(content=f"{said} {body['seed']}\n\nQ:", reasoning_content="why")

    server.answer = answer
    told = []
    lm = remote(server, on_response=lambda request, response: told.append((request.args[0], response)))
    request = ask("hi", temperature=0.6, do_sample=True, top_p=0.9, until=["\n\n"])
    texts = ["[THINK]why[/THINK]hi 1234", "[THINK]why[/THINK]hi 1235", "[THINK]hmm", None, ""]
    found = lm.generate_until([request, request, ask("cut"), ask("broken"), ask("empty")])
    assert found == texts and sorted(map(str, dict(told))) == ["broken", "cut", "empty", "hi"]
    assert [getattr(one, "finish", None) for one in found] == ["stop", "stop", "length", None, "stop"]
    assert (found[0].tokens, found[0].thinking_tokens) == (7, 3)
    assert all("stop" not in body for _, body in server.asked)


def test_a_server_without_chat(server):
    server.answer = lambda path, body: (200, {"choices": [{"text": " b\nc", "finish_reason": "stop"}]})
    (found,) = remote(server, chat=False).generate_until([ask("a", until=["\n"])])
    assert found == " b" and server.asked[0][0] == "/v1/completions" and server.asked[0][1]["stop"] == ["\n"]


def test_a_dead_server_is_not_asked_for_ever(server):
    server.answer = lambda path, body: (500, {"error": "down"})
    with pytest.raises(ConnectionError, match="none of 50 requests was answered: status 500"):
        remote(server).generate_until([ask(f"{n}") for n in range(50)])
    assert len(server.asked) <= 16


def test_a_server_scores_continuations(server):
    tokens = ["The", " sky", " is", " blue", " deep", "!"]

    def answer(path, body):
        assert body["echo"] and body["prompt"] == "The sky is blue deep"
        values = [None, -1.0, -2.0, -0.5, -3.0, -0.1]
        tops = [None, {"x": -1.0}, {"x": -0.1}, {"x": -0.5}, {"x": -1.0}, {"x": -0.1}]
        return 200, {"choices": [{"text": body["prompt"], "logprobs": {
            "tokens": tokens, "token_logprobs": values, "top_logprobs": tops}}]}  # fmt: skip

    server.answer = answer
    lm = remote(server, chat=False)
    assert lm.loglikelihood([score("The sky is", " blue deep"), score("The sky is blue", " deep")]) == [
        (-3.5, False),
        (-3.0, False),
    ]
    lm.chat = True
    with pytest.raises(Unsupported, match="without chat"):
        lm.loglikelihood([score("a", "b")])


@pytest.mark.parametrize("status, answer", [
    (404, {"error": "no such path"}), (200, {"choices": [{"text": "a b", "logprobs": None}]}),
])  # fmt: skip
def test_a_server_that_cannot_score_says_so(server, status, answer):
    server.answer = lambda path, body: (status, answer)
    with pytest.raises(Unsupported, match="gives no log-likelihoods"):
        remote(server, chat=False).loglikelihood([score("a", " b")] * 3)


def test_images_go_to_a_server_as_data(server):
    server.answer = lambda path, body: message(content="red")
    remote(server).generate_until([ask("what <image>?", [tiny.image(8, 8)])])
    kinds = [part["type"] for part in server.asked[0][1]["messages"][0]["content"]]
    assert kinds == ["text", "image_url", "text"]


def test_vllm_against_a_stand_in(monkeypatch, tokenizer):
    """The real one needs a GPU: what is sent to it, and what is made of its answers."""
    sent = []

    class VLLM:
        max_length, think_end_token = 40, None

        def __init__(self, pretrained, **kwargs):
            self.tokenizer, self.eot_token_id = tokenizer, tokenizer.eos_token_id
            self.cache_hook = SimpleNamespace(add_partial=lambda *a: None)

        def tok_encode(self, string, add_special_tokens=None, **kwargs):
            return tokenizer.encode(string, add_special_tokens=add_special_tokens is not False)

        def _model_generate(self, requests, generate, sampling_params):
            sent.extend(zip(requests, sampling_params, strict=True))
            ids = tokenizer.encode(" yes\nno", add_special_tokens=False)
            output = SimpleNamespace(text=" yes\nno", token_ids=[*ids, tokenizer.eos_token_id], finish_reason="stop")
            return [SimpleNamespace(outputs=[output]) for _ in requests]

    module = ModuleType("lm_eval.models.vllm_causallms")
    module.VLLM, module.SamplingParams = VLLM, lambda **kwargs: kwargs
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, "hf_cascade.evaluate.backends.vllm", None)  # taken back with the stand-in
    del sys.modules["hf_cascade.evaluate.backends.vllm"]
    from hf_cascade.evaluate.backends.vllm import VLLMBackend

    lm = VLLMBackend("m", identity="x")
    request = ask("the old man", temperature=0.7, do_sample=True, until=["\n"])
    first, second = lm.generate_until([request, request])
    assert first == second == " yes" and isinstance(first, Response) and first.finish == "stop"
    assert sent[0][0] == tokenizer.encode("the old man") and sent[0][1]["stop"] == ["\n"]
    assert sent[0][1]["seed"] != sent[1][1]["seed"] and sent[0][1]["temperature"] == 0.7


def test_opening_refuses_what_cannot_be(tmp_path):
    with pytest.raises(ValueError, match="allowed are hf, vllm, openai"):
        open_backend("m", "tgi")
    with pytest.raises(ValueError, match="needs the server's url"):
        open_backend("m", "openai")
    with pytest.raises(ValueError, match="no option tensor_parallel_size"):
        open_backend("m", tensor_parallel_size=2)
    with pytest.raises(ImportError, match="pip install vllm"):
        open_backend("recipes/tiny/parent", "vllm")
