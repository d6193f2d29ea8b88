/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What a translated kernel runs on: warps of 32 lanes in lock step, blocks of warps, shared memory,
 * barriers; every access is checked and, where asked for, counted.
 *
 * step() of the kernel does one basic block of one warp with the lanes that pick() chose.  A block of
 * instructions ends at a jump, an exit or a barrier; what lanes do together (shfl, vote) is a block of its
 * own, done once all members of its mask have come.  Lanes of one warp need not be together anywhere else:
 * since compute capability 7.0 each has its own place in the program.
 * Source: PTX ISA 9.0; CUDA C++ Programming Guide 13.0, "Independent Thread Scheduling".
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define POISON 0xA5A5A5A5A5A5A5A5ull /* what is read where nothing may be read */

enum { LANES = 32, RESIDENT = 6, MAX_FINDINGS = 64 };
enum { MOST_STEPS = 20000000 }; /* of one block of threads: more never ends */
enum { FIRST_TO_LAST, LAST_TO_FIRST, RANDOM };
enum { OUT_OF_BOUNDS, MISALIGNED, UNWRITTEN, RACE, RACE_OF_ONE_VALUE, BARRIER, TOGETHER, DIVISION, ENDLESS, KINDS };
enum { LOAD, STORE, ATOMIC, ACCESSES };
enum { SHFL_UP, SHFL_DOWN, SHFL_BFLY, SHFL_IDX };

/* Who touched a place last.  A thread is its number + 1; when is launch, barriers and warp barriers before. */
typedef struct {
    uint64_t written_when, read_when;
    uint32_t written_by, read_by;
} Shadow;

enum { BY_ATOMIC = 1u << 31, ALSO_OTHERS = 1u << 31, ALSO_OTHER_BLOCKS = 1u << 30, THREAD = ALSO_OTHER_BLOCKS - 1 };

/* What a kernel may touch: a part of an allocation.  Null pointers: not checked, not counted. */
typedef struct {
    uint64_t low, past;      /* addresses */
    uint64_t base, granule;  /* the allocation; bytes of one Shadow */
    uint8_t *written;        /* of each byte */
    Shadow *shadow;          /* of each granule */
    uint8_t *touched;        /* of each 32 bytes: 1 read, 2 written */
} Span;

typedef struct { uint32_t kind, line; uint64_t address, thread, other; } Finding;

typedef struct {
    uint64_t grid, block, order, seed, number, counting, races;
    const uint64_t *params;
    uint64_t spans;
    Span *span;
    uint64_t warp_instructions, thread_instructions, barriers;
    uint64_t requests[ACCESSES], sectors[ACCESSES], bytes[ACCESSES];
    uint64_t counts[KINDS];
    uint64_t findings;
    Finding finding[MAX_FINDINGS];
} Launch;

typedef struct {
    uint64_t index, live, waiting, phase, steps;
    Span shared;
    char *warps;
} Block;

typedef struct {
    Launch *L;
    Block *B;
    uint32_t first;                   /* thread of lane 0 in the block */
    uint32_t lanes, waiting, parked;  /* masks: alive, at a barrier, at an instruction done together */
    uint32_t syncs;                   /* warp barriers so far */
    uint32_t at[LANES], member[LANES];
} Warp;

static void step(Warp *w); /* of the kernel, as are these: */
static const uint64_t warp_size, shared_size;

static inline uint64_t thread_of(Warp *w, int lane) { return w->B->index * w->L->block + w->first + lane; }

static void found(Warp *w, int kind, int line, uint64_t address, int lane, uint64_t other) {
    Launch *L = w->L;
    L->counts[kind]++;
    for (uint64_t i = 0; i < L->findings; i++)
        if (L->finding[i].kind == (uint32_t)kind && L->finding[i].line == (uint32_t)line) return;
    if (L->findings < MAX_FINDINGS)
        L->finding[L->findings++] = (Finding){kind, line, address, thread_of(w, lane), other};
}

/* races */

