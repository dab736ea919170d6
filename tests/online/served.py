"""Stands for TRL's `VLLMGeneration`: keeps what it is given, answers at random."""

import random


class Server:
    """The last one made is `made[-1]`."""

    made: list = []

    def __init__(self, **settings):
        self.settings, self.syncs, self.counts = settings, 0, []
        self.vllm_client = self
        self.made.append(self)

    def get_server_info(self):
        return {"model_config": {"logprobs_mode": "processed_logprobs"}}

    def sync_weights(self):
        self.syncs += 1

    def generate(self, prompts, images, num_generations, profiler):
        self.counts.append(num_generations)
        draw = random.Random(len(self.counts))
        ids = [[draw.randrange(20, 200) for _ in range(draw.randint(3, 8))] for _ in prompts]
        log_probs = map(self.log_probs, prompts, ids)
        return None, ids, [[[value] for value in of_row] for of_row in log_probs], None

    def log_probs(self, prompt_ids, completion_ids):
        """Of the tokens, as the server says."""
        return [-1.0] * len(completion_ids)
