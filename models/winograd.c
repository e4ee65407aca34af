/* 3x3 convolutions of stride 1, padded with zeros, by Winograd's minimal filtering: see winograd.py, which lays the
   weights out. A tile of 2x2 pixels of the output is made of 4x4 of the input: sums and differences of those, one
   product of matrices for each of the 16 places of a tile, sums and differences of the products. A thread works off
   TILES tiles at a time, so that all between is in its cache.

   Tensors are channels-last and dense, but for `out`, whose pixels may lie further apart. Built where there are
   instructions that make it pay. */

#include <stdint.h>
#include <string.h>

#ifdef FLOAT32
typedef float value;
#else
typedef uint16_t value;
#endif

#if defined FLOAT32 && defined __AVX2__ && defined __FMA__ || defined __AVX512BF16__ && defined __AVX512VL__
#include <immintrin.h>
#include <omp.h>

#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif
#define UNIT 16  /* outputs: of weights, a multiple of this */
#define BLOCK 48 /* outputs that are worked off at a time */
#define TILES 24 /* divided by each count of rows in PRODUCT */
#define PLACES 16
#define PRAGMA(words) _Pragma(#words)
#define UNROLL(n) PRAGMA(GCC unroll n)
#define INLINE static inline __attribute__((always_inline))

typedef float vector __attribute__((vector_size(4 * LANES)));
typedef int32_t bits __attribute__((vector_size(4 * LANES)));

INLINE vector floats(const float *from) {
    vector v;
    memcpy(&v, from, sizeof v);
    return v;
}

#ifdef FLOAT32
#define DEEP 1 /* channels that one instruction multiplies and sums */
INLINE vector load(const value *from) { return floats(from); }
INLINE void store(value *to, vector v) { memcpy(to, &v, sizeof v); }
INLINE vector weigh(vector sum, const value *x, const value *weights) { return sum + *x * floats(weights); }
#else
#define DEEP 2
INLINE vector load(const value *from) {
    __m256i halves = _mm256_loadu_si256((const __m256i *)from);
    return (vector)_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
}
INLINE void store(value *to, vector v) {
    __m256bh halves = _mm512_cvtneps_pbh((__m512)v);
    memcpy(to, &halves, sizeof halves);
}
INLINE vector weigh(vector sum, const value *x, const value *weights) {
    int32_t two;
    memcpy(&two, x, sizeof two);
    __m512bh pair = (__m512bh)_mm512_set1_epi32(two), w = (__m512bh)_mm512_loadu_si512(weights);
    return (vector)_mm512_dpbf16_ps((__m512)sum, pair, w);
}
#endif

/* The values from `first` to `last` of a vector. */
INLINE void store_some(value *to, vector v, long first, long last) {
    if (last - first == LANES) {
        store(to, v);
        return;
    }
    value all[LANES];
    store(all, v);
    memcpy(to + first, all + first, (last - first) * sizeof(value));
}

INLINE vector load_some(const value *from, long count) {
    if (count == LANES) return load(from);
    value all[LANES] = {0};
    memcpy(all, from, count * sizeof(value));
    return load(all);
}

/* out (TILES x wide) = x (TILES x channels) times weights (channels x wide); some rows and vectors at a time, whose sums
   stay in registers. */
#define PRODUCT(name, wide, rows, vectors)                                                         \
    static void name(const value *x, const value *weights, long channels, float *out) {            \
        for (long t = 0; t < TILES; t += rows)                                                     \
            for (long first = 0; first < wide; first += vectors * LANES) {                         \
                vector sums[rows][vectors] = {{{0}}};                                              \
                const value *from = x + t * channels, *w = weights + first * DEEP;                 \
                for (long c = 0; c < channels; c += DEEP, w += wide * DEEP)                        \
                    UNROLL(12) for (int i = 0; i < rows; i++)                                      \
                        UNROLL(6) for (int k = 0; k < vectors; k++)                                \
                            sums[i][k] = weigh(sums[i][k], from + i * channels + c, w + k * LANES * DEEP); \
                for (int i = 0; i < rows; i++)                                                     \
                    memcpy(out + (t + i) * wide + first, sums[i], sizeof sums[i]);                 \
            }                                                                                      \
    }
#ifdef __AVX512F__ /* 32 registers */
PRODUCT(product1, UNIT, 12, 1)
PRODUCT(product2, (2 * UNIT), 12, 2)
PRODUCT(product3, BLOCK, 8, 3)
#else /* 16 of half the size */
PRODUCT(product1, UNIT, 6, 2)
PRODUCT(product2, (2 * UNIT), 6, 2)
PRODUCT(product3, BLOCK, 6, 2)
#endif

/* A tile as the products read it, place by place; `step` values from one to the next. Its first pixel is the one above
   and left of (y, x); pixels beyond the frame, of `rows` and `columns`, are read from `zeros`. */
