"""What runs inside vLLM's own worker processes."""


class VocabularyCut:
    """Methods that vLLM adds to its workers (`worker_extension_cls`), to be called by name and without pickle.

    vLLM cuts the columns that it pads itself, not those of a checkpoint that has more columns than its tokenizer has
    tokens: they would be drawn, and would take their share of every softmax.
    """

    def cut_vocabulary(self, size: int) -> int:
        """Cuts the logits behind column `size`, before sampling and softmax; returns how many heads were found here.

        Pipeline stages other than the last one have no head.
        """
        from vllm.model_executor.layers.logits_processor import LogitsProcessor

        found = [module for module in self.get_model().modules() if isinstance(module, LogitsProcessor)]
        for module in found:
            module.org_vocab_size = size
            module.vocab_size = size  # where an adapter wraps the layer, this is what it cuts at
        return len(found)