static inline uint64_t now(Warp *w) { return w->L->number << 32 | (w->B->phase & 0xFFFF) << 16 | (w->syncs & 0xFFFF); }

/* True if a barrier stands between what `by` did and this access, or both are of one thread. */
static int ordered(Warp *w, uint64_t me, uint64_t by, uint64_t when) {
    uint64_t block = w->L->block, differs = when ^ now(w);
    if (me == by) return 1;
    if ((me - 1) / block != (by - 1) / block) return 0;
    if (differs >> 16) return 1;
    return differs && (me - 1) % block / LANES == (by - 1) % block / LANES;
}

static void race(Warp *w, Span *s, uint64_t a, int size, int how, int line, int lane, int same) {
    uint64_t me = thread_of(w, lane) + 1, block = w->L->block;
    for (uint64_t at = a; at < a + size; at += s->granule) {
        Shadow *t = &s->shadow[(at - s->base) / s->granule];
        uint64_t by = t->written_by & ~BY_ATOMIC, atomic = t->written_by & BY_ATOMIC;
        if (t->written_when >> 32 == w->L->number && !(how == ATOMIC && atomic) && !ordered(w, me, by, t->written_when))
            found(w, same && !atomic ? RACE_OF_ONE_VALUE : RACE, line, a, lane, by - 1);
        int read = t->read_when >> 32 == w->L->number;
        by = t->read_by & THREAD;
        if (how != LOAD) {
            if (read) {
                /* Of several readers the last is known, and that the others read after the same barrier. */
                int barrier = (by - 1) / block == (me - 1) / block && (t->read_when ^ now(w)) >> 16;
                int apart = t->read_by & ALSO_OTHERS ? !barrier : !ordered(w, me, by, t->read_when);
                if (apart || t->read_by & ALSO_OTHER_BLOCKS) found(w, RACE, line, a, lane, by - 1);
            }
            t->written_when = now(w), t->written_by = me | (how == ATOMIC ? BY_ATOMIC : 0);
            continue;
        }
        uint32_t others = 0;
        if (read) {
            others = t->read_by & ALSO_OTHER_BLOCKS;
            if ((by - 1) / block != (me - 1) / block) others |= ALSO_OTHER_BLOCKS;
            else if (!((t->read_when ^ now(w)) >> 16)) others |= (t->read_by & ALSO_OTHERS) | (by != me ? ALSO_OTHERS : 0);
        }
        t->read_when = now(w), t->read_by = me | others;
    }
}

/* accesses */

static inline Span *usable(Warp *w, Span *s, uint64_t a, int size, int line, int lane) {
    if (a % size == 0) return s;
    found(w, MISALIGNED, line, a, lane, 0);
    return 0;
}

static inline int inside(Span *s, uint64_t a, int size) { return a >= s->low && a <= s->past && s->past - a >= (uint64_t)size; }

/* Return the span that an access lies in, or null if it may not be done. */
static inline Span *global_span(Warp *w, uint64_t *hint, uint64_t a, int size, int line, int lane) {
    Launch *L = w->L;
    if (*hint >= L->spans || !inside(&L->span[*hint], a, size)) {
        uint64_t i = 0;
        while (i < L->spans && !inside(&L->span[i], a, size)) i++;
        if (i == L->spans) {
            found(w, OUT_OF_BOUNDS, line, a, lane, 0);
            return 0;
        }
        *hint = i;
    }
    return usable(w, &L->span[*hint], a, size, line, lane);
}

static inline uint64_t shared_base(Warp *w) { return w->B->shared.low; }

static inline Span *shared_span(Warp *w, uint64_t *hint, uint64_t a, int size, int line, int lane) {
    Span *s = &w->B->shared;
    (void)hint;
    if (inside(s, a, size)) return usable(w, s, a, size, line, lane);
    found(w, OUT_OF_BOUNDS, line, a - s->low, lane, 0);
    return 0;
}

static inline void must_be_written(Warp *w, Span *s, uint64_t a, int size, int line, int lane) {
    uint64_t written = 0;
    memcpy(&written, s->written + (a - s->base), size);
    if (written != 0x0101010101010101ull >> 8 * (8 - size)) found(w, UNWRITTEN, line, a, lane, 0);
}

