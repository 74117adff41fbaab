"""What the pieces of a vocabulary spell, in UTF-8: those of CLIP, of Qwen, and of SentencePiece (T5, UMT5, Gemma)."""

from __future__ import annotations

import re

#: Ends the last piece of a word in CLIP's vocabulary.
END_OF_WORD = "</w>"
#: Stands for a space in SentencePiece's, where single bytes have names.
SPACE, BYTE = "\u2581", re.compile(r"<0x([0-9A-F]{2})>")
#: The text of a piece for all characters that a vocabulary does not have: no byte of UTF-8.
UNKNOWN = b"\xff"

#: Bytes that stand for themselves in byte pairs; the others have the characters from 256 on, in order.
_PLAIN = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTES = {chr(byte): byte for byte in _PLAIN}
_BYTES |= {chr(256 + i): byte for i, byte in enumerate(byte for byte in range(256) if byte not in _PLAIN)}


def byte_pairs(piece: str) -> bytes:
    """Qwen's."""
    return b"".join(bytes([_BYTES[one]]) if one in _BYTES else one.encode() for one in piece)


def clip_pieces(piece: str) -> bytes:
    """CLIP's, with a space after each word."""
    return byte_pairs(piece.removesuffix(END_OF_WORD)) + (b" " if piece.endswith(END_OF_WORD) else b"")


def sentence_pieces(piece: str) -> bytes:
    """SentencePiece's."""
    if piece == "<unk>":
        return UNKNOWN
    byte = BYTE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(SPACE, " ").encode()