static void spread(const value *frame, value *out, const value *zeros, long y, long x, long rows, long columns,
                   long channels, long step) {
    const value *at[4][4];
    for (long r = 0; r < 4; r++)
        for (long k = 0; k < 4; k++) {
            long row = y - 1 + r, column = x - 1 + k;
            int inside = row >= 0 && row < rows && column >= 0 && column < columns;
            at[r][k] = inside ? frame + (row * columns + column) * channels : zeros;
        }
    for (long first = 0; first < channels; first += LANES) {
        /* The last vector begins earlier, so that nothing is read beyond the tensor. */
        long c = first + LANES > channels ? channels - LANES : first;
        vector d[4][4];
        UNROLL(4)
        for (int k = 0; k < 4; k++) {
            vector upper = load(at[0][k] + c), second = load(at[1][k] + c);
            vector third = load(at[2][k] + c), lower = load(at[3][k] + c);
            d[0][k] = upper - third, d[1][k] = second + third, d[2][k] = third - second, d[3][k] = second - lower;
        }
        value *to = out + c;
        UNROLL(4)
        for (int r = 0; r < 4; r++, to += 4 * step) {
            store(to, d[r][0] - d[r][2]);
            store(to + step, d[r][1] + d[r][2]);
            store(to + 2 * step, d[r][2] - d[r][1]);
            store(to + 3 * step, d[r][1] - d[r][3]);
        }
    }
}

/* Of the products of a tile, `step` values from one place to the next, 2x2 pixels of the output. */
INLINE void gather(vector pixels[4], const float *products, long step) {
    vector d[2][4];
    UNROLL(4)
    for (int k = 0; k < 4; k++) {
        vector upper = floats(products + k * step), second = floats(products + (4 + k) * step);
        vector third = floats(products + (8 + k) * step), lower = floats(products + (12 + k) * step);
        d[0][k] = upper + second + third, d[1][k] = second - third - lower;
    }
    for (int r = 0; r < 2; r++) {
        pixels[2 * r] = d[r][0] + d[r][1] + d[r][2];
        pixels[2 * r + 1] = d[r][1] - d[r][2] - d[r][3];
    }
}

/* out = PReLU(convolution + bias + add), and in `tail` its last channels. With `doubled` it is a transposed convolution:
   of a 2x2 square of the output each pixel has weights of its own, one after the other. x has channels >= LANES, an even
   number; `spaces` and `products` are room for each thread to work in. */
void winograd(const value *x, const value *weights, const float *bias, const float *slope, const value *add, value *out,
              long out_width, value *tail, long tail_width, value *spaces, float *products, long count, long rows,
              long columns, long channels, long outputs, long doubled, int threads) {
    long across = (columns + 1) / 2, down = (rows + 1) / 2, total = count * down * across, growth = 1 + doubled;
    long padded = (outputs + UNIT - 1) / UNIT * UNIT, head = outputs - tail_width, step = TILES * channels;
    value zeros[channels];
    memset(zeros, 0, sizeof zeros);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (long first = 0; first < total; first += TILES) {
        long tiles = total - first < TILES ? total - first : TILES;
        struct {
            long n, y, x;
        } at[TILES];
        value *space = spaces + omp_get_thread_num() * PLACES * step;
        float *product = products + omp_get_thread_num() * PLACES * TILES * BLOCK;
        for (long t = 0; t < tiles; t++) {
            long line = (first + t) / across;
            at[t].n = line / down, at[t].y = 2 * (line % down), at[t].x = 2 * ((first + t) % across);
            const value *frame = x + at[t].n * rows * columns * channels;
            spread(frame, space + t * channels, zeros, at[t].y, at[t].x, rows, columns, channels, step);
        }
        const value *w = weights;
        for (long square = 0; square < growth * growth; square++)
            for (long block = 0, wide; block < padded; block += wide) {
                long lower = square / 2, right = square % 2;
                wide = padded - block < BLOCK ? padded - block : BLOCK;
                for (int place = 0; place < PLACES; place++) {
                    const value *from = space + place * step;
                    float *to = product + place * TILES * wide;
                    /* Of a kernel of 2x2 a row and a column are zero, and so are places of its tiles. */
                    if (doubled && (place / 4 == 3 * !lower || place % 4 == 3 * !right)) {
                        memset(to, 0, TILES * wide * sizeof(float));
                        continue;
                    }
                    if (wide == BLOCK) product3(from, w, channels, to);
                    else if (wide == 2 * UNIT) product2(from, w, channels, to);
                    else product1(from, w, channels, to);
                    w += channels * wide;
                }
                for (long t = 0; t < tiles; t++)
                    for (long k = 0; k < wide && block + k < outputs; k += LANES) {
                        long c = block + k, some = outputs - c < LANES ? outputs - c : LANES;
                        vector pixels[4], b = floats(bias + c), bent = floats(slope + c);
                        gather(pixels, product + t * wide + k, TILES * wide);
                        for (int i = 0; i < 4; i++) {
                            long row = at[t].y + i / 2, column = at[t].x + i % 2;
                            if (row >= rows || column >= columns) continue;
                            row = (at[t].n * rows + row) * growth + lower;
                            long pixel = row * columns * growth + column * growth + right;
                            vector v = pixels[i] + b;
                            if (add) v += load_some(add + pixel * outputs + c, some);
                            vector positive = (vector)((v > 0) & (bits)v);
                            v = positive + (v - positive) * bent;
                            store_some(out + pixel * out_width + c, v, 0, some);
                            if (c + some > head)
                                store_some(tail + pixel * tail_width + c - head, v, c < head ? head - c : 0, some);
                        }
                    }
            }
    }
}
#endif