static inline void loaded(Warp *w, Span *s, uint64_t a, int size, int line, int lane) {
    must_be_written(w, s, a, size, line, lane);
    if (s->touched) s->touched[(a - s->base) >> 5] |= 1;
    if (s->shadow) race(w, s, a, size, LOAD, line, lane, 0);
}

static inline void stored(Warp *w, Span *s, uint64_t a, const void *value, int size, int line, int lane) {
    if (s->shadow) race(w, s, a, size, STORE, line, lane, !memcmp((void *)a, value, size));
    if (s->touched) s->touched[(a - s->base) >> 5] |= 2;
    memset(s->written + (a - s->base), 1, size);
    memcpy((void *)a, value, size);
}

static inline void atomic(Warp *w, Span *s, uint64_t a, int size, int line, int lane) {
    must_be_written(w, s, a, size, line, lane);
    if (s->touched) s->touched[(a - s->base) >> 5] |= 3;
    if (s->shadow) race(w, s, a, size, ATOMIC, line, lane, 0);
}

/* Count one access of a warp to global memory: the sectors of 32 bytes that it asks for. */
static inline void request(Warp *w, const uint64_t *a, int n, int size, int how) {
    Launch *L = w->L;
    uint64_t sector[LANES];
    int sectors = 0;
    if (!L->counting || !n) return;
    for (int i = 0; i < n; i++) {
        int k = sectors;
        while (k > 0 && sector[k - 1] != a[i] >> 5) k--;
        if (!k) sector[sectors++] = a[i] >> 5;
    }
    L->requests[how]++, L->sectors[how] += sectors, L->bytes[how] += (uint64_t)n * size;
}

static inline void count(Warp *w, int instructions, int n) {
    w->L->warp_instructions += instructions, w->L->thread_instructions += (uint64_t)instructions * n;
}

/* lanes */

static inline void leave(Warp *w, int lane) { w->lanes &= ~(1u << lane), w->B->live--; }

static inline void arrive(Warp *w, int lane) { w->waiting |= 1u << lane, w->B->waiting++; }

static inline void gather(Warp *w, int lane, uint32_t members) { w->parked |= 1u << lane, w->member[lane] = members; }

/* Return the lanes of one mask that have all come to this block and may go on together; else 0. */
static uint32_t gathered_at(Warp *w, uint32_t block) {
    for (uint32_t m = w->parked; m; m &= m - 1) {
        int first = __builtin_ctz(m);
        uint32_t group = w->member[first] & w->lanes, come = 0;
        for (int l = 0; l < LANES; l++)
            if (w->parked >> l & 1 && w->at[l] == block && w->member[l] == w->member[first]) come |= 1u << l;
        if (w->at[first] == block && group >> first & 1 && come == group) return group;
    }
    return 0;
}

static inline uint32_t gathered(Warp *w, uint32_t block) {
    uint32_t group = gathered_at(w, block);
    w->parked &= ~group;
    return group;
}

/* True while a lane of the warp can go on. */
static inline int runs(Warp *w) {
    if (w->lanes & ~w->waiting & ~w->parked) return 1;
    for (uint32_t m = w->parked; m; m &= m - 1)
        if (gathered_at(w, w->at[__builtin_ctz(m)])) return 1;
    return 0;
}

static inline uint64_t random_of(uint64_t *state) {
    *state ^= *state << 13, *state ^= *state >> 7, *state ^= *state << 17;
    return *state;
}

