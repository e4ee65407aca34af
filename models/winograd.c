/* 3x3 convolutions of stride 1, padded with zeros, by Winograd's minimal filtering: see winograd.py, which lays the
   weights out. A tile of PIXELS x PIXELS pixels of the output is computed from SIDE x SIDE of the input: sums and
   differences of those, one matrix product for each of the places of a tile, sums and differences of the products. A
   thread computes TILES tiles at a time, so that intermediate values stay in its cache.

   Tensors are channels-last and dense, except `out`, whose pixels may lie further apart. Built only where there are
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
int omp_get_thread_num(void); /* not all compilers that know OpenMP bring its header */

#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif
#define UNIT 16  /* the outputs of the weights are a multiple of this */
#define BLOCK 48 /* outputs that are computed at a time */
#define TILES 24 /* a multiple of `rows` in every PRODUCT */
#define PLACES (SIDE * SIDE)
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
#define PIXELS 4
#define SIDE 6
#define DEEP 1 /* channels that one instruction multiplies and sums */
INLINE vector load(const value *from) { return floats(from); }
INLINE void store(value *to, vector v) { memcpy(to, &v, sizeof v); }
INLINE vector weigh(vector sum, const value *x, const value *weights) { return sum + *x * floats(weights); }

/* B' and A' of winograd.py, applied to a row or a column of a tile. */
INLINE void spread_line(vector out[SIDE], const vector x[SIDE]) {
    vector even = x[4] - 4.0f * x[2], odd = x[3] - 4.0f * x[1], even2 = x[4] - x[2], odd2 = 2.0f * (x[3] - x[1]);
    out[0] = 4.0f * x[0] - 5.0f * x[2] + x[4];
    out[1] = even + odd, out[2] = even - odd;
    out[3] = even2 + odd2, out[4] = even2 - odd2;
    out[5] = 4.0f * x[1] - 5.0f * x[3] + x[5];
}
INLINE void gather_line(vector out[PIXELS], const vector x[SIDE]) {
    vector even = x[1] + x[2], odd = x[1] - x[2], even2 = x[3] + x[4], odd2 = x[3] - x[4];
    out[0] = x[0] + even + even2;
    out[1] = odd + 2.0f * odd2;
    out[2] = even + 4.0f * even2;
    out[3] = odd + 8.0f * odd2 + x[5];
}
#else
#define PIXELS 2
#define SIDE 4
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
INLINE void spread_line(vector out[SIDE], const vector x[SIDE]) {
    out[0] = x[0] - x[2], out[1] = x[1] + x[2], out[2] = x[2] - x[1], out[3] = x[1] - x[3];
}
INLINE void gather_line(vector out[PIXELS], const vector x[SIDE]) {
    out[0] = x[0] + x[1] + x[2], out[1] = x[1] - x[2] - x[3];
}
#endif

/* Stores the values from `first` up to `last` of a vector. */
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

/* Transforms a tile for the products, place by place; `step` values from one to the next. Its first pixel is the one
   above and left of (y, x); pixels beyond the frame, of `rows` and `columns`, are read from `zeros`. */
static void spread(const value *frame, value *out, const value *zeros, long y, long x, long rows, long columns,
                   long channels, long step) {
    const value *at[SIDE][SIDE];
    for (long r = 0; r < SIDE; r++)
        for (long k = 0; k < SIDE; k++) {
            long row = y - 1 + r, column = x - 1 + k;
            int inside = row >= 0 && row < rows && column >= 0 && column < columns;
            at[r][k] = inside ? frame + (row * columns + column) * channels : zeros;
        }
    for (long first = 0; first < channels; first += LANES) {
        /* The last vector begins earlier, so that nothing is read beyond the tensor. */
        long c = first + LANES > channels ? channels - LANES : first;
        vector lines[SIDE][SIDE];
        UNROLL(6)
        for (int r = 0; r < SIDE; r++) {
            vector line[SIDE];
            UNROLL(6)
            for (int k = 0; k < SIDE; k++) line[k] = load(at[r][k] + c);
            spread_line(lines[r], line);
        }
        UNROLL(6)
        for (int k = 0; k < SIDE; k++) {
            vector line[SIDE], places[SIDE];
            UNROLL(6)
            for (int r = 0; r < SIDE; r++) line[r] = lines[r][k];
            spread_line(places, line);
            UNROLL(6)
            for (int r = 0; r < SIDE; r++) store(out + (r * SIDE + k) * step + c, places[r]);
        }
    }
}

/* The pixels of the output from the products of a tile, `step` values from one place to the next. */
INLINE void gather(vector pixels[PIXELS][PIXELS], const float *products, long step) {
    vector lines[PIXELS][SIDE];
    UNROLL(6)
    for (int k = 0; k < SIDE; k++) {
        vector line[SIDE], sums[PIXELS];
        UNROLL(6)
        for (int r = 0; r < SIDE; r++) line[r] = floats(products + (r * SIDE + k) * step);
        gather_line(sums, line);
        UNROLL(6)
        for (int r = 0; r < PIXELS; r++) lines[r][k] = sums[r];
    }
    UNROLL(6)
    for (int r = 0; r < PIXELS; r++) gather_line(pixels[r], lines[r]);
}

/* out = PReLU(convolution + bias + add), and in `tail` its last channels. With `doubled` it is a transposed
   convolution: each pixel of a 2x2 square of the output has weights of its own, one set after the other. x has an even
   number of channels, LANES or more; `spaces` and `products` hold the intermediate values of every thread. */
void winograd(const value *x, const value *weights, const float *bias, const float *slope, const value *add, value *out,
              long out_width, value *tail, long tail_width, value *spaces, float *products, long count, long rows,
              long columns, long channels, long outputs, long doubled, int threads) {
    long across = (columns + PIXELS - 1) / PIXELS, down = (rows + PIXELS - 1) / PIXELS, total = count * down * across;
    long padded = (outputs + UNIT - 1) / UNIT * UNIT, head = outputs - tail_width;
    long growth = 1 + doubled, step = TILES * channels;
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
            at[t].n = line / down, at[t].y = PIXELS * (line % down), at[t].x = PIXELS * ((first + t) % across);
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
                    /* A kernel of 2x2 has a row and a column of zeros, and so have its transformed weights. */
                    if (doubled && (place / SIDE == (SIDE - 1) * !lower || place % SIDE == (SIDE - 1) * !right)) {
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
                        vector pixels[PIXELS][PIXELS], b = floats(bias + c), bent = floats(slope + c);
                        gather(pixels, product + t * wide + k, TILES * wide);
                        for (int i = 0; i < PIXELS * PIXELS; i++) {
                            long row = at[t].y + i / PIXELS, column = at[t].x + i % PIXELS;
                            if (row >= rows || column >= columns) continue;
                            row = (at[t].n * rows + row) * growth + lower;
                            long pixel = row * columns * growth + column * growth + right;
                            vector v = pixels[i / PIXELS][i % PIXELS] + b;
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
