"""ExLlamaV2 on an EXL2 model, the engine of the published study, on one machine's GPUs.

Written from the source of exllamav2 0.3.2; not yet run on a GPU. Responses come from the dynamic generator's jobs, in
token ids alone: the package's own `encode` would leave out BOS and read chat tags as text. Signals come from plain
forwards without a cache, never from the generator, whose "pre-sampling" logits its sampler alters in place and whose
`top_k_probs` are probabilities after penalties and truncation.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from primekd.config import TeacherConfig
from primekd.config.teacher import ExLlamaConfig
from primekd.foundation.errors import UserError
from primekd.foundation.memory import release_gpu_memory
from primekd.foundation.provenance import package_versions
from primekd.models import load_tokenizer, model_hash
from primekd.models.logits import PROBE, LogitTransform, best_transform, config_numbers
from primekd.models.template import turn_end
from primekd.teachers.exllamav2_loading import gpu_memory, import_exllamav2, load_exl2, require_exl2
from primekd.teachers.protocol import Response, Sampling, Want, generate_then_score, longest_first

PROBE_ERROR = 0.03  # of the logits' norm, which half precision explains; what is finer, `reconstruction` finds
GENERATOR_QUEUE = 8  # tokens a sequence that the generator reserves room for (its default `max_q_size`)


class ExLlamaV2Engine:
    """An EXL2 model served by ExLlamaV2.

    Without flash-attn there is no paged cache: responses are then generated one after the other. Scoring runs in
    batches of up to `batch_size` sequences with `context_tokens` tokens in all, and no cache, so the cache type
    touches what is generated and not what is scored. Tensor-parallel models offer logits alone: their head lies in
    parts on several GPUs.
    """

    name = "exllamav2"

    def __init__(self, config: TeacherConfig):
        self.config, self.reference = config, config.model
        self.quantization = require_exl2(config.model)
        self.package = import_exllamav2()
        self.tokenizer = load_tokenizer(config)
        self.vocab_size = len(self.tokenizer)
        self.model, cache, self.input_tokens, self.paged = load_exl2(self.package, config)
        if not self.paged:
            print("ExLlamaV2 has no flash-attn 2.5.7 or newer here: responses are generated one at a time, slowly.")
        self.generator = self.package.generator.ExLlamaV2DynamicGenerator(
            model=self.model,
            cache=cache,
            tokenizer=self.package.ExLlamaV2Tokenizer(self.model.config),
            max_batch_size=min(config.batch_size, self.input_tokens // GENERATOR_QUEUE) if self.paged else 1,
            paged=self.paged,
        )
        self._forbidden = self._padded_columns()
        self._weight: Tensor | None = None
        self.transform = self._find_transform()
        self.offers = frozenset({"hidden", "logits"} if self.transform else {"logits"})

    def identity(self) -> dict[str, Any]:
        return {
            "engine": self.name,
            "model": self.reference,
            "model_sha256": model_hash(self.reference),
            "bits_per_weight": self.quantization.get("bits"),
            "head_bits": self.quantization.get("head_bits"),
            "cache_type": (self.config.exllamav2 or ExLlamaConfig()).cache_type,
            "exllamav2": self.package.__version__,
            "flash_attn": package_versions(["flash-attn"])["flash-attn"] or "none",
            "torch": torch.__version__,
        }

    def _padded_columns(self) -> Tensor | None:
        """What is added to the logits so that no column beyond the tokenizer's is drawn; None if there is none.

        The sampler itself cuts at the largest id in tokenizer.json, which need not be transformers' size.
        """
        columns = self.generator.padded_vocab_size
        if columns == self.vocab_size:
            return None
        bias = torch.zeros(columns)
        bias[self.vocab_size :] = -torch.inf
        return bias

    def _settings(self, sampling: Sampling):
        """Settings that sample from the raw model: the package's defaults carry penalties and truncation.

        Above temperature 0 its sampler draws from 0.9998 of the mass, the largest ids being cut: its guard against
        rounding.
        """
        greedy = sampling.temperature == 0
        return self.package.generator.ExLlamaV2Sampler.Settings(
            token_repetition_penalty=1.0,
            token_frequency_penalty=0.0,
            token_presence_penalty=0.0,
            temperature=1.0 if greedy else sampling.temperature,
            top_k=1 if greedy else 0,
            top_p=0.0,
            top_a=0.0,
            min_p=0.0,
            tfs=0.0,
            typical=0.0,
            token_bias=self._forbidden,
        )

    def _fits(self, length: int) -> None:
        if length > self.config.context_tokens:
            raise UserError(f"A sequence of {length} tokens does not fit: raise teacher.context_tokens in the profile.")

    def generate(self, prompts: list[list[int]], sampling: Sampling) -> list[Response]:
        for prompt in prompts:
            self._fits(len(prompt) + sampling.max_new_tokens)
        # Cached prefixes of earlier calls would make a response depend on what was asked before it.
        self.generator.reset_page_table()
        ends = turn_end(self.tokenizer).stops
        seeds = np.random.SeedSequence(sampling.seed).generate_state(len(prompts))
        for index, (prompt, seed) in enumerate(zip(prompts, seeds.tolist(), strict=True)):
            self.generator.enqueue(
                self.package.generator.ExLlamaV2DynamicJob(
                    input_ids=torch.tensor([prompt]),
                    max_new_tokens=sampling.max_new_tokens,
                    gen_settings=self._settings(sampling),
                    seed=seed,
                    stop_conditions=sorted(ends),
                    identifier=index,
                )
            )
        ids: list[list[int]] = [[] for _ in prompts]
        with gpu_memory(self.config):
            while self.generator.num_remaining_jobs():
                for result in self.generator.iterate():
                    ids[result["identifier"]] += _new_ids(result)
                    if result["eos"] and len(ids[result["identifier"]]) != result["new_tokens"]:
                        raise UserError(
                            f"exllamav2 {self.package.__version__} gave {len(ids[result['identifier']])} tokens of "
                            f"{result['new_tokens']}: install exllamav2 0.3.2."
                        )
                    if result["eos"]:
                        sampling.ended()
        return [Response(found, truncated=found[-1] not in ends) for found in ids]

    def _forward(self, sequences: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Logits (B, S, columns) and the states before the final norm (B, S, D); right of a sequence is padding."""
        ids = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.long)  # causal: padding is never seen
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.tensor(sequence)
        with gpu_memory(self.config):
            return self.model.forward(ids, cache=None, last_id_only=False, return_last_state=True)

    def _final(self, states: Tensor) -> Tensor:
        """`return_last_state` gives what enters the final norm, not what enters the head."""
        norm = self.model.modules[self.model.head_layer_idx - 1]
        return norm.forward(states.to(norm.device()))

    @torch.inference_mode()
    def score(self, prompts: list[list[int]], responses: list[list[int]], want: Want) -> list[Tensor]:
        if want not in self.offers:
            raise ValueError(f"{self.reference}: no {want} from this engine")
        # The last response token predicts nothing that is kept, so it is not run.
        sequences = [[*prompt, *response[:-1]] for prompt, response in zip(prompts, responses, strict=True)]
        for sequence in sequences:
            self._fits(len(sequence))
        rows: list[Tensor | None] = [None] * len(prompts)
        for batch in longest_first(
            [len(sequence) for sequence in sequences], self.config.batch_size, self.input_tokens
        ):
            logits, states = self._forward([sequences[i] for i in batch])
            for row, i in enumerate(batch):
                first = len(prompts[i]) - 1
                places = slice(first, first + len(responses[i]))
                if want == "hidden":
                    rows[i] = self._final(states[row : row + 1, places].contiguous())[0].cpu()
                else:
                    rows[i] = logits[row, places, : self.vocab_size].float().cpu()
        return rows

    generate_scored = generate_then_score

    def own_logits(self, prompts: list[list[int]], responses: list[list[int]]) -> list[Tensor]:
        return self.score(prompts, responses, "logits")

    def head(self) -> Tensor:
        if self._weight is None:
            with gpu_memory(self.config):
                # (D, columns) in half precision; a head of 6 or 8 bits is dequantised.
                weight = self.model.modules[self.model.head_layer_idx].get_weight_tensor_dq()
            self._weight = weight.T[: self.vocab_size].cpu().contiguous()
        return self._weight

    def close(self) -> None:
        del self.generator, self.model, self._weight
        release_gpu_memory()

    @torch.inference_mode()
    def _find_transform(self) -> LogitTransform | None:
        """What makes the logits of norm(state) @ head.T; None where nothing known does, or the head is split."""
        if self.model.tp_context is not None:
            return None
        logits, states = self._forward([[self.tokenizer.eos_token_id, *PROBE]])
        own = logits[0, :, : self.vocab_size].cpu()
        products = self._final(states)[0].float().cpu() @ self.head().float().T
        return best_transform(products, own, config_numbers(self.model.config), PROBE_ERROR)


def _new_ids(result: dict[str, Any]) -> list[int]:
    """Tokens of one result; those of the last step, the end of turn among them, lie under `held`."""
    parts = (result, result.get("held", {}))
    return [token for part in parts if "token_ids" in part for token in part["token_ids"][0].tolist()]