/* Choose a basic block, *block, and list the lanes that stand there: the lowest, or in random order any. */
static int pick(Warp *w, uint32_t *block, uint8_t *lane) {
    uint32_t can = w->lanes & ~w->waiting & ~w->parked, low = ~0u;
    int n = 0;
    if (!can) { /* others left: what is done together may be complete now */
        uint32_t m = w->parked;
        while (!gathered_at(w, w->at[__builtin_ctz(m)])) m &= m - 1;
        *block = w->at[__builtin_ctz(m)];
        return 0;
    }
    if (w->L->order == RANDOM && !(random_of(&w->L->seed) & 3)) {
        uint64_t skip = random_of(&w->L->seed) % __builtin_popcount(can);
        uint32_t m = can;
        while (skip--) m &= m - 1;
        low = w->at[__builtin_ctz(m)];
    }
    if (low == ~0u)
        for (uint32_t m = can; m; m &= m - 1)
            if (w->at[__builtin_ctz(m)] < low) low = w->at[__builtin_ctz(m)];
    for (uint32_t m = can; m; m &= m - 1)
        if (w->at[__builtin_ctz(m)] == low) lane[n++] = __builtin_ctz(m);
    *block = low;
    return n;
}

/* blocks of threads */

static inline Warp *warp_of(Block *B, uint64_t i) { return (Warp *)(B->warps + i * warp_size); }

static inline uint64_t warps_of(Launch *L) { return (L->block + LANES - 1) / LANES; }

static void begin(Launch *L, Block *B, uint64_t index) {
    B->index = index, B->live = L->block, B->waiting = 0, B->phase = 0, B->steps = 0;
    memset((void *)B->shared.low, 0xA5, shared_size);
    memset(B->shared.written, 0, shared_size);
    if (B->shared.shadow) memset(B->shared.shadow, 0, (shared_size / 4 + 1) * sizeof(Shadow));
    for (uint64_t i = 0; i < warps_of(L); i++) {
        Warp *w = warp_of(B, i);
        uint64_t left = L->block - i * LANES;
        memset(w, 0xA5, warp_size); /* registers hold nothing of use */
        w->L = L, w->B = B, w->first = i * LANES, w->waiting = w->parked = w->syncs = 0;
        w->lanes = left >= LANES ? ~0u : (1u << left) - 1;
        memset(w->at, 0, sizeof w->at);
    }
}

static void stop(Block *B, int kind) {
    found(warp_of(B, 0), kind, 0, 0, 0, B->live);
    B->live = 0;
}

/* Let all go on that wait if nobody else is left; where no lane can ever go on, end the block. */
static void release(Launch *L, Block *B) {
    uint32_t at = ~0u, apart = 0;
    if (!B->live) return;
    if (B->waiting != B->live) {
        for (uint64_t i = 0; i < warps_of(L); i++)
            if (runs(warp_of(B, i))) return;
        stop(B, B->waiting ? BARRIER : TOGETHER);
        return;
    }
    for (uint64_t i = 0; i < warps_of(L); i++) {
        Warp *w = warp_of(B, i);
        for (uint32_t m = w->waiting; m; m &= m - 1) {
            if (at == ~0u) at = w->at[__builtin_ctz(m)];
            apart |= w->at[__builtin_ctz(m)] != at;
        }
        w->waiting = 0;
    }
    /* All threads of a block must come to the same barrier.  Source: PTX ISA 9.0, 9.7.13.1 (bar). */
    if (apart || B->live != L->block) found(warp_of(B, 0), BARRIER, 0, 0, 0, B->live);
    B->waiting = 0, B->phase++, L->barriers++;
}

static void step_counted(Block *B, Warp *w) {
    if (++B->steps > MOST_STEPS) stop(B, ENDLESS);
    else step(w);
}

static void run_in_turn(Launch *L, Block *B) {
    uint64_t warps = warps_of(L);
    while (B->live) {
        for (uint64_t i = 0; i < warps; i++) {
            Warp *w = warp_of(B, L->order == LAST_TO_FIRST ? warps - 1 - i : i);
            while (B->live && runs(w)) step_counted(B, w);
        }
        release(L, B);
    }
}

/* One step of any warp of the block that can go on. */
static void run_at_random(Launch *L, Block *B) {
    uint64_t warps = warps_of(L), first = random_of(&L->seed) % warps, i = 0;
    while (i < warps && !runs(warp_of(B, (first + i) % warps))) i++;
    if (i < warps) step_counted(B, warp_of(B, (first + i) % warps));
    else release(L, B);
}

