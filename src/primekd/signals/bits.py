"""Streams of bits: non-negative integers end to end, written and read with numpy, many at a time.

Of a width that the reader knows (`raw`); small ones as so many zeros and a one (`unary`); of unknown size, from 1 on,
in 2 * floor(log2 n) + 1 bits (`gamma`: Elias 1975, doi 10.1109/TIT.1975.1055349), all widths of a call in front."""

import numpy as np


def floor_log2(values: np.ndarray) -> np.ndarray:
    """floor(log2 n) of integers from 1 to 2^53, exactly on every machine (a logarithm may round)."""
    return np.frexp(values)[1].astype(np.int64) - 1


def raw(values: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Each value in so many bits, the highest one first: (bits,) uint8, as of the others."""
    below = np.repeat(np.cumsum(widths), widths) - np.arange(widths.sum()) - 1  # how many bits of the same value follow
    return ((np.repeat(values, widths) >> below) & 1).astype(np.uint8)


def unary(values: np.ndarray) -> np.ndarray:
    """Each value n as n zeros and a one."""
    bits = np.zeros(values.sum() + len(values), np.uint8)
    bits[np.cumsum(values + 1) - 1] = 1
    return bits


def gamma(values: np.ndarray) -> np.ndarray:
    """Each value, 1 or more, as its width and the bits below its highest one."""
    widths = floor_log2(values)
    return np.concatenate([unary(widths), raw(values - (1 << widths), widths)])


class BitReader:
    """Reads back what `np.packbits` made, call by call: `count` values, or one a width. ValueError for a wrong end."""

    def __init__(self, stream: np.ndarray):
        self._bits = np.unpackbits(stream)
        self._at = 0

    def raw(self, widths: np.ndarray) -> np.ndarray:
        starts = self._at + np.cumsum(widths) - widths
        self._at += int(widths.sum())
        if self._at > len(self._bits):
            raise ValueError("the stream of bits ends too early")
        values = np.zeros(len(widths), np.int64)
        for place in range(int(widths.max(initial=0))):
            there = place < widths
            values[there] = (values[there] << 1) | self._bits[starts[there] + place]
        return values

    def unary(self, count: int) -> np.ndarray:
        ones = np.flatnonzero(self._bits[self._at :])[:count]
        if len(ones) < count:
            raise ValueError("the stream of bits ends too early")
        self._at += int(ones[-1]) + 1 if count else 0
        return np.diff(ones, prepend=-1) - 1

    def gamma(self, count: int) -> np.ndarray:
        widths = self.unary(count)
        if widths.max(initial=0) > 62:
            raise ValueError("the stream of bits holds a number that is too large")
        return (1 << widths) + self.raw(widths)

    def finish(self) -> None:
        """Checks that nothing but the filling of the last byte is left."""
        rest = self._bits[self._at :]
        if len(rest) > 7 or rest.any():
            raise ValueError("the stream of bits goes on after its end")
