/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The walk of 4 KiB pages that are present or not, in C: what of a gap is numba's.  It goes down to the leaf
 * table for each 2 MiB, as the CPU back end does, and stores the words past the caches.
 *
 * Bits of entries and words: gpuhmm/mm/x86.py, gpuhmm/hmm/words.py.
 */
#include <emmintrin.h>
#include <stdint.h>

typedef uint64_t words __attribute__((vector_size(64), aligned(8)));

#define PRESENT 1ull
#define RW 2ull
#define PFN 0x000ffffffffff000ull
#define VALID 63
#define AHEAD 128

/* Rows are those of PageTables.child: of the table behind an entry; level 4 is row 0. */
static const uint64_t *leaf_of(const int32_t *child, const uint64_t *leaf, uint64_t va)
{
	int64_t row = 0;

	for (int shift = 39; shift > 12; shift -= 9)
		row = child[row * 512 + (va >> shift & 511)];
	return leaf + row * 512;
}

/* Write the words of slots [first, past) of 2 MiB from va on; out[0] is the first of slot 0, at a multiple of 16. */
void plain_walk(const int32_t *child, const uint64_t *leaf, uint64_t va, uint64_t *out, uint64_t first,
		uint64_t past)
{
	for (uint64_t slot = first; slot < past; slot++) {
		const uint64_t *entries = leaf_of(child, leaf, va + (slot << 21));
		uint64_t *target = out + slot * 512;

		for (int i = 0; i < 512; i += 8) {
			__builtin_prefetch(entries + i + AHEAD, 0, 0);
			words pte = *(const words *)(entries + i);
			words there = pte & -(pte & PRESENT);
			words line = (there & PFN) >> 12 | (there & RW) << 61 | there << VALID;

			for (int half = 0; half < 8; half += 2)
				_mm_stream_si128((__m128i *)(target + i + half),
						 _mm_set_epi64x(line[half + 1], line[half]));
		}
	}
	_mm_sfence();
}
