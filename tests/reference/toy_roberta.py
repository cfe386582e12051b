"""Makes a RoBERTa checkpoint with random weights and a byte-level tokenizer: toy_roberta.py FOLDER."""

import json
import sys
from pathlib import Path

import torch
from data import dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import RobertaConfig, RobertaModel

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def tokenizer(texts):
    own = Tokenizer(models.BPE(unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    own.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False))
    own.post_processor = processors.RobertaProcessing(sep=("</s>", 2), cls_token=("<s>", 0), add_prefix_space=False)
    return own


def model(words):
    """Weights large enough that every part shows in the output."""
    config = RobertaConfig(
        vocab_size=words, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=44,
        max_position_embeddings=60, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1, bos_token_id=0,
        eos_token_id=2)
    torch.manual_seed(3)
    own = RobertaModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for name, value in own.named_parameters():
            value.copy_(torch.randn_like(value) * 0.3 + (1.0 if "LayerNorm.weight" in name else 0.0))
    return own


def main(folder):
    folder.mkdir(parents=True)
    words = tokenizer(row["text"] for row in dataset(20260801, 6, 5)[2])
    words.save(str(folder / "tokenizer.json"))
    model(words.get_vocab_size()).save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    modes = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