void launch(Launch *L) {
    uint64_t resident = L->order == RANDOM && L->grid > 1 ? L->grid < RESIDENT ? L->grid : RESIDENT : 1, next = 0, live = 0;
    Block *blocks = calloc(resident, sizeof *blocks);
    L->seed = L->seed * 2654435761u + 88172645463325252u;
    for (uint64_t i = 0; i < resident; i++) {
        Span *s = &blocks[i].shared;
        blocks[i].warps = malloc(warps_of(L) * warp_size);
        s->low = s->base = (uint64_t)aligned_alloc(16, shared_size / 16 * 16 + 16), s->past = s->low + shared_size;
        s->granule = 4, s->written = malloc(shared_size + 1);
        if (L->races) s->shadow = malloc((shared_size / 4 + 1) * sizeof(Shadow));
    }
    if (L->order != RANDOM)
        for (; next < L->grid; next++) {
            begin(L, &blocks[0], L->order == LAST_TO_FIRST ? L->grid - 1 - next : next);
            run_in_turn(L, &blocks[0]);
        }
    /* In random order several blocks run at once, taken from both ends of the grid. */
    for (uint64_t low = 0, past = L->grid; L->order == RANDOM && (low < past || live);) {
        Block *B = &blocks[random_of(&L->seed) % resident];
        if (B->live) {
            run_at_random(L, B);
            live -= !B->live;
        } else if (low < past) {
            begin(L, B, random_of(&L->seed) & 1 ? low++ : --past);
            live++;
        }
    }
    for (uint64_t i = 0; i < resident; i++) {
        free((void *)blocks[i].shared.low), free(blocks[i].shared.written), free(blocks[i].shared.shadow);
        free(blocks[i].warps);
    }
    free(blocks);
}

/* arithmetic that C has no operator for */

static inline uint64_t shl_unsigned(uint64_t v, uint32_t by, int bits) { return by < (uint32_t)bits ? v << by : 0; }
static inline uint64_t shr_unsigned(uint64_t v, uint32_t by, int bits) { return by < (uint32_t)bits ? v >> by : 0; }
static inline int64_t shr_signed(int64_t v, uint32_t by, int bits) { return v >> (by < (uint32_t)bits ? by : (uint32_t)bits - 1); }

#define MUL_HI(type, ctype, wide, bits) \
    static inline ctype mul_hi_##type(ctype a, ctype b) { return (ctype)((wide)a * (wide)b >> bits); }
MUL_HI(u16, uint16_t, uint64_t, 16)
MUL_HI(s16, int16_t, int64_t, 16)
MUL_HI(u32, uint32_t, uint64_t, 32)
MUL_HI(s32, int32_t, int64_t, 32)
MUL_HI(u64, uint64_t, unsigned __int128, 64)
MUL_HI(s64, int64_t, __int128, 64)

/* What dividing by zero gives is not defined: it is found, and all bits are set. */
#define DIVIDE(type, ctype, signed_) \
    static inline ctype div_##type(Warp *w, int line, int lane, ctype a, ctype b) { \
        if (!b) return found(w, DIVISION, line, 0, lane, 0), (ctype)-1; \
        return signed_ && b == (ctype)-1 ? (ctype)(0 - (uint64_t)a) : (ctype)(a / b); \
    } \
    static inline ctype rem_##type(Warp *w, int line, int lane, ctype a, ctype b) { \
        if (!b) return found(w, DIVISION, line, 0, lane, 0), (ctype)-1; \
        return signed_ && b == (ctype)-1 ? 0 : (ctype)(a % b); \
    }
DIVIDE(u16, uint16_t, 0)
DIVIDE(s16, int16_t, 1)
DIVIDE(u32, uint32_t, 0)
DIVIDE(s32, int32_t, 1)
DIVIDE(u64, uint64_t, 0)
DIVIDE(s64, int64_t, 1)

