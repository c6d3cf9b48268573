"""A small Llama with random weights and a tokenizer trained on the prompts: both made on the spot, nothing downloaded."""

from __future__ import annotations

from pathlib import Path

import torch
from tensor_parallel import Group
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

logging.disable_progress_bar()
torch.set_num_threads(1)

LAYERS, HEADS, KV_HEADS, HEAD_DIM, MLP, VOCAB = 4, 8, 4, 32, 512, 512
DTYPE = torch.float64
"""Double precision: ranks add up partial sums in another order than one process does, which must not change a token."""


def make_model(folder: Path, texts: list[str], seed: int) -> None:
    """Write a model and its tokenizer into ``folder``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=HEADS * HEAD_DIM, intermediate_size=MLP, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM, max_position_embeddings=2048,
        initializer_range=0.2,  # large enough that greedy output depends on every token of the prompt
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


class TinyLlama:
    """The model as the example's engines use it: greedy, on the CPU. With a ``group`` it is one rank's share, and every
    rank has to make the same calls.
    """

    def __init__(self, folder: Path, group: Group | None = None) -> None:
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        self.model = LlamaForCausalLM.from_pretrained(folder, dtype=DTYPE).eval()
        if group is not None:
            for layer in self.model.model.layers:
                _shard(layer, group)

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt."""
        return list(self.tokenizer(text)["input_ids"])

    @torch.inference_mode()
    def prefill(self, ids: list[int]) -> tuple[int, list[tuple[torch.Tensor, torch.Tensor]]]:
        """(first generated token, keys and values of each layer, of shape (KV heads held here, tokens, head_dim))."""
        cache = DynamicCache(config=self.model.config)
        logits = self.model(torch.tensor([ids]), past_key_values=cache, use_cache=True).logits
        return int(logits[0, -1].argmax()), [(layer.keys[0], layer.values[0]) for layer in cache.layers]

    @torch.inference_mode()
    def decode(self, first: int, keys_values: list[tuple[torch.Tensor, torch.Tensor]], tokens: int) -> list[int]:
        """Continue from a prompt's keys and values (shapes as ``prefill`` gives them); ``first`` is the first token."""
        cache = DynamicCache(config=self.model.config)
        for number, (keys, values) in enumerate(keys_values):
            cache.update(keys[None].clone(), values[None].clone(), number)
        output = [first]
        while len(output) < tokens:
            logits = self.model(torch.tensor([output[-1:]]), past_key_values=cache, use_cache=True).logits
            output.append(int(logits[0, -1].argmax()))
        return output

    @torch.inference_mode()
    def generate(self, ids: list[int], tokens: int) -> list[int]:
        """The reference: transformers' own greedy generation, in one process."""
        prompt = torch.tensor([ids])
        mask = torch.ones_like(prompt)
        output = self.model.generate(
            prompt, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, eos_token_id=None,
            pad_token_id=0,
        )  # fmt: skip
        return output[0, len(ids) :].tolist()


def _shard(layer: torch.nn.Module, group: Group) -> None:
    """Keep this rank's heads and its part of the MLP; what attention and the MLP give is then a sum over the ranks.

    (A real engine reads no more than its share from the disk.)
    """
    attention, mlp = layer.self_attn, layer.mlp
    for linear, units in (
        (attention.q_proj, HEADS), (attention.k_proj, KV_HEADS), (attention.v_proj, KV_HEADS), (mlp.gate_proj, MLP),
        (mlp.up_proj, MLP),
    ):  # fmt: skip
        rows = linear.weight.unflatten(0, (units, -1))[group.share(units)]
        linear.weight = torch.nn.Parameter(rows.flatten(0, 1))
    for linear, units in ((attention.o_proj, HEADS), (mlp.down_proj, MLP)):
        columns = linear.weight.unflatten(1, (units, -1))[:, group.share(units)]
        linear.weight = torch.nn.Parameter(columns.flatten(1, 2))
        linear.register_forward_hook(lambda _module, _inputs, output: group.add_up(output))
    query, key = (linear.weight.shape[0] for linear in (attention.q_proj, attention.k_proj))
    attention.num_key_value_groups = query // key
