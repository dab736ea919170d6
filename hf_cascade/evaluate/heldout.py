"""Held-out perplexity, bits per byte, and the divergence from a teacher, without ever holding [tokens, vocabulary].

Final hidden states are computed window by window; logits exist for a chunk of rows at a time, in fp32, and sums are
fp64. Of the teacher, whose hidden states every student needs, the states are kept where they fit, never the logits.

N windows, T tokens of a window, C rows of a chunk, V vocabulary, D hidden size of either model.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHUNK_BYTES = 4 * 2**20  # ours: one fp32 [C, V] buffer, about six live at once; larger ones were slower on a CPU
CHUNK_ROWS = 256  # ours: but at least as many rows as keep an accelerator busy
CACHE_BYTES = 2 * 2**30  # ours: teacher states above this are computed again for every student
IGNORED = -100  # label of padding


@dataclass(frozen=True)
class Windows:
    """
    Held-out text as rows of at most T tokens, longest first, each from one document; every token is a label once.

    Attributes:
        inputs (`LongTensor[N, T]`): token ids, padded on the right, where causal attention does not look.
        labels (`LongTensor[N, T]`): the token that follows each input, or -100.
        max_length (`int`): T as asked for; the tensors are narrower where no document is that long.
        documents (`int`): number of documents.
        bytes (`int`): UTF-8 bytes of the text.
    """

    inputs: Tensor
    labels: Tensor
    max_length: int
    documents: int
    bytes: int

    @property
    def tokens(self) -> int:
        """Number of labels."""
        return int((self.labels != IGNORED).sum())

    def batches(self, batch_size: int) -> list[tuple[Tensor, Tensor]]:
        """(inputs, labels) of `batch_size` windows each, cut to the longest window of the batch."""
        lengths = (self.labels != IGNORED).sum(dim=1)
        starts = range(0, len(lengths), batch_size)
        return [
            (self.inputs[i : i + batch_size, : lengths[i]], self.labels[i : i + batch_size, : lengths[i]])
            for i in starts
        ]


@dataclass(frozen=True)
class HeldOut:
    """
    What was measured on one set of windows.

    Attributes:
        perplexity (`float`): exp of the mean next-token loss.
        nll (`float`): that loss, nats per token.
        bits_per_byte (`float`): the loss in bits, over the text's UTF-8 bytes; comparable across tokenizers.
        tokens (`int`): labels scored.
        max_length (`int`): T.
        kl (`float`, *optional*): forward KL(teacher || student), nats per token.
        top1_agreement (`float`, *optional*): share of tokens at which both models' likeliest token is the same.
    """

    perplexity: float
    nll: float
    bits_per_byte: float
    tokens: int
    max_length: int
    kl: float | None = None
    top1_agreement: float | None = None


def make_windows(tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int) -> Windows:
    """
    Cut each document into windows of `max_length` inputs; a window's last label is the next window's first input.

    A document begins as the tokenizer begins it; where the tokenizer adds no BOS, one is put in front (or EOS, where
    there is no BOS), as lm-eval does, so that the first token is predicted too.

    Raises:
        ValueError: no text, or a tokenizer without BOS and EOS.
    """
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if start is None:
        raise ValueError("the tokenizer has neither BOS nor EOS, so a document's first token has nothing before it")
    rows = []
    for text in texts:
        ids = tokenizer(text, verbose=False)["input_ids"]
        ids = ids if ids[:1] == [start] else [start, *ids]
        cuts = [*range(0, len(ids) - 1, max_length), len(ids) - 1]
        rows += [(ids[a:b], ids[a + 1 : b + 1]) for a, b in pairwise(cuts)]
    if not rows:
        raise ValueError(f"the held-out text is empty ({len(texts)} documents): give a file with text in it")
    rows.sort(key=lambda row: -len(row[0]))
    width = len(rows[0][0])
    inputs_NT = torch.tensor([inputs + [0] * (width - len(inputs)) for inputs, _ in rows])
    labels_NT = torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in rows])
    return Windows(inputs_NT, labels_NT, max_length, len(texts), sum(len(text.encode()) for text in texts))


class Scorer:
    """
    A frozen model as hidden states and logits.

    Args:
        model (`PreTrainedModel`): a causal language model with a linear head.
        windows (`Windows`): the text.
        batch_size (`int`): windows at once.
        keep (`bool`, *optional*, defaults to `False`): keep the states for the next student, up to `CACHE_BYTES`.

    Raises:
        ValueError: the model does more to its hidden states than a linear head, so its logits would be wrong here.
    """

    def __init__(self, model: PreTrainedModel, windows: Windows, batch_size: int, keep: bool = False):
        self.model = model.eval()
        head = model.get_output_embeddings()
        self.weight_VD = head.weight.detach().float()
        self.bias_V = None if getattr(head, "bias", None) is None else head.bias.detach().float()
        self._batches = windows.batches(batch_size)
        size = windows.tokens * self.weight_VD.shape[1] * model.dtype.itemsize
        self._kept: dict[int, Tensor] | None = {} if keep and size <= CACHE_BYTES else None
        self._check(windows.inputs[:1, :8])

    def __len__(self) -> int:
        return len(self._batches)

    @torch.no_grad()
    def hidden(self, batch: int) -> Tensor:
        """Final hidden states [labels of the batch, D] in the model's dtype."""
        if self._kept is not None and batch in self._kept:
            return self._kept[batch].to(self.model.device)
        inputs_BT, labels_BT = (tensor.to(self.model.device) for tensor in self._batches[batch])
        states_BTD = self.model.base_model(input_ids=inputs_BT, use_cache=False).last_hidden_state
        states = states_BTD[labels_BT != IGNORED]
        if self._kept is not None:
            self._kept[batch] = states.cpu()
        return states

    def labels(self, batch: int) -> Tensor:
        """The labels that belong to `hidden(batch)`."""
        labels_BT = self._batches[batch][1]
        return labels_BT[labels_BT != IGNORED].to(self.model.device)

    @torch.no_grad()
    def log_probs(self, hidden_CD: Tensor) -> Tensor:
        """fp32 log-probabilities [C, V]."""
        return F.linear(hidden_CD.float(), self.weight_VD, self.bias_V).log_softmax(-1)

    @torch.no_grad()
    def _check(self, inputs_1T: Tensor) -> None:
        inputs_1T = inputs_1T.to(self.model.device)
        states_TD = self.model.base_model(input_ids=inputs_1T, use_cache=False).last_hidden_state[0]
        expected_TV = self.model(input_ids=inputs_1T, use_cache=False).logits[0].float().log_softmax(-1)
        if not torch.allclose(self.log_probs(states_TD), expected_TV, atol=0.1, rtol=0.05):
            raise ValueError(
                f"{type(self.model).__name__} does more than a linear head to its final hidden states (a soft cap or "
                "a scale?), which the held-out measure does not know: measure this model with --tasks only"
            )