static inline uint32_t popc_u32(uint32_t v) { return __builtin_popcount(v); }
static inline uint32_t popc_u64(uint64_t v) { return __builtin_popcountll(v); }
static inline uint32_t clz_u32(uint32_t v) { return v ? __builtin_clz(v) : 32; }
static inline uint32_t clz_u64(uint64_t v) { return v ? __builtin_clzll(v) : 64; }
static inline uint64_t brev_u64(uint64_t v) {
    uint64_t out = 0;
    for (int i = 0; i < 64; i++) out |= (v >> i & 1) << (63 - i);
    return out;
}
static inline uint32_t brev_u32(uint32_t v) { return (uint32_t)(brev_u64(v) >> 32); }

/* The place of the highest bit that differs from the sign; all bits set if there is none. */
static inline uint32_t bfind_u64(uint64_t v) { return v ? 63 - __builtin_clzll(v) : ~0u; }
static inline uint32_t bfind_u32(uint32_t v) { return bfind_u64(v); }
static inline uint32_t bfind_s64(int64_t v) { return bfind_u64(v < 0 ? ~v : v); }
static inline uint32_t bfind_s32(int32_t v) { return bfind_s64(v); }
static inline uint32_t bfind_shiftamt_u64(uint64_t v) { return v ? 63 - bfind_u64(v) : ~0u; }
static inline uint32_t bfind_shiftamt_u32(uint32_t v) { return v ? 31 - bfind_u32(v) : ~0u; }
static inline uint32_t bfind_shiftamt_s64(int64_t v) { return bfind_shiftamt_u64(v < 0 ? ~v : v); }
static inline uint32_t bfind_shiftamt_s32(int32_t v) { return bfind_shiftamt_u32(v < 0 ? ~v : v); }

static inline uint64_t bfe_field(uint64_t v, uint32_t at, uint32_t length, int bits, int sign) {
    uint64_t out = 0;
    for (int i = 0; i < bits; i++)
        out |= (uint64_t)((uint32_t)i < length && at + i < (uint32_t)bits ? v >> (at + i) & 1 : (uint64_t)sign) << i;
    return out;
}
static inline uint64_t bfe(uint64_t v, uint32_t at, uint32_t length, int bits) { return bfe_field(v, at, length, bits, 0); }
static inline uint64_t bfe_signed(uint64_t v, uint32_t at, uint32_t length, int bits) {
    uint32_t top = at + length - 1 < (uint32_t)bits ? at + length - 1 : (uint32_t)bits - 1;
    return bfe_field(v, at, length, bits, length ? v >> top & 1 : 0);
}
static inline uint64_t bfi(uint64_t v, uint64_t into, uint32_t at, uint32_t length, int bits) {
    for (uint32_t i = 0; i < length && at + i < (uint32_t)bits; i++)
        into = (into & ~(1ull << (at + i))) | (v >> i & 1) << (at + i);
    return into;
}

static inline uint32_t lop3(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
    uint32_t out = 0;
    for (int i = 0; i < 32; i++) out |= (table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1)) & 1) << i;
    return out;
}

static inline uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector) {
    uint64_t bytes = (uint64_t)b << 32 | a;
    uint32_t out = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t select = selector >> 4 * i, byte = bytes >> 8 * (select & 7) & 0xFF;
        if (select & 8) byte = byte & 0x80 ? 0xFF : 0;
        out |= byte << 8 * i;
    }
    return out;
}

/* Return the lane that shfl reads, and in *ok whether it is within bounds. */
static inline int shuffled(int kind, int lane, uint32_t by, uint32_t clamp, int *ok) {
    int segment = clamp >> 8 & 31, limit = clamp & 31, b = by & 31;
    int lowest = lane & segment, highest = (lane & segment) | (limit & ~segment), j = 0;
    switch (kind) {
    case SHFL_UP: j = lane - b, *ok = j >= highest; break;
    case SHFL_DOWN: j = lane + b, *ok = j <= highest; break;
    case SHFL_BFLY: j = lane ^ b, *ok = j <= highest; break;
    default: j = lowest | (b & ~segment), *ok = j <= highest;
    }
    return *ok ? j : lane;
}
