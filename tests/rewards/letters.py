"""A chat model of one layer, set by hand, that says yes where a letter occurs: its verdicts are known."""

import string

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
VERDICTS = ["yes", "no"]
QUESTION = "{response}\n{criterion}"  # the criterion is an upper-case letter: does the lower-case one occur before it?
CHAT = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}{{ ask | default('') }}"
WIDTH, FIRST_SLOW = 64, 8  # the first pairs of a head turn fast with the position, the others hardly do
CONST, BOS, VERDICT, FOUND, LOWER, UPPER = 0, 1, 2, 3, 4, 34


def tokenizer(chat: str | None = CHAT) -> PreTrainedTokenizerFast:
    """One id a character; `yes` and `no` are whole."""
    names = [*SPECIAL, *VERDICTS, *string.ascii_letters, *string.digits, *" .\n:,?'\"|<>[]/_!"]
    core = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"yes|no|[\s\S]"), "isolated")
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, chat_template=chat, **special)


def judge(window: int = 512) -> LlamaForCausalLM:
    """
    An upper-case letter attends to the lower-case one (score 20), or else to BOS (score 10), and says what it found.
    """
    kit = tokenizer()
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(kit),
            hidden_size=WIDTH,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=WIDTH,
            max_position_embeddings=window,
            rope_parameters={"rope_type": "default", "rope_theta": 1e30},
            pad_token_id=kit.pad_token_id,
            bos_token_id=kit.bos_token_id,
            eos_token_id=kit.eos_token_id,
        )
    )
    ids = kit.get_vocab()
    layer = model.model.layers[0]
    matrices = [model.model.embed_tokens, model.lm_head, layer.self_attn.q_proj, layer.self_attn.k_proj]
    matrices += [layer.self_attn.v_proj, layer.self_attn.o_proj, layer.mlp.down_proj]
    with torch.no_grad():
        for matrix in matrices:
            matrix.weight.zero_()
        embed, head, query, key, value, out, _ = (matrix.weight for matrix in matrices)
        embed[:, CONST] = 1
        embed[ids["<s>"], BOS] = 1
        slots = [*range(FIRST_SLOW, WIDTH // 2), *range(WIDTH // 2 + FIRST_SLOW, WIDTH)]
        normed = (WIDTH / 2) ** 0.5  # a feature of a token that has two, behind the norm
        for number, letter in enumerate(string.ascii_lowercase):
            embed[ids[letter], LOWER + number] = embed[ids[letter.upper()], UPPER + number] = 1
            query[slots[number], UPPER + number] = 20 * WIDTH**0.5 / normed**2
            key[slots[number], LOWER + number] = 1
            value[0, LOWER + number] = 1 / normed
        query[slots[26], CONST] = 10 * WIDTH**0.5 / normed**2
        key[slots[26], BOS] = 1
        out[FOUND, 0] = 1
        for word, sign in (("yes", 1), ("no", -1)):
            embed[ids[word], VERDICT] = 1
            head[ids[word], FOUND], head[ids[word], CONST] = sign, -sign / 2
        head[ids["</s>"], VERDICT] = 10
    return model.eval()


def save(folder, chat: str | None = CHAT, window: int = 512) -> None:
    """The judge's folder."""
    judge(window).save_pretrained(folder)
    tokenizer(chat).save_pretrained(folder)