def measure(student: Scorer, teacher: Scorer | None, windows: Windows, report=None) -> HeldOut:
    """
    Measure one model; `teacher` and `student` hold the same windows in the same batches.

    Args:
        student (`Scorer`): the model to measure.
        teacher (`Scorer`, *optional*): the model to compare with.
        windows (`Windows`): the text both hold.
        report (`Callable[[float], None]`, *optional*): called with the share that is done.
    """
    nll = torch.zeros((), dtype=torch.float64)
    kl, agreed = nll.clone(), nll.clone()
    chunk = max(CHUNK_ROWS, CHUNK_BYTES // (4 * student.weight_VD.shape[0]))
    for batch in range(len(student)):
        hidden, labels = student.hidden(batch), student.labels(batch)
        teacher_hidden = None if teacher is None else teacher.hidden(batch)
        for start in range(0, len(labels), chunk):
            rows = slice(start, start + chunk)
            student_CV = student.log_probs(hidden[rows])
            nll -= student_CV.gather(1, labels[rows, None]).double().sum().cpu()
            if teacher is not None:
                teacher_CV = teacher.log_probs(teacher_hidden[rows])
                agreed += (teacher_CV.argmax(-1) == student_CV.argmax(-1)).sum().cpu()
                kl += (teacher_CV.exp() * (teacher_CV - student_CV)).sum(-1).double().sum().cpu()
        if report is not None:
            report((batch + 1) / len(student))
    tokens, total = windows.tokens, nll.item()
    return HeldOut(
        perplexity=math.exp(total / tokens),
        nll=total / tokens,
        bits_per_byte=total / math.log(2) / windows.bytes,
        tokens=tokens,
        max_length=windows.max_length,
        kl=None if teacher is None else kl.item() / tokens,
        top1_agreement=None if teacher is None else agreed.item() / tokens,
    )
