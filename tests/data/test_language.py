from __future__ import annotations

import pytest
import torch

from lawm_policy.data.language import LanguageConfig, build_language, ngram_buckets
from lawm_policy.types import UserError


def test_the_same_sentence_finds_the_same_rows_in_every_process() -> None:
    assert ngram_buckets("Put the red block", 2, 4096) == [908, 634, 1696, 2399, 2085, 2892, 305]
    assert ngram_buckets("Put the RED block!", 3, 4096) == ngram_buckets("put the red block", 3, 4096)


def test_word_order_matters() -> None:
    a = ngram_buckets("red block in the white bowl", 3, 4096)
    b = ngram_buckets("white block in the red bowl", 3, 4096)
    assert sorted(a) != sorted(b)


def test_no_text_is_the_null_token_and_it_learns() -> None:
    encoder = build_language(LanguageConfig(width=8, buckets=64))
    assert ngram_buckets(" ", 3, 64) == [0]
    encoder(("",))[..., 0].sum().backward()
    assert float(encoder.table.weight.grad[0].abs().sum()) > 0
    assert float(encoder.table.weight.grad[1:].abs().sum()) == 0


def test_sentences_of_a_batch_do_not_mix() -> None:
    torch.manual_seed(0)
    encoder = build_language(LanguageConfig(width=8, buckets=512))
    texts = ("put the red block in the bowl", "", "open the drawer")
    together = encoder(texts)
    for i, text in enumerate(texts):
        torch.testing.assert_close(together[i], encoder((text,))[0])


def test_an_encoder_that_is_not_there_is_one_line(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match="expected a transformers text encoder") as error:
        build_language(LanguageConfig(encoder=str(tmp_path / "nothing")))
    assert "\n" not in str(error.value)


def test_a_transformers_encoder_by_name(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """A real (tiny, random) BERT, saved to disk as safetensors and loaded by its path."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "put",
        "the",
        "red",
        "block",
        "open",
        "drawer",
    ]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(vocab_file=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    BertModel(config).save_pretrained(tmp_path)
    encoder = build_language(LanguageConfig(encoder=str(tmp_path), width=8))
    out = encoder(("put the red block", "open the drawer", ""))
    assert out.shape == (3, 8) and not torch.equal(out[0], out[1])
    assert all(
        "embeddings" not in name for name in encoder.state_dict()
    )  # named in the checkpoint, not stored
    out.sum().backward()
    assert encoder.null.grad is not None
