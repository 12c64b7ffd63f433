"""Writes clip-bpe/: a small vocabulary in the form of published CLIP models, texts, and their
tokens by an implementation that is not ours (pip install tokenizers).

    cut -f2 CAPTIONS.tsv | python3 tests/golden/make_clip_bpe.py      # any lines of text; here names of emoji

Texts are one a line; tokens stand in the same order."""
import json
import os
import sys
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "clip-bpe")
words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def pipeline(model):
    t = Tokenizer(model)
    t.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(words), behavior="removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return t


lines = sys.stdin.read().split("\n")
trained = pipeline(models.BPE(end_of_word_suffix="</w>"))
alphabet = pre_tokenizers.ByteLevel.alphabet()
trained.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=900, initial_alphabet=sorted(alphabet),
                                                       end_of_word_suffix="</w>", show_progress=False))
merges = [tuple(m) for m in json.loads(trained.to_str())["model"]["merges"]]
# Numbered as CLIP does: bytes, bytes with the mark, merges, both ends.
order = sorted(alphabet) + [c + "</w>" for c in sorted(alphabet)]
order += [m for m in dict.fromkeys(a + b for a, b in merges) if m not in order]
order += ["<|startoftext|>", "<|endoftext|>"]
vocabulary = {text: i for i, text in enumerate(order)}
with open(f"{folder}/vocab.json", "w", encoding="utf-8") as f:
    json.dump(vocabulary, f, ensure_ascii=False)
with open(f"{folder}/merges.txt", "w", encoding="utf-8") as f:
    f.write("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))

reference = pipeline(models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>"))
texts = lines[:40] + [
    "", "   ", "  two  spaces\there ", "It's I'LL we've they're I'd don't 'tis ''s rock'n'roll",
    "route 66, 1234 567.89!!", "ÄÖÜ straße ÉCOLE Ñandú ŁÓDŹ", "ПРИВЕТ мир Ёлка", "ΑΒΓ δέλτα", "東京タワー 2階 ٣٤٥ Ⅳ ½ x²",
    "a\u00a0b\u2003c\u3000d", "❤️ red heart 👩‍🍳🏽 end", "<|endoftext|", "...!?!?'s #tag @me __init__", "ȺȾ ẞ Ⅷ ⓐ ªº",
    "cafe\u0301 A\u030angstro\u0308m s\u0323\u0307 q\u0307\u0323 \u1112\u1161\u11ab\u1100\u1173\u11af \u0958 \u212b\u2126",
    "e\u0323\u0302\u0301 \u0301e \u1e0b\u0323 \u1e9b\u0323 \u0344 \uac00\u11a7\u11a8 \u0b47\u0300\u0b3e",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" * 3,
    "grinningfacewithbigeyesgrinningfacewithbigeyesgrinningfacewithbigeyesgrinningfacewithbigeyes"]
with open(f"{folder}/texts", "w", encoding="utf-8") as f, open(f"{folder}/tokens", "w") as g:
    for text in texts:
        ids = [vocabulary["<|startoftext|>"]] + reference.encode(text).ids + [vocabulary["<|endoftext|>"]]
        f.write(text + "\n")
        g.write(" ".join(map(str, ids)) + "\n")
